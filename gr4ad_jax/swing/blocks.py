"""Swing of a block of ads at once, by array operations whose number does not grow with the block.

A *row* is a visit of an ad i. An *entry* of a row is another ad j that the visit holds. In order of
j, then of row, the entries of the visits that hold both i and j stand together: they are the *cell*
(i, j). Each two entries of a cell are a *pair*: two visits of i that share j.

Pairs are walked twice. The first walk counts how many ads the two visits share, the second adds up
the terms of the formula (docs/design/method.md §1.1).
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from gr4ad_jax.swing.groups import Groups, cuts


@dataclasses.dataclass(frozen=True)
class Cells:
  """C cells (i, j), in order of i, then of similarity from the highest, then of j."""

  ad_C: np.ndarray  # [C] int32 ad i
  other_C: np.ndarray  # [C] int32 ad j
  similarity_C: np.ndarray  # [C] float32, above zero

  def rank(self) -> np.ndarray:
    """[C] int64 place of each cell among those of its ad, from 0."""
    place = np.arange(len(self.ad_C))
    # The running maximum is the place where the cell's ad began.
    first = np.append(True, self.ad_C[1:] != self.ad_C[:-1])[: len(place)]
    return place - np.maximum.accumulate(np.where(first, place, 0))


@dataclasses.dataclass(frozen=True)
class _Entries:
  """E entries of R rows, in order of ad j, then of row. So those of a cell stand together."""

  row_E: np.ndarray  # [E] int32
  other_E: np.ndarray  # [E] int32 ad j
  first_C: np.ndarray  # [C] int64, where each cell begins
  later_E: np.ndarray  # [E] int64, entries of the same cell that follow


def similar(
  baskets: Groups,
  visits: Groups,
  low: int,
  high: int,
  *,
  alpha: float,
  min_support: int,
  pairs_at_once: int,
) -> Cells:
  """Swing of a run of ads to all ads that their visits hold.

  Every sum runs in the order of the visits. So the result does not depend on how ads and pairs are
  cut, to the bit.

  Args:
    baskets: the ads of each visit.
    visits: the visits of each ad, as rows of `baskets`.
    low: the first ad, as a row of `visits`.
    high: one past the last.
    alpha: smoothing constant.
    min_support: cells of fewer visits are left out. It is 2 or more.
    pairs_at_once: pairs held in memory. There are more where a single row has more.
  """
  visit_R = visits.members_P[visits.start[low] : visits.start[high]]
  count_A = visits.sizes(low, high)
  ad_R = np.repeat(visits.ids_G[low:high], count_A)
  size_R = baskets.start[visit_R + 1] - baskets.start[visit_R]
  entries = _entries(baskets, visit_R, size_R, ad_R)
  # Later rows of the same ad: where the ad's rows end, less the row's place.
  after_R = np.repeat(np.cumsum(count_A), count_A) - np.arange(len(visit_R)) - 1
  sum_E = np.zeros(len(entries.row_E))
  for begin, end, chosen in _chunks(entries, after_R, pairs_at_once):
    sum_E[chosen] = _sums(entries, chosen, begin, after_R[begin:end], 1 / np.sqrt(size_R), alpha)
  size_C = np.diff(np.append(entries.first_C, len(sum_E)))
  # Pairs are walked with v after u. The formula's are ordered, so each counts twice.
  swing_C = 2 * np.add.reduceat(sum_E, entries.first_C) if len(size_C) else np.zeros(0)
  found = np.flatnonzero((size_C >= min_support) & (swing_C > 0))
  at = entries.first_C[found]
  return _ordered(ad_R[entries.row_E[at]], entries.other_E[at], swing_C[found].astype(np.float32))


def _entries(baskets: Groups, visit_R, size_R, ad_R) -> _Entries:
  """The entries of the rows. The ad i itself, which each of its visits holds, is none."""
  # All members of all visits as one gather: runs that begin at a visit's start.
  end_R = np.cumsum(size_R)
  row_E = np.repeat(np.arange(len(visit_R), dtype=np.int32), size_R)
  other_E = baskets.members_P[
    np.repeat(baskets.start[visit_R] - (end_R - size_R), size_R) + np.arange(len(row_E))
  ]
  others = other_E != ad_R[row_E]
  key_E = (other_E[others].astype(np.int64) << 32) | row_E[others]
  # By ad j, then by row. All keys differ, as a visit holds an ad once.
  key_E.sort()
  row_E = (key_E & 0xFFFFFFFF).astype(np.int32)
  other_E = (key_E >> 32).astype(np.int32)
  ad_E = ad_R[row_E]
  # Rows of one ad i stand together, so within one j a cell ends where i changes.
  new = np.append(True, (other_E[1:] != other_E[:-1]) | (ad_E[1:] != ad_E[:-1]))[: len(row_E)]
  first_C = np.flatnonzero(new)
  end_C = np.append(first_C[1:], len(row_E))[: len(first_C)]
  later_E = np.repeat(end_C, end_C - first_C) - np.arange(1, len(row_E) + 1)
  return _Entries(row_E, other_E, first_C, later_E)


def _chunks(
  entries: _Entries, after_R, pairs_at_once: int
) -> Iterator[tuple[int, int, np.ndarray]]:
  """Runs of rows (begin, end) of so many pairs, each with the places of its entries.

  Only entries that have a later one in their cell are among them, those with most of these first.
  """
  pairs_R = np.bincount(entries.row_E, weights=entries.later_E, minlength=len(after_R))
  # By the larger of two arrays that `_sums` makes: one a pair of entries, one a pair of rows.
  cut = list(cuts(np.maximum(pairs_R, after_R), pairs_at_once))
  for begin, end in cut:
    chosen = entries.later_E > 0
    if len(cut) > 1:
      chosen &= (entries.row_E >= begin) & (entries.row_E < end)
    chosen = np.flatnonzero(chosen)
    later = entries.later_E[chosen]
    most = int(later.max(initial=0))
    # NumPy sorts 16 bits by radix, which is quick.
    kind = np.uint16 if most < 2**16 else np.int64
    yield begin, end, chosen[np.argsort((most - later).astype(kind), kind="stable")]


def _sums(entries: _Entries, chosen, begin: int, after_R, weight_R, alpha: float) -> np.ndarray:
  """For each chosen entry u, Σ w_u w_v / (α + |I_u ∩ I_v|) over the later entries v of its cell.

  Args:
    entries: E entries.
    chosen: [P] places of those that begin pairs, most pairs first.
    begin: the run's first row.
    after_R: rows of the same ad after each row of the run.
    weight_R: w_u of all rows.
    alpha: smoothing constant.

  Returns:
    [P] float64.
  """
  row = entries.row_E[chosen]
  # Number of the pair of rows (u, v), v after u: those of a row stand together, in order of v.
  number = (np.cumsum(after_R) - after_R)[row - begin] - row - 1
  later = entries.later_E[chosen]
  # Entries with d partners or more, for d = 1, 2, …: as those with most come first, they are the
  # first so many of `chosen`. Turn d pairs each of them with its d-th follower.
  having = len(later) - np.searchsorted(later[::-1], np.arange(1, later.max(initial=0) + 1))
  ends = np.cumsum(having)
  pair = np.empty(int(later.sum()), np.int64)
  place = chosen.copy()
  for count, end in zip(having.tolist(), ends.tolist(), strict=True):
    place[:count] += 1
    np.add(number[:count], entries.row_E[place[:count]], out=pair[end - count : end])
  shared = np.bincount(pair, minlength=int(after_R.sum()))  # beside ad i itself
  # The 1 is ad i, which both visits hold.
  strength = 1 / (alpha + 1 + shared)
  weight_E = weight_R[entries.row_E]
  total = np.zeros(len(chosen))
  place = chosen.copy()
  for count, end in zip(having.tolist(), ends.tolist(), strict=True):
    place[:count] += 1
    total[:count] += strength[pair[end - count : end]] * weight_E[place[:count]]
  return total * weight_E[chosen]


def _ordered(ad_C, other_C, similarity_C) -> Cells:
  """Cells that are given in order of j, in the order of `Cells`."""
  # The bits of positive floats, read as whole numbers, are in the floats' order. So one key of ad
  # and similarity is sorted in place of two columns; stable, so that equal ones stay in order of j.
  descending = np.int64(0x7FFFFFFF) - similarity_C.view(np.int32)
  order = np.argsort((ad_C.astype(np.int64) << 32) | descending, kind="stable")
  return Cells(ad_C[order], other_C[order], similarity_C[order])
