"""Baskets that are to be completed: half of a visit's ads are given, the rest is to be found.

What is given stands in no list. Every method sees the same: all earlier visits, and the given half.
"""

import dataclasses
from typing import Any

import numpy as np
import scipy.sparse

from gr4ad_jax.config import Config
from gr4ad_jax.data.schema import EventLog
from gr4ad_jax.decoding.ranker import Ranker
from gr4ad_jax.evaluation import baselines, metrics, protocols, report_tables
from gr4ad_jax.evaluation.protocols import EvalRequests
from gr4ad_jax.features.baskets import with_basket
from gr4ad_jax.index.left_out import LeftOut
from gr4ad_jax.ranking import asked, completion
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.swing import cooccurrence

CUTS = (5, 10)
WEIGHTS = (0.0, 0.5, 1.0, 2.0)  # of the basket beside the model
_WINDOW = 50  # lines within which an ad follows another
_DECAY = 0.9  # weight of a distance over the one before it
_RECENCY = 0.8  # weight of a line over the line after it


@dataclasses.dataclass(frozen=True)
class Halves:
  """Visits cut in two.

  Attributes:
    requests: R visits with what is to be found as their targets.
    log_R: what each user had done before, and in the visit so far, as the last visit.
    before_R: the same without the visit.
    now_R: unix seconds of each visit.
    given: what the visits have already.
  """

  requests: EvalRequests
  log_R: tuple[EventLog, ...]
  before_R: tuple[EventLog, ...]
  now_R: np.ndarray
  given: LeftOut

  @classmethod
  def of(cls, inputs: Inputs, requests: EvalRequests, seed: int = 0) -> "Halves":
    """Cuts visits of two ads or more at random: of n ads n // 2 are given."""
    rng = np.random.default_rng(seed)
    size_R = np.diff(requests.target_start)
    rows = np.flatnonzero(size_R >= 2)
    requests = requests.take(rows)
    size_R = size_R[rows]
    # A random rank within each visit: the first n // 2 are given.
    # A sort by visit, then by a random number: a shuffle inside each visit.
    order = np.lexsort((rng.random(len(requests.target_ad)), requests.target_row))
    rank = np.arange(len(order)) - np.repeat(requests.target_start[:-1], size_R)
    # [P]: a flag of each target, put back from the shuffled order.
    given_P = np.zeros(len(order), bool)
    given_P[order] = rank < np.repeat(size_R // 2, size_R)
    hidden_R = size_R - size_R // 2
    hidden = EvalRequests(
      requests.split,
      requests.request,
      requests.user,
      np.append(0, np.cumsum(hidden_R)),
      requests.target_ad[~given_P],
      requests.target_value[~given_P],
    )
    befores, now_R = asked.histories_of(inputs, requests)
    deepest = len(inputs.dataset.behaviors) - 1
    logs = []
    for r, before in enumerate(befores):
      mine = np.arange(requests.target_start[r], requests.target_start[r + 1])
      mine = mine[given_P[mine]]
      # The basket lies at the visit's own moment: nothing of it is known before.
      basket = requests.target_ad[mine], int(now_R[r]), requests.target_value[mine], deepest
      logs.append(with_basket(before, *basket))
    given = LeftOut.of(len(requests), requests.target_row[given_P], requests.target_ad[given_P])
    return cls(hidden, tuple(logs), tuple(befores), now_R, given)


def measure(config: Config, inputs: Inputs, split: str = "test", seed: int = 0) -> dict[str, Any]:
  """How much of the hidden halves a trained run finds, beside simple methods.

  Args:
    config: of the run.
    inputs: its data, tokenizer and features.
    split: 'valid' or 'test'.
    seed: of the cut.

  Returns:
    For JSON: `requests`, `systems[name][metric]` with 95 % intervals over users, and
    `ahead[name][metric]`, the model minus it, by paired resamples.
  """
  halves = Halves.of(
    inputs, protocols.eval_requests(inputs.dataset, split, config.data.target_behavior), seed
  )
  model = config.model.model
  run = asked.Asked.of(config, inputs, split, halves.now_R)
  basket_RX = _padded(halves.given)
  neighbors = inputs.neighbors.part(-1)
  near_RC, sum_RC = neighbors.unseen(basket_RX, np.ones(basket_RX.shape), completion.NEAR)
  rows = np.arange(len(halves.requests))
  # One search serves all weights.
  # A model that scores every ad has found the neighbours already.
  also = {"also_RC": near_RC} if isinstance(run.ranker, Ranker) else {}
  found = run.ranker.rank(
    run.params, run.contexts(halves.before_R), rows, config.search.rerank_candidates,
    left_out=halves.given, **also,
  )  # fmt: skip
  cosine_RC = completion.mean_cosine(sum_RC, basket_RX)
  own = config.search.basket_weight
  # The own weight has the run's name, and others are shown beside it.
  weights = {model: own} | {f"{model}, weight {w:g}": w for w in WEIGHTS if w != own}
  lists = {
    name: completion.reordered(found, near_RC, cosine_RC, max(CUTS), weight).ad_RK
    for name, weight in weights.items()
  }
  lists[f"{model}, basket in the context"] = run.ranked(halves.log_R, max(CUTS), halves.given)
  lists["covisits"] = near_RC[:, : max(CUTS)]
  lists |= simple(inputs, split, halves)
  ratios = {
    name: {
      key: ratio
      for key, ratio in metrics.per_request(ad_RK, halves.requests, CUTS).items()
      if not key.startswith("ndcg")
    }
    for name, ad_RK in lists.items()
  }
  return {"split": split, "requests": len(halves.requests)} | asked.intervals(
    ratios, halves.requests.user
  )


def _padded(given: LeftOut) -> np.ndarray:
  """The baskets as rows, [R, X], -1 behind them."""
  size_R = np.bincount(given.request_E, minlength=given.requests)
  basket_RX = np.full((given.requests, max(int(size_R.max(initial=1)), 1)), -1, np.int64)
  # The place of each given ad in its basket.
  place = np.arange(len(given.row_E)) - np.repeat(np.cumsum(size_R) - size_R, size_R)
  basket_RX[given.request_E, place] = given.row_E
  return basket_RX


def simple(inputs: Inputs, split: str, halves: Halves) -> dict[str, np.ndarray]:
  """Lists [R, 10] of methods without gradient training.

  `popularity`: lines of all. `frequency`: visits in which the user took the ad, then popularity.
  `followers`: what followed the user's last lines, those of the basket last, within 50 lines of
  anyone. `ease_baskets`: EASE whose rows are visits, asked with the basket.
  """
  num_ads = len(inputs.dataset.ads)
  lines_N = protocols.line_counts(inputs.dataset, split).astype(np.float64)
  events = inputs.dataset.events
  seen_E = protocols.history_events(inputs.dataset, split)
  line, _ = protocols.lines(
    events.request[seen_E], events.ad[seen_E], events.value[seen_E], num_ads
  )
  # A visit's first event tells whose it is; events ascend by visit.
  user_L = events.user[np.searchsorted(events.request, line[:, 0])]
  after_NN = cooccurrence.directed_counts(user_L, line[:, 1], num_ads, _WINDOW, _DECAY)
  # Numbers of visits without gaps, as rows of a matrix.
  visit = np.unique(line[:, 0], return_inverse=True)[1]
  baskets = scipy.sparse.csr_matrix(
    (np.ones(len(line), np.float32), (visit, line[:, 1])), (visit.max() + 1, num_ads)
  )
  shape = len(halves.requests), num_ads
  # What is given, as rows of a matrix: 1 where a request has the ad.
  basket_RN = scipy.sparse.csr_matrix(
    (np.ones(len(halves.given.row_E), np.float32), (halves.given.request_E, halves.given.row_E)),
    shape,
  )
  count_RN = asked.rows_of(halves.before_R, lambda log: np.ones(len(log)), num_ads)
  # The latest line has weight 1, each one before it less.
  late_RN = asked.rows_of(
    halves.log_R, lambda log: _RECENCY ** np.arange(len(log) - 1, -1, -1.0), num_ads
  )
  scores = {
    "popularity": scipy.sparse.csr_matrix(shape),
    "frequency": count_RN,
    "followers": late_RN @ after_NN,
  }
  if num_ads <= baselines.EASE_MAX_ADS:
    weights_NN = baselines.ease_weights(baskets, baselines.EASE_PENALTY)
    scores["ease_baskets"] = scipy.sparse.csr_matrix(basket_RN @ weights_NN)
  # Popularity decides where a method has no opinion: less than any difference that counts.
  tie_N = 1e-9 * lines_N / max(lines_N.max(), 1.0)
  return {
    # Popularity itself is the score of that method, and the tie of all others.
    name: asked.best_of(
      score_RN, tie_N + (lines_N if name == "popularity" else 0), max(CUTS), halves.given
    )
    for name, score_RN in scores.items()
  }


def format_table(found: dict[str, Any]) -> str:
  """Markdown of what `measure` returned."""
  rows = asked.table_rows("the hidden half of a visit", found)
  about = (
    f"{found['requests']:,} visits of {found['split']} with two ads or more; half of them, drawn, "
    "are given and stand in no list. 95 % intervals; differences are paired."
  )
  return "\n".join([about, "", *report_tables.aligned(rows), ""])
