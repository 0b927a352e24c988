"""Ads that nobody had taken before: whether a run's lists find them, beside simple methods.

The run was trained with --held_out_ads, so it has seen no event of these ads, and they got their
UA-SIDs from content, after the fit. Nor has any simple method here seen one. Two kinds of new ads
are told apart: those that were held out, and those whose first sale in truth is in test.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from gr4ad_jax.builders import held_out
from gr4ad_jax.config import Config, ConfigError, check_trained, load_config
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.decoding.ranker import Ranking
from gr4ad_jax.evaluation import metrics, protocols, report_tables
from gr4ad_jax.evaluation.protocols import EvalRequests
from gr4ad_jax.index.left_out import LeftOut
from gr4ad_jax.ranking import asked, scoring, steering
from gr4ad_jax.ranking.steering import Steering
from gr4ad_jax.requests import request_task
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.retrieval.best import top_k
from gr4ad_jax.runs import published
from gr4ad_jax.sid import encoders
from gr4ad_jax.zoo import registry

CUT = 10
HELD_OUT, UNSOLD = "held out", "first sold in test"
ALL_ADS, NEW_ADS = "all ads", "new ads"
A_PLACE = "all ads, one place of ten kept for new ones"
_RECALL = f"recall@{CUT}"
_PENALTY = 10.0  # of the ridge regression below; not tuned


def measure(
  config: Config, inputs: Inputs, split: str = "test", beside: Sequence[str] = ()
) -> dict[str, Any]:
  """Recall of new ads alone: no other ad counts as a target.

  Args:
    config: of a run that was trained with --held_out_ads.
    inputs: its data, tokenizer and features.
    split: 'test', where the new ads are to be found.
    beside: workdirs of other runs of the same data and the same --held_out_ads.

  Returns:
    For JSON: `groups`, a list: `ads` (which new ads are looked for), `among` (whether a list may
    hold all ads, must hold a new one, or holds new ones alone), `requests`, `targets`, and
    `systems` and `ahead` as `asked.intervals` gives them.

  Raises:
    ConfigError: a run that knows all ads, another split, or a run beside that is of other data.
    DataError: no new ad was taken in test.
  """
  share = config.data.held_out_ads
  if not share:
    raise ConfigError(
      "--study=new_ads is not allowed: the run knows events of all ads; train one with "
      "--held_out_ads=0.05"
    )
  if split != "test":
    raise ConfigError(f"--split={split} is not allowed: new ads have events in test alone")
  runs = _runs(config, inputs, beside)
  held_N, unsold_N = held_out.new_ads(inputs.dataset, share)
  whole = protocols.eval_requests(inputs.dataset, split, config.data.target_behavior)
  groups = []
  for ads, group_N in ((HELD_OUT, held_N), (UNSOLD, unsold_N)):
    requests = targets_among(whole, group_N)
    if not len(requests):
      continue
    methods = _Methods(inputs, requests)
    new_N = held_N | unsold_N
    of_all, of_new = (
      {name: _ranked(*run, requests, allowed_N) for name, run in runs.items()}
      | methods.rankings(allowed_N)
      for allowed_N in (None, new_N)
    )
    placed = {name: with_place(found, of_new[name], new_N) for name, found in of_all.items()}
    for among, rankings in ((ALL_ADS, of_all), (A_PLACE, placed), (NEW_ADS, of_new)):
      ratios = {
        name: {_RECALL: metrics.per_request(ranking.ad_RK, requests, (CUT,))[_RECALL]}
        for name, ranking in rankings.items()
      }
      about = {"requests": len(requests), "targets": len(requests.target_ad)}
      about |= {"ads": ads, "among": among, "new_ads": int(group_N.sum())}
      groups.append(about | asked.intervals(ratios, requests.user))
  if not groups:
    raise DataError(f"--study=new_ads is not allowed: no new ad of {share:g} was taken in test")
  return {"split": split, "groups": groups}


def _runs(
  config: Config, inputs: Inputs, beside: Sequence[str]
) -> dict[str, tuple[Config, Inputs]]:
  """The run and those beside it, by name, each with the data as it sees them."""
  runs = {config.model.model: (config, inputs)}
  for workdir in map(published.locate, beside):
    name = os.path.basename(os.path.normpath(workdir))
    if name in runs:
      raise ConfigError(f"--beside={workdir} is not allowed: the table has a run {name!r} already")
    check_trained(workdir)
    other = load_config(workdir)
    runs[name] = (other, scoring.view_through(other, inputs))
  return runs


def targets_among(requests: EvalRequests, ads_N: np.ndarray) -> EvalRequests:
  """The requests with a target of some ads, and those targets alone."""
  kept_P = ads_N[requests.target_ad]
  size_R = np.bincount(requests.target_row[kept_P], minlength=len(requests))
  rows = np.flatnonzero(size_R)
  return EvalRequests(
    requests.split,
    requests.request[rows],
    requests.user[rows],
    np.append(0, np.cumsum(size_R[rows])),
    requests.target_ad[kept_P],
    requests.target_value[kept_P],
  )


def with_place(of_all: Ranking, of_new: Ranking, new_N: np.ndarray) -> Ranking:
  """The lists of all ads, with one place of ten kept for the best of the new ones, [N] bool."""
  first_R1 = np.zeros((len(of_new.ad_RK), 1), int)
  both = steering.together(of_all, of_new.at(first_R1))
  return steering.steer(both, Steering(share=1 / CUT, group_N=new_N), CUT)


def _ranked(
  config: Config, inputs: Inputs, requests: EvalRequests, allowed_N: np.ndarray | None
) -> Ranking:
  """Lists of a run, [R, CUT], by its search alone."""
  model = registry.build(config, len(inputs.dataset.ads))
  params = request_task.load_params(config, model)
  ranker = request_task.make_ranker(model, inputs.index, inputs.ecpm, config.search)
  left_out = None
  if allowed_N is not None:
    # One array for all requests, of which the search makes one index.
    left_out = LeftOut.lists([()] * len(requests), [allowed_N] * len(requests))
  contexts = inputs.contexts(config, requests.split)
  return ranker.rank(params, contexts, requests.request, CUT, left_out=left_out)


class _Methods:
  """Simple methods that know an ad by its content, and popularity, which knows none of them."""

  def __init__(self, inputs: Inputs, requests: EvalRequests):
    dataset = inputs.dataset
    num_ads = len(dataset.ads)
    self._lines_N = protocols.line_counts(dataset, requests.split).astype(np.float64)
    logs, _ = asked.histories_of(inputs, requests)
    took_RN = asked.rows_of(logs, lambda log: np.ones(len(log), np.float32), num_ads)
    vectors = {"content": steering.unit(inputs.tokenizer.embed(dataset.ads))}
    if inputs.tokenizer.tower is not None:
      # What the tower was made from, which knows nothing of who takes what together.
      vectors["content, text alone"] = encoders.encode(dataset.ads, inputs.tokenizer.config.encoder)
    self._scores = {"popularity": np.zeros(took_RN.shape)}
    for name, unit_ND in vectors.items():
      mean_RD = _means(took_RN, unit_ND)
      # The mean cosine of the history's lines with each ad: (R, D) @ (D, N).
      self._scores[name] = mean_RD @ unit_ND.T
      map_DD = ridge(*visit_pairs(inputs, requests.split, unit_ND))
      self._scores[f"{name}, two linear towers"] = mean_RD @ map_DD @ unit_ND.T

  def rankings(self, allowed_N: np.ndarray | None) -> dict[str, Ranking]:
    """Lists of each method, [R, CUT]; popularity, then the ad's row, breaks ties."""
    tie_N = 1e-9 * self._lines_N / max(self._lines_N.max(), 1.0)
    rankings = {}
    for name, score_RN in self._scores.items():
      score_RN = score_RN + tie_N
      if allowed_N is not None:
        score_RN = np.where(allowed_N, score_RN, -np.inf)
      ad_RK = top_k(score_RN, min(CUT, score_RN.shape[1])).astype(np.int32)
      score_RK = np.take_along_axis(score_RN, ad_RK, axis=1).astype(np.float32)
      # Where fewer are allowed than there are places, the rest is padding.
      ad_RK = np.where(np.isneginf(score_RK), -1, ad_RK)
      rankings[name] = Ranking(ad_RK, score_RK, np.zeros_like(score_RK), score_RK)
    return rankings


def visit_pairs(inputs: Inputs, split: str, unit_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """For each visit before the split whose user had one before it: the mean vector of what the user
  had taken until then, and that of what was taken in the visit, [V, D] each.
  """
  events = inputs.dataset.events
  seen_E = protocols.history_events(inputs.dataset, split)
  request_E = events.request[seen_E]
  requests, row_E = np.unique(request_E, return_inverse=True)
  ones_E = np.ones(len(row_E), np.float32)
  shape = len(requests), len(unit_ND)
  took_VN = scipy.sparse.csr_matrix((ones_E, (row_E, events.ad[seen_E])), shape)
  sum_VD = took_VN @ unit_ND
  size_V = np.asarray(took_VN.sum(axis=1))[:, 0]
  user_V = events.user[np.searchsorted(events.request, requests)]
  # Where each visit's user begins among the visits, which stand in order of user.
  first_V = np.searchsorted(user_V, user_V)
  before_VD = _before(sum_VD, first_V)
  number_V = _before(size_V[:, None], first_V)[:, 0]
  # A user's first visit has nothing before it.
  kept = number_V > 0
  return before_VD[kept] / number_V[kept, None], sum_VD[kept] / size_V[kept, None]


def ridge(from_VD: np.ndarray, to_VD: np.ndarray) -> np.ndarray:
  """The linear map [D, D] by which the first best gives the second, with a penalty on its size."""
  gram_DD = from_VD.T @ from_VD + _PENALTY * np.eye(from_VD.shape[1])
  return np.linalg.solve(gram_DD, from_VD.T @ to_VD)


def _means(took_RN: scipy.sparse.csr_matrix, unit_ND: np.ndarray) -> np.ndarray:
  """The mean vector of each row's ads, [R, D]; zeros where there are none."""
  # A user without a history would have 0 as a divisor.
  return took_RN @ unit_ND / np.maximum(np.asarray(took_RN.sum(axis=1)), 1)


def _before(x_VD: np.ndarray, first_V: np.ndarray) -> np.ndarray:
  """Sums over the user's earlier visits."""
  # Row v of `until` is the sum of the rows before v, so a user's part is a difference of two.
  until_VD = np.concatenate(
    [np.zeros((1, x_VD.shape[1])), np.cumsum(x_VD, axis=0, dtype=np.float64)]
  )
  return until_VD[:-1] - until_VD[first_V]


def format_table(found: Mapping[str, Any]) -> str:
  """Markdown of what `measure` returned."""
  lines = [
    f"Ads that nobody had taken before {found['split']}, as the only targets. 95 % intervals; "
    "differences are paired."
  ]
  for part in found["groups"]:
    about = (
      f"{part['ads']} ({part['new_ads']:,} ads, {part['targets']:,} targets of "
      f"{part['requests']:,} requests), in lists of {part['among']}"
    )
    lines += ["", *report_tables.aligned(asked.table_rows(about, part))]
  return "\n".join(lines) + "\n"
