"""A basket completed: what the model gives the user, times what is taken together with the basket.

The model has learned from whole visits what comes next, not what is still missing from one: with a
basket in its context as the latest visit it finds less of the rest than without
(docs/log/risks.md). So the basket speaks through co-visits instead: an ad has the score
log p(ad | history) + w · log(c + ε), c its mean cosine of visits with the basket's ads. That is a
product of experts.
"""

from typing import Any

import numpy as np

from gr4ad_jax.decoding.ranker import Contexts, Ranker, Ranking
from gr4ad_jax.features.neighbors import CoVisitNeighbors
from gr4ad_jax.index.left_out import LeftOut

NEAR = 128  # ads beside a basket that are ranked though no beam found them
_LEAST = 1e-3  # mean cosine of an ad that was never taken with the basket


def completed(
  ranker: Any,
  params: Any,
  contexts: Contexts,
  requests: np.ndarray,
  neighbors: CoVisitNeighbors,
  basket_RX: np.ndarray,
  k: int,
  weight: float,
  left_out: LeftOut | None = None,
  depth: int = 200,
  batch_size: int = 64,
) -> Ranking:
  """The best k ads beside each basket.

  Args:
    ranker: a `Ranker`, or one of single ads.
    params: the model's parameters.
    contexts: turns request numbers into batches; the baskets are not in them.
    requests: [R] request numbers.
    neighbors: of ads by co-visits.
    basket_RX: distinct ad rows, -1 in padding.
    k: ads a request.
    weight: w. 0: the basket only leaves its own ads out, where `left_out` says so.
    left_out: ads that the requests do without; the baskets among them.
    depth: candidates of the model.
    batch_size: requests a batch.

  Returns:
    [R, k]. Scores are the sums; log p is the model's.
  """
  # Every ad of the basket weighs the same.
  near_RC, cosine_RC = neighbors.unseen(basket_RX, np.ones(basket_RX.shape), NEAR)
  also = {"also_RC": near_RC} if isinstance(ranker, Ranker) else {}
  found = ranker.rank(params, contexts, requests, max(k, depth), left_out=left_out, **also)
  return reordered(found, near_RC, mean_cosine(cosine_RC, basket_RX), k, weight)


def mean_cosine(cosine_RC: np.ndarray, basket_RX: np.ndarray) -> np.ndarray:
  """Sums of cosines [R, C] over the size of each basket."""
  # An empty basket has no neighbours: its sums are 0 over 1.
  return cosine_RC / np.maximum((basket_RX >= 0).sum(axis=1, keepdims=True), 1)


def reordered(
  found: Ranking, near_RC: np.ndarray, cosine_RC: np.ndarray, k: int, weight: float
) -> Ranking:
  """Found ads, best first by their score + weight · log(cosine + ε): [R, k].

  Args:
    found: of the model, [R, K].
    near_RC: ads beside the baskets, -1 in padding.
    cosine_RC: their mean cosines; ads that are not among them have 0.
    k: ads a request.
    weight: of the cosine's logarithm.
  """
  share_RK = np.zeros(found.ad_RK.shape)
  for row, (ads, near) in enumerate(zip(found.ad_RK, near_RC, strict=True)):
    # Sorted, so that found ads are looked up by bisection.
    order = np.argsort(near, kind="stable")
    at = np.minimum(np.searchsorted(near[order], ads), len(near) - 1)
    # Bisection gives every ad a place. It is the ad itself only where both are equal,
    # and -1 is no ad.
    same = (near[order][at] == ads) & (ads >= 0)
    share_RK[row] = np.where(same, cosine_RC[row, order][at], 0)
  # The least share stands for every ad that was never taken with the basket: log 0 would rule.
  score_RK = found.score_RK + weight * np.log(share_RK + _LEAST)
  best_RK = np.argsort(-score_RK, axis=1, kind="stable")[:, :k]
  columns = (found.ad_RK, found.logp_RK, found.value_RK, score_RK.astype(np.float32))
  return Ranking(*(np.take_along_axis(x, best_RK, axis=1) for x in columns))
