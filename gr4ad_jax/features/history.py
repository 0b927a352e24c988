"""What is known of a user before a request: the ads of the history, and features of them.

All is looked up in the running columns of `features/lines.py`.
"""

import numpy as np

from gr4ad_jax.data.schema import DAY
from gr4ad_jax.features.lines import DECAY, Lines

FEATURES = (
  "depth", "count", "decayed_count", "last_value", "total_value", "unit_price", "quantity",
  "gap_days", "gap_visits", "interval_days", "due", "rate", "in_last_visit",
)  # fmt: skip


def history_rows(lines: Lines, requests: np.ndarray, slots: int) -> np.ndarray:
  """The latest line of each distinct ad before a request, oldest first, at most `slots` of them.

  Returns:
    [B, slots] int64 line numbers, padded at the end with -1.
  """
  out = np.full((len(requests), slots), -1, np.int64)
  # Lines of a user lie together, in order of time: his own begin here and end before the request.
  begin_B = lines.user_first[requests]
  size_B = lines.request_first[requests] - begin_B
  # The users' lines as one run: a running number, moved to where each user's lie.
  line = np.arange(size_B.sum()) + np.repeat(begin_B - np.cumsum(size_B) + size_B, size_B)
  row = np.repeat(np.arange(len(requests)), size_B)
  # A line is the latest of its ad where the user's next one with this ad is not before the request.
  latest = (lines.next_request[line] >= requests[row]).nonzero()[0]
  row = row[latest]
  # [B] where each request's lines end among those that are left.
  end_B = np.cumsum(np.bincount(row, minlength=len(requests)))
  kept_B = np.minimum(np.diff(end_B, prepend=0), slots)
  # Below 0: the line is older than the slots reach.
  place = np.arange(len(row)) - (end_B - kept_B)[row]
  kept = place >= 0
  out[row[kept], place[kept]] = line[latest[kept]]
  return out


def ads_of(lines: Lines, rows: np.ndarray) -> np.ndarray:
  """Ad rows of line numbers, as `history_rows` gives them; -1 in padding."""
  # -1 would gather the last line; the mask replaces what row 0 gives.
  return np.where(rows >= 0, lines.ad[np.maximum(rows, 0)], -1)


def decayed_counts(lines: Lines, requests: np.ndarray, rows_BS: np.ndarray) -> np.ndarray:
  """How often each ad of the histories was taken, a visit counting DECAY times the next one.

  Args:
    lines: all lines.
    requests: [B] request numbers.
    rows_BS: line numbers, as `history_rows` gives them.

  Returns:
    [B, S] float64, as of the visit before the request; 0 in padding.
  """
  row = np.maximum(rows_BS, 0)
  # The count holds its own line with weight 1, so one visit less is forgotten than have passed.
  gap = lines.request_visit[requests][:, None] - lines.request_visit[lines.request[row]]
  return np.where(rows_BS >= 0, lines.decayed_count[row] * DECAY ** (gap - 1.0), 0)


def history_features(lines: Lines, requests: np.ndarray, rows_BS: np.ndarray) -> np.ndarray:
  """Behaviour features of history slots at request time, as in FEATURES; money and times on a log
  scale.

  Returns:
    [B, S, len(FEATURES)] float32, zeros where a slot is padding.
  """
  row = np.maximum(rows_BS, 0)
  line_request = lines.request[row]
  last_time = lines.time[row]
  gap_visits = (lines.request_visit[requests][:, None] - lines.request_visit[line_request]).astype(
    np.float32
  )
  gap_days = np.maximum(lines.request_time[requests][:, None] - last_time, 0) / DAY
  count = lines.count[row]
  # Mean days between two takings. One taking has no interval: its numerator is 0.
  interval = (last_time - lines.first_time[row]) / DAY / np.maximum(count - 1, 1)
  # Below 0, more was given back than was taken.
  value = np.maximum(lines.value[row], 0)
  quantity = np.maximum(lines.quantity[row], 0)
  # Half the log of days: that of years of them then stays below 4.
  out = np.stack([
    lines.depth[row],
    np.log1p(count),
    np.log1p(lines.decayed_count[row] * DECAY ** (gap_visits - 1)),
    np.log1p(value),
    np.log1p(np.maximum(lines.total_value[row], 0)),
    np.log1p(value / np.maximum(quantity, 1)),
    np.log1p(quantity),
    np.log1p(gap_days) / 2,
    np.log1p(gap_visits),
    np.log1p(interval) / 2,
    np.where(count > 1, np.tanh(np.log((gap_days + 1) / (interval + 1))), 0.0),
    count / np.maximum(lines.request_visit[requests][:, None], 1),
    gap_visits == 1,
  ], axis=-1).astype(np.float32)  # fmt: skip
  # Padding has gathered line 0, whatever that is.
  out[rows_BS < 0] = 0
  return out


USER_FEATURES = (
  "visits", "gap_days", "tenure_days", "lines_per_visit", "value_per_visit", "distinct_share",
  "season_sin", "season_cos",
)  # fmt: skip


def user_features(lines: Lines, requests: np.ndarray) -> np.ndarray:
  """What a user was like before a request, as in USER_FEATURES; counts, money and times on a log
  scale.

  Returns:
    [B, len(USER_FEATURES)] float32.
  """
  visits = lines.request_visit[requests].astype(np.float64)
  some = np.maximum(visits, 1)
  first = lines.user_first[requests]
  here = lines.request_first[requests]
  time = lines.request_time[requests]
  # The row before belongs to the same user, unless this is his first request: the mask sees to
  # that.
  previous = np.where(visits > 0, lines.request_time[requests - 1], time)
  # `first` is past the end for a user without a line in the last place of the log.
  begin = lines.request_time[lines.request[np.minimum(first, len(lines.request) - 1)]]
  # In radians. Sine and cosine together keep the turn of the year smooth.
  year = 2 * np.pi * time / (365.25 * DAY)
  return np.stack([
    np.log1p(visits),
    np.log1p(np.maximum(time - previous, 0) / DAY) / 2,
    np.log1p(np.maximum(time - begin, 0) / DAY) / 2,
    np.log1p((here - first) / some),
    np.log1p(np.maximum(lines.spent[here], 0) / some) / 2,
    (lines.fresh[here] - lines.fresh[first]) / np.maximum(here - first, 1),
    np.sin(year),
    np.cos(year),
  ], axis=-1).astype(np.float32)  # fmt: skip
