"""What events add to the counts of ads, in whole numbers: their order does not matter; and where an
ad's counts of a moment stand among those of all (`Cells`).
"""

from typing import NamedTuple

import numpy as np

from gr4ad_jax.data.schema import DAY
from gr4ad_jax.features.lines import Lines

# Of a cell: counts up to and with it, and the bucket of the ad's last line, -1 where it has none.
# They stand together in memory, as they are read together.
CELL = np.dtype([("seen", "i4"), ("repeats", "i4"), ("value", "f4"), ("last", "i4")])
_WORD = 64  # buckets of a word of marks
_BELOW = (np.uint64(1) << np.arange(_WORD, dtype=np.uint64)) - np.uint64(1)  # marks before a bucket
_WORDS = 10_000_000  # 120 MB; with more words cells are searched for
UNIT = 2.0**34  # of log(1 + value): of money from .0005 on, float32's logarithms are whole numbers


class Counts(NamedTuple):
  """What happened to ads: n changes of their counts, in any order.

  Attributes:
    ad: [n] row of the ad table.
    time: [n] int64, unix seconds.
    seen: [n] int64, lines that began.
    repeats: [n] int64, those of them whose user had taken the ad before.
    value: [n] int64, the change of the lines' log(1 + value), in units of 2^-34.
  """

  ad: np.ndarray
  time: np.ndarray
  seen: np.ndarray
  repeats: np.ndarray
  value: np.ndarray

  @classmethod
  def of(cls, lines: Lines, shown_L: np.ndarray | None = None) -> "Counts":
    """What lines, or those of the mask `shown_L` [L] alone, add. Each of their events counts at its
    own moment, and a line as such at its first one.
    """
    steps = lines.steps
    # Sums of whole numbers are exact in any order; sums of floats are not.
    units = np.rint(np.log1p(np.maximum(steps.value, 0)) * UNIT).astype(np.int64)
    # True at a line's first step. The cut is for a log without a line, where there is one True too
    # many.
    begins = np.append(True, steps.line[1:] != steps.line[:-1])[: len(steps.line)]
    # A step's value is that of the line so far, so what it adds is the difference to the step
    # before.
    change = units.copy()
    change[1:] -= np.where(begins[1:], 0, units[:-1])
    repeats = begins & (lines.count[steps.line] > 1)
    begins = begins.astype(np.int64)
    made = cls(lines.ad[steps.line], steps.time, begins, repeats.astype(np.int64), change)
    return made if shown_L is None else cls(*(column[shown_L[steps.line]] for column in made))

  def by_day(self) -> "Counts":
    """The same changes, those of an ad and day in one entry at the day's beginning: counts by day
    (`trends`) come out the same.
    """
    day = Counts(self.ad, self.time // DAY * DAY, *self[2:])
    return day.less(Counts(*(column[:0] for column in self)))

  def less(self, other: "Counts") -> "Counts":
    """These changes without some others: what is in both is in neither."""
    ad = np.concatenate([self.ad, other.ad])
    time = np.concatenate([self.time, other.time])
    # Moments of both sides as one table: `inverse` says which row of it each change belongs to.
    moment, inverse = np.unique(np.stack([ad, time]), axis=1, return_inverse=True)
    rest = np.zeros((3, moment.shape[1]), np.int64)
    # Three columns, each with what is taken off counted negatively.
    for row, one, taken in zip(rest, self[2:], other[2:], strict=True):
      np.add.at(row, inverse, np.concatenate([one, -taken]))
    left = rest.any(axis=0)
    return Counts(*moment[:, left], *rest[:, left])


class Cells:
  """Finds an ad's last cell before a bucket, among C cells in order of ad, then bucket.

  A bit for each ad and bucket says whether there is a cell, and each word of 64 bits has the number
  of cells before it. So a cell's number is a count of bits, without a search.

  Args:
    ad: [C] ascending.
    bucket: [C] of an ad's cells ascending, below `buckets`.
    num_ads: N, above every ad.
    buckets: P.
  """

  def __init__(self, ad: np.ndarray, bucket: np.ndarray, num_ads: int, buckets: int):
    self._ad = ad
    self._buckets = buckets
    # A word more where P is a multiple of 64: what is asked for at P sees all of them.
    self._words = buckets // _WORD + 1
    self._few = num_ads * self._words <= _WORDS
    if not self._few:
      self._keys = ad.astype(np.int64) * (buckets + 1) + bucket
      return
    word = ad.astype(np.int64) * self._words + bucket // _WORD
    size = np.bincount(word, minlength=num_ads * self._words)
    self._before = (np.cumsum(size) - size).astype(np.int32)
    self._marks = np.zeros(num_ads * self._words, np.uint64)
    # A word's cells stand together. `reduceat` refuses an empty list of bounds.
    opens = np.flatnonzero(np.append(True, word[1:] != word[:-1])[: len(word)])
    if len(opens):
      bit = np.uint64(1) << (bucket % _WORD).astype(np.uint64)
      self._marks[word[opens]] = np.bitwise_or.reduceat(bit, opens)

  def asked(self, ad: np.ndarray) -> tuple[np.ndarray, ...]:
    """What `before` wants of ads in [0, N): the same for all moments."""
    if not self._few:
      return (ad,)
    first = ad * np.int64(self._words)
    return first, self._before.take(first)

  def before(
    self, bucket: np.ndarray, asked: tuple[np.ndarray, ...], of: np.ndarray | slice = slice(None)
  ) -> np.ndarray:
    """1 + the last cell of each ad before each bucket, as columns with a 0 in front are indexed;
    0: there is none.

    Args:
      bucket: of any shape, at least 0.
      asked: of some ads, as `asked` gives it.
      of: of which bucket each ad is; left out, ads and `bucket` are of shapes that broadcast.
    """
    bucket = np.minimum(bucket, self._buckets)
    if not self._few:
      ad = asked[0]
      found = np.searchsorted(self._keys, ad * np.int64(self._buckets + 1) + bucket[of])
      if not len(self._ad):
        return found
      return np.where((found > 0) & (self._ad[np.maximum(found, 1) - 1] == ad), found, 0)
    first, start = asked
    word = first + (bucket // _WORD)[of]
    marks = self._marks.take(word) & _BELOW[bucket % _WORD][of]
    found = self._before.take(word) + np.bitwise_count(marks)
    # Where none of them is the ad's own, all are of ads before it.
    return np.where(found > start, found, 0)
