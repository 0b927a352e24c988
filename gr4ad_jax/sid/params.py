"""Parameters of the tokenizer's networks as its file holds them: by slash-joined name."""

import jax
import numpy as np


def flat(params: dict) -> dict[str, np.ndarray]:
  """Nested parameters by slash-joined name."""
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  return {"/".join(part.key for part in path): leaf for path, leaf in leaves}


def nested(params: dict[str, np.ndarray]) -> dict:
  """What `flat` took apart; names of a module and a leaf."""
  found: dict = {}
  for name, leaf in params.items():
    module, leaf_name = name.split("/")
    found.setdefault(module, {})[leaf_name] = leaf
  return found
