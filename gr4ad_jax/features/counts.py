"""What events add to the counts of ads, in whole numbers: their order does not matter."""

from typing import NamedTuple

import numpy as np

from gr4ad_jax.data.schema import DAY
from gr4ad_jax.features.lines import Lines

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
