"""Candidates: each ad once, the request's own first, p_ref where the policy proposed, pipelines
as they say.
"""

import os

import numpy as np
import pytest

from gr4ad_jax.config import DataConfig, PreferenceConfig
from gr4ad_jax.decoding.ranker import Ranking
from gr4ad_jax.features.batches import RequestContexts
from gr4ad_jax.features.lines import build_lines
from gr4ad_jax.features.neighbors import CoVisitNeighbors, NeighborFolds
from gr4ad_jax.features.trends import Trends
from gr4ad_jax.requests import candidates
from gr4ad_jax.requests.candidates import NO_REFERENCE, CandidateMaker, Candidates
from tests.features import logs
from tests.training.loops import Told

DECAY = 0.9  # of what a visit took, by the next visit
TARGETS, NEIGHBORS = 3, 3  # slots
PIPELINES = ("recency", "neighbors", "ease", "popularity")


class FixedRanker:
  """Proposes ads 2, 1, 0, then padding, with falling log-probabilities."""

  def rank(self, params, contexts, requests, k, batch_size):
    del params, contexts, batch_size
    ad_RK = np.full((len(requests), k), -1, np.int32)
    ad_RK[:, :3] = (2, 1, 0)
    logp_RK = np.where(ad_RK >= 0, -1.0 - np.arange(k), -np.inf).astype(np.float32)
    return Ranking(ad_RK, logp_RK, np.zeros(ad_RK.shape, np.float32), logp_RK)


@pytest.fixture(scope="module")
def told():
  return Told(logs.make_log(seed=3, users=12, days=40))  # far longer than four weeks


@pytest.fixture(scope="module")
def contexts(told):
  lines = build_lines(told.events, logs.ADS)
  codes_NT = np.stack([np.arange(logs.ADS)] * 2, axis=1).astype(np.int32)
  neighbors = NeighborFolds.of(CoVisitNeighbors.fit(lines.request, lines.ad, logs.ADS))
  slots = {"history_slots": logs.ADS, "neighbor_slots": NEIGHBORS, "rising_slots": 2}
  data = DataConfig(targets=TARGETS, **slots)
  trends = Trends.fit(lines, logs.ADS)
  return RequestContexts(lines, codes_NT, np.ones(logs.ADS, np.float32), trends, neighbors, data)


def learned_of(contexts):
  """Lines that EASE learns from: two of three."""
  return np.arange(len(contexts.lines.ad)) % 3 > 0


def make(contexts, given=None, **settings):
  config = PreferenceConfig(**{"policy_candidates": 4, "other_candidates": 2, **settings})
  given = [] if given is None else given

  def reward(requests, ad_BC, logp_BC):
    given.append(logp_BC)
    return np.where(ad_BC >= 0, ad_BC + 0.5, 0).astype(np.float32)

  maker = CandidateMaker(config, contexts, FixedRanker(), reward, logs.ADS, learned_of(contexts))
  requests = np.arange(len(contexts.lines.request_time))
  return maker.make(None, requests, batch=5)


def test_each_ad_once_own_ads_first_then_the_policys_and_padding_last(contexts, told):
  made = make(contexts)
  for request, ads in zip(made.request_R, made.ad_RC, strict=True):
    real = ads[ads >= 0].tolist()
    assert len(set(real)) == len(real) and (ads[len(real) :] == -1).all()
    own = [line.ad for line in told.own(request)]
    drawn = real[: min(len(own), TARGETS)]
    assert set(drawn) <= set(own) and (drawn == own or len(own) > TARGETS)
    policys = [ad for ad in (2, 1, 0) if ad not in drawn]
    assert real[len(drawn) : len(drawn) + len(policys)] == policys


def test_the_policys_own_list_is_kept_with_its_probabilities(contexts):
  made = make(contexts)
  rows = len(made.request_R)
  np.testing.assert_array_equal(made.policy_RK, [[2, 1, 0] + [-1] * 7] * rows)
  np.testing.assert_array_equal(made.policy_logp_RK, [[-1, -2, -3] + [-np.inf] * 7] * rows)


def test_the_policys_ads_have_its_probability_wherever_they_stand_and_no_others_do(contexts):
  made = make(contexts)
  known = {2: -1.0, 1: -2.0, 0: -3.0}
  expected = np.vectorize(lambda ad: known.get(ad, NO_REFERENCE))(made.ad_RC)
  np.testing.assert_array_equal(made.reference_logp_RC, expected.astype(np.float32))
  np.testing.assert_array_equal(made.reward_RC, np.where(made.ad_RC >= 0, made.ad_RC + 0.5, 0))


def test_the_reward_is_told_log_p_of_what_the_beams_reached_and_the_lowest_for_the_rest(contexts):
  given = []
  made = make(
    contexts, given, policy_candidates=1
  )  # the beams reach three ads whatever is proposed
  expected = np.vectorize(lambda ad: {2: -1.0, 1: -2.0}.get(ad, -3.0))(made.ad_RC)
  np.testing.assert_array_equal(np.concatenate(given), expected)


@pytest.fixture(scope="module")
def scores(contexts, told):
  """What a pipeline holds an ad worth before a request: scores[name][request][ad], by loops."""
  weights_NN = ease_weights(told, learned_of(contexts))
  cosine_NN = cosines(told)
  found = {name: [] for name in PIPELINES}
  for request in range(len(told.user)):
    recent = {}
    for line in told.past(request):
      ago = told.visit[request] - 1 - told.visit[line.request]
      recent[line.ad] = recent.get(line.ad, 0) + DECAY**ago
    near = {}
    for n in range(logs.ADS):
      score = sum(weight * cosine_NN[ad, n] for ad, weight in recent.items())
      if score > 0 and n not in recent:
        near[n] = score
    found["recency"].append(recent)
    found["neighbors"].append(near)
    found["ease"].append({n: sum(weights_NN[ad, n] for ad in recent) for n in range(logs.ADS)})
    found["popularity"].append(dict(enumerate(told.lately(request).tolist())))
  return found


def cosines(told):
  """Of ads over visits: one of n ads weighs 1 / log2(2 + n); chance pairs are shrunk by 10."""
  common_NN = np.zeros((logs.ADS, logs.ADS))
  for request in range(len(told.user)):
    ads = [line.ad for line in told.own(request)]
    for one in ads:
      for other in ads:
        common_NN[one, other] += 1 / np.log2(2 + len(ads))
  mass_N = np.diag(common_NN).copy() + 10
  np.fill_diagonal(common_NN, 0)
  return common_NN / np.sqrt(mass_N[:, None] * mass_N)


def ease_weights(told, learned_L):
  """Steck 2019, equation 8: B = -P / diag(P) by column, P the inverse of X'X + 200 I.

  The diagonal of B is 0: no ad tells of itself.
  """
  taken_UN = np.zeros((max(told.user) + 1, logs.ADS))
  for line, learned in zip(told.lines, learned_L, strict=True):
    if learned:
      taken_UN[told.user[line.request], line.ad] = 1
  inverse_NN = np.linalg.inv(taken_UN.T @ taken_UN + 200 * np.eye(logs.ADS))
  weights_NN = -inverse_NN / np.diag(inverse_NN)
  np.fill_diagonal(weights_NN, 0)
  return weights_NN


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_proposes_what_it_holds_best_before_the_request(contexts, scores, name):
  count = 4  # one more than the context has neighbours
  config = PreferenceConfig(other_candidates=count)
  maker = CandidateMaker(config, contexts, FixedRanker(), None, logs.ADS, learned_of(contexts))
  found = maker._pipeline(name, np.arange(len(contexts.lines.request_time)))
  assert found.shape == (len(contexts.lines.request_time), count) and found.dtype == np.int32
  most = min(count, NEIGHBORS) if name == "neighbors" else count
  for row, score in zip(found.tolist(), scores[name], strict=True):
    best = sorted(score.values(), reverse=True)[:most]
    real = row[: len(best)]
    assert row[len(best) :] == [-1] * (count - len(best)) and len(set(real)) == len(real)
    np.testing.assert_allclose([score[ad] for ad in real], best, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("pipelines", [("recency",), ("popularity",), PIPELINES])
def test_the_best_of_every_configured_pipeline_are_candidates(contexts, scores, pipelines):
  made = make(contexts, pipelines=pipelines, policy_candidates=1, other_candidates=2)
  assert made.ad_RC.shape == (len(contexts.lines.request_time), TARGETS + 1 + 2 * len(pipelines))
  for name in pipelines:
    for ads, score in zip(made.ad_RC.tolist(), scores[name], strict=True):
      there = sorted((score[ad] for ad in ads if ad in score), reverse=True)
      best = sorted(score.values(), reverse=True)[:2]
      np.testing.assert_allclose(there[: len(best)], best, rtol=1e-4, atol=1e-7)


def test_candidates_come_back_from_disk_and_are_found_by_request(contexts, tmp_path):
  made = make(contexts)
  made.save(str(tmp_path / "round.npz"))
  back = Candidates.load(str(tmp_path / "round.npz"))
  np.testing.assert_array_equal(back.ad_RC, made.ad_RC)
  np.testing.assert_array_equal(back.request_R[back.rows_of(np.array([4, 1]))], [4, 1])
  with pytest.raises(KeyError):
    back.rows_of(np.array([10_000]))
  assert sorted(os.listdir(tmp_path)) == ["SHA256SUMS", "round.npz"]


def test_distinct_keeps_the_probability_of_a_later_place():
  proposed = np.array([[NO_REFERENCE, -2, -1, 0, NO_REFERENCE, -9]])
  ad, logp = candidates._distinct(np.array([[5, 3, 5, -1, 3, 7]]), proposed)
  np.testing.assert_array_equal(ad, [[5, 3, 7, -1, -1, -1]])
  np.testing.assert_array_equal(logp, np.array([[-1, -2, -9, *[NO_REFERENCE] * 3]], np.float32))


def test_digest_follows_parameters_and_settings():
  params = {"a": np.ones(3), "b": np.zeros(2)}
  one = candidates.digest(params, ("x", 1), np.arange(3))
  assert one == candidates.digest({"b": np.zeros(2), "a": np.ones(3)}, ("x", 1), np.arange(3))
  assert one != candidates.digest(params, ("x", 2), np.arange(3))
  assert one != candidates.digest({"a": np.ones(3), "b": np.full(2, 1e-9)}, ("x", 1), np.arange(3))
