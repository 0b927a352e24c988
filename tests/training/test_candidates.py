"""Candidates: each ad once, the request's own first, p_ref where the policy proposed, pipelines as they say."""

import os

import numpy as np
import pytest

from gr4ad_jax.config import DataConfig, PreferenceConfig
from gr4ad_jax.data import history
from gr4ad_jax.data.batches import RequestContexts
from gr4ad_jax.data.neighbors import CoVisitNeighbors, NeighborFolds
from gr4ad_jax.data.trends import Trends
from gr4ad_jax.decoding.ranker import Ranking
from gr4ad_jax.training import candidates
from gr4ad_jax.training.candidates import NO_REFERENCE, CandidateMaker, Candidates
from tests.data import logs


class FixedRanker:
  """Proposes ads 2, 1, 0, then padding, with falling log-probabilities."""

  def rank(self, params, contexts, requests, k, batch_size):
    del params, contexts, batch_size
    ad_RK = np.full((len(requests), k), -1, np.int32)
    ad_RK[:, :3] = (2, 1, 0)
    logp_RK = np.where(ad_RK >= 0, -1.0 - np.arange(k), -np.inf).astype(np.float32)
    return Ranking(ad_RK, logp_RK, np.zeros(ad_RK.shape, np.float32), logp_RK)


@pytest.fixture(scope="module")
def contexts():
  lines = history.build_lines(logs.make_log(seed=3, users=12), logs.ADS)
  codes_NT = np.stack([np.arange(logs.ADS)] * 2, axis=1).astype(np.int32)
  neighbors = NeighborFolds.of(CoVisitNeighbors.fit(lines.request, lines.ad, logs.ADS))
  data = DataConfig(history_slots=logs.ADS, neighbor_slots=3, rising_slots=2, targets=3)
  trends = Trends.fit(lines, logs.ADS)
  return RequestContexts(lines, codes_NT, np.ones(logs.ADS, np.float32), trends, neighbors, data)


def make(contexts, given=None, **settings):
  config = PreferenceConfig(**{"policy_candidates": 4, "other_candidates": 2, **settings})
  learned_L, given = np.ones(len(contexts.lines.ad), bool), [] if given is None else given

  def reward(requests, ad_BC, logp_BC):
    given.append(logp_BC)
    return np.where(ad_BC >= 0, ad_BC + 0.5, 0).astype(np.float32)

  maker = CandidateMaker(config, contexts, FixedRanker(), reward, logs.ADS, learned_L)
  requests = np.arange(len(contexts.lines.request_time))
  return maker.make(None, requests, batch=5)


def test_each_ad_once_own_ads_first_and_padding_last(contexts):
  made = make(contexts)
  targets = contexts.targets(made.request_R)
  for ads, line in zip(made.ad_RC, targets, strict=True):
    real = ads[ads >= 0]
    own = contexts.lines.ad[line[line >= 0]]
    assert len(set(real)) == len(real) and (ads[len(real) :] == -1).all()
    np.testing.assert_array_equal(real[: len(own)], own)
    assert {2, 1, 0} <= set(real)


def test_the_policys_ads_have_its_probability_wherever_they_stand_and_no_others_do(contexts):
  made = make(contexts)
  known = {2: -1.0, 1: -2.0, 0: -3.0}
  expected = np.vectorize(lambda ad: known.get(ad, NO_REFERENCE))(made.ad_RC)
  np.testing.assert_array_equal(made.reference_logp_RC, expected.astype(np.float32))
  np.testing.assert_array_equal(made.reward_RC, np.where(made.ad_RC >= 0, made.ad_RC + 0.5, 0))


def test_the_reward_is_told_log_p_of_what_the_beams_reached_and_the_lowest_for_the_rest(contexts):
  given = []
  made = make(contexts, given, policy_candidates=1)  # the beams reach three ads whatever is proposed
  expected = np.vectorize(lambda ad: {2: -1.0, 1: -2.0}.get(ad, -3.0))(made.ad_RC)
  np.testing.assert_array_equal(np.concatenate(given), expected)


@pytest.mark.parametrize("name", ["recency", "neighbors", "ease", "popularity"])
def test_a_pipeline_proposes_what_it_knows_before_the_request(contexts, name):
  maker = CandidateMaker(
    PreferenceConfig(other_candidates=4), contexts, FixedRanker(), None, logs.ADS, np.ones(len(contexts.lines.ad), bool)
  )
  requests = np.arange(len(contexts.lines.request_time))
  found = maker._pipeline(name, requests)
  assert found.shape == (len(requests), 4) and found.dtype == np.int32
  lines = contexts.lines
  for row, request in zip(found, requests, strict=True):
    past = set(lines.ad[lines.user_first[request] : lines.request_first[request]])
    proposed = set(row[row >= 0])
    if name == "recency":
      assert proposed <= past and len(proposed) == min(4, len(past))
    if name == "neighbors":
      assert not proposed & past
    if name == "popularity":
      counts = contexts.popularity.lately(lines.request_time[[request]])[0]
      assert counts[row].min() >= np.sort(counts)[-4]


def test_recency_orders_by_decayed_counts(contexts):
  maker = CandidateMaker(PreferenceConfig(other_candidates=3), contexts, FixedRanker(), None, logs.ADS, None)
  lines = contexts.lines
  request = int(np.argmax(lines.request_visit))
  past = range(lines.user_first[request], lines.request_first[request])
  score = {}
  for line in past:
    ago = lines.request_visit[request] - lines.request_visit[lines.request[line]]
    score[lines.ad[line]] = score.get(lines.ad[line], 0) + history.DECAY**ago
  found = [score[ad] for ad in maker._pipeline("recency", np.array([request]))[0] if ad >= 0]
  np.testing.assert_allclose(found, sorted(score.values(), reverse=True)[: len(found)], rtol=1e-6)


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
