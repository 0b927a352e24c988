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
class Person:
  """A user's events in the order in which they came, and the log that they make.

  Attributes:
    columns: [n] ad, time, behavior, value and quantity, by name.
    visit: [n] int32, number of each event's visit among `names`; -1: it has none, pauses tell.
    names: the named visits, by what they are called.
    log: all of them in order, the log of one user.
  """

  columns: dict[str, np.ndarray]
  visit: np.ndarray
  names: dict[Hashable, int]
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
    # Users ascend in a log, so one bound a user is enough: his events lie between two of them.
    self._first = np.searchsorted(events.user, np.arange(len(events.user_id) + 1))
    self._number = {str(user): number for number, user in enumerate(events.user_id)}
    self._newer: dict[str, Person] = {}  # users with events that the log does not have
    self.user_ids = sorted(self._number)

  def log_of(self, user_id: str) -> EventLog | None:
    """A user's events; None for a user of whom nothing is known."""
    newer = self._kept(user_id)
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
    # Ids are sorted, so those with one prefix stand together and begin here.
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
    if not of_user:
      return Counts(*([np.zeros(0, np.int64)] * 5))
    # Copies of the log's users are made here for those who have had no newer event.
    old = [self._kept(user) or self._person(user) for user in of_user]
    # Nothing is kept before all of it is made: an error leaves the histories as they were.
    new = [
      _with(person, events, np.array(rows))
      for person, rows in zip(old, of_user.values(), strict=True)
    ]
    # All users' events become one log at once: a log a user would take as long as hundreds do.
    log = self._ordered(list(of_user), new)
    bounds = np.searchsorted(log.user, np.arange(len(new) + 1))
    for number, (user, before, person) in enumerate(zip(of_user, old, new, strict=True)):
      person.log = _part(log, number, slice(bounds[number], bounds[number + 1]))
      self._keep(user, person, is_new=not len(before.visit))
    # Counts are given as what changed: an event that comes late may move others into other visits.
    return _counts(log).less(_counts(joined([person.log for person in old])))

  # Where the users with newer events are. What keeps them elsewhere gives these two.

  def _kept(self, user_id: str) -> Person | None:
    """A user with events that the log does not have; None where there are none."""
    return self._newer.get(user_id)

  def _keep(self, user_id: str, person: Person, is_new: bool) -> None:
    """Takes a user as he is now; `is_new`: nothing was known of him before."""
    if is_new:
      bisect.insort(self.user_ids, user_id)
    self._newer[user_id] = person

  def _ordered(self, user_ids: Sequence[str], people: Sequence[Person]) -> EventLog:
    """The events of several people as one log, of the users 0, 1, …"""
    size = [len(person.visit) for person in people]
    user = np.repeat(np.arange(len(people), dtype=np.int32), size)
    columns = {
      name: np.concatenate([person.columns[name] for person in people]) for name in _NUMBERS
    }
    request = np.concatenate([person.visit for person in people]).astype(np.int64)
    unnamed = np.flatnonzero(request < 0)
    if len(unnamed):
      # Among the events without a name alone: one that belongs to a named visit ends no pause.
      pause = visits.by_pause(user[unnamed], columns["time"][unnamed], self._gap)
      # Numbers of visits count by user, so those of pauses may follow the most names of any.
      request[unnamed] = max(len(person.names) for person in people) + pause
    return visits.ordered_log(np.array(user_ids, object), user=user, request=request, **columns)

  def _person(self, user_id: str) -> Person:
    """A user as the log has him; without an event where it lacks him."""
    number = self._number.get(user_id)
    log = visits.no_events() if number is None else self._slice(number)
    names: dict[Hashable, int] = {}
    # A log without names of visits names them by its own numbers; "log" keeps them apart from names
    # that events bring.
    called = [("log", int(request)) for request in log.request]
    if self._visit_ids is not None:
      called = [self._visit_ids[request] for request in log.request]
    visit = np.array([_number(names, name) for name in called], np.int32)
    return Person({name: getattr(log, name) for name in _NUMBERS}, visit, names, log)

  def _slice(self, user: int) -> EventLog:
    """What the log has of the user of a number."""
    here = slice(self._first[user], self._first[user + 1])
    return EventLog(self._events.user_id[user : user + 1], **self._events.columns(here))


def _number(names: dict[Hashable, int], name: Hashable | None) -> int:
  """The number of a visit among those of its user, a new one for a new name; -1 without a name."""
  return -1 if name is None else names.setdefault(name, len(names))


def _with(person: Person, events: Events, rows: np.ndarray) -> Person:
  """A user with some more events, whose log is not made yet."""
  columns = {
    name: np.append(column, np.asarray(getattr(events, name))[rows].astype(column.dtype))
    for name, column in person.columns.items()
  }
  # A copy: the person before must stay as he was, for the counts of what changed.
  names = dict(person.names)
  visit = [_number(names, events.visit_id[row]) for row in rows.tolist()]
  return Person(columns, np.append(person.visit, np.array(visit, np.int32)), names, person.log)


def _part(log: EventLog, number: int, here: slice) -> EventLog:
  """One user of a log, as a log of one user."""
  columns = log.columns(here)
  columns["user"] = np.zeros_like(columns["user"])
  columns["request"] = columns["request"] - columns["request"][0]
  # Copies: views would keep the log of all users of a batch alive for each of them.
  columns = {name: np.array(column) for name, column in columns.items()}
  return EventLog(log.user_id[number : number + 1].copy(), **columns)


def _counts(log: EventLog) -> Counts:
  """What the users of a log, whose visits are numbered from 0, add to the counts of ads."""
  return Counts.of(build_lines(log, int(log.ad.max(initial=0)) + 1))
