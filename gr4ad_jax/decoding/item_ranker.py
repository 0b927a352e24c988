"""Requests in, ranked ads out, by models that score every ad."""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gr4ad_jax.decoding.ranker import Contexts, Ranking
from gr4ad_jax.features.batches import RequestBatch
from gr4ad_jax.index.left_out import LeftOut
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.parallel import row_tables
from gr4ad_jax.zoo.items import ItemModel


class ItemRanker:
  """The best ads by score. One shape of batch is compiled once.

  Where the table of ads is cut over a mesh, each device scores its rows and finds their best.

  Args:
    model: the module.
  """

  def __init__(self, model: ItemModel):
    def best(params, batch, k, mesh):
      # all but the table is small: left to the compiler, activations may be cut instead, and moved
      if mesh:
        whole = NamedSharding(mesh, PartitionSpec())
        others = {name: part for name, part in params.items() if name != row_tables.NAME}
        params = params | jax.lax.with_sharding_constraint(others, whole)
      if mesh and len(batch.slot_ad_BS) % mesh_lib.batch_shards(mesh) == 0:
        batch = jax.lax.with_sharding_constraint(batch, mesh_lib.batch_sharding(mesh))
      scores_BN = model.apply({"params": params}, batch)
      score_BK, ad_BK = row_tables.top_k(scores_BN, k, mesh)
      # log p of the best alone: the normaliser is taken over all N ads before they are cut to k.
      found = score_BK - jax.nn.logsumexp(scores_BN, axis=-1, keepdims=True), ad_BK
      return jax.lax.with_sharding_constraint(found, whole) if mesh else found

    self._best = jax.jit(best, static_argnames=("k", "mesh"))
    self._num_ads = model.num_ads

  def search(self, params: Any, batch: RequestBatch, k: int) -> tuple[jax.Array, jax.Array]:
    """log p and rows of the best k ads of a batch, or of all where they are fewer: [B, k] each,
    on the device.
    """
    return self._best(params, batch, k=min(k, self._num_ads), mesh=row_tables.mesh_of(params))

  def rank(
    self,
    params: Any,
    contexts: Contexts,
    requests: np.ndarray,
    k: int,
    batch_size: int = 64,
    left_out: LeftOut | None = None,
  ) -> Ranking:
    """The best k ads of each request, as `Ranker.rank`; values are 0: the model predicts none."""
    # Every ad has a score, so this many more are enough, or all of them.
    if left_out:
      # A set may leave out any number of ads, so then all are ranked.
      deep = self._num_ads if left_out.sets else k + left_out.most
      whole = self.rank(params, contexts, requests, max(deep, k), batch_size)
      return whole.without(left_out, k)
    found = []
    for begin in range(0, max(len(requests), 1), batch_size):
      some = requests[begin : begin + batch_size]
      # The last batch is filled up by repeating its requests, so that there is one shape to
      # compile.
      full = np.resize(some if len(some) else [0], batch_size)
      logp, ad = jax.device_get(self.search(params, contexts.batch(full), k))
      found.append((ad[: len(some)], logp[: len(some)]))
    ad_RK, logp_RK = (np.concatenate(column) for column in zip(*found, strict=True))
    # Where there are fewer than k ads in all, lists are padded to k.
    more = ((0, 0), (0, k - ad_RK.shape[1]))
    ad_RK = np.pad(ad_RK.astype(np.int32), more, constant_values=-1)
    logp_RK = np.pad(logp_RK, more, constant_values=-np.inf)
    return Ranking(ad_RK, logp_RK, np.zeros(ad_RK.shape, np.float32), logp_RK)
