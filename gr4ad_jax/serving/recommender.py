"""Recommendations from Python: `Recommender.load(workdir).recommend(history, k=10)`."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gr4ad_jax.config import SearchConfig, is_trained, load_config, validate
from gr4ad_jax.data import ad_store, history, visits
from gr4ad_jax.data.batches import RequestContexts
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.data.neighbors import Neighbors
from gr4ad_jax.data.schema import AdTable, DataError, EventLog
from gr4ad_jax.data.trends import Trends
from gr4ad_jax.decoding.ranker import Ranker
from gr4ad_jax.sid.index import SidIndex
from gr4ad_jax.training import inputs, run

_EVENT = ("ad_id", "time", "behavior", "value", "quantity", "request_id")
_LARGEST_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Recommendation:
  """One ad of a ranked list.

  Attributes:
    ad_id: as in the ad table.
    text: its text.
    account_id: the advertiser.
    score: natural log of the ad's probability, history bias included.
    ecpm: predicted value, money.
    codes: its UA-SID.
  """

  ad_id: str
  text: str
  account_id: str
  score: float
  ecpm: float
  codes: tuple[int, ...]


class Recommender:
  """A trained run, ready to answer. Make one with `load`."""

  def __init__(self, config, params: Any, ranker: Ranker, ads: AdTable, features: tuple[Trends, Neighbors], behaviors):
    self.config, self.ads, self.behaviors = config, ads, behaviors
    self._params, self._ranker = params, ranker
    self._trends, self._neighbors = features
    self._row = {str(ad): row for row, ad in enumerate(ads.ad_id)}

  @classmethod
  def load(
    cls,
    workdir: str,
    checkpoint: int | str = "best",
    search: SearchConfig | None = None,
    compute_dtype: str | None = None,
  ) -> "Recommender":
    """Opens a trained run.

    Args:
      workdir: the run's directory; nothing else is read.
      checkpoint: 'best', 'last' or a step.
      search: beams and order of the lists; None: the run's own.
      compute_dtype: of the matmuls, as in `ModelConfig`; None: the run's own.

    Raises:
      FileNotFoundError: no run, or no such checkpoint, lies there.
      ConfigError: a search, or a dtype, that is not allowed for this run.
    """
    config = load_config(workdir)
    model_config = dataclasses.replace(config.model, compute_dtype=compute_dtype or config.model.compute_dtype)
    config = validate(dataclasses.replace(config, search=search or config.search, model=model_config))
    if not is_trained(workdir):
      raise FileNotFoundError(f"{workdir} holds no whole checkpoint: train the run first")
    folder = {name: os.path.join(workdir, name) for name in ("index", "features")}
    index, ads = SidIndex.load(folder["index"]), ad_store.load_ads(folder["index"])
    features = Trends.load(folder["features"]), Neighbors.load(folder["features"])
    model = run.build_model(config)
    ranker = Ranker(model, index, EcpmBins.load(folder["features"]), config.search)
    params = run.load_params(config, model, checkpoint)
    return cls(config, params, ranker, ads, features, inputs.load_behaviors(config))

  def recommend(self, events: Sequence[Mapping | str], k: int = 10, now: int | None = None) -> list[Recommendation]:
    """The best k ads for one user.

    Args:
      events: the user's history in any order: ad ids, or mappings with `ad_id` and, as known, `time` (unix seconds),
        `behavior`, `value` (money), `quantity`, `request_id`. May be empty. Without times, one visit just before `now`.
      k: ads wanted; fewer come back where the last beam width holds fewer.
      now: unix seconds of the request; None: the end of the log that the run was trained on, or of this history.

    Raises:
      DataError: an unknown ad, behaviour or field, a bad number, an event after `now`; the message names the value.
      ValueError: k below 1.
    """
    now = self._now([event.get("time") for event in events if isinstance(event, Mapping)]) if now is None else now
    return self.recommend_log(self.log_of(events, now), k, now)[0]

  def recommend_log(self, events: EventLog, k: int = 10, now: int | None = None) -> list[list[Recommendation]]:
    """The best k ads for every user of an event log whose ads are rows of `ads`; see `recommend`.

    Raises:
      DataError: an event after `now`.
      ValueError: k below 1.
    """
    if k < 1:
      raise ValueError(f"k={k} is not allowed: at least 1")
    latest = int(events.time.max(initial=0))
    now = self._now([latest]) if now is None else now
    if latest > now:
      raise DataError(f"now={now} is not allowed: the history goes on to {latest}")
    lines = history.build_lines(_with_open_visit(events, now), len(self.ads))
    last = np.flatnonzero(np.append(np.diff(lines.request_user) > 0, True))  # the open visits
    codes_NT, data = self._ranker.index.codes_NT, self.config.data
    contexts = RequestContexts(lines, codes_NT, self.ads.price, self._trends, self._neighbors, data)
    size = min(_LARGEST_BATCH, 1 << (len(last) - 1).bit_length())
    ranking = self._ranker.rank(self._params, contexts, last, k, size)
    return [self._named(*rows) for rows in zip(ranking.ad_RK, ranking.logp_RK, ranking.value_RK, strict=True)]

  def log_of(self, events: Sequence[Mapping | str], now: int) -> EventLog:
    """One user's events as a log. Raises DataError as `recommend` does."""
    rows = [self._checked(number, event, now) for number, event in enumerate(events)]
    columns = dict(zip(_EVENT, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(_EVENT, ())
    ids = columns["request_id"]
    request = np.unique(np.asarray(ids, str), return_inverse=True)[1] if rows and None not in ids else None
    arrays = {
      "user": np.zeros(len(rows), np.int32),
      "ad": np.asarray(columns["ad_id"], np.int32),
      "time": np.asarray(columns["time"], np.int64),
      "behavior": np.asarray(columns["behavior"], np.int8),
      "value": np.asarray(columns["value"], np.float32),
      "quantity": np.asarray(columns["quantity"], np.float32),
    }
    if not rows:
      none = np.zeros(0, np.int32)
      return EventLog(np.array(["user"]), **arrays, request=none, split=none.astype(np.int8))
    gap = self.config.data.session_gap_minutes * 60
    return visits.ordered_log(np.array(["user"]), **arrays, request=request, gap_seconds=gap)

  def _checked(self, number: int, event: Mapping | str, now: int) -> tuple:
    """(ad row, time, depth, value, quantity, request id) of one entry of a history."""
    event = {"ad_id": event} if isinstance(event, str) else event
    where = f"history, entry {number + 1}"
    if unknown := sorted(set(event) - set(_EVENT) - {"user_id"}):
      raise DataError(f"{where}: field {unknown[0]!r} is not known; allowed: {', '.join(_EVENT)}")
    if str(event.get("ad_id")) not in self._row:
      raise DataError(f"{where}: ad_id {event.get('ad_id')!r} is not in the ad table")
    behavior = event.get("behavior", self.behaviors[-1])
    if behavior not in self.behaviors:
      raise DataError(f"{where}: behavior {behavior!r} is not known; allowed: {', '.join(self.behaviors)}")
    numbers = []
    for field, default in (("time", now - 1), ("value", 0.0), ("quantity", 1.0)):
      given = event.get(field, default)
      if not _is_number(given) or given < 0:
        raise DataError(f"{where}: {field} {given!r} is not allowed: a number, at least 0")
      numbers.append(given)
    depth = self.behaviors.index(behavior)
    return self._row[str(event["ad_id"])], numbers[0], depth, *numbers[1:], event.get("request_id")

  def _now(self, times: Sequence) -> int:
    end = self._trends.origin + math.ceil((len(self._trends.seen) - 1) * self._trends.width * history.DAY)
    return max([end, *(int(t) + 1 for t in times if _is_number(t))])

  def _named(self, ad_K, logp_K, value_K) -> list[Recommendation]:
    found = []
    for ad, logp, value in zip(ad_K, logp_K, value_K, strict=True):
      if ad >= 0:
        about = (str(column[ad]) for column in (self.ads.ad_id, self.ads.text, self.ads.account_id))
        found.append(Recommendation(*about, float(logp), float(value), tuple(self._ranker.index.codes_NT[ad].tolist())))
    return found


def _is_number(given: Any) -> bool:
  return isinstance(given, (int, float, np.number)) and not isinstance(given, bool) and bool(np.isfinite(given))


def _with_open_visit(events: EventLog, now: int) -> EventLog:
  """The log with one more visit a user, at `now`: the request to answer. Its event is never part of a context."""
  users = len(events.user_id)
  order = np.argsort(np.append(events.user, np.arange(users)), kind="stable")

  def extended(column, fill):
    return np.append(column, np.full(users, fill, column.dtype))[order]

  user = np.append(events.user, np.arange(users, dtype=np.int32))[order]
  visit = np.append(events.request, np.full(users, -1, np.int32))[order]
  changes = np.flatnonzero((np.diff(user) != 0) | (np.diff(visit) != 0)) + 1
  request = np.zeros(len(user), np.int32)
  request[changes] = 1
  fills = {"ad": 0, "time": now, "behavior": 0, "value": 0, "quantity": 0, "split": 0}
  columns = {name: extended(getattr(events, name), fill) for name, fill in fills.items()}
  return dataclasses.replace(events, user=user, request=np.cumsum(request, dtype=np.int32), **columns)
