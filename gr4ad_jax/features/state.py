"""All that is known of users and ads, as a state: add events to it, and ask it at a moment.

A log that has ended is the same state, filled at once. The answers are the same, bit for bit
(`tests/features/test_state.py`): a user's sums never depend on who else is in the log.
"""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from gr4ad_jax.config import DataConfig
from gr4ad_jax.data import visits
from gr4ad_jax.data.promotions import Promotions
from gr4ad_jax.data.schema import DAY, EventLog
from gr4ad_jax.features.batches import RequestBatch
from gr4ad_jax.features.contexts import AdColumns, contexts_at, joined
from gr4ad_jax.features.counts import Counts
from gr4ad_jax.features.histories import Events, Histories
from gr4ad_jax.features.neighbors import CoVisitNeighbors, NeighborFolds
from gr4ad_jax.features.trends import Trends

_MOST_WAITING = 100_000  # counts that wait, from which on those of an ad and day become one


class State:
  """Histories and popularity, behind `observe` and `features`. Safe to use from several threads.

  Popularity at a moment counts the days before it. So events of today wait, and are counted when
  somebody asks at a later day: once a day, and once more after events that came days late. A share
  of popularity is one among the ads that were known when the day of the latest event began. So what
  is answered depends on what was observed and put, and not on what was asked before.

  Args:
    config: numbers of slots, as in training.
    ads: codes and prices of every ad that an event may name.
    neighbors: co-visit neighbours, as they were fitted, until `use_neighbors`.
    histories: what is known of users so far.
    popularity: what is known of ads so far.
    promotions: with --promotions.
  """

  def __init__(
    self,
    config: DataConfig,
    ads: AdColumns,
    neighbors: CoVisitNeighbors,
    histories: Histories,
    popularity: Trends,
    promotions: Promotions | None = None,
  ):
    self._promotions = promotions
    self._config = config
    self._ads = ads
    # No user's visits are left out: those who ask are none that the neighbours were fitted for.
    self._neighbors = NeighborFolds.of(neighbors)
    self.histories = histories
    self._popularity = popularity
    self._waiting: list[Counts] = []
    self._num_waiting = 0
    self._latest = popularity.end - 1  # the latest moment at which something is known to be
    self._num_ads = popularity.num_ads  # that were known when its day began
    self._lock = threading.RLock()  # of the histories, the counts, and those that wait

  def observe(self, events: Events) -> None:
    """Adds events, which may come late and in any order."""
    # Under one lock: a reader must not see a user's events without their counts.
    with self._lock:
      self._add(self.histories.observe(events))
      newest = int(np.max(events.time, initial=0))
      if newest // DAY > self._latest // DAY:
        self._num_ads = len(self._ads.codes_NT)
      # Never goes back: an event that comes late moves no moment.
      self._latest = max(self._latest, newest)

  @property
  def end(self) -> int:
    """A moment after all that is known, unix seconds: that of a request that names none."""
    return self._latest + 1

  @property
  def lock(self) -> Any:
    """Held while something changes. Who holds it reads a state of one moment."""
    return self._lock

  def features(self, user_ids: Sequence[str], now_B: np.ndarray) -> RequestBatch:
    """The contexts of requests of B >= 1 users at their moments: what had happened by then, as far
    as it has been observed.

    Args:
      user_ids: [B]; a user of whom nothing is known has no history.
      now_B: unix seconds of each request.

    Returns:
      A batch of B rows without targets.
    """
    with self._lock:
      logs = [self._log_of(user_id) for user_id in user_ids]
      popularity = self._counted(int(np.max(now_B)))
    # Outside of the lock: contexts take long, and what they read here is never written again.
    return self._contexts(joined(logs), now_B, popularity)

  def contexts(self, histories: EventLog, now_B: np.ndarray) -> RequestBatch:
    """The contexts of requests with histories of their own, see `features.contexts.contexts_at`.

    The first batch of a day, and the first of all, take longer: they pass over all ads once to see
    which ones rise.

    Args:
      histories: events of the users 0 … B−1, who may have none.
      now_B: unix seconds of each request.
    """
    return self._contexts(histories, now_B, self.popularity(int(np.max(now_B))))

  def popularity(self, now: int) -> Trends:
    """The counts of ads, of all that happened before the day of a moment at least."""
    with self._lock:
      return self._counted(now)

  def log_of(self, user_id: str) -> EventLog:
    """What is known of a user, as a log of one user; of an unknown one it has no event."""
    with self._lock:
      return self._log_of(user_id)

  def find(self, user_id: str) -> EventLog | None:
    """A user's events; None for a user of whom nothing is known."""
    with self._lock:
      return self.histories.log_of(user_id)

  def counts(self) -> tuple[Trends, Counts, int]:
    """What is known of ads: the counts, those that wait (an entry an ad and day at most), and the
    latest moment. Another state that is made of it by `with_counts` answers the same.
    """
    with self._lock:
      return self._popularity, self._gathered(), self._latest

  def with_counts(self, waiting: Counts, latest: int) -> None:
    """Takes over what `counts` gave; the counts themselves came with the making. For a state that
    has seen no event yet.
    """
    with self._lock:
      self._add(waiting)
      self._latest = latest
      self._num_ads = len(self._ads.codes_NT)

  def use_neighbors(self, neighbors: CoVisitNeighbors) -> None:
    """Takes other neighbours, from the next batch on."""
    self._neighbors = NeighborFolds.of(neighbors)

  def _add(self, counts: Counts) -> None:
    self._waiting.append(counts)
    self._num_waiting += len(counts.ad)
    # Memory stays bounded in a day with many events.
    if self._num_waiting > _MOST_WAITING:
      self._gathered()

  def _gathered(self) -> Counts:
    """The counts that wait, as one entry an ad and day: a busy day takes no more than that."""
    none = [np.zeros(0, np.int64)] * 5
    counts = Counts(*map(np.concatenate, zip(Counts(*none), *self._waiting, strict=True)))
    counts = counts.by_day()
    self._waiting = [counts]
    # Half at most: where so many ads sell in a day, gathering again at each event would not end.
    self._num_waiting = min(len(counts.ad), _MOST_WAITING // 2)
    return counts

  def _contexts(self, histories: EventLog, now_B: np.ndarray, popularity: Trends) -> RequestBatch:
    about = popularity, self._neighbors, self._ads, self._config, self._promotions
    return contexts_at(histories, now_B, *about)

  def _log_of(self, user_id: str) -> EventLog:
    log = self.histories.log_of(user_id)
    return visits.no_events() if log is None else log

  def _counted(self, now: int) -> Trends:
    """The counts, with those that wait where a moment needs them. Call it with the lock held."""
    midnight = now // DAY * DAY
    # Counts of today may wait: a moment's popularity ends with the day before it.
    if any((counts.time < midnight).any() for counts in self._waiting):
      counts = self._gathered()
      if self._popularity.width != 1:
        # An older run's buckets of several days begin with its log: earlier events go to the first.
        counts = counts._replace(time=np.maximum(counts.time, self._popularity.origin))
      is_over = counts.time < midnight
      over, today = (Counts(*(x[some] for x in counts)) for some in (is_over, ~is_over))
      # One that was put today may have sold before, by an event that came late.
      sold = int(over.ad.max(initial=-1)) + 1
      num_ads = max(self._popularity.num_ads, self._num_ads, sold)
      self._popularity = self._popularity.adding(over, num_ads)
      # Of ads, it may be, that are no part of the shares yet.
      self._waiting = [today]
      self._num_waiting = len(today.ad)
    return self._popularity
