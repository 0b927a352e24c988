"""From parameters to masks: one compiled pass, batches of one size."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.btdnet.model import BTDNet, target_logit
from gr4ad_jax.scenes.referring import Encoded
from gr4ad_jax.segmentation.metrics import Counts, count

BATCH = 32  # sentences in a pass


class Predictor:
  """Masks by a model.

  Args:
    model: its parameters are given with each call.
  """

  def __init__(self, model: BTDNet):
    self._pass = jax.jit(functools.partial(_probability, model))

  def probability(
    self, params: Any, image_BHW3: np.ndarray, tokens_BN: np.ndarray, mask_BN: np.ndarray
  ) -> np.ndarray:
    """Probability that each pixel is the target's: [B, H, W] float32. Any B; padded to BATCH's
    multiple.
    """
    # One alone is a program of its own.
    # A batch of another size would be compiled anew, so the last one is filled up.
    pad = -len(image_BHW3) % BATCH if len(image_BHW3) > 1 else 0
    full = [
      # Filled with copies of the last row: rows of zeros have no token, and a softmax over nothing.
      np.pad(x, ((0, pad), *[(0, 0)] * (x.ndim - 1)), mode="edge")
      for x in (image_BHW3, tokens_BN, mask_BN)
    ]
    size = BATCH if len(full[0]) > 1 else 1
    parts = [
      np.asarray(self._pass(params, *(x[i : i + size] for x in full)))
      for i in range(0, len(full[0]), size)
    ]
    return np.concatenate(parts)[: len(image_BHW3)]

  def masks(self, params: Any, encoded: Encoded, rows: np.ndarray) -> np.ndarray:
    """Masks of some sentences of a split: [n, S, S] bool."""
    batch = encoded.batch(rows)
    found = self.probability(params, batch.image_BHW3, batch.tokens_BN, batch.mask_BN)
    return found > 0.5

  def counts(self, params: Any, encoded: Encoded, rows: np.ndarray) -> Counts:
    """How well masks of some sentences fit, in their order."""
    # A part at a time: the probabilities of a whole split would not fit beside its images.
    found = []
    for i in range(0, len(rows), BATCH):
      part = rows[i : i + BATCH]
      found.append(count(self.masks(params, encoded, part), encoded.split.masks(part)))
    return functools.reduce(Counts.merge, found)


def _probability(model: BTDNet, params: Any, image, tokens, mask) -> jax.Array:
  logits_BHW2 = model.apply({"params": params}, image, tokens, mask).logits_BHW2
  # The sigmoid of the difference is the softmax over background and target.
  return jax.nn.sigmoid(target_logit(logits_BHW2).astype(jnp.float32))
