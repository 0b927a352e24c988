"""A second stage: what the first one found, and the ads of the context, in the order of a ranker."""

import numpy as np

from gr4ad_jax.config import Config
from gr4ad_jax.decoding.ranker import Ranking
from gr4ad_jax.evaluation.protocols import EvalRequests
from gr4ad_jax.training import boosted, reward_run
from gr4ad_jax.training.inputs import Inputs
from gr4ad_jax.training.reward_model import RewardModel

_ROWS = 64


def depth(config: Config, k: int) -> int:
  """Ads that the first stage has to find for a list of k."""
  return k if config.search.reranker == "none" else max(k, config.search.rerank_candidates)


def prepare(config: Config, inputs: Inputs) -> None:
  """Trains the reward model that --reranker=reward reads, where the run has none; LightGBM trains when it is loaded.

  Raises:
    ImportError: LightGBM is asked for and not installed.
    DivergedError: the reward model's loss stopped being finite.
  """
  if config.search.reranker == "lightgbm":
    boosted.check()
  if config.search.reranker == "reward" and not reward_run.is_finished(config):
    reward_run.train(config, inputs)


def rerank(config: Config, inputs: Inputs, requests: EvalRequests, found: Ranking, k: int) -> Ranking:
  """The best k of the candidates by p(purchase) · E[value | purchase]^rerank_exponent.

  Args:
    config: of the run; --reranker=none leaves the ranking as it is.
    inputs: its data, tokenizer and features.
    requests: R requests.
    found: of the first stage, [R, C].
    k: ads a request.

  Returns:
    Ads, the logarithm of the ranker's p(purchase) and its E[value | purchase].

  Raises:
    FileNotFoundError: the run has no reward model.
    ImportError: LightGBM is asked for and not installed.
  """
  if config.search.reranker == "none":
    return found
  ranker = {"reward": RewardModel, "lightgbm": boosted.Boosted}[config.search.reranker]
  model, contexts = ranker.load(config, inputs, requests.split), inputs.contexts(config, requests.split)
  parts = []
  for begin in range(0, len(requests), _ROWS):
    some = requests.request[begin : begin + _ROWS]
    ads = distinct(np.concatenate([found.ad_RK[begin : begin + _ROWS], contexts.slots(some)[0]], axis=1))
    estimate = model.estimate(some, ads)
    worth = estimate.purchase_BC * estimate.value_BC**config.search.rerank_exponent
    best = np.argsort(np.where(ads >= 0, -worth, np.inf), axis=1, kind="stable")[:, :k]
    columns = (ads, np.log(np.maximum(estimate.purchase_BC, 1e-30)), estimate.value_BC)
    parts.append([np.take_along_axis(x, best, axis=1) for x in columns])
  ad_RK, logp_RK, value_RK = (np.concatenate(column) for column in zip(*parts, strict=True))
  return Ranking(ad_RK.astype(np.int32), np.where(ad_RK >= 0, logp_RK, -np.inf), np.where(ad_RK >= 0, value_RK, 0.0))


def distinct(ads_BC: np.ndarray) -> np.ndarray:
  """Each row's ads with -1 in place of those that stand further left already."""
  order = np.argsort(ads_BC, axis=1, kind="stable")
  ordered = np.take_along_axis(ads_BC, order, axis=1)
  again = np.zeros(ads_BC.shape, bool)
  np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
  return np.where(again, -1, ads_BC)
