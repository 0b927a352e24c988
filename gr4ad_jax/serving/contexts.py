"""Contexts of requests, made while a server runs: users' histories in, a `RequestBatch` out.

Histories become a small log of their own, with one open visit a user at its request's moment, and
the library's own `RequestContexts` does the rest. So a served request sees what a request of
training or evaluation sees. The work grows with the histories, not with the number of ads.
"""

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from gr4ad_jax.config import Config, DataConfig
from gr4ad_jax.data import visits
from gr4ad_jax.data.batches import RequestBatch, RequestContexts
from gr4ad_jax.data.lines import build_lines
from gr4ad_jax.data.neighbors import CoVisitNeighbors, NeighborFolds
from gr4ad_jax.data.prepare import load_dataset
from gr4ad_jax.data.schema import Dataset, EventLog
from gr4ad_jax.data.trends import Trends
from gr4ad_jax.training import inputs


class AdColumns(Protocol):
  """What contexts read of the ads; the arrays may grow and change between two batches."""

  codes_NT: Any  # [N, T] int32, UA-SID of each ad
  price_N: Any  # [N] float32, money, NaN where unknown


@dataclasses.dataclass(frozen=True)
class FixedAds:
  """`AdColumns` of ads that do not change."""

  codes_NT: np.ndarray
  price_N: np.ndarray


class ContextBuilder:
  """Makes batches for histories. Safe to call from several threads.

  Args:
    config: numbers of slots, as in training.
    trends: counts by day of all that is known; ads that it lacks have no line yet.
    neighbors: co-visit neighbours; ads that it lacks have none.
    ads: codes and prices of every ad that a history, the trends or the neighbours may name.
  """

  def __init__(
    self, config: DataConfig, trends: Trends, neighbors: CoVisitNeighbors, ads: AdColumns
  ):
    self._config, self._trends, self._ads = config, trends, ads
    self._neighbors = NeighborFolds(
      neighbors.ids[None], neighbors.cosine[None]
    )  # no user's visits are left out

  @property
  def end(self) -> int:
    """Where the counts end, unix seconds: the moment of a request that names none."""
    return self._trends.end

  def batch(self, histories: EventLog, now_B: np.ndarray) -> RequestBatch:
    """The contexts of B >= 1 requests; what a request would take is not known, so no target is set.

    The first batch of a day, and the first of all, take longer: they pass over all ads once to see
      which ones rise.

    Args:
      histories: events of the users 0 … B−1, who may have none. Those after a user's moment have
        not happened yet: nothing of them is read.
      now_B: unix seconds of each request.

    Returns:
      A batch of B rows, in the users' order.
    """
    codes_NT, price_N = self._ads.codes_NT, self._ads.price_N
    known = visits.until(histories, now_B)
    lines = build_lines(_with_open_visits(known, now_B), len(codes_NT))
    contexts = RequestContexts(
      lines, codes_NT, price_N, self._trends, self._neighbors, self._config
    )
    opened = np.flatnonzero(np.append(np.diff(lines.request_user) > 0, True))  # a user's last visit
    batch = contexts.batch(opened)
    nothing = (
      "target_ad_BM",
      "target_codes_BMT",
      "target_mask_BM",
      "target_value_BM",
      "target_depth_BM",
    )
    return batch._replace(**{name: np.zeros_like(getattr(batch, name)) for name in nothing})


class UserHistories:
  """What is known of the users of an event log, by user id.

  Args:
    events: the log.
  """

  def __init__(self, events: EventLog):
    self._events = events
    self._first = np.searchsorted(events.user, np.arange(len(events.user_id) + 1))
    self._number = {str(user): number for number, user in enumerate(events.user_id)}
    self.user_ids = sorted(self._number)

  @classmethod
  def of(cls, dataset: Dataset) -> "UserHistories":
    """All events of a data set, whatever their split."""
    return cls(dataset.events)

  @classmethod
  def load(cls, config: Config) -> "UserHistories":
    """The log that a run was trained on. Raises ConfigError where the log has changed since."""
    dataset = load_dataset(config.data)
    inputs.check_same_log(config, dataset)
    return cls.of(dataset)

  def log_of(self, user_id: str) -> EventLog | None:
    """A user's events; None for a user that the log lacks."""
    number = self._number.get(user_id)
    return None if number is None else self.take([number])

  def take(self, users: Sequence[int]) -> EventLog:
    """The events of some users, who become the users 0 … B−1 of the log. A user may be named
    more than once.
    """
    return joined([self._slice(user) for user in users])

  def starting_with(self, prefix: str, limit: int) -> list[str]:
    """At most `limit` user ids that begin with `prefix`, in order."""
    begin = bisect.bisect_left(self.user_ids, prefix)
    some = self.user_ids[begin : begin + limit]
    return [user for user in some if user.startswith(prefix)]

  def _slice(self, user: int) -> EventLog:
    here = slice(self._first[user], self._first[user + 1])
    columns = {
      f.name: getattr(self._events, f.name)[here]
      for f in dataclasses.fields(EventLog)
      if f.name != "user_id"
    }
    return EventLog(self._events.user_id[user : user + 1], **columns)


def joined(logs: Sequence[EventLog]) -> EventLog:
  """The logs of B >= 1 users, each of one user, as one log with the users 0 … B−1."""
  columns = {
    f.name: np.concatenate([getattr(log, f.name) for log in logs])
    for f in dataclasses.fields(EventLog)
  }
  columns["user"] = np.repeat(np.arange(len(logs), dtype=np.int32), [len(log) for log in logs])
  columns["request"] = visits.renumbered(columns["user"], columns["request"])
  return EventLog(**columns)


def _with_open_visits(events: EventLog, now_B: np.ndarray) -> EventLog:
  """The log with one more visit a user, at `now`: the request to answer. Its event is never part
  of a context.
  """
  users = len(events.user_id)
  order = np.argsort(np.append(events.user, np.arange(users)), kind="stable")

  def extended(column, fill):
    return np.append(column, np.broadcast_to(np.asarray(fill, column.dtype), users))[order]

  fills = {"ad": 0, "time": now_B, "behavior": 0, "value": 0, "quantity": 0, "split": 0}
  columns = {name: extended(getattr(events, name), fill) for name, fill in fills.items()}
  user, visit = extended(events.user, np.arange(users)), extended(events.request, -1)
  return dataclasses.replace(events, user=user, request=visits.renumbered(user, visit), **columns)
