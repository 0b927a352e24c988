"""Users of whom little is known: the test visits of a split, asked with the last events alone.

The histories are cut, not the training: what a run and the simple methods have learned is what they
learn from everyone. No method here knows users by their id, so none knows more than it is asked
with.
"""

from typing import Any

import numpy as np
import scipy.sparse

from gr4ad_jax.config import Config
from gr4ad_jax.data.schema import EventLog
from gr4ad_jax.evaluation import baselines, metrics, protocols, report_tables
from gr4ad_jax.ranking import asked, steering
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.swing import cooccurrence

EVENTS = (0, 1, 2, 5)  # of a history that are left, the latest ones
CUT = 10
_WINDOW = 50  # lines within which an ad follows another
_DECAY = 0.9  # weight of a distance over the one before it
_RECENCY = 0.8  # weight of a line over the line after it


def measure(config: Config, inputs: Inputs, split: str = "test") -> dict[str, Any]:
  """Recall of a trained run by how many events it is told of a user, beside simple methods.

  Args:
    config: of the run.
    inputs: its data, tokenizer and features.
    split: 'valid' or 'test'.

  Returns:
    For JSON: `requests`, and `events[n]` for n events of each history: `systems` and `ahead` as
    `asked.intervals` gives them. Users with fewer events are asked with those that they have.
  """
  requests = protocols.eval_requests(inputs.dataset, split, config.data.target_behavior)
  whole, now_R = asked.histories_of(inputs, requests)
  run = asked.Asked.of(config, inputs, split, now_R)
  # Fitted once, on everyone's whole history; what is cut is what they are asked with.
  methods = _Methods(inputs, split)
  found = {}
  for number in EVENTS:
    logs = [latest(log, number) for log in whole]
    lists = {config.model.model: run.ranked(logs, CUT)} | methods.lists(logs)
    ratios = {
      name: {
        key: ratio
        for key, ratio in metrics.per_request(ad_RK, requests, (CUT,)).items()
        if not key.startswith("ndcg")
      }
      for name, ad_RK in lists.items()
    }
    found[str(number)] = asked.intervals(ratios, requests.user)
  return {"split": split, "requests": len(requests), "events": found}


def latest(log: EventLog, number: int) -> EventLog:
  """The last events of one user's log, in its order."""
  kept = np.zeros(len(log), bool)
  # Visits may overlap, so the log's order is not that of time; of one moment the later row counts.
  order = np.lexsort((np.arange(len(log)), log.time))
  # 0 events leave none: the slice begins at the end.
  kept[order[max(len(log) - number, 0) :]] = True
  return log.take(kept)


class _Methods:
  """Simple methods that are asked with a history, fitted on what everyone did before the split."""

  def __init__(self, inputs: Inputs, split: str):
    dataset = inputs.dataset
    events = dataset.events
    self._num_ads = len(dataset.ads)
    seen_E = protocols.history_events(dataset, split)
    line, _ = protocols.lines(
      events.request[seen_E], events.ad[seen_E], events.value[seen_E], self._num_ads
    )
    user_L = events.user[np.searchsorted(events.request, line[:, 0])]
    self._lines_N = np.bincount(line[:, 1], minlength=self._num_ads).astype(np.float64)
    self._after_NN = cooccurrence.directed_counts(
      user_L, line[:, 1], self._num_ads, _WINDOW, _DECAY
    )
    shape = len(events.user_id), self._num_ads
    taken_UN = scipy.sparse.csr_matrix(
      (np.ones(len(line), np.float32), (user_L, line[:, 1])), shape
    )
    self._ease_NN = None
    if self._num_ads <= baselines.EASE_MAX_ADS:
      binary_UN = (taken_UN > 0).astype(np.float32)
      self._ease_NN = baselines.ease_weights(binary_UN, baselines.EASE_PENALTY)
    # At length 1, so that products are cosines.
    self._unit_ND = steering.unit(inputs.tokenizer.embed(dataset.ads))

  def lists(self, logs: list[EventLog]) -> dict[str, np.ndarray]:
    """`popularity`; `content`: mean cosine to the history, by the tokenizer's vectors;
    `followers`: what followed the history's lines; `ease`. Popularity decides where there is no
    history.
    """
    binary_RN = asked.rows_of(logs, lambda log: np.ones(len(log), np.float32), self._num_ads)
    # An ad that was taken twice counts once, as in EASE's own rows.
    binary_RN = (binary_RN > 0).astype(np.float32)
    late_RN = asked.rows_of(
      logs, lambda log: _RECENCY ** np.arange(len(log) - 1, -1, -1.0), self._num_ads
    )
    # A user without a history has a size of 0 as a divisor otherwise.
    size_R1 = np.maximum(np.asarray(binary_RN.sum(axis=1)), 1)
    # (R, N) @ (N, D) / (R, 1) @ (D, N): the mean vector of the history, against all ads.
    content_RN = (binary_RN @ self._unit_ND / size_R1) @ self._unit_ND.T
    scores = {
      "popularity": scipy.sparse.csr_matrix(binary_RN.shape),
      "content": scipy.sparse.csr_matrix(content_RN),
      "followers": late_RN @ self._after_NN,
    }
    if self._ease_NN is not None:
      scores["ease"] = scipy.sparse.csr_matrix(binary_RN @ self._ease_NN)
    tie_N = 1e-9 * self._lines_N / max(self._lines_N.max(), 1.0)
    return {name: asked.best_of(score_RN, tie_N, CUT) for name, score_RN in scores.items()}


def format_table(found: dict[str, Any]) -> str:
  """Markdown of what `measure` returned."""
  lines = [
    f"{found['requests']:,} requests of {found['split']}, asked with the last events of their "
    "users' histories alone. 95 % intervals; differences are paired."
  ]
  for number, part in found["events"].items():
    rows = asked.table_rows(f"{number} event{'' if number == '1' else 's'}", part)
    lines += ["", *report_tables.aligned(rows)]
  return "\n".join(lines) + "\n"
