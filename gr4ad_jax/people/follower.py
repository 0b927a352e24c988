"""Follows the topic `events`: what comes is known to a state, and kept in snapshots.

A record counts once: the state and the offset up to which it is known are written together. Events
of ads that nobody knows yet wait, and join when their ad is there.
"""

import collections
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gr4ad_jax.data.schema import DAY, DataError
from gr4ad_jax.features.state import State
from gr4ad_jax.features.trends import Trends
from gr4ad_jax.people import events as events_lib
from gr4ad_jax.people.histories import StoredHistories
from gr4ad_jax.people.store import PeopleStore, Snapshot
from gr4ad_jax.streams.stream import FellBehind, Record, Stream

MOST_WAITING = 100_000  # events of unknown ads that wait; of more, the oldest are given up
_PART = 2_000  # records that are read at once
_WAIT = 0.2  # seconds until other work is looked at
_AGAIN = 1.0  # seconds until a stream or disk that refused is tried again
_log = logging.getLogger(__name__)


class Follower:
  """Keeps a state up to date. `start` does it on a thread; `catch_up` does it now.

  Args:
    stream: has the topic.
    state: its histories are `StoredHistories`.
    store: where snapshots go.
    row_of: the row of an ad; None where there is none.
    behaviors: their names, shallowest first.
    snapshot_seconds: between two snapshots.
    heard: called with the ids of users of whom something new is known.

  Attributes:
    offset: of the last record that is known.
    events: events that have joined since the start.
    refused: events that cannot be read, as those of a behaviour that this run does not know.
    missed: records that retention had removed before they were read.
    failure: what ended the thread; None: nothing did.
  """

  def __init__(
    self,
    stream: Stream,
    state: State,
    store: PeopleStore,
    row_of: Callable[[str], int | None],
    behaviors: Sequence[str],
    snapshot_seconds: float = 10.0,
    heard: Callable[[Sequence[str]], None] = lambda users: None,
  ):
    self._stream = stream
    self._state = state
    self._histories: StoredHistories = state.histories
    self._store = store
    self._row_of = row_of
    self._depth = {name: depth for depth, name in enumerate(behaviors)}
    self._seconds = snapshot_seconds
    self._heard = heard
    # Where the snapshot ends. The state is of that moment too, so what is read on
    # from here counts once.
    self.offset = store.offset
    self._erasures = store.erasures
    self.events = 0
    self.refused = 0
    self.missed = 0
    self.failure: BaseException | None = None
    # Events of unknown ads, by ad; those that were not there at the last snapshot; those that were
    # there, and have joined or been erased since.
    self._waits: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    self._new_waits: dict[int, Mapping[str, Any]] = {}
    self._joined: list[int] = []
    self._erased: list[str] = []
    for offset, value in store.waiting():
      self._waits.setdefault(value["ad_id"], []).append((offset, value))
    self.num_waiting = sum(map(len, self._waits.values()))
    self._saved = (store.offset, store.erasures)
    self._saved_popularity: Trends | None = None
    self._saved_at = time.monotonic()
    self._known = threading.Condition()
    self._turn = threading.RLock()  # of all that changes the state
    self._closing = threading.Event()
    self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

  def start(self) -> None:
    """Starts the thread; `close` ends it."""
    self._thread.start()

  @property
  def lag(self) -> int:
    """Records that are not known yet."""
    return max(self._stream.end(events_lib.TOPIC) - self.offset, 0)

  def wait_for(self, offset: int, timeout: float) -> bool:
    """Waits until an event is known. Returns whether it is."""
    return self._waited(lambda: self.offset >= offset, timeout)

  def wait_for_erasure(self, offset: int, timeout: float) -> bool:
    """Waits until an erasure is known. Returns whether it is."""
    return self._waited(lambda: self._erasures >= offset, timeout)

  def _waited(self, known: Callable[[], bool], timeout: float) -> bool:
    with self._known:
      self._known.wait_for(lambda: known() or self.failure is not None, timeout)
    return known()

  def catch_up(self) -> None:
    """Reads until nothing is left. Raises as `Stream.read` does."""
    while self._step():
      pass

  def snapshot(self) -> None:
    """Writes what changed since the last snapshot, with the offset. Raises OSError."""
    with self._turn:
      with self._state.lock:
        people = dict(self._histories.changed)
        gone = self._histories.gone
        # Days that are over are counted, so that only the last one's changes wait.
        self._state.popularity(self._state.end)
        popularity, waiting, latest = self._state.counts()
        number = self._histories.number
      # Joined events may be written although the offset has not moved.
      if (self.offset, self._erasures) == self._saved and not self._joined:
        return
      notes = {"waiting counts": waiting._asdict() | {"latest": latest}}
      # Popularity changes once a day, and is much larger than the rest.
      if popularity is not self._saved_popularity:
        notes["popularity"] = popularity.arrays()
      made = Snapshot(
        self.offset, self._erasures, people, notes, number, self._joined,
        list(self._new_waits.items()), self._erased, gone,
      )  # fmt: skip
      self._store.write(made)
      self._saved = (self.offset, self._erasures)
      self._saved_popularity = popularity
      self._new_waits = {}
      self._joined = []
      self._erased = []
      # What changed while this was written stays in `changed`: its person is another object.
      with self._state.lock:
        self._histories.saved(list(people), gone)

  def close(self) -> None:
    """Ends the thread, and writes a last snapshot."""
    self._closing.set()
    if self._thread.ident is not None:
      self._thread.join()
    if self.failure is None:
      try:
        self.snapshot()
      except OSError as error:
        # The next start reads more of the stream.
        _log.error("users could not be written: %s", error)

  def _run(self) -> None:
    while not self._closing.is_set():
      try:
        self._stream.wait(events_lib.TOPIC, self.offset, _WAIT)
        # Snapshots between the parts, so that a long way to catch up is not lost by a kill.
        while self._step() and not self._closing.is_set():
          self._snapshot_if_due()
        self._snapshot_if_due()
      except OSError as error:
        _log.error("the stream or the users' file refuses, trying again: %s", error)
        self._closing.wait(_AGAIN)
      except BaseException as error:  # for example damage: who asks is told by `failure`
        _log.exception("events are no longer followed")
        with self._known:
          self.failure = error
          self._known.notify_all()
        return

  def _snapshot_if_due(self) -> None:
    due = time.monotonic() - self._saved_at >= self._seconds
    # What changed stays in memory until it is written: many changes are written early.
    if due or self._histories.crowded:
      self.snapshot()
      self._saved_at = time.monotonic()

  def _step(self) -> bool:
    """Takes some records, and events whose ads have come. Returns whether there was anything."""
    with self._turn:
      self._join()
      # One at a time: an erasure cuts the events in two.
      erasure = next(iter(self._stream.read(events_lib.ERASURES, self._erasures, 1)), None)
      # Only when all events up to the erasure are known: those behind it are of a new
      # user of that name.
      if erasure is not None and self.offset >= erasure.value["after"]:
        self._erase(erasure.value["digest"])
        self._erasures = erasure.offset
        self._told()
        return True
      try:
        records = self._stream.read(events_lib.TOPIC, self.offset, _PART)
      except FellBehind as behind:
        _log.error("%s; what they said is not known here", behind)
        # Offsets of what is gone count as known, so that reading can go on.
        self.missed += behind.first - 1 - self.offset
        self.offset = behind.first - 1
        return True
      last = records[-1].offset if records else self.offset
      if erasure is not None:
        # What came before belongs to the user who is erased, what follows to a new one.
        last = erasure.value["after"] if not records else min(last, erasure.value["after"])
        records = [record for record in records if record.offset <= last]
      # The offset moves after the state, and both are under one turn.
      self._observe(records)
      self.offset = last
      self._told()
    return bool(records) or erasure is not None

  def _told(self) -> None:
    with self._known:
      self._known.notify_all()

  def _observe(self, records: Sequence[Record]) -> None:
    """Adds events to the state, but for those that wait for their ads."""
    found = []
    rows = []
    for record in records:
      value = record.value
      if value.get("behavior") not in self._depth:
        self.refused += 1
      elif (row := self._row_of(value["ad_id"])) is None:
        self._wait_for_ad(record.offset, value)
      else:
        found.append(value)
        rows.append(row)
    self._add(found, rows)

  def _add(self, values: Sequence[Mapping[str, Any]], rows: Sequence[int]) -> None:
    if values:
      self._state.observe(events_lib.columns(values, rows, self._depth))
      self.events += len(values)
      # After the state: who hears of it and asks sees the event.
      self._heard([value["user_id"] for value in values])

  def _wait_for_ad(self, offset: int, value: Mapping[str, Any]) -> None:
    self._waits.setdefault(value["ad_id"], []).append((offset, value))
    self._new_waits[offset] = value
    self.num_waiting += 1
    if self.num_waiting > MOST_WAITING:
      # The ad whose first event has waited longest.
      ad = min(self._waits, key=lambda ad: self._waits[ad][0])
      _log.warning("too many events wait for unknown ads: %d of ad %.80r are given up",
                   len(self._waits[ad]), ad)  # fmt: skip
      self._wait_no_more(ad)

  def _wait_no_more(self, ad: str) -> list[tuple[int, Mapping[str, Any]]]:
    """Takes the events of an ad from those that wait; returns (offset, value) of each."""
    events = self._waits.pop(ad)
    self.num_waiting -= len(events)
    # An event that waited at the last snapshot has to be taken out of the file.
    for offset, _ in events:
      if self._new_waits.pop(offset, None) is None:
        self._joined.append(offset)
    return events

  def _join(self) -> None:
    """Adds the events whose ads have come, in the order in which they came themselves."""
    found = []
    for ad in list(self._waits):
      row = self._row_of(ad)
      if row is not None:
        found += [(offset, value, row) for offset, value in self._wait_no_more(ad)]
    # Events of several ads may join at once. Their order among each other is that of the stream.
    found.sort(key=lambda one: one[0])
    self._add([value for _, value, _ in found], [row for _, _, row in found])

  def _erase(self, digest: str) -> None:
    with self._state.lock:
      users = self._histories.forget(digest)
    self._erased.append(digest)
    for ad, waits in list(self._waits.items()):
      # Waiting events name users by their ids, and erasures by digests.
      mine = [w for w in waits if events_lib.digest_of(w[1]["user_id"]) == digest]
      if mine:
        self._wait_no_more(ad)
        # The others of the same ad wait on.
        for offset, value in waits:
          if (offset, value) not in mine:
            self._wait_for_ad(offset, value)
    self._heard(users)


class Lately(collections.OrderedDict):
  """How often something new was known of each user, as long as that was a short while ago.

  Args:
    seconds: how long.
  """

  def __init__(self, seconds: float):
    super().__init__()
    self._seconds = seconds
    self._lock = threading.Lock()
    self._count = 0

  def heard(self, users: Sequence[str]) -> None:
    """Something new is known of users."""
    now = time.monotonic()
    with self._lock:
      for user in users:
        self._count += 1
        self[user] = (self._count, now)
        self.move_to_end(user)
      # The oldest stand first, so the loop ends at the first that is young enough.
      while self and next(iter(self.values()))[1] < now - self._seconds:
        self.popitem(last=False)

  def version(self, user: str | None) -> int:
    """A number that is another one after each call of `heard` with the user; 0: none of late."""
    return self.get(user, (0, 0.0))[0]


def moment(state: State, wall: float) -> int:
  """The moment of a request that names none, unix seconds.

  While events come, that is the clock's; where the last of them is of more than a day ago, as in a
  log that is played again, it is the moment after it.
  """
  # The latest event is of less than a day ago.
  live = 0 <= wall - state.end < DAY
  return int(wall) if live else state.end


def popularity_of(store: PeopleStore, fitted: Trends) -> Trends:
  """The counts of a store's snapshot; those of the run where it has none.

  Raises:
    DataError: they are damaged.
  """
  found = store.note("popularity")
  if found is None:
    return fitted
  try:
    return Trends.of_arrays(found)
  except KeyError as error:
    raise DataError(f"the popularity in the users' file is damaged: no {error}") from error
