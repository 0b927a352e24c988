"""What users did, by user id: a log, and the events that have come since."""

import bisect
import dataclasses
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import EventLog
from gr4ad_jax.features.contexts import joined
from gr4ad_jax.features.counts import Counts
from gr4ad_jax.features.lines import build_lines

_NUMBERS = ("ad", "time", "behavior", "value", "quantity")  # columns of an event


class Events(NamedTuple):
  """n events of any users, in the order in which they came; that need not be the order of time.

  Attributes:
    user_id: [n] str.
    ad: [n] row of the ad table.
    time: [n] int64, unix seconds.
    behavior: [n] depth, 0 is the shallowest.
    value: [n] float32, money; below 0 it takes back.
    quantity: [n] float32, units.
    visit_id: [n] str, events of a user that share it are one visit; None: a pause starts a visit.
  """

  user_id: Sequence[str]
  ad: np.ndarray
  time: np.ndarray
  behavior: np.ndarray
  value: np.ndarray
  quantity: np.ndarray
  visit_id: Sequence[str | None]


@dataclasses.dataclass
class _Person:
  """A user's events in the order in which they came, each with the name of its visit or None, and
  the log that they make.
  """

  columns: dict[str, np.ndarray]
  visit: list[Hashable | None]
  log: EventLog


class Histories:
  """What is known of users. Events may be added at any time, in any order.

  A user's log is that of all his events at once, whatever the order in which they came: an event
  that comes late takes its place in time. Adding costs as much as the users' histories are long.

  Args:
    events: a log to start from.
    gap_seconds: a pause that starts a new visit, of later events without a `visit_id`.
    visit_ids: [R] name of each visit of the log, for later events that belong to one; None: they
      belong to none.
  """

  def __init__(
    self,
    events: EventLog,
    gap_seconds: float = 1800.0,
    visit_ids: Sequence[str] | None = None,
  ):
    self._events = events
    self._gap = gap_seconds
    self._visit_ids = visit_ids
    self._first = np.searchsorted(events.user, np.arange(len(events.user_id) + 1))
    self._number = {str(user): number for number, user in enumerate(events.user_id)}
    self._newer: dict[str, _Person] = {}  # users with events that the log does not have
    self.user_ids = sorted(self._number)

  def log_of(self, user_id: str) -> EventLog | None:
    """A user's events; None for a user of whom nothing is known."""
    newer = self._newer.get(user_id)
    if newer is not None:
      return newer.log
    number = self._number.get(user_id)
    return None if number is None else self.take([number])

  def take(self, users: Sequence[int]) -> EventLog:
    """The events that the log had of some users, by their numbers in it, who become the users 0 …
    B−1. A user may be named more than once.
    """
    return joined([self._slice(user) for user in users])

  def starting_with(self, prefix: str, limit: int) -> list[str]:
    """At most `limit` user ids that begin with `prefix`, in order."""
    begin = bisect.bisect_left(self.user_ids, prefix)
    some = self.user_ids[begin : begin + limit]
    return [user for user in some if user.startswith(prefix)]

  def observe(self, events: Events) -> Counts:
    """Adds events.

    Returns:
      What they change in the counts of ads. A late event may change what events after it count for:
      the first of two lines of an ad is no repeat, say. Then some changes are below 0.
    """
    of_user: dict[str, list[int]] = {}
    for at, user in enumerate(events.user_id):
      of_user.setdefault(str(user), []).append(at)
    changes = [self._observe(user, events, np.array(rows)) for user, rows in of_user.items()]
    columns = zip(*changes, strict=True) if changes else [[np.zeros(0, np.int64)]] * 5
    return Counts(*(np.concatenate(column) for column in columns))

  def _observe(self, user_id: str, events: Events, rows: np.ndarray) -> Counts:
    """Adds the events of one user."""
    old = self._newer.get(user_id) or self._person(user_id)
    columns = {
      name: np.append(old.columns[name], np.asarray(getattr(events, name))[rows].astype(kind.dtype))
      for name, kind in old.columns.items()
    }
    visit = [*old.visit, *(events.visit_id[row] for row in rows)]
    request = self._requests(columns["time"], visit)
    user = np.zeros(len(visit), np.int32)
    log = visits.ordered_log(np.array([user_id], object), user=user, request=request, **columns)
    if user_id not in self._newer and user_id not in self._number:
      bisect.insort(self.user_ids, user_id)
    self._newer[user_id] = _Person(columns, visit, log)
    return _counts(log).less(_counts(old.log))

  def _person(self, user_id: str) -> _Person:
    """A user as the log has him; without an event where it lacks him."""
    number = self._number.get(user_id)
    log = visits.no_events() if number is None else self._slice(number)
    names: list[Hashable | None] = [("log", int(request)) for request in log.request]
    if self._visit_ids is not None:
      names = [self._visit_ids[request] for request in log.request]
    return _Person({name: getattr(log, name) for name in _NUMBERS}, names, log)

  def _requests(self, time: np.ndarray, visit: Sequence[Hashable | None]) -> np.ndarray:
    """A number for each event's visit, [n]: by name, and by pauses for those without one."""
    numbers: dict[Hashable, int] = {}
    request = np.array([-1 if v is None else numbers.setdefault(v, len(numbers)) for v in visit])
    unnamed = np.flatnonzero(request < 0)
    if len(unnamed):
      user = np.zeros(len(unnamed), np.int64)
      request[unnamed] = len(numbers) + visits.by_pause(user, time[unnamed], self._gap)
    return request

  def _slice(self, user: int) -> EventLog:
    """What the log has of the user of a number."""
    here = slice(self._first[user], self._first[user + 1])
    columns = {
      f.name: getattr(self._events, f.name)[here]
      for f in dataclasses.fields(EventLog)
      if f.name != "user_id"
    }
    return EventLog(self._events.user_id[user : user + 1], **columns)


def _counts(log: EventLog) -> Counts:
  """What one user's log adds to the counts of ads."""
  number = int(log.ad.max(initial=0)) + 1
  first = int(log.request[0]) if len(log) else 0  # a log that is a part of one goes on from there
  own = dataclasses.replace(log, user=np.zeros_like(log.user), request=log.request - first)
  return Counts.of(build_lines(own, number))
