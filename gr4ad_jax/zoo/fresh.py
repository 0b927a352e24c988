"""Fresh parameters of a model of requests."""

import functools
from typing import Any

import flax.linen as nn
import jax

from gr4ad_jax.config import DataConfig
from gr4ad_jax.features.batches import zero_batch
from gr4ad_jax.zoo.items import ItemModel


# Compiled, so that equal models of a process are traced once, for their shapes and their values.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def params(model: nn.Module, data: DataConfig, levels: int, key: jax.Array) -> Any:
  """Parameters boxed with their logical axes.

  Args:
    model: the module. It is hashed, as flax modules are, with its attributes.
    data: gives the shapes of a batch.
    levels: codes of a UA-SID.
    key: of the randomness.
  """
  batch = zero_batch(data, levels)
  sequences = () if isinstance(model, ItemModel) else (batch.target_codes_BMT,)
  return model.init(key, batch, *sequences)["params"]
