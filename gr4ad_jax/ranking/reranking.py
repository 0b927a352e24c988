"""A second stage: what the first one found, in the order of a ranker, or with a memory of what
followed what.
"""

from collections.abc import Iterator

import numpy as np

from gr4ad_jax.config import Config
from gr4ad_jax.data.ecpm import LEAST_VALUE
from gr4ad_jax.decoding.ranker import Ranking, distinct, logp_of
from gr4ad_jax.evaluation.protocols import EvalRequests
from gr4ad_jax.features import history
from gr4ad_jax.index.left_out import LeftOut
from gr4ad_jax.ranking import list_cache, seen_ads
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.swing.followers import Followers
from gr4ad_jax.value import boosted, reward_run
from gr4ad_jax.value.reward_model import RewardModel

_ROWS = 64
# p(purchase) of a pair is far above it; a forest may give 0, whose log would rule whatever its
# weight
_LEAST_P = 1e-30
_LEAST_SHARE = 1e-4  # of an ad that followed none of the history, about one ad's in ten thousand


def depth(config: Config, k: int) -> int:
  """Ads that the first stage has to find for a list of k."""
  return k if config.search.reranker == "none" else max(k, config.search.rerank_candidates)


def prepare(config: Config, inputs: Inputs) -> None:
  """Trains the reward model that --reranker=reward reads, where the run has none; LightGBM trains
  when it is loaded.

  Raises:
    ImportError: LightGBM is asked for and not installed.
    DivergedError: the reward model's loss stopped being finite.
    Stopped: asked to stop; the same call goes on.
  """
  if config.search.reranker == "lightgbm":
    boosted.check()
  if config.search.reranker == "reward" and not reward_run.is_finished(config):
    list_cache.go_on(reward_run.train(config, inputs), f"the reward model of {config.workdir}")


def proposed(config: Config, inputs: Inputs, requests: EvalRequests) -> np.ndarray | None:
  """Ads that the memory of --reranker=neighbors puts beside those of a beam search: [R,
  rerank_candidates]; else None.

  They are those of the largest share in what followed the history, -1 is padding. What a search by
  the model alone has pruned early may come first with the memory.
  """
  if config.search.reranker != "neighbors":
    return None
  repeats = seen_ads.treatment(config) == "left"
  best = [
    followers.best(history_BS, config.search.rerank_candidates, repeats)
    for _, followers, history_BS in _memory(config, inputs, requests)
  ]
  return np.concatenate(best)


def rerank(
  config: Config, inputs: Inputs, requests: EvalRequests, found: Ranking, k: int,
  left_out: LeftOut | None = None,
) -> Ranking:  # fmt: skip
  """The best k of the candidates.

  By a ranker: those found and the context's, in the order of p(purchase)^(1 - rerank_prior) ·
    p^rerank_prior ·
  E[value | purchase]^rerank_exponent, p the first stage's, its lowest for ads that it did not find.
  By 'neighbors': those found, in the order of their score + neighbor_weight · log(share + 1e-4),
  the share that of `Followers`, learned from what the run has learned from; unless seen ads are
  left, without the ads of the history.

  Args:
    config: of the run; --reranker=none leaves the ranking as it is.
    inputs: its data, tokenizer and features.
    requests: R requests.
    found: of the first stage, [R, C].
    k: ads a request.
    left_out: ads that the requests do without; those found are without them already.

  Returns:
    Ads; by a ranker, the logarithm of its p(purchase), also as the score, and its E[value |
    purchase].

  Raises:
    FileNotFoundError: the run has no reward model.
    ImportError: LightGBM is asked for and not installed.
  """
  if config.search.reranker == "none":
    return found
  if config.search.reranker == "neighbors":
    return _with_neighbors(config, inputs, requests, found, k)
  ranker = {"reward": RewardModel, "lightgbm": boosted.Boosted}[config.search.reranker]
  model = ranker.load(config, inputs, requests.split)
  contexts = inputs.contexts(config, requests.split)
  prior = config.search.rerank_prior
  exponent = config.search.rerank_exponent
  parts = []
  for begin in range(0, len(requests), _ROWS):
    part = slice(begin, begin + _ROWS)
    some = requests.request[part]
    # Ads of the context join the beams' ones: what a user took before is likely, beam or no beam.
    slots = contexts.slots(some)[0]
    if left_out:
      part_out = left_out.take(np.arange(begin, begin + len(some)))
      slots = np.where(part_out.kept(slots), slots, -1)
    ads = distinct(np.concatenate([found.ad_RK[part], slots], axis=1))
    first = logp_of(ads, found.ad_RK[part], found.logp_RK[part])
    estimate = model.estimate(some, ads)
    logp = np.log(np.maximum(estimate.purchase_BC, _LEAST_P))
    value = estimate.value_BC
    # A weighted sum of logs: a product of powers of both probabilities and of the value.
    worth = (1 - prior) * logp + prior * first + exponent * np.log(np.maximum(value, LEAST_VALUE))
    # Padding goes last: +inf in a sort of negated scores.
    best = np.argsort(np.where(ads >= 0, -worth, np.inf), axis=1, kind="stable")[:, :k]
    parts.append([np.take_along_axis(x, best, axis=1) for x in (ads, logp, value)])
  ad_RK, logp_RK, value_RK = (np.concatenate(column) for column in zip(*parts, strict=True))
  logp_RK = np.where(ad_RK >= 0, logp_RK, -np.inf)
  return Ranking(ad_RK.astype(np.int32), logp_RK, np.where(ad_RK >= 0, value_RK, 0.0), logp_RK)


def _with_neighbors(
  config: Config, inputs: Inputs, requests: EvalRequests, found: Ranking, k: int
) -> Ranking:
  parts = []
  repeats = seen_ads.treatment(config) == "left"
  for part, followers, history_BS in _memory(config, inputs, requests):
    share_BK = followers.share(history_BS, found.ad_RK[part], repeats)
    # An ad that never followed has the least share, not log 0.
    score_BK = found.score_RK[part] + config.search.neighbor_weight * np.log(
      share_BK + _LEAST_SHARE
    )
    best_BK = np.argsort(-score_BK, axis=1, kind="stable")[:, :k]
    columns = (found.ad_RK[part], found.logp_RK[part], found.value_RK[part], score_BK)
    parts.append([np.take_along_axis(x, best_BK, axis=1) for x in columns])
  return Ranking(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _memory(
  config: Config, inputs: Inputs, requests: EvalRequests
) -> Iterator[tuple[slice, Followers, np.ndarray]]:
  """By parts of the requests: which, what followed what in the lines learned from, and their
  histories [B, S].
  """
  _, user_L, ad_L = inputs.learned_lines(config)
  followers = Followers(user_L, ad_L, len(inputs.dataset.ads))
  lines = inputs.lines
  for begin in range(0, len(requests), _ROWS):
    part = slice(begin, begin + _ROWS)
    rows_BS = history.history_rows(lines, requests.request[part], config.data.history_slots)
    yield part, followers, history.ads_of(lines, rows_BS)
