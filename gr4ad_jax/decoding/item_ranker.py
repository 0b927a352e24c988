"""Requests in, ranked ads out, by models that score every ad."""

from typing import Any

import jax
import numpy as np

from gr4ad_jax.data.batches import RequestBatch
from gr4ad_jax.decoding.ranker import Contexts, Ranking
from gr4ad_jax.models.zoo.items import ItemModel


class ItemRanker:
  """The best ads by score. One shape of batch is compiled once.

  Args:
    model: the module.
  """

  def __init__(self, model: ItemModel):
    def best(params, batch, k):
      logp_BN = jax.nn.log_softmax(model.apply({"params": params}, batch))
      return jax.lax.top_k(logp_BN, k)

    self._best, self._num_ads = jax.jit(best, static_argnames="k"), model.num_ads

  def search(self, params: Any, batch: RequestBatch, k: int) -> tuple[jax.Array, jax.Array]:
    """log p and rows of the best k ads of a batch, or of all where they are fewer: [B, k] each, on the device."""
    return self._best(params, batch, k=min(k, self._num_ads))

  def rank(self, params: Any, contexts: Contexts, requests: np.ndarray, k: int, batch_size: int = 64) -> Ranking:
    """The best k ads of each request, as `Ranker.rank`; values are 0: the model predicts none."""
    found = []
    for begin in range(0, max(len(requests), 1), batch_size):
      some = requests[begin : begin + batch_size]
      full = np.resize(some if len(some) else [0], batch_size)
      logp, ad = jax.device_get(self.search(params, contexts.batch(full), k))
      found.append((ad[: len(some)], logp[: len(some)]))
    ad_RK, logp_RK = (np.concatenate(column) for column in zip(*found, strict=True))
    more = ((0, 0), (0, k - ad_RK.shape[1]))
    ad_RK = np.pad(ad_RK.astype(np.int32), more, constant_values=-1)
    return Ranking(ad_RK, np.pad(logp_RK, more, constant_values=-np.inf), np.zeros(ad_RK.shape, np.float32))
