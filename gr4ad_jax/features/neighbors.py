"""Ads that are taken in the same visits: cosine of visits, and a request's unseen neighbours.

Fitted on visits, not on users: a user-level fit would count each target with its user's whole
history. A training request's own visit would still be in the counts, so its user's neighbours are
those that other users made.
"""

import dataclasses
import itertools
import os

import numpy as np
import scipy.sparse

from gr4ad_jax import files
from gr4ad_jax.features.sparse_rows import COLUMN, sorted_keys
from gr4ad_jax.retrieval.towers import Retriever

_CHUNK = 16  # histories scored at a time: their candidates stay in the cache


@dataclasses.dataclass(frozen=True)
class CoVisitNeighbors:
  """The nearest ads of each ad: ids [N, k] int32 (-1 where fewer) and cosines [N, k] float32.

  With a `retriever` the neighbours' slots of a context are filled by it; the cosines remain
  features.
  """

  ids: np.ndarray
  cosine: np.ndarray
  retriever: Retriever | None = None

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
    The work is done in blocks of ads (`Visits`), so that memory grows with the lines and not with
    the pairs of ads that were taken together.

    Args:
      request: [L] visit of each line.
      ad: [L] ad row of each line.
      num_ads: rows of the ad table.
      neighbors: ids kept an ad.
      shrink: added to the counts' product, against chance pairs of rare ads.
    """
    order = np.argsort(request, kind="stable")
    taken = Visits.of(request[order], ad[order], num_ads)
    return taken.fit(neighbors, shrink)

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
    # Ads that came after the fit have no neighbours, and are left out as padding is.
    b, s = np.nonzero((ads_BS >= 0) & (ads_BS < len(self.ids)))
    own = ads_BS[b, s]
    ad_C = self.ids[own].ravel()
    weight_C = (weight_BS[b, s, None] * self.cosine[own]).ravel()
    # The history's own ads are candidates of weight -inf: no sum with one of them in it is
    # positive.
    ad_C = np.concatenate([ad_C, own])
    weight_C = np.concatenate([weight_C, np.full(len(own), -np.inf)])
    row_C = np.concatenate([np.repeat(b, self.ids.shape[1]), b])
    # Ads with few neighbours have padding among them.
    real = (ad_C >= 0).nonzero()[0]
    if not len(real):
      return row_C[:0], ad_C[:0], weight_C[:0]
    order, key = sorted_keys((row_C.take(real) << COLUMN) + ad_C.take(real))
    # Where a new (row, ad) begins; `reduceat` sums up to the next one.
    first = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    score = np.add.reduceat(weight_C.take(real.take(order)), first)
    near = (score > 0).nonzero()[0]
    key = key.take(first.take(near))
    return key >> COLUMN, key & ((1 << COLUMN) - 1), score.take(near)

  def save(self, directory: str) -> None:
    """Writes `neighbors.npz`, and what `Retriever.save` does where there is one."""
    files.save_arrays(os.path.join(directory, "neighbors.npz"), ids=self.ids, cosine=self.cosine)
    if self.retriever:
      self.retriever.save(directory)

  @classmethod
  def load(cls, directory: str) -> "CoVisitNeighbors":
    """Reads what `save` wrote. Raises as `files.load_arrays` does."""
    arrays = files.load_arrays(os.path.join(directory, "neighbors.npz"), "ids", "cosine")
    return cls(*arrays, Retriever.load(directory))


@dataclasses.dataclass(frozen=True)
class Visits:
  """Which ads stand together in which visits: L lines in order of V visits, in memory or mapped.

  Attributes:
    ad_L: ad row of each line; an ad stands in a visit once.
    first: [V + 1] first line of each visit.
    of_ad: [L] visits of each ad, ascending, one ad after another.
    ad_first: [N + 1] first place of each ad there.
  """

  ad_L: np.ndarray
  first: np.ndarray
  of_ad: np.ndarray
  ad_first: np.ndarray

  @classmethod
  def of(cls, request_L: np.ndarray, ad_L: np.ndarray, num_ads: int) -> "Visits":
    """From the visit of each line, ascending."""
    opens = np.append(True, request_L[1:] != request_L[:-1])[: len(request_L)]
    visit_L = (np.cumsum(opens) - 1).astype(np.int32)
    first = np.append(np.flatnonzero(opens), len(request_L))
    # Lines are in order of visit, and so stay in it inside each ad.
    order = np.argsort(ad_L, kind="stable")  # keeps visits ascending
    ad_first = np.append(0, np.cumsum(np.bincount(ad_L, minlength=num_ads)))
    return cls(ad_L, first, visit_L[order], ad_first)

  @property
  def num_ads(self) -> int:
    """N."""
    return len(self.ad_first) - 1

  def fit(
    self, neighbors: int = 32, shrink: float = 10.0, kept_V: np.ndarray | None = None
  ) -> CoVisitNeighbors:
    """The neighbours of all ads, by some of the visits (`kept_V`, a mask) or all."""
    mass_N = self.mass(kept_V)
    parts = [
      self.of_block(lo, hi, mass_N, neighbors, shrink, kept_V)
      for lo, hi in itertools.pairwise(self.blocks())
    ]
    # A block is of whole ads, so that every ad's sums are made in one place.
    none = np.zeros((0, neighbors), np.int32), np.zeros((0, neighbors), np.float32)
    return CoVisitNeighbors(*map(np.concatenate, zip(none, *parts, strict=True)))

  def blocks(self, pairs: int = 1 << 22) -> list[int]:
    """Bounds of runs of ads, of at most so many lines in all their visits, or of one ad."""
    size_V = np.diff(self.first)
    # Lines that the product of an ad meets: the sizes of all its visits together.
    lines_N = np.diff(np.append(0, np.cumsum(size_V[self.of_ad]))[self.ad_first])
    bounds = [0]
    held = 0
    for ad, lines in enumerate(lines_N.tolist()):
      if held and held + lines > pairs:
        bounds.append(ad)
        held = 0
      held += lines
    return [*bounds, self.num_ads]

  def _weight(self, visit: np.ndarray) -> np.ndarray:
    """[n] float32, square roots of the weights of visits."""
    size = self.first[visit + 1] - self.first[visit]
    # The root is taken because a weight enters once for each of the two ads of a pair.
    return np.sqrt(1 / np.log2(2 + size)).astype(np.float32)

  def mass(self, kept_V: np.ndarray | None = None) -> np.ndarray:
    """[N] float32, summed weights of each ad's visits."""
    mass_N = np.zeros(self.num_ads, np.float32)
    ad = np.repeat(np.arange(self.num_ads), np.diff(self.ad_first))
    weight = self._weight(self.of_ad)
    if kept_V is not None:
      weight *= kept_V[self.of_ad]
    np.add.at(mass_N, ad, weight * weight)  # one after another, visits ascending
    return mass_N

  def of_block(
    self,
    lo: int,
    hi: int,
    mass_N: np.ndarray,
    neighbors: int = 32,
    shrink: float = 10.0,
    kept_V: np.ndarray | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours and cosines of the ads lo … hi-1, as in `CoVisitNeighbors`.

    The sums are those of the product of all visits: each ad's visits are added up in their order.
    """
    visit = self.of_ad[self.ad_first[lo] : self.ad_first[hi]]
    row = np.repeat(np.arange(hi - lo), np.diff(self.ad_first[lo : hi + 1]))
    if kept_V is not None:
      kept = kept_V[visit]
      visit = visit[kept]
      row = row[kept]
    used, at = np.unique(visit, return_inverse=True)
    size = self.first[used + 1] - self.first[used]
    ends = np.cumsum(size)
    # The runs of lines as one gather: a running number, moved to where each run lies.
    line = np.arange(size.sum()) + np.repeat(self.first[used] - ends + size, size)
    weight = self._weight(used)
    shape = len(used), self.num_ads
    about = np.repeat(weight, size), self.ad_L[line], np.append(0, ends)
    seen = scipy.sparse.csr_matrix(about, shape)
    own = scipy.sparse.csr_matrix((weight[at], (row, at)), (hi - lo, len(used)))
    # (block, V) @ (V, N) -> (block, N): weights of the visits that two ads share.
    common = (own @ seen).tocsr()
    common.sort_indices()
    row = np.repeat(np.arange(hi - lo), np.diff(common.indptr))
    # An ad is no neighbour of itself. Stored zeros come from visits that are left out.
    other = (common.indices != row + lo) & (common.data != 0)
    row = row[other]
    ad = common.indices[other]
    # `shrink` is mass that neither ad was seen with: it holds back pairs that met once.
    cosine = common.data[other] / np.sqrt((mass_N[row + lo] + shrink) * (mass_N[ad] + shrink))
    return _table(hi - lo, neighbors, row, ad, cosine)


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
    retriever: as that of `CoVisitNeighbors`, one for all folds.
  """

  ids: np.ndarray
  cosine: np.ndarray
  retriever: Retriever | None = None

  @classmethod
  def fit(
    cls, request_L: np.ndarray, user_L: np.ndarray, ad_L: np.ndarray, num_ads: int, folds: int
  ) -> "NeighborFolds":
    """Fits on the lines [L] of visits, users and ads, a fold at a time; 0 folds: own visits
    count for everyone.
    """
    order = np.argsort(request_L, kind="stable")
    taken = Visits.of(request_L[order], ad_L[order], num_ads)
    # A visit is of one user: its first line tells whose it is.
    user_V = user_L[order][taken.first[:-1]]
    # The last part has no mask: it is for users that nothing was fitted on.
    kept = [user_V % folds != fold for fold in range(folds)] + [None]
    return cls.of(*(taken.fit(kept_V=some) for some in kept))

  @classmethod
  def of(cls, *parts: CoVisitNeighbors) -> "NeighborFolds":
    """The folds and, last, what leaves nobody out."""
    ids = np.stack([part.ids for part in parts])
    return cls(ids, np.stack([part.cosine for part in parts]), parts[-1].retriever)

  def fold_of(self, user_B: np.ndarray, held_out: bool) -> np.ndarray:
    """[B] the fold of each user: his own where he was fitted on, the last where `held_out`."""
    last = len(self.ids) - 1
    return np.full(len(user_B), last) if held_out or not last else user_B % last

  def part(self, fold: int) -> CoVisitNeighbors:
    """The neighbours of a fold; -1: of all users."""
    return CoVisitNeighbors(self.ids[fold], self.cosine[fold], self.retriever)

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
    ids = np.concatenate([ids, whole.ids[None]])
    return cls(ids, np.concatenate([cosine, whole.cosine[None]]), whole.retriever)


def _table(
  rows: int, width: int, row: np.ndarray, ad: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The `width` best ads of each row and their scores, of (row, ad, score) by row, then ad:
  [rows, width] each.
  """
  ids = np.full((rows, width), -1, np.int32)
  scores = np.zeros((rows, width), np.float32)
  row, ad, score = _best(row, ad, score, width)
  # The place of each ad in its row: rows ascend.
  first = np.append(True, row[1:] != row[:-1])[: len(row)]
  rank = np.arange(len(row)) - first.nonzero()[0][np.cumsum(first) - 1]
  kept = rank < width
  ids[row[kept], rank[kept]] = ad[kept]
  scores[row[kept], rank[kept]] = score[kept]
  return ids, scores


def _best(
  row: np.ndarray, ad: np.ndarray, score: np.ndarray, slots: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """At least the `slots` best of each row, where it has as many; by row, the best first, then
  the lower ad.
  """
  size = np.bincount(row)
  end = np.cumsum(size)
  cut = np.zeros(len(end))
  # Most rows may be short, and are kept whole.
  many = (size > slots).nonzero()[0]
  # A partition finds the value at the cut in linear time; ties with it are sorted and cut after.
  for r, length, past in np.stack([many, size[many], end[many]], axis=1).tolist():
    cut[r] = np.partition(score[past - length : past], length - slots)[length - slots]
  good = score >= cut[row]
  row = row[good]
  ad = ad[good]
  score = score[good]
  order = np.lexsort((-score, row))  # stable: ads ascend
  return row[order], ad[order], score[order]
