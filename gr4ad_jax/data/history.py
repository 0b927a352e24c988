"""What a user did with each ad before a request, as running columns over the log's lines.

A *line* is one (request, ad) pair: several events of one ad in one visit are one line with the
deepest behaviour and the summed value and quantity. Running columns hold, at every line, the totals
of its (user, ad) pair up to and
including it, so the state before any request is a gather: no pass over the history, no per-user
  object.
"""

import dataclasses
import functools

import numpy as np

from gr4ad_jax.data.schema import EventLog

DAY = 86_400  # seconds
DECAY = 0.9  # weight of a visit against the next one (docs/design/evaluation.md's personal recency)
NEVER = np.iinfo(np.int32).max

FEATURES = (
  "depth", "count", "decayed_count", "last_value", "total_value", "unit_price", "quantity",
  "gap_days", "gap_visits", "interval_days", "due", "rate", "in_last_visit",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Lines:
  """L lines in order of request, R requests in order of user and time; every column is aligned
  with one of the two.
  """

  request: np.ndarray  # [L] int32
  ad: np.ndarray  # [L] int32
  depth: np.ndarray  # [L] int8
  value: np.ndarray  # [L] float32, money
  quantity: np.ndarray  # [L] float32, units
  next_request: np.ndarray  # [L] int32, the user's next request with this ad, or NEVER
  count: np.ndarray  # [L] float32, lines of this user and ad so far
  decayed_count: np.ndarray  # [L] float32, the same with weight DECAY^(visits ago)
  total_value: np.ndarray  # [L] float32, money so far
  first_time: np.ndarray  # [L] int64, unix seconds of the pair's first line
  request_first: np.ndarray  # [R + 1] first line of each request
  request_user: np.ndarray  # [R] int32
  request_time: np.ndarray  # [R] int64, unix seconds
  request_visit: np.ndarray  # [R] int32, the user's visits before this one
  request_split: np.ndarray  # [R] int8
  user_first: np.ndarray  # [R] first line of the request's user

  @functools.cached_property
  def spent(self) -> np.ndarray:
    """[L + 1] float64, money of all lines before each."""
    return np.concatenate([[0.0], np.cumsum(self.value, dtype=np.float64)])

  @functools.cached_property
  def fresh(self) -> np.ndarray:
    """[L + 1] lines before each that are a user's first of an ad."""
    return np.concatenate([[0], np.cumsum(self.count == 1)])


def _accumulate(
  key: np.ndarray, visit: np.ndarray, value: np.ndarray, time: np.ndarray, request: np.ndarray
):
  """Running columns of lines sorted by request, grouped by `key` = (user, ad)."""
  order = np.argsort(key, kind="stable")  # keeps time order inside a pair
  first = np.ones(len(key), bool)
  first[1:] = key[order][1:] != key[order][:-1]
  start = np.flatnonzero(first)
  group = np.cumsum(first) - 1
  rank = np.arange(len(key)) - start[group]
  total = np.cumsum(value[order], dtype=np.float64)
  total -= (total[start] - value[order][start])[group]
  decayed = np.ones(len(key))
  sorted_visit = visit[order]
  by_rank = np.argsort(rank, kind="stable")
  bounds = np.searchsorted(rank[by_rank], np.arange(rank.max(initial=0) + 2))
  for r in range(1, len(bounds) - 1):  # the r-th line of every pair at once
    here = by_rank[bounds[r] : bounds[r + 1]]
    decayed[here] += decayed[here - 1] * DECAY ** (sorted_visit[here] - sorted_visit[here - 1])
  following = np.full(len(key), NEVER, np.int32)
  following[:-1][~first[1:]] = request[order][1:][~first[1:]]
  out = np.empty_like
  columns = [
    following,
    (rank + 1).astype(np.float32),
    decayed.astype(np.float32),
    total.astype(np.float32),
  ]
  columns.append(time[order][start][group])
  result = []
  for column in columns:
    back = out(column)
    back[order] = column
    result.append(back)
  return result


def build_lines(events: EventLog, num_ads: int) -> Lines:
  """Folds events into lines and adds the running columns.

  Args:
    events: sorted by user, then visit (`EventLog`).
    num_ads: rows of the ad table.

  Returns:
    The lines; inside a request they keep the order in which the log first names each ad.
  """
  request = events.request.astype(np.int64)
  _, position, inverse = np.unique(
    request * num_ads + events.ad, return_index=True, return_inverse=True
  )
  position_order = np.argsort(position, kind="stable")  # log order, not ad order
  new_row = np.empty_like(position_order)
  new_row[position_order] = np.arange(len(position_order))
  row, position = new_row[inverse], position[position_order]
  value = np.bincount(row, events.value, len(position)).astype(np.float32)
  quantity = np.bincount(row, events.quantity, len(position)).astype(np.float32)
  depth = np.zeros(len(position), np.int8)
  np.maximum.at(depth, row, events.behavior)

  line_request, line_ad = (
    events.request[position].astype(np.int32),
    events.ad[position].astype(np.int32),
  )
  num_requests = int(line_request[-1]) + 1 if len(line_request) else 0
  request_first = np.searchsorted(line_request, np.arange(num_requests + 1))
  opening = position[request_first[:-1]]
  user, time, split = events.user[opening], events.time[opening], events.split[opening]
  user_request = np.searchsorted(user, user)  # the user's first request: users are sorted
  visit = (np.arange(num_requests) - user_request).astype(np.int32)
  key = user[line_request].astype(np.int64) * num_ads + line_ad
  running = _accumulate(key, visit[line_request], value, time[line_request], line_request)
  return Lines(
    line_request,
    line_ad,
    depth,
    value,
    quantity,
    *running,
    request_first,
    user,
    time,
    visit,
    split,
    request_first[user_request],
  )


def history_rows(lines: Lines, requests: np.ndarray, slots: int) -> np.ndarray:
  """The latest line of each distinct ad before a request, oldest first, at most `slots` of them.

  Returns:
    [B, slots] int64 line numbers, padded at the end with -1.
  """
  out = np.full((len(requests), slots), -1, np.int64)
  for b, r in enumerate(requests):
    begin, end = lines.user_first[r], lines.request_first[r]
    latest = np.flatnonzero(lines.next_request[begin:end] >= r)[-slots:]
    out[b, : len(latest)] = latest + begin
  return out


def ads_of(lines: Lines, rows: np.ndarray) -> np.ndarray:
  """Ad rows of line numbers, as `history_rows` gives them; -1 in padding."""
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
  last_time = lines.request_time[line_request]
  gap_visits = (lines.request_visit[requests][:, None] - lines.request_visit[line_request]).astype(
    np.float32
  )
  gap_days = np.maximum(lines.request_time[requests][:, None] - last_time, 0) / DAY
  count = lines.count[row]
  interval = (last_time - lines.first_time[row]) / DAY / np.maximum(count - 1, 1)
  quantity = lines.quantity[row]
  out = np.stack([
    lines.depth[row],
    np.log1p(count),
    np.log1p(lines.decayed_count[row] * DECAY ** (gap_visits - 1)),
    np.log1p(lines.value[row]),
    np.log1p(lines.total_value[row]),
    np.log1p(lines.value[row] / np.maximum(quantity, 1)),
    np.log1p(quantity),
    np.log1p(gap_days) / 2,
    np.log1p(gap_visits),
    np.log1p(interval) / 2,
    np.where(count > 1, np.tanh(np.log((gap_days + 1) / (interval + 1))), 0.0),
    count / np.maximum(lines.request_visit[requests][:, None], 1),
    gap_visits == 1,
  ], axis=-1).astype(np.float32)  # fmt: skip
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
  first, here = lines.user_first[requests], lines.request_first[requests]
  time = lines.request_time[requests]
  previous = np.where(visits > 0, lines.request_time[requests - 1], time)
  begin = lines.request_time[lines.request[np.minimum(first, len(lines.request) - 1)]]
  year = 2 * np.pi * time / (365.25 * DAY)
  return np.stack([
    np.log1p(visits),
    np.log1p(np.maximum(time - previous, 0) / DAY) / 2,
    np.log1p(np.maximum(time - begin, 0) / DAY) / 2,
    np.log1p((here - first) / some),
    np.log1p((lines.spent[here] - lines.spent[first]) / some) / 2,
    (lines.fresh[here] - lines.fresh[first]) / np.maximum(here - first, 1),
    np.sin(year),
    np.cos(year),
  ], axis=-1).astype(np.float32)  # fmt: skip
