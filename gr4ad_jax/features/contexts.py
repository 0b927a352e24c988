"""The contexts of requests at a moment: users' histories in, a `RequestBatch` out.

Histories become a small log of their own, with one open visit a user at its request's moment, and
the same functions as of a whole log do the rest (`batches.RequestContexts`). So a request that
comes now sees what a request of training or evaluation sees. The work grows with the histories, not
with the number of ads.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from gr4ad_jax.config import DataConfig
from gr4ad_jax.data import visits
from gr4ad_jax.data.promotions import Promotions
from gr4ad_jax.data.schema import EventLog
from gr4ad_jax.features.batches import RequestBatch, RequestContexts
from gr4ad_jax.features.lines import build_lines
from gr4ad_jax.features.neighbors import NeighborFolds
from gr4ad_jax.features.trends import Trends

_TARGETS = (
  "target_ad_BM",
  "target_codes_BMT",
  "target_mask_BM",
  "target_value_BM",
  "target_depth_BM",
)


class AdColumns(Protocol):
  """What contexts read of the ads; the arrays may grow and change between two batches."""

  codes_NT: Any  # [N, T] int32, UA-SID of each ad
  price_N: Any  # [N] float32, money, NaN where unknown
  created_N: Any  # [N] int64, unix seconds, -1 where unknown; read with --ad_age alone


@dataclasses.dataclass(frozen=True)
class FixedAds:
  """`AdColumns` of ads that do not change."""

  codes_NT: np.ndarray
  price_N: np.ndarray
  created_N: np.ndarray


def contexts_at(
  histories: EventLog,
  now_B: np.ndarray,
  popularity: Trends,
  neighbors: NeighborFolds,
  ads: AdColumns,
  config: DataConfig,
  promotions: Promotions | None = None,
) -> RequestBatch:
  """The contexts of B >= 1 requests; what a request would take is not known, so no target is set.

  Args:
    histories: events of the users 0 … B−1, who may have none. Those after a user's moment have not
      happened yet: nothing of them is read.
    now_B: unix seconds of each request.
    popularity: counts of all that is known; ads that it lacks have no line yet.
    neighbors: co-visit neighbours; ads that they lack have none.
    ads: codes, prices and dates of every ad that the others may name.
    config: numbers of slots, as in training.
    promotions: with --promotions; the histories' users shop where it says.

  Returns:
    A batch of B rows, in the users' order.
  """
  # A local name for each array pins it.
  # Read once: a server may change them meanwhile, and all must be of the same ads.
  codes_NT = ads.codes_NT
  price_N = ads.price_N
  created_N = ads.created_N if config.ad_age else None
  # What happened after the moment is cut off before anything is summed.
  known = visits.until(histories, now_B)
  lines = build_lines(_with_open_visits(known, now_B), len(codes_NT))
  shops = {"promotions": promotions, "user_ids": histories.user_id, "created_N": created_N}
  contexts = RequestContexts(lines, codes_NT, price_N, popularity, neighbors, config, **shops)
  opened = np.flatnonzero(np.append(np.diff(lines.request_user) > 0, True))  # a user's last visit
  batch = contexts.batch(opened)
  # The open visit holds an event with ad 0, which is no target.
  return batch._replace(**{name: np.zeros_like(getattr(batch, name)) for name in _TARGETS})


def joined(logs: Sequence[EventLog]) -> EventLog:
  """The logs of B >= 1 users, each of one user, as one log with the users 0 … B−1."""
  columns = {
    f.name: np.concatenate([getattr(log, f.name) for log in logs])
    for f in dataclasses.fields(EventLog)
  }
  # Each log numbers its user 0; here they are numbered in the order of the logs.
  columns["user"] = np.repeat(np.arange(len(logs), dtype=np.int32), [len(log) for log in logs])
  # Numbers of visits repeat from log to log, and must ascend over the whole.
  columns["request"] = visits.renumbered(columns["user"], columns["request"])
  return EventLog(**columns)


def _with_open_visits(events: EventLog, now_B: np.ndarray) -> EventLog:
  """The log with one more visit a user, at `now`: the request to answer. Its event is never part
  of a context.
  """
  users = len(events.user_id)
  # A stable sort puts each open visit behind its user's events, which stand first in the append.
  order = np.argsort(np.append(events.user, np.arange(users)), kind="stable")

  def extended(column, fill):
    return np.append(column, np.broadcast_to(np.asarray(fill, column.dtype), users))[order]

  fills = {"ad": 0, "time": now_B, "behavior": 0, "value": 0, "quantity": 0, "split": 0}
  columns = {name: extended(getattr(events, name), fill) for name, fill in fills.items()}
  user = extended(events.user, np.arange(users))
  # -1 differs from every number of a visit, so the open one never joins an older one.
  visit = extended(events.request, -1)
  return dataclasses.replace(events, user=user, request=visits.renumbered(user, visit), **columns)
