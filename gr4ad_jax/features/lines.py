"""What a user did with each ad, as running columns over the log's lines.

A *line* is all that a user did with one ad between one request and the next: several events are
one line, with the deepest behaviour and the summed value and quantity. In most logs that is what
one visit did with the ad. An event that comes late, such as a purchase a week after its click,
belongs to the line of the time in which it happened: what stands before a request happened before
it.

Running columns hold, at every line, the totals of its (user, ad) pair up to and including it. So
the state before any request is a gather: no pass over the history, no object a user.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import ATTRIBUTION_DAYS, DAY, EventLog

DECAY = 0.9  # weight of a visit against the next one (docs/design/evaluation.md's personal recency)
NEVER = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class Steps:
  """What a line was worth after each moment at which something happened in it: S >= L steps, in
  order of line, then time.
  """

  line: np.ndarray  # [S] int64
  time: np.ndarray  # [S] int64, unix seconds
  value: np.ndarray  # [S] float32, money of the line up to and with this moment


class Told(NamedTuple):
  """What features say of a line whatever request asks, so that it is computed once a line."""

  names: tuple[str, ...]  # features of `history.FEATURES`, and `own_mean_value`
  columns: np.ndarray  # [L, len(names)] float32
  interval: np.ndarray  # [L] float64, mean days between two takings so far; 0 of the first one


@dataclasses.dataclass(frozen=True)
class Outcomes:
  """What followed each request: the ads of its visit, P outcomes in order of request.

  An event counts where it happened within the attribution window of its request. What followed may
  have happened after the user's next request: it is what a request is trained towards and judged
  by, and is never read as something known. An ad that a visit only gave back, with a value below 0,
  did not follow.
  """

  request: np.ndarray  # [P] int32
  ad: np.ndarray  # [P] int32
  depth: np.ndarray  # [P] int8
  value: np.ndarray  # [P] float32, money, at least 0
  quantity: np.ndarray  # [P] float32, units
  first: np.ndarray  # [R + 1] first outcome of each request

  @functools.cached_property
  def _by_ad(self) -> tuple[np.ndarray, np.ndarray]:
    """Key (ad, request) of every outcome, ascending, and the outcome's number."""
    # One number a pair (ad, request): the searches below are then searches in one sorted column.
    key = self.ad.astype(np.int64) * (len(self.first) - 1) + self.request
    order = np.argsort(key, kind="stable")
    return key[order], order

  def of(self, requests: np.ndarray, ads_BC: np.ndarray) -> np.ndarray:
    """The request's own outcome with each ad, [B, C] int64; -1: it has none, or is padding."""
    key, order = self._by_ad
    if not len(key):
      return np.full(ads_BC.shape, -1, np.int64)
    wanted = ads_BC.astype(np.int64) * (len(self.first) - 1) + requests[:, None]
    # `searchsorted` gives the end where all keys are less; the comparison below tells that apart.
    at_BC = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
    return np.where((key[at_BC] == wanted) & (ads_BC >= 0), order[at_BC], -1)


@dataclasses.dataclass(frozen=True)
class Lines:
  """L lines in order of request, R requests in order of user and time; every column is aligned
  with one of the two.
  """

  request: np.ndarray  # [L] int32, the user's latest request when the line began
  ad: np.ndarray  # [L] int32
  depth: np.ndarray  # [L] int8
  value: np.ndarray  # [L] float32, money
  quantity: np.ndarray  # [L] float32, units
  time: np.ndarray  # [L] int64, unix seconds of the line's last event
  next_request: np.ndarray  # [L] int32, the user's next request with this ad, or NEVER
  count: np.ndarray  # [L] float32, lines of this user and ad so far
  decayed_count: np.ndarray  # [L] float32, the same with weight DECAY^(visits ago)
  total_value: np.ndarray  # [L] float32, money so far
  first_time: np.ndarray  # [L] int64, unix seconds of the pair's first event
  request_first: np.ndarray  # [R + 1] first line of each request
  request_user: np.ndarray  # [R] int32
  request_time: np.ndarray  # [R] int64, unix seconds
  request_visit: np.ndarray  # [R] int32, the user's visits before this one
  request_split: np.ndarray  # [R] int8
  user_first: np.ndarray  # [R] first line of the request's user
  steps: Steps
  outcomes: Outcomes

  @functools.cached_property
  def told(self) -> Told:
    """Features that follow from a line alone; money and times on a log scale."""
    # Below 0, more was given back than was taken.
    value = np.maximum(self.value, 0)
    quantity = np.maximum(self.quantity, 0)
    total = np.maximum(self.total_value, 0)
    interval = (self.time - self.first_time) / DAY / np.maximum(self.count - 1, 1)
    columns = {
      "depth": self.depth,
      "count": np.log1p(self.count),
      "last_value": np.log1p(value),
      "total_value": np.log1p(total),
      "unit_price": np.log1p(value / np.maximum(quantity, 1)),
      "quantity": np.log1p(quantity),
      "interval_days": np.log1p(interval) / 2,
      "own_mean_value": np.log1p(total / self.count),
    }
    made = np.empty((len(self.ad), len(columns)), np.float32)
    for place, column in enumerate(columns.values()):
      made[:, place] = column
    return Told(tuple(columns), made, interval)

  @functools.cached_property
  def spent(self) -> np.ndarray:
    """[L] float64, money of the user's lines before each."""
    return self.sums_before(self.value)

  def sums_before(self, value_L: np.ndarray) -> np.ndarray:
    """[L] float64, sums of a column over the user's lines before each.

    A user's sums do not depend on the other users, to the bit: lines of some users give what the
    lines of all give.
    """
    user_L = self.request_user[self.request]
    sums = running_sums(value_L, user_L)
    # The running sum of the line before, or 0 where another user begins.
    before = np.zeros_like(sums)
    before[1:] = np.where(user_L[1:] == user_L[:-1], sums[:-1], 0)
    return before

  @functools.cached_property
  def fresh(self) -> np.ndarray:
    """[L + 1] lines before each that are a user's first of an ad."""
    return np.concatenate([[0], np.cumsum(self.count == 1)])


def build_lines(
  events: EventLog, num_ads: int, attribution_days: float = ATTRIBUTION_DAYS
) -> Lines:
  """Folds events into lines and outcomes, and adds the running columns.

  Args:
    events: sorted by user, then visit, then time (`EventLog`).
    num_ads: rows of the ad table.
    attribution_days: an event of a visit is an outcome of its request up to so many days after it.

  Returns:
    The lines; inside a request they keep the order in which the log first names each ad.
  """
  period = visits.periods(events.user, events.request, events.time)
  # Events that arrive in another visit's period move there. In most logs none does, and no copy is
  # made.
  attributed_E = visits.attributed(events, attribution_days)
  plain = bool((period == events.request).all())
  lined = events if plain else _in_order_of(events, period)
  row_E, position = _folded(lined, num_ads)
  line = _columns(lined, row_E, position)
  line_request = line["request"]

  opening = np.flatnonzero(np.append(True, events.request[1:] != events.request[:-1]))
  opening = opening[: len(events)]  # a log without an event opens no visit
  user = events.user[opening]
  time = events.time[opening]
  user_request = np.searchsorted(user, user)  # the user's first request: users are sorted
  visit = (np.arange(len(user)) - user_request).astype(np.int32)
  # [R + 1]: a request without a line has the same bound twice.
  request_first = np.searchsorted(line_request, np.arange(len(user) + 1))

  began = lined.time[position]
  last = began.copy()
  last[row_E] = lined.time  # in order of time: of a line's events the last one stays
  steps = _steps(row_E, lined, began, line["value"])
  key = user[line_request].astype(np.int64) * num_ads + line["ad"]
  running = _accumulate(key, visit[line_request], line["value"], began, line_request)
  # Nothing moved, everything counts and nothing was given back: lines and outcomes are the same.
  if plain and attributed_E.all() and (line["value"] >= 0).all():
    outcomes = Outcomes(**line, first=request_first)
  else:
    outcomes = _outcomes(events, attributed_E, num_ads, len(user))
  return Lines(
    **line,
    time=last,
    **running,
    request_first=request_first,
    request_user=user,
    request_time=time,
    request_visit=visit,
    request_split=events.split[opening],
    user_first=request_first[user_request],
    steps=steps,
    outcomes=outcomes,
  )


def _in_order_of(events: EventLog, period_E: np.ndarray) -> EventLog:
  """The log with each event in the visit of its period, in order of time there."""
  order = np.lexsort((events.time, period_E))  # stable: equal times keep the log's order
  return dataclasses.replace(events, **events.columns(order) | {"request": period_E[order]})


def _folded(events: EventLog, num_ads: int) -> tuple[np.ndarray, np.ndarray]:
  """The (request, ad) pair of each event as a number [E], and each pair's first event; pairs are
  numbered in the order in which the log first names them.
  """
  request = events.request.astype(np.int64)
  _, position, inverse = np.unique(
    request * num_ads + events.ad, return_index=True, return_inverse=True
  )
  position_order = np.argsort(position, kind="stable")  # log order, not ad order
  # The inverse of a permutation: pair `position_order[i]` gets number i.
  new_row = np.empty_like(position_order)
  new_row[position_order] = np.arange(len(position_order))
  return new_row[inverse], position[position_order]


def _columns(events: EventLog, row_E: np.ndarray, position: np.ndarray) -> dict[str, np.ndarray]:
  """Request, ad, depth, value and quantity of each pair that `_folded` found."""
  depth = np.zeros(len(position), np.int8)
  # Of several behaviours with an ad in one visit the deepest stands, such as bought after clicked.
  np.maximum.at(depth, row_E, events.behavior)
  return {
    "request": events.request[position].astype(np.int32),
    "ad": events.ad[position].astype(np.int32),
    "depth": depth,
    "value": np.bincount(row_E, events.value, len(position)).astype(np.float32),
    "quantity": np.bincount(row_E, events.quantity, len(position)).astype(np.float32),
  }


def _outcomes(events: EventLog, attributed_E: np.ndarray, num_ads: int, requests: int) -> Outcomes:
  """Folds the attributed events by their own request."""
  some = events.take(attributed_E)
  outcome = _columns(some, *_folded(some, num_ads))
  # What was given back for more than it brought is no outcome.
  taken = outcome["value"] >= 0
  outcome = {name: column[taken] for name, column in outcome.items()}
  return Outcomes(**outcome, first=np.searchsorted(outcome["request"], np.arange(requests + 1)))


def _steps(row_E: np.ndarray, events: EventLog, began: np.ndarray, value: np.ndarray) -> Steps:
  """The steps of lines whose events begin at `began` [L] and add up to `value` [L]."""
  # Every line has one moment alone, which is its only step.
  if (events.time == began[row_E]).all():
    return Steps(np.arange(len(began)), began, value)
  order = np.argsort(row_E, kind="stable")  # keeps time order inside a line
  row = row_E[order]
  time = events.time[order]
  # Of events at the same moment the last one tells what the line was worth then.
  last = np.append((row[1:] != row[:-1]) | (time[1:] != time[:-1]), True)
  so_far = running_sums(events.value[order].astype(np.float64), row)[last].astype(np.float32)
  return Steps(row[last], time[last], so_far)


def running_sums(value: np.ndarray, group: np.ndarray) -> np.ndarray:
  """Sums of each group's values up to and including each: float64, added one after another, so
  that a group's sums do not depend on the others.

  Args:
    value: [n].
    group: [n] integers; a group's stand together.
  """
  starts = np.append(True, group[1:] != group[:-1])[: len(group)]
  start = np.flatnonzero(starts)
  # The place of each value inside its group, from 0.
  rank = np.arange(len(group)) - start[np.cumsum(starts) - 1]
  out = value.astype(np.float64)
  # Both ways add in the same order. The first loops over groups, the second over places in groups;
  # the shorter loop is taken.
  if len(start) <= rank.max(initial=0):  # few long groups: one after another
    for part in np.split(out, start[1:]):
      np.cumsum(part, out=part)
    return out
  by_rank = np.argsort(rank, kind="stable")
  bounds = np.searchsorted(rank[by_rank], np.arange(rank.max(initial=0) + 2))
  for r in range(1, len(bounds) - 1):  # the r-th of every group at once
    here = by_rank[bounds[r] : bounds[r + 1]]
    out[here] += out[here - 1]
  return out


def _accumulate(
  key: np.ndarray, visit: np.ndarray, value: np.ndarray, time: np.ndarray, request: np.ndarray
) -> dict[str, np.ndarray]:
  """Running columns of lines sorted by request, grouped by `key` = (user, ad)."""
  order = np.argsort(key, kind="stable")  # keeps time order inside a pair
  first = np.ones(len(key), bool)
  first[1:] = key[order][1:] != key[order][:-1]
  start = np.flatnonzero(first)
  group = np.cumsum(first) - 1
  rank = np.arange(len(key)) - start[group]
  total = value[order].astype(np.float64)
  decayed = np.ones(len(key))
  # Columns are in order of pair, then time; `order` brings them back below.
  sorted_visit = visit[order]
  by_rank = np.argsort(rank, kind="stable")
  bounds = np.searchsorted(rank[by_rank], np.arange(rank.max(initial=0) + 2))
  for r in range(1, len(bounds) - 1):  # the r-th line of every pair at once
    here = by_rank[bounds[r] : bounds[r + 1]]
    total[here] += total[here - 1]
    # The power is the visits that passed since the pair's last line.
    decayed[here] += decayed[here - 1] * DECAY ** (sorted_visit[here] - sorted_visit[here - 1])
  following = np.full(len(key), NEVER, np.int32)
  # A pair's last line has no next one and keeps NEVER.
  following[:-1][~first[1:]] = request[order][1:][~first[1:]]
  columns = {
    "next_request": following,
    "count": (rank + 1).astype(np.float32),
    "decayed_count": decayed.astype(np.float32),
    "total_value": total.astype(np.float32),
    "first_time": time[order][start][group],
  }
  result = {}
  for name, column in columns.items():
    result[name] = np.empty_like(column)
    # Scattered back: the columns are in order of pair, and the lines in that of the log.
    result[name][order] = column
  return result
