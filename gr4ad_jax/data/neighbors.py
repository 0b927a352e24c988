"""Ads that are taken in the same visits: cosine of visits, and a request's unseen neighbours.

Fitted on visits, not on users: a user-level fit would count each target with its user's whole history. A training
request's own visit is still in the counts: it pairs its targets with each other, some of them ads of the history. So
a little leaks: of the new targets, .1451 stood among the 64 neighbour slots, and .1426 with the own visit left out.
"""

import dataclasses
import os

import numpy as np
import scipy.sparse

from gr4ad_jax.data.history import Lines

_MAX_CELLS = 8_000_000  # dense scores held at a time


@dataclasses.dataclass(frozen=True)
class Neighbors:
  """The nearest ads of each ad: ids [N, k] int32 (-1 where fewer) and cosines [N, k] float32."""

  ids: np.ndarray
  cosine: np.ndarray

  @classmethod
  def fit(
    cls, request: np.ndarray, ad: np.ndarray, num_ads: int, neighbors: int = 32, shrink: float = 10.0
  ) -> "Neighbors":
    """Counts the visits in which two ads stand together.

    A visit of n ads weighs 1/log2(2 + n): a wholesaler's long order says less of each pair.

    Args:
      request: [L] visit of each line.
      ad: [L] ad row of each line.
      num_ads: rows of the ad table.
      neighbors: ids kept an ad.
      shrink: added to the counts' product, against chance pairs of rare ads.
    """
    _, visit = np.unique(request, return_inverse=True)
    weight = 1 / np.log2(2 + np.bincount(visit))
    shape = (int(visit.max(initial=-1)) + 1, num_ads)
    seen = scipy.sparse.csr_matrix((np.sqrt(weight[visit]).astype(np.float32), (visit, ad)), shape)
    common = (seen.T @ seen).tocsr()
    mass = common.diagonal()
    common.setdiag(0)
    common.eliminate_zeros()
    row = np.repeat(np.arange(num_ads), np.diff(common.indptr))
    cosine = common.data / np.sqrt((mass[row] + shrink) * (mass[common.indices] + shrink))
    order = np.lexsort((common.indices, -cosine, row))
    rank = np.arange(len(order)) - common.indptr[row]
    keep = rank < neighbors
    ids = np.full((num_ads, neighbors), -1, np.int32)
    values = np.zeros((num_ads, neighbors), np.float32)
    ids[row[keep], rank[keep]] = common.indices[order][keep]
    values[row[keep], rank[keep]] = cosine[order][keep]
    return cls(ids, values)

  def unseen(self, lines: Lines, requests: np.ndarray, rows_BS: np.ndarray, decay_BS: np.ndarray, slots: int):
    """The ads closest to a request's history that are not in it.

    Args:
      lines: the log's lines.
      requests: [B] request numbers.
      rows_BS: history lines (`history_rows`).
      decay_BS: weight of each history slot.
      slots: ads kept a request.

    Returns:
      Ad rows [B, slots] int32 (-1 where fewer) and scores [B, slots] float32, best first.
    """
    num_ads = len(self.ids)
    row, column = np.nonzero(self.ids >= 0)
    similar = scipy.sparse.csr_matrix((self.cosine[row, column], (row, self.ids[row, column])), (num_ads, num_ads))
    ids = np.full((len(requests), slots), -1, np.int32)
    scores = np.zeros((len(requests), slots), np.float32)
    kept = min(slots, num_ads)
    chunk = max(1, _MAX_CELLS // num_ads)
    for begin in range(0, len(requests), chunk):
      rows, weight = rows_BS[begin : begin + chunk], decay_BS[begin : begin + chunk]
      b, s = np.nonzero(rows >= 0)
      ads = lines.ad[rows[b, s]]
      history = scipy.sparse.csr_matrix((weight[b, s], (b, ads)), (len(rows), num_ads))
      dense = (history @ similar).toarray()
      dense[b, ads] = 0
      top = np.argpartition(-dense, kept - 1, axis=1)[:, :kept]
      score = np.take_along_axis(dense, top, axis=1)
      order = np.lexsort((top, -score), axis=1)
      top, score = np.take_along_axis(top, order, axis=1), np.take_along_axis(score, order, axis=1)
      ids[begin : begin + chunk, :kept] = np.where(score > 0, top, -1)
      scores[begin : begin + chunk, :kept] = score
    return ids, scores

  def save(self, directory: str) -> None:
    """Writes `neighbors.npz`."""
    os.makedirs(directory, exist_ok=True)
    part = os.path.join(directory, "neighbors.part.npz")
    np.savez(part, ids=self.ids, cosine=self.cosine)
    os.replace(part, os.path.join(directory, "neighbors.npz"))

  @classmethod
  def load(cls, directory: str) -> "Neighbors":
    """Reads what `save` wrote."""
    with np.load(os.path.join(directory, "neighbors.npz"), allow_pickle=False) as saved:
      return cls(saved["ids"], saved["cosine"])
