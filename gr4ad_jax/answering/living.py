"""What a server hears and tells while it runs: its stream, what that makes known, and erasure."""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gr4ad_jax.answering.impressions import TOPIC as IMPRESSIONS
from gr4ad_jax.answering.impressions import Impressions
from gr4ad_jax.answering.messages import UnknownUser
from gr4ad_jax.answering.terms import Ledger
from gr4ad_jax.catalogue.catalog import AdCatalog
from gr4ad_jax.catalogue.following import AdFollower
from gr4ad_jax.config import Config
from gr4ad_jax.data.promotions import Promotions
from gr4ad_jax.data.schema import DAY, EventLog
from gr4ad_jax.features.counts import Counts
from gr4ad_jax.features.neighbors import CoVisitNeighbors
from gr4ad_jax.features.state import State
from gr4ad_jax.features.trends import Trends
from gr4ad_jax.people import events as events_lib
from gr4ad_jax.people.follower import Follower, Lately, popularity_of
from gr4ad_jax.people.histories import StoredHistories
from gr4ad_jax.people.store import PeopleStore
from gr4ad_jax.runs import published
from gr4ad_jax.streams.opening import open_stream

# Where a user's id stands in the records of each topic.
_USER_FIELDS = {events_lib.TOPIC: "user_id", IMPRESSIONS: "user", "lists": "user"}
_TEND = 60.0  # seconds between two looks at what is too old, and at traces of who was erased
_KNOWN = 30.0  # seconds that an erasure waits until this server knows of it
LIVE = "live"  # of a workdir: what a server writes
_log = logging.getLogger(__name__)


class Living:
  """The stream of a server, and all that follows it. Make one, then `start`, in the end `close`.

  Args:
    config: of the run and the server.
    folder: where the embedded stream and the users' snapshots lie.
    catalog: the ads.
    log: the events that the run knows.
    popularity: counts of ads of it.
    neighbors: co-visit neighbours.
    behaviors: names of behaviours, shallowest first.
    ledger: counts what is shown.
    promotions: with --promotions.

  Attributes:
    stream: where events and impressions are.
    state: what is known of users and ads.
    follower: brings events into it.
    impressions: writes what is shown.
    ads: tells of changes of ads, and makes those of other servers.
    lately: users of whom something new is known.

  Raises:
    ConfigError: --stream is not allowed.
    DataError: a file is damaged, or is of another log.
    OSError: the stream cannot be reached.
  """

  def __init__(
    self, config: Config, folder: str, catalog: AdCatalog, log: EventLog, popularity: Trends,
    neighbors: CoVisitNeighbors, behaviors: Sequence[str], ledger: Ledger,
    promotions: Promotions | None = None,
  ):  # fmt: skip
    serving = config.serving
    self._config = config
    self._catalog = catalog
    self._ledger = ledger
    self._behaviors = tuple(behaviors)
    self.lately = Lately(serving.cache_seconds)
    self.stream = open_stream(stream_url(config, folder))
    try:
      self._store = PeopleStore(os.path.join(folder, "people.sqlite"), log_digest(log))
      # The log at the bottom, what came since above it from the snapshot.
      histories = StoredHistories(
        log, self._store, serving.hot_users, 60 * config.data.session_gap_minutes
      )
      counts = popularity_of(self._store, popularity)
      self.state = State(config.data, catalog, neighbors, histories, counts, promotions)
      if waiting := self._store.note("waiting counts"):
        latest = int(waiting.pop("latest"))
        self.state.with_counts(Counts(**waiting), latest)
    # The stream is open, and nobody else would close it.
    except BaseException:
      self.stream.close()
      raise
    self.follower = Follower(
      self.stream, self.state, self._store, catalog.row, behaviors, serving.snapshot_seconds,
      self.lately.heard,
    )  # fmt: skip
    self.impressions = Impressions(self.stream, ledger, catalog.row)
    self.ads = AdFollower(self.stream, catalog, self._store.server)
    self._closing = threading.Event()
    self._tender = threading.Thread(target=self._tend, name="tender", daemon=True)

  def start(self) -> None:
    """Reads what has come since the last snapshot, then starts the threads. Raises OSError."""
    # Ads first, since events may be of ads that another server has put.
    self.ads.catch_up()
    self.follower.catch_up()
    self.ads.start()
    self.impressions.start()
    self.follower.start()
    self._tender.start()

  def post(self, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Takes events. They are durable when this returns, and known here within moments.

    Args:
      events: see `people.events.checked`.

    Returns:
      accepted and repeated, numbers of events; set_aside, a list of event_id and reason: of events
      that are not kept, and of those that wait for their ad, which count as accepted too.

    Raises:
      DataError: an event that is not allowed. None is taken then.
      OSError: they could not be written, or it is not known whether. They may be sent again.
    """
    values, keys, aside = events_lib.checked(events, self._behaviors, time.time())
    offsets = self.stream.append(events_lib.TOPIC, values, keys)
    for value, key, offset in zip(values, keys, offsets, strict=True):
      # A record without an offset is a repeat, and was told of when it first came.
      if offset is not None and self._catalog.row(value["ad_id"]) is None:
        aside[key] = events_lib.WAITS
    accepted = sum(offset is not None for offset in offsets)
    return {
      "accepted": accepted,
      "repeated": len(offsets) - accepted,
      "set_aside": [{"event_id": key, "reason": reason} for key, reason in aside.items()],
    }

  def user(self, user_id: str) -> dict[str, Any]:
    """What is known of a user: numbers of events and visits, first and last moment, money.

    Raises:
      UnknownUser: nothing is.
    """
    log = self.state.find(user_id)
    if log is None or not len(log):
      raise UnknownUser(user_id)
    return {
      "user": user_id,
      "events": len(log),
      "visits": len(np.unique(log.request)),
      "first_time": int(log.time.min()),
      "last_time": int(log.time.max()),
      "value": float(log.value.sum(dtype=np.float64)),
    }

  def users(self, prefix: str, limit: int) -> list[str]:
    """Ids of users that begin with a prefix, in order."""
    with self.state.lock:
      return self.state.histories.starting_with(prefix, limit)

  @property
  def num_users(self) -> int:
    """Users in all."""
    with self.state.lock:
      return len(self.state.histories)

  def erase(self, user_id: str) -> dict[str, Any]:
    """Leaves nothing of a user in histories, snapshots and streams, here and at every server that
    follows the stream. Counts of ads keep their sums, and the run's own log what it has.

    Returns:
      user, and records: how many of the stream went.

    Raises:
      UnknownUser: there is nothing of him anywhere.
      OSError: the stream refuses. Ask again: what is gone is gone.
    """
    known = self.state.find(user_id) is not None
    # First all followers hear of it, and behind which event; then the records go. After a kill
    # between the two the user is unknown here, but asking again finds his records.
    mark = events_lib.erasure(user_id, self.stream.end(events_lib.TOPIC))
    (offset,) = self.stream.append(events_lib.ERASURES, [mark]) if known else (0,)
    records = sum(self.stream.erase(topic, field, user_id) for topic, field in _USER_FIELDS.items())
    if not known and not records:
      raise UnknownUser(user_id)
    self._ledger.forget(user_id)
    if known and not self.follower.wait_for_erasure(offset, _KNOWN):
      raise TimeoutError("the erasure is in the stream, but not known to this server yet")
    # What the follower no longer takes cannot be in its snapshot.
    if self.follower.failure is None:
      self.follower.snapshot()
    return {"user": user_id, "records": records}

  def tend(self) -> None:
    """Removes what is older, or more, than configured, and the traces of who was erased."""
    serving = self._config.serving
    seconds = serving.stream_days * DAY if serving.stream_days else None
    size = int(serving.stream_gb * 1e9) if serving.stream_gb else None
    if seconds or size:
      for topic in ("impressions", "events", "lists"):
        if removed := self.stream.retain(topic, seconds, size):
          _log.info("topic %s: %d records were older or more than is kept", topic, removed)
    self.stream.compact()
    self._store.compact()

  def readings(self) -> dict[str, tuple[str, Callable[[], float]]]:
    """Metrics: name -> (help, function of the present value)."""
    follower = self.follower
    return {
      "events": ("Events that have joined the histories since the start.", lambda: follower.events),
      "events_lag": ("Records of the stream that are not known yet.", self._lag),
      "events_waiting": ("Events that wait for their ads.", lambda: follower.num_waiting),
      "events_refused": ("Events that could not be read.", lambda: follower.refused),
      "events_missed": ("Records that were gone before they were read.", lambda: follower.missed),
      "users": ("Users of whom something is known.", lambda: self.num_users),
      "users_in_memory": ("Users in memory.", lambda: self.state.histories.in_memory),
      "ads_refused": ("Changes of ads by others that were not made.", lambda: self.ads.refused),
      "impressions_lost": ("Impressions that were not written.", lambda: self.impressions.lost),
    }

  def close(self) -> None:
    """Writes what is left, and lets go of threads and files."""
    self._closing.set()
    if self._tender.ident is not None:
      # A thread that was never started cannot be joined.
      self._tender.join()
    # In the reverse order of use: what follows the stream ends before the stream is closed.
    self.impressions.close()
    self.ads.close()
    self.follower.close()
    self._store.close()
    self.stream.close()

  def _lag(self) -> float:
    try:
      return self.follower.lag
    except OSError:
      return float("nan")

  def _tend(self) -> None:
    while not self._closing.wait(_TEND):
      try:
        self.tend()
      except OSError as error:
        _log.error("the stream could not be tended: %s", error)


def live_folder(config: Config) -> str:
  """Where a server of a run keeps what it writes."""
  return os.path.join(published.state_dir(config), LIVE)


def stream_url(config: Config, folder: str) -> str:
  """Where the stream of a server is; without a setting, in a file of the run's `live` folder."""
  return config.serving.stream or f"sqlite:{os.path.join(folder, 'stream.sqlite')}"


def log_digest(log: EventLog) -> str:
  """What a log is, as a digest."""
  made = hashlib.blake2b("\0".join(map(str, log.user_id)).encode(), digest_size=16)
  # Not the split: it follows from the others.
  for column in (log.user, log.request, log.ad, log.time, log.behavior, log.value, log.quantity):
    made.update(column.tobytes())
  return made.hexdigest()
