"""Visits as a stream's events make them: opened, added to, and over after a pause.

The clock is that of the events: the latest moment that any of them had. So what the visits are
depends on the events and their order alone, not on when they were read.
"""

import collections
import dataclasses
import heapq
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from gr4ad_jax.data import visits as visits_lib
from gr4ad_jax.data.schema import EventLog
from gr4ad_jax.features.histories import Events
from gr4ad_jax.features.state import State

_CLOSED = 100_000  # visits that are over whose names are remembered: what they bring comes late


class Event(NamedTuple):
  """An event, checked. Fields as in `features.histories.Events`."""

  user_id: str
  ad: int
  time: int
  behavior: int
  value: float
  quantity: float
  visit_id: str | None


@dataclasses.dataclass
class Visit:
  """A visit of a user.

  Attributes:
    number: visits are numbered in the order in which they open.
    user_id: whose it is.
    visit_id: its name; None: a pause ends it.
    begin: unix seconds of its earliest event, which is the moment of the request.
    last: unix seconds of its latest event.
    known: what was known of the user when it opened.
    events: what it brought.
  """

  number: int
  user_id: str
  visit_id: str | None
  begin: int
  last: int
  known: EventLog
  events: list[Event] = dataclasses.field(default_factory=list)


class Visits:
  """Turns events into visits, and keeps `State` up to date.

  Args:
    state: of users and ads.
    gap_seconds: a pause that ends a visit.

  Attributes:
    state: all events that came, once `flush` was called.
    clock: the latest moment of an event, unix seconds.
    over: visits that are over and were not taken yet, in the order in which they ended.
    late: events that belonged to no open visit.
  """

  def __init__(self, state: State, gap_seconds: float):
    self.state = state
    self.clock = 0
    self.over: collections.deque[Visit] = collections.deque()
    self.late = 0
    self._gap = gap_seconds
    self._opened = 0
    self._open: dict[tuple[str, str | None], Visit] = {}
    # (moment at which it may be over, number, visit): an entry whose visit went on comes back.
    self._due: list[tuple[float, int, Visit]] = []
    self._closed: collections.OrderedDict[tuple[str, str], None] = collections.OrderedDict()
    self._pending: list[Event] = []  # not yet in the state
    self._pending_users: set[str] = set()

  @property
  def open(self) -> list[Visit]:
    """Visits that are not over, in the order in which they opened."""
    return sorted(self._open.values(), key=lambda visit: visit.number)

  def add(self, event: Event) -> None:
    """Adds an event. Visits that are over by its moment end first.

    An event whose visit is over, or would have been over before it came, is part of the user's
    history, and of no request.
    """
    self.clock = max(self.clock, event.time)
    self._end_due()
    # A visit without an id is one of its user's open ones.
    name = event.user_id, event.visit_id
    visit = self._open.get(name)
    # It would have been over before it came, or it is known to be.
    is_late = event.time + self._gap <= self.clock or name in self._closed
    if visit is None and not is_late:
      visit = self._begin(event)
    elif visit is None:
      self.late += 1
    if visit is not None:
      # Events come late and in any order, also the first of a visit.
      visit.begin = min(visit.begin, event.time)
      visit.last = max(visit.last, event.time)
      visit.events.append(event)
    self._pending.append(event)
    self._pending_users.add(event.user_id)

  def flush(self) -> None:
    """Tells the state of the events that it has not seen."""
    if self._pending:
      self.state.observe(columns_of(self._pending))
      self._pending = []
      self._pending_users = set()

  def _begin(self, event: Event) -> Visit:
    if event.user_id in self._pending_users:
      # The user's events up to here are what is known when the visit opens.
      self.flush()
    known = self.state.log_of(event.user_id)
    visit = Visit(self._opened, event.user_id, event.visit_id, event.time, event.time, known)
    self._opened += 1
    self._open[event.user_id, event.visit_id] = visit
    # The number breaks ties, so that visits are never compared themselves.
    heapq.heappush(self._due, (event.time + self._gap, visit.number, visit))
    return visit

  def _end_due(self) -> None:
    # The earliest moment stands first in a heap.
    while self._due and self._due[0][0] <= self.clock:
      due, number, visit = heapq.heappop(self._due)
      # The visit went on, so it has another place in the order.
      if visit.last + self._gap > due:
        heapq.heappush(self._due, (visit.last + self._gap, number, visit))
        continue
      del self._open[visit.user_id, visit.visit_id]
      self.over.append(visit)
      if visit.visit_id is not None:
        self._closed[visit.user_id, visit.visit_id] = None
        if len(self._closed) > _CLOSED:
          self._closed.popitem(last=False)


def columns_of(events: Iterable[Event]) -> Events:
  """Events by column."""
  user_id, ad, time, behavior, value, quantity, visit_id = zip(*events, strict=True)
  return Events(
    user_id,
    np.array(ad, np.int32),
    np.array(time, np.int64),
    np.array(behavior, np.int8),
    np.array(value, np.float32),
    np.array(quantity, np.float32),
    visit_id,
  )


def with_visit(visit: Visit) -> EventLog:
  """The log of one user: what was known when a visit opened, then the visit as the last one."""
  # What came late may be of after the visit's beginning: that was not known then.
  known = visits_lib.until(visit.known, np.array([visit.begin]))
  events = columns_of(visit.events)
  # Of equal times the event that came first is first.
  order = np.argsort(events.time, kind="stable")
  size = len(order)
  # One past the last number that the history has.
  request = int(known.request[-1]) + 1 if len(known) else 0
  added = {
    "user": np.zeros(size, np.int32),
    "request": np.full(size, request, np.int32),
    "split": np.zeros(size, np.int8),
  }
  for name in ("ad", "time", "behavior", "value", "quantity"):
    added[name] = getattr(events, name)[order]
  columns = {
    name: np.concatenate([getattr(known, name), column.astype(getattr(known, name).dtype)])
    for name, column in added.items()
  }
  return EventLog(known.user_id, **columns)
