"""Visits of a split, asked with other histories than they had: cut short, or a basket begun."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from gr4ad_jax.config import Config, DataConfig
from gr4ad_jax.data.schema import EventLog
from gr4ad_jax.evaluation import metrics, report_tables
from gr4ad_jax.evaluation.protocols import EvalRequests
from gr4ad_jax.features.batches import RequestBatch
from gr4ad_jax.features.contexts import FixedAds, contexts_at, joined
from gr4ad_jax.features.histories import Histories
from gr4ad_jax.features.trends import Trends
from gr4ad_jax.index.left_out import LeftOut
from gr4ad_jax.requests import request_task
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.retrieval.best import top_k
from gr4ad_jax.zoo import registry


@dataclasses.dataclass(frozen=True)
class AskedContexts:
  """What a `Ranker` takes: batches of some of R logs, each of one user, at a moment of its own.

  Attributes:
    inputs: of the run.
    config: numbers of slots.
    popularity: counts that are visible to these requests.
    log_R: what is known of each user.
    now_R: unix seconds of each request.
  """

  inputs: Inputs
  config: DataConfig
  popularity: Trends
  log_R: Sequence[EventLog]
  now_R: np.ndarray

  def batch(self, rows: np.ndarray) -> RequestBatch:
    """The contexts of the requests `rows`."""
    table = self.inputs.dataset.ads
    ads = FixedAds(self.inputs.index.codes_NT, table.price, table.created)
    log = joined([self.log_R[row] for row in rows])
    about = self.popularity, self.inputs.neighbors, ads, self.config
    return contexts_at(log, self.now_R[rows], *about, self.inputs.dataset.promotions)


@dataclasses.dataclass(frozen=True)
class Asked:
  """A trained run, asked for R requests at moments of their own.

  Attributes:
    inputs: data, tokenizer and features of the run.
    config: of the run; its best checkpoint is taken.
    ranker: its search.
    params: its parameters.
    popularity: counts that are visible in the split.
    now_R: unix seconds of each request.
  """

  inputs: Inputs
  config: Config
  ranker: Any
  params: Any
  popularity: Trends
  now_R: np.ndarray

  @classmethod
  def of(cls, config: Config, inputs: Inputs, split: str, now_R: np.ndarray) -> "Asked":
    """Opens the run; `split` says whose popularity is visible."""
    model = registry.build(config, len(inputs.dataset.ads))
    params = request_task.load_params(config, model)
    ranker = request_task.make_ranker(model, inputs.index, inputs.ecpm, config.search)
    popularity = inputs.contexts(config, split).popularity
    return cls(inputs, config, ranker, params, popularity, now_R)

  def contexts(self, log_R: Sequence[EventLog]) -> AskedContexts:
    """The contexts of R users of whom the logs are known."""
    return AskedContexts(self.inputs, self.config.data, self.popularity, log_R, self.now_R)

  def ranked(
    self, log_R: Sequence[EventLog], k: int, left_out: LeftOut | None = None
  ) -> np.ndarray:
    """Their lists, [R, k] ad rows."""
    rows = np.arange(len(log_R))
    contexts = self.contexts(log_R)
    return self.ranker.rank(self.params, contexts, rows, k, left_out=left_out).ad_RK


def histories_of(inputs: Inputs, requests: EvalRequests) -> tuple[list[EventLog], np.ndarray]:
  """What each request's user had done before it, R logs of one user; and the R moments."""
  events = inputs.dataset.events
  histories = Histories(events)
  # A request's events stand together, so its first one is found by its number.
  first_R = np.searchsorted(events.request, requests.request)
  now_R = events.time[first_R]
  logs = []
  for user, first, now in zip(requests.user, first_R, now_R, strict=True):
    log = histories.take([int(user)])
    # Where the user's events begin in the log.
    begin = int(np.searchsorted(events.user, user))
    # Earlier in the log, by row.
    earlier = np.arange(len(log)) + begin < first
    # An event of an earlier visit may come later than this one began.
    logs.append(log.take(earlier & (log.time <= now)))
  return logs, now_R


def rows_of(
  logs: Sequence[EventLog], weigh: Callable[[EventLog], np.ndarray], num_ads: int
) -> scipy.sparse.csr_matrix:
  """[R, N] of a weight an event, added up by ad."""
  row = np.repeat(np.arange(len(logs)), [len(log) for log in logs])
  ad = np.concatenate([log.ad for log in logs])
  weight = np.concatenate([weigh(log) for log in logs])
  return scipy.sparse.csr_matrix((weight, (row, ad)), (len(logs), num_ads))


def best_of(
  score_RN: scipy.sparse.csr_matrix, tie_N: np.ndarray, k: int, left_out: LeftOut | None = None
) -> np.ndarray:
  """The k ads of the highest scores, [R, k] int32; `tie_N` is added where scores are read."""
  found = []
  for begin in range(0, score_RN.shape[0], 256):
    # One part of the requests at a time becomes dense: [256, N].
    score = score_RN[begin : begin + 256].toarray() + tie_N
    if left_out:
      out = left_out.take(np.arange(begin, begin + len(score)))
      score[out.request_E, out.row_E] = -np.inf
    found.append(top_k(score, k))
  return np.concatenate(found).astype(np.int32)


def intervals(
  ratios: Mapping[str, Mapping[str, metrics.Ratio]], user_R: np.ndarray
) -> dict[str, Any]:
  """`systems[name][metric]` and `ahead[name][metric]`, the first system minus it: 95 % intervals,
  all on the same resamples of the users.
  """
  # One resample for all systems, so that their differences are paired.
  flat = [(name, key) for name, row in ratios.items() for key in row]
  samples_SF = metrics.resample([ratios[name][key] for name, key in flat], user_R)
  sample = {pair: samples_SF[:, f] for f, pair in enumerate(flat)}
  first = next(iter(ratios))
  found: dict[str, Any] = {"systems": {}, "ahead": {}}
  for name, key in flat:
    value = ratios[name][key].value
    own = found["systems"].setdefault(name, {})
    own[key] = vars(metrics.interval(value, sample[name, key]))
    if name != first:
      # The difference is taken sample by sample: its interval is narrower than the two alone.
      lead = metrics.interval(
        ratios[first][key].value - value, sample[first, key] - sample[name, key]
      )
      found["ahead"].setdefault(name, {})[key] = vars(lead)
  return found


def table_rows(title: str, found: Mapping[str, Any]) -> list[list[str]]:
  """Rows of what `intervals` found, the first their header: the systems, then the first one's
  leads, in bold where the whole interval is above 0.
  """
  names = list(next(iter(found["systems"].values())))
  first = next(iter(found["systems"]))
  rows = [[title, *names]]
  for name, row in found["systems"].items():
    rows.append([name, *(report_tables.cell(row[key]) for key in names)])
  for name, row in found["ahead"].items():
    cells = (report_tables.cell(row[key], row[key]["low"] > 0, signed=True) for key in names)
    rows.append([f"{first} minus {name}", *cells])
  return rows
