"""What is popular with users like this one: the list for when the model cannot answer in time.

Users are cut into segments of equal size by what they have spent (by how many events they have,
where no event has a value), and a segment's ads are counted with a weight that halves every four
weeks.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from gr4ad_jax.data.schema import EventLog

_HALF_LIFE = 28 * 86_400  # seconds
_LONGEST = 1_000  # ads of a list
_PRIOR = 10.0  # weighted events of everybody that are added to a segment's own


@dataclasses.dataclass(frozen=True)
class PopularLists:
  """Ranked lists, one a segment.

  Attributes:
    edges: [G - 1] what separates the G segments, ascending: summed value of a user, or number of
      events.
    by_value: whether segments are cut by value.
    row_GK: int32 rows of the ad table, most popular first, -1 where fewer ads have events.
    share_GK: float32 share of the segment's weighted events.
    mean_value_N: float32 mean value of an ad's events, money; 0 where it has none.
  """

  edges: np.ndarray
  by_value: bool
  row_GK: np.ndarray
  share_GK: np.ndarray
  mean_value_N: np.ndarray

  @classmethod
  def fit(cls, events: EventLog, num_ads: int, segments: int) -> "PopularLists":
    """Counts a log.

    Args:
      events: the log; may be empty.
      num_ads: rows of the ad table.
      segments: at most so many; fewer where users are too alike to be told apart.
    """
    by_value = bool(events.value.any())
    users = len(events.user_id)
    size_U = np.bincount(events.user, events.value if by_value else None, users)
    # Inner quantiles alone: below the first and above the last one lie segments, too.
    edges = (
      np.unique(np.quantile(size_U, np.linspace(0, 1, segments + 1)[1:-1]))
      if users
      else np.zeros(0)
    )
    # Of each user, gathered to the user's events: (U,) -> (E,).
    segment_E = np.searchsorted(edges, size_U, side="right")[events.user]
    # An event of four weeks before the last one counts half.
    weight_E = 0.5 ** ((events.time.max(initial=0) - events.time) / _HALF_LIFE)
    # Who gives back does not ask for more.
    weight_E = np.where(events.value < 0, 0, weight_E)
    everybody = np.bincount(events.ad, weight_E, num_ads)
    # A prior of few events, so that a segment of few users is not ruled by one of them.
    prior = _PRIOR * everybody / max(everybody.sum(), 1e-9)
    most = min(_LONGEST, num_ads)
    rows = []
    shares = []
    for segment in range(len(edges) + 1):
      mine = segment_E == segment
      count = np.bincount(events.ad[mine], weight_E[mine], num_ads) + prior
      top = np.argsort(-count, kind="stable")[:most]
      # What nobody in the segment, and nobody at all, took is no candidate.
      rows.append(np.where(count[top] > 0, top, -1))
      shares.append(count[top] / max(count.sum(), 1e-9))
    value_N = np.bincount(events.ad, events.value, num_ads) / np.maximum(
      np.bincount(events.ad, minlength=num_ads), 1
    )
    lists = np.array(rows, np.int32), np.array(shares, np.float32)
    # Of an ad that was given back more often than the log has it sold, nothing is expected.
    return cls(edges, by_value, *lists, np.maximum(value_N, 0).astype(np.float32))

  def segment(self, log: EventLog | None) -> int:
    """The segment of one user's log; the lowest where nothing is known."""
    if log is None or not len(log):
      return 0
    # As `fit` cuts the users of the whole log.
    size = float(log.value.sum()) if self.by_value else len(log)
    return int(np.searchsorted(self.edges, size, side="right"))

  def best(
    self, log: EventLog | None, k: int, active: Callable[[int], bool]
  ) -> list[tuple[int, float, float, float]]:
    """The k most popular ads for a user that may be shown.

    Args:
      log: the user's events; None or empty where there are none.
      k: ads wanted; fewer come back where fewer are known.
      active: whether the ad of a row may be shown.

    Returns:
      (row, log of the ad's share in the segment, the same as the score that orders, mean value of
      its events), best first.
    """
    segment = self.segment(log)
    found = []
    for row, share in zip(
      self.row_GK[segment].tolist(), self.share_GK[segment].tolist(), strict=True
    ):
      if row < 0 or len(found) == k:
        break
      if active(row):
        # A share is above 0 here, since rows without weight are -1.
        log_p = float(np.log(share))
        found.append((row, log_p, log_p, float(self.mean_value_N[row])))
    return found
