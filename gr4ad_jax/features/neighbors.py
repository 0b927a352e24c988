"""Ads that are taken in the same visits: cosine of visits, and a request's unseen neighbours.

Fitted on visits, not on users: a user-level fit would count each target with its user's whole
  history. A training
request's own visit would still be in the counts, so its user's neighbours are those that other
users made.
"""

import dataclasses
import os

import numpy as np
import scipy.sparse

from gr4ad_jax import files

_CHUNK = 16  # histories scored at a time: their candidates stay in the cache


@dataclasses.dataclass(frozen=True)
class CoVisitNeighbors:
  """The nearest ads of each ad: ids [N, k] int32 (-1 where fewer) and cosines [N, k] float32."""

  ids: np.ndarray
  cosine: np.ndarray

  @classmethod
  def fit(
    cls,
    request: np.ndarray,
    ad: np.ndarray,
    num_ads: int,
    neighbors: int = 32,
    shrink: float = 10.0,
  ) -> "CoVisitNeighbors":
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
    common.sort_indices()
    row = np.repeat(np.arange(num_ads), np.diff(common.indptr))
    cosine = common.data / np.sqrt((mass[row] + shrink) * (mass[common.indices] + shrink))
    return cls(*_table(num_ads, neighbors, row, common.indices, cosine))

  def unseen(
    self, ads_BS: np.ndarray, weight_BS: np.ndarray, slots: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """The ads closest to histories that are not in them.

    An ad's score is the sum, over the history, of weight times cosine. Work and memory grow with
    the history, not with the number of ads. A row's result depends on that row alone; of equal
    scores the lower ad row comes first.

    Args:
      ads_BS: distinct ads of each history, -1 in padding. Rows that the fit did not have are
        without neighbours.
      weight_BS: weight of each of them, positive.
      slots: ads kept a history.

    Returns:
      Ad rows [B, slots] int32 (-1 where fewer) and scores [B, slots] float32, best first.
    """
    parts = [(np.zeros((0, slots), np.int32), np.zeros((0, slots), np.float32))]
    for begin in range(0, len(ads_BS), _CHUNK):
      some = slice(begin, begin + _CHUNK)
      parts.append(_table(len(ads_BS[some]), slots, *self._scored(ads_BS[some], weight_BS[some])))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

  def _scored(
    self, ads_BS: np.ndarray, weight_BS: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, ad and score of every ad that is near a history and not in it, in order of row, then
    ad.
    """
    b, s = np.nonzero((ads_BS >= 0) & (ads_BS < len(self.ids)))
    own = ads_BS[b, s]
    ad_C = self.ids[own].ravel()
    weight_C = (weight_BS[b, s, None] * self.cosine[own]).ravel()
    # The history's own ads are candidates of weight -inf: no sum with one of them in it is
    # positive.
    ad_C = np.concatenate([ad_C, own])
    weight_C = np.concatenate([weight_C, np.full(len(own), -np.inf)])
    row_C = np.concatenate([np.repeat(b, self.ids.shape[1]), b])
    if not (ad_C >= 0).any():
      return row_C[:0], ad_C[:0], weight_C[:0]
    low = (ad_C & 0xFFFF).astype(np.uint16)
    high = (ad_C >> 16).astype(np.int16)
    order = np.lexsort(
      (low, high, row_C.astype(np.uint16))
    )  # 16-bit keys: NumPy sorts them by radix
    ad_C = ad_C[order]
    row_C = row_C[order]
    first = np.flatnonzero(np.append(True, (ad_C[1:] != ad_C[:-1]) | (row_C[1:] != row_C[:-1])))
    score = np.add.reduceat(weight_C[order], first)
    near = (score > 0) & (ad_C[first] >= 0)
    return row_C[first[near]], ad_C[first[near]], score[near]

  def save(self, directory: str) -> None:
    """Writes `neighbors.npz`."""
    files.save_arrays(os.path.join(directory, "neighbors.npz"), ids=self.ids, cosine=self.cosine)

  @classmethod
  def load(cls, directory: str) -> "CoVisitNeighbors":
    """Reads what `save` wrote. Raises as `files.load_arrays` does."""
    return cls(*files.load_arrays(os.path.join(directory, "neighbors.npz"), "ids", "cosine"))


@dataclasses.dataclass(frozen=True)
class NeighborFolds:
  """Neighbours for requests that neighbours were fitted on: each user's come from the visits of
  other users alone.

  With the user's own visits among the counts, a training request's ads would be one another's
  neighbours because it
  took them together: a feature that knows the answer.

  Attributes:
    ids: [K + 1, N, k] int32; those of fold f < K leave the users with `user % K == f` out, the last
      leaves none out.
    cosine: [K + 1, N, k] float32.
  """

  ids: np.ndarray
  cosine: np.ndarray

  @classmethod
  def fit(
    cls, request_L: np.ndarray, user_L: np.ndarray, ad_L: np.ndarray, num_ads: int, folds: int
  ) -> "NeighborFolds":
    """Fits on the lines [L] of visits, users and ads, a fold at a time; 0 folds: own visits
    count for everyone.
    """
    kept = [user_L % folds != fold for fold in range(folds)] + [np.ones(len(user_L), bool)]
    return cls.of(*(CoVisitNeighbors.fit(request_L[some], ad_L[some], num_ads) for some in kept))

  @classmethod
  def of(cls, *parts: CoVisitNeighbors) -> "NeighborFolds":
    """The folds and, last, what leaves nobody out."""
    return cls(np.stack([part.ids for part in parts]), np.stack([part.cosine for part in parts]))

  def fold_of(self, user_B: np.ndarray, held_out: bool) -> np.ndarray:
    """[B] the fold of each user: his own where he was fitted on, the last where `held_out`."""
    last = len(self.ids) - 1
    return np.full(len(user_B), last) if held_out or not last else user_B % last

  def part(self, fold: int) -> CoVisitNeighbors:
    """The neighbours of a fold; -1: of all users."""
    return CoVisitNeighbors(self.ids[fold], self.cosine[fold])

  def save(self, directory: str) -> None:
    """Writes `folds.npz`, then `neighbors.npz` with those of all users, which is what a server
    reads.
    """
    files.save_arrays(
      os.path.join(directory, "folds.npz"), ids=self.ids[:-1], cosine=self.cosine[:-1]
    )
    self.part(-1).save(directory)

  @classmethod
  def load(cls, directory: str) -> "NeighborFolds":
    """Reads what `save` wrote. Raises as `files.load_arrays` does."""
    whole = CoVisitNeighbors.load(directory)
    ids, cosine = files.load_arrays(os.path.join(directory, "folds.npz"), "ids", "cosine")
    return cls(np.concatenate([ids, whole.ids[None]]), np.concatenate([cosine, whole.cosine[None]]))


def _table(
  rows: int, width: int, row: np.ndarray, ad: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The `width` best ads of each row and their scores, of (row, ad, score) by row, then ad:
  [rows, width] each.
  """
  ids = np.full((rows, width), -1, np.int32)
  scores = np.zeros((rows, width), np.float32)
  row, ad, score = _best(row, ad, score, width)
  rank = np.arange(len(row)) - np.searchsorted(row, row)
  kept = rank < width
  ids[row[kept], rank[kept]], scores[row[kept], rank[kept]] = ad[kept], score[kept]
  return ids, scores


def _best(
  row: np.ndarray, ad: np.ndarray, score: np.ndarray, slots: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """At least the `slots` best of each row, where it has as many; by row, the best first, then
  the lower ad.
  """
  end = np.cumsum(np.bincount(row))
  cut = np.zeros(len(end))
  for r, of_row in enumerate(np.split(score, end[:-1])):
    if len(of_row) > slots:
      cut[r] = np.partition(of_row, len(of_row) - slots)[len(of_row) - slots]
  good = score >= cut[row]
  row = row[good]
  ad = ad[good]
  score = score[good]
  order = np.lexsort((-score, row))  # stable: ads ascend
  return row[order], ad[order], score[order]
