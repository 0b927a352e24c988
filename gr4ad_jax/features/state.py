"""All that is known of users and ads, as a state: add events to it, and ask it at a moment.

A log that has ended is the same state, filled at once. The answers are the same, bit for bit
(`tests/features/test_state.py`): a user's sums never depend on who else is in the log.
"""

import threading
from collections.abc import Sequence

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


class State:
  """Histories and popularity, behind `observe` and `features`. Safe to use from several threads.

  Popularity at a moment counts the days before it. So events of today wait, and are counted when
  somebody asks at a later day: once a day, and once more after events that came days late.

  Args:
    config: numbers of slots, as in training.
    ads: codes and prices of every ad that an event may name.
    neighbors: co-visit neighbours; they stay as they were fitted.
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
    self._lock = threading.Lock()  # of the histories, the counts, and those that wait

  def observe(self, events: Events) -> None:
    """Adds events, which may come late and in any order."""
    with self._lock:
      self._waiting.append(self.histories.observe(events))

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
    about = popularity, self._neighbors, self._ads, self._config, self._promotions
    return contexts_at(joined(logs), now_B, *about)

  def popularity(self, now: int) -> Trends:
    """The counts of ads, of all that happened before the day of a moment at least."""
    with self._lock:
      return self._counted(now)

  def log_of(self, user_id: str) -> EventLog:
    """What is known of a user, as a log of one user; of an unknown one it has no event."""
    with self._lock:
      return self._log_of(user_id)

  def _log_of(self, user_id: str) -> EventLog:
    log = self.histories.log_of(user_id)
    return visits.no_events() if log is None else log

  def _counted(self, now: int) -> Trends:
    """The counts, with those that wait where a moment needs them. Call it with the lock held."""
    midnight = now // DAY * DAY
    if any((counts.time < midnight).any() for counts in self._waiting):
      counts = Counts(*map(np.concatenate, zip(*self._waiting, strict=True)))
      num_ads = max(self._popularity.num_ads, int(counts.ad.max()) + 1)
      self._popularity = self._popularity.adding(counts, num_ads)
      self._waiting = []
    return self._popularity
