"""Parameters of the tokenizer's networks as its file holds them: by slash-joined name."""

from collections.abc import Callable

import jax
import numpy as np


def flat(params: dict) -> dict[str, np.ndarray]:
  """Nested parameters, as flax keeps them, by slash-joined name: {"hidden/kernel": …}."""
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  return {"/".join(part.key for part in path): leaf for path, leaf in leaves}


def nested(params: dict[str, np.ndarray]) -> dict:
  """What `flat` took apart. Names must have two parts, a module and a leaf."""
  found: dict = {}
  for name, leaf in params.items():
    module, leaf_name = name.split("/")
    found.setdefault(module, {})[leaf_name] = leaf
  return found


def content_width(
  params: dict[str, np.ndarray], reader: str, shapes_of: Callable[[int], dict]
) -> int:
  """Width of the vectors that a saved network takes; 0 where its parameters are not whole.

  Args:
    params: by slash-joined name, as read from a file.
    reader: the layer that reads the vectors.
    shapes_of: names and shapes that a network for vectors of a width must have.
  """
  # A kernel is [in, out], so the first axis is the vectors' width. It is only believed where all
  # other shapes follow from it.
  kernel = params.get(f"{reader}/kernel", np.zeros(0))
  if not kernel.size or {name: value.shape for name, value in params.items()} != shapes_of(
    len(kernel)
  ):
    return 0
  return len(kernel)
