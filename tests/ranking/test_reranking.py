"""The second stage: candidates of both sources once each, in the order of the ranker; and ads
seen before, masked.
"""

import dataclasses
import importlib.util
import json
import sys

import numpy as np
import pytest

from gr4ad_jax.config import Config, ConfigError, ModelConfig, SearchConfig, load_config, validate
from gr4ad_jax.decoding.ranker import Ranking
from gr4ad_jax.evaluation import parts, protocols
from gr4ad_jax.ranking import reranking, scoring, seen_ads
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.value import boosted
from gr4ad_jax.value.reward_model import RewardModel
from tests import tiny
from tests.training.loops import Told

REWARD = (
  "--reward_width=8",
  "--reward_bins=3",
  "--reward_epochs=1",
  "--reward_shown=6",
  "--reward_negatives=6",
)


def test_depth_is_the_lists_without_a_reranker():
  assert reranking.depth(Config(), 50) == 50
  config = Config(search=SearchConfig(reranker="reward", rerank_candidates=200))
  assert (reranking.depth(config, 50), reranking.depth(config, 500)) == (200, 500)


def test_no_reranker_changes_nothing():
  found = Ranking(*(np.zeros((2, 3)) for _ in range(4)))
  assert reranking.rerank(Config(), None, None, found, 3) is found


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, request):
  request.getfixturevalue("compile_cache")
  folder = tiny.write_log(tmp_path_factory.mktemp("log"), users=20)
  short = ("--max_steps=2", "--noevaluate", "--item_loss=inbatch", f"--workdir={folder / 'run'}")
  small = tiny.settings("two_tower")
  done = tiny.run("train", *tiny.source_flags(folder), *small, *REWARD, *short)
  assert (done.status, done.err) == (0, "")
  return folder / "run"


def ranked(config, k=5):
  inputs = inputs_lib.prepare_inputs(config)
  requests = protocols.eval_requests(inputs.dataset, "test")
  return inputs, requests, scoring.rank_run(config, inputs, requests, k)


def with_reranker(workdir, **settings):
  config = load_config(str(workdir))
  return dataclasses.replace(config, search=dataclasses.replace(config.search, **settings))


@pytest.mark.long
def test_the_reward_models_order(workdir):
  config = with_reranker(workdir, reranker="reward", rerank_candidates=24)  # all ads there are
  with pytest.raises(FileNotFoundError, match="holds no reward model"):
    ranked(config)
  reranking.prepare(config, inputs_lib.prepare_inputs(config))
  inputs, requests, found = ranked(config)
  every = np.broadcast_to(np.arange(24), (len(requests), 24))
  estimate = RewardModel.load(config, inputs, "test").estimate(requests.request, every)
  worth = estimate.purchase_BC * estimate.value_BC
  best = np.take_along_axis(worth, found.ad_RK, axis=1)
  np.testing.assert_allclose(best, -np.sort(-worth, axis=1)[:, :5], rtol=1e-5)
  np.testing.assert_allclose(np.exp(found.logp_RK) * found.value_RK, best, rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("prior", [0.3, 1.0])
def test_the_first_stage_has_its_share(workdir, prior):
  plain, settings = (
    with_reranker(workdir),
    {"reranker": "reward", "rerank_candidates": 24, "rerank_exponent": 0.0},
  )
  reranking.prepare(with_reranker(workdir, **settings), inputs_lib.prepare_inputs(plain))
  _, _, first = ranked(plain, 24)
  _, _, second = ranked(with_reranker(workdir, **settings), 24)
  _, _, both = ranked(with_reranker(workdir, rerank_prior=prior, **settings), 24)
  logp = [
    np.take_along_axis(x.logp_RK, np.argsort(x.ad_RK, axis=1), axis=1) for x in (first, second)
  ]
  mixed = prior * logp[0] + (1 - prior) * logp[1]
  worth = np.take_along_axis(mixed, both.ad_RK, axis=1)
  np.testing.assert_allclose(worth, -np.sort(-worth, axis=1), atol=1e-5)
  if prior == 1:
    np.testing.assert_array_equal(both.ad_RK, first.ad_RK)
  assert (both.ad_RK != second.ad_RK).any()


@pytest.mark.long
def test_an_ad_that_the_first_stage_did_not_find_has_its_lowest_share(workdir):
  settings = {
    "reranker": "reward",
    "rerank_candidates": 5,
    "rerank_exponent": 0.0,
    "rerank_prior": 1.0,
  }
  reranking.prepare(
    with_reranker(workdir, **settings), inputs_lib.prepare_inputs(load_config(str(workdir)))
  )
  inputs, requests, first = ranked(with_reranker(workdir), 5)
  _, _, both = ranked(with_reranker(workdir, **settings), 5)
  slots = inputs.contexts(load_config(str(workdir)), "test").slots(requests.request)[0]
  assert all(set(slot) - {-1} - set(found) for slot, found in zip(slots, first.ad_RK, strict=True))
  np.testing.assert_array_equal(both.ad_RK, first.ad_RK)  # what the context adds comes after them


@pytest.mark.long
def test_evaluate_takes_the_flag(workdir):
  reranking.prepare(
    with_reranker(workdir, reranker="reward"), inputs_lib.prepare_inputs(load_config(str(workdir)))
  )
  done = tiny.run("evaluate", f"--workdir={workdir}", "--reranker=reward", "--rerank_candidates=10")
  assert done.status == 0, done.err
  assert json.loads((workdir / "eval/metrics.json").read_text())["settings"]["reranker"] == "reward"


def shares(told, requests, ads=24, slots=8):
  """Of all that followed each request's history in training, how much each ad is: [R, N].

  A line d lines after another of its user counts 0.8^(d - 1), up to 10 lines. An ad's followers
  are divided by the root of their sum. An ad of the history weighs 0.7 of the next one.
  """
  after_NN = np.zeros((ads, ads))
  train = [line for line in told.lines if told.split[line.request] == 0]
  learned = [(told.user[line.request], line.ad) for line in train]
  for i, (user, ad) in enumerate(learned):
    for distance, (other_user, other) in enumerate(learned[i + 1 : i + 11]):
      if other_user == user and other != ad:
        after_NN[ad, other] += 0.8**distance
  share_RN = np.zeros((len(requests), ads))
  for r, request in enumerate(requests):
    for age, ad in enumerate(reversed(told.history(request, slots))):
      if after_NN[ad].any():
        share_RN[r] += 0.7**age * after_NN[ad] / np.sqrt(after_NN[ad].sum())
    share_RN[r] /= max(share_RN[r].sum(), 1e-9)
  return share_RN


def test_neighbors_add_what_followed_the_history(workdir):
  plain, config = (
    with_reranker(workdir),
    with_reranker(workdir, reranker="neighbors", neighbor_weight=2.0),
  )
  inputs, requests, every = ranked(plain, 24)
  share_RN = shares(Told(inputs.dataset.events), requests.request.tolist())
  share_RK = np.take_along_axis(share_RN, every.ad_RK, axis=1)
  expected = -np.sort(-(every.logp_RK + 2 * np.log(share_RK + 1e-4)), axis=1)[:, :5]
  found = ranked(config)[2]
  np.testing.assert_allclose(found.score_RK, expected, atol=1e-4)
  assert (found.ad_RK != every.ad_RK[:, :5]).any()
  none = ranked(with_reranker(workdir, reranker="neighbors", neighbor_weight=0.0))[2]
  np.testing.assert_array_equal(none.ad_RK, every.ad_RK[:, :5])


@pytest.mark.long
def test_narrow_beams_get_the_memorys_ads_beside_them(workdir):
  narrow = (
    "--max_steps=1",
    "--noevaluate",
    "--model=gr4ad_items",
    "--lambda_ecpm=0",
    "--beams=2,2,2",
  )
  run = workdir.parent / "narrow"
  done = tiny.run(
    "train", *tiny.source_flags(workdir.parent), *tiny.SETTINGS, *narrow, f"--workdir={run}"
  )
  assert (done.status, done.err) == (0, "")
  config = with_reranker(run, reranker="neighbors", neighbor_weight=50.0, rerank_candidates=6)
  inputs, requests, alone = ranked(with_reranker(run), 6)
  with_memory, proposed = ranked(config, 6)[2], reranking.proposed(config, inputs, requests)
  assert reranking.proposed(with_reranker(run), inputs, requests) is None
  found, more = (alone.ad_RK >= 0).sum(axis=1), (proposed >= 0).sum(axis=1)
  assert (found < 6).all() and more.max() > 3
  for before, after, best in zip(alone.ad_RK, with_memory.ad_RK, proposed, strict=True):
    both = (set(before.tolist()) | set(best.tolist())) - {-1}
    assert set(after.tolist()) - {-1} <= both and (after >= 0).sum() == min(6, len(both))
    assert after[0] in best or not (best >= 0).any()  # by the weight of 50


def test_with_a_learned_bias_ads_of_the_history_gain_nothing(workdir):
  config = with_reranker(workdir, reranker="neighbors", neighbor_weight=50.0)
  biased = dataclasses.replace(config, model=dataclasses.replace(config.model, history_bias=True))
  inputs = inputs_lib.prepare_inputs(config)
  requests = protocols.eval_requests(inputs.dataset, "test")
  every = ranked(with_reranker(workdir), 24)[2]
  told = Told(inputs.dataset.events)
  past = [told.history(request, 8) for request in requests.request.tolist()]
  again = []
  for some in (config, biased):
    lists = reranking.rerank(some, inputs, requests, every, 5).ad_RK.tolist()
    rows = zip(lists, past, strict=True)
    again.append(np.mean([[ad in known for ad in row] for row, known in rows]))
  assert again[0] > again[1]


@pytest.mark.parametrize(
  ("search", "bias", "expected"),
  [
    ("left", False, "left"),
    ("left", True, "biased"),
    ("masked", False, "masked"),
    ("masked", True, "masked"),
  ],
)
def test_the_table_says_what_becomes_of_seen_ads(search, bias, expected):
  config = Config(model=ModelConfig(history_bias=bias), search=SearchConfig(seen_ads=search))
  assert seen_ads.treatment(config) == expected


def taken_before(inputs, request):
  """Ads of the user's earlier requests: from the log's events, not its lines."""
  events = inputs.dataset.events
  user = events.user[events.request == request][0]
  return set(events.ad[(events.user == user) & (events.request < request)].tolist())


@pytest.mark.parametrize("reranker", ["none", "neighbors"])
def test_masked_lists_lack_what_was_taken_and_keep_the_order_of_the_rest(workdir, reranker):
  inputs, requests, masked = ranked(with_reranker(workdir, reranker=reranker, seen_ads="masked"))
  _, _, plain = ranked(with_reranker(workdir, reranker=reranker), 24)
  met = 0
  for row, request in enumerate(requests.request):
    taken = taken_before(inputs, request)
    at = [n for n, ad in enumerate(plain.ad_RK[row]) if ad not in taken][:5]
    met += len(taken & set(plain.ad_RK[row, :5].tolist()))
    if reranker == "none":
      np.testing.assert_array_equal(masked.ad_RK[row, : len(at)], plain.ad_RK[row, at])
      np.testing.assert_allclose(masked.logp_RK[row, : len(at)], plain.logp_RK[row, at], rtol=1e-6)
    assert set(masked.ad_RK[row, : len(at)].tolist()).isdisjoint(taken)
    assert (masked.ad_RK[row, len(at) :] == -1).all() and (
      masked.score_RK[row, len(at) :] == -np.inf
    ).all()
  assert met and masked.ad_RK.shape == (len(requests), 5)


def test_a_masked_list_that_runs_out_is_padded(workdir):
  inputs, requests, _ = ranked(with_reranker(workdir))
  ad_RK = np.array(
    [sorted(taken_before(inputs, request))[:2] + [-1] for request in requests.request]
  )
  score_RK = np.zeros(ad_RK.shape, np.float32)
  found = Ranking(ad_RK, score_RK, score_RK + 1, score_RK)
  found = found.without(parts.seen_before(inputs.dataset, requests), 2)
  assert (
    (found.ad_RK == -1).all() and (found.score_RK == -np.inf).all() and (found.value_RK == 0).all()
  )


def test_neighbors_need_the_order_of_likelihood():
  with pytest.raises(
    ConfigError, match="--order=ecpm is not allowed: only 'likelihood', as --reranker=neighbors"
  ):
    validate(Config(search=SearchConfig(reranker="neighbors", order="ecpm")))


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("lightgbm") is None, reason="needs the lightgbm extra")
def test_lightgbm_is_trained_once_and_ranks(workdir):
  config = with_reranker(workdir, reranker="lightgbm")
  _, requests, found = ranked(config)
  assert (found.ad_RK >= 0).all() and len({tuple(row) for row in found.ad_RK.tolist()}) > 1
  assert all(len(set(row)) == 5 for row in found.ad_RK.tolist())
  before = (workdir / boosted.FOLDER / "value.txt").stat().st_mtime_ns
  np.testing.assert_array_equal(ranked(config)[2].ad_RK, found.ad_RK)
  assert (workdir / boosted.FOLDER / "value.txt").stat().st_mtime_ns == before


def test_a_missing_extra_is_named(workdir, monkeypatch):
  monkeypatch.setitem(sys.modules, "lightgbm", None)
  with pytest.raises(
    ImportError, match=r"lightgbm is missing: pip install 'gr4ad_jax\[lightgbm\]'"
  ):
    boosted.check()
