"""Recall of ads that nobody had taken before, against loops; the study by its binary."""

import dataclasses
import json

import numpy as np
import pytest

from gr4ad_jax.builders import held_out
from gr4ad_jax.config import ConfigError, load_config
from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.decoding.ranker import Ranking
from gr4ad_jax.evaluation import protocols
from gr4ad_jax.ranking import new_ad_study, steering
from gr4ad_jax.requests import inputs as inputs_lib
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_cache")
SHARE = 0.25


@pytest.fixture(scope="module")
def config(small_run):
  config = load_config(str(small_run))
  return dataclasses.replace(config, data=dataclasses.replace(config.data, held_out_ads=SHARE))


@pytest.fixture(scope="module")
def inputs(small_run, config):
  """Inputs of a run, whose log then loses the held-out ads."""
  inputs = inputs_lib.prepare_inputs(load_config(str(small_run)))
  return dataclasses.replace(inputs, dataset=held_out.without(inputs.dataset, SHARE))


@pytest.fixture(scope="module")
def requests(inputs):
  return protocols.eval_requests(inputs.dataset, "test")


def test_targets_of_new_ads_alone(inputs, requests):
  held_N, _ = held_out.new_ads(inputs.dataset, SHARE)
  found = new_ad_study.targets_among(requests, held_N)
  expected = []
  for r in range(len(requests)):
    own = range(requests.target_start[r], requests.target_start[r + 1])
    kept = [(int(requests.target_ad[p]), float(requests.target_value[p])) for p in own
            if held_N[requests.target_ad[p]]]  # fmt: skip
    if kept:
      expected.append((int(requests.request[r]), int(requests.user[r]), kept))
  assert 0 < len(expected) < len(requests)
  got = []
  for r in range(len(found)):
    own = slice(found.target_start[r], found.target_start[r + 1])
    pairs = list(zip(found.target_ad[own].tolist(), found.target_value[own].tolist(), strict=True))
    got.append((int(found.request[r]), int(found.user[r]), pairs))
  assert got == expected


def test_visits_teach_a_map_from_what_was_taken_before(inputs):
  rng = np.random.default_rng(0)
  unit_ND = rng.normal(size=(24, 3))
  from_VD, to_VD = new_ad_study.visit_pairs(inputs, "test", unit_ND)
  events = inputs.dataset.events
  expected = []
  for user in range(len(events.user_id)):
    before = []
    for request in sorted(set(events.request[events.user == user].tolist())):
      own = np.flatnonzero((events.request == request) & (events.split != visits.TEST))
      if not len(own):
        continue
      vectors = [unit_ND[ad] for ad in events.ad[own]]
      if before:
        expected.append((np.mean(before, axis=0), np.mean(vectors, axis=0)))
      before += vectors
  np.testing.assert_allclose(from_VD, [pair[0] for pair in expected], atol=1e-6)
  np.testing.assert_allclose(to_VD, [pair[1] for pair in expected], atol=1e-6)
  # A map that is there is found, up to the penalty.
  true_DD = rng.normal(size=(3, 3))
  many_VD = rng.normal(size=(4000, 3))
  np.testing.assert_allclose(new_ad_study.ridge(many_VD, many_VD @ true_DD), true_DD, atol=0.02)


def test_recall_counts_new_ads_alone(config, inputs, requests, monkeypatch):
  held_N, unsold_N = held_out.new_ads(inputs.dataset, SHARE)
  asked, kept = [], []

  def ranked(config, inputs, some, allowed_N):
    asked.append(None if allowed_N is None else allowed_N.tolist())
    ad_RK = np.stack([np.arange(10, dtype=np.int32)] * len(some))
    score_RK = -ad_RK.astype(np.float32)
    return Ranking(ad_RK, score_RK, np.zeros_like(score_RK), score_RK)

  steer = steering.steer

  def steered(found, how, k):
    assert how.share == 0.1 and how.group_N.tolist() == (held_N | unsold_N).tolist()
    kept.append(k)
    return steer(found, how, k)

  monkeypatch.setattr(new_ad_study, "_ranked", ranked)
  monkeypatch.setattr(steering, "steer", steered)
  found = new_ad_study.measure(config, inputs)
  assert asked[:2] == [None, (held_N | unsold_N).tolist()]
  first, place, second = found["groups"][:3]
  assert kept and set(kept) == {10}
  assert place["among"] == "all ads, one place of ten kept for new ones"
  assert (first["ads"], first["among"], second["among"]) == ("held out", "all ads", "new ads")
  shares = []
  for r in range(len(requests)):
    own = requests.target_ad[requests.target_start[r] : requests.target_start[r + 1]]
    wanted = {int(ad) for ad in own if held_N[ad]}
    if wanted:
      shares.append(len(wanted & set(range(10))) / len(wanted))
  recall = first["systems"]["gr4ad"]["recall@10"]
  assert recall["mean"] == pytest.approx(np.mean(shares)) and first["requests"] == len(shares)
  assert {"popularity", "content", "content, two linear towers"} <= set(first["systems"])
  # Ten places hold the six new ads and four others, so lists of new ads miss nothing.
  assert (held_N | unsold_N).sum() <= 10
  assert second["systems"]["content"]["recall@10"]["mean"] == 1
  assert first["systems"]["content"]["recall@10"]["mean"] < 1
  assert "held out (6 ads, " in new_ad_study.format_table(found)


def test_methods_rank_by_cosine_to_what_was_taken(inputs, requests):
  methods = new_ad_study._Methods(inputs, requests)
  vectors = inputs.tokenizer.embed(inputs.dataset.ads).astype(np.float64)
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  events = inputs.dataset.events
  rankings = methods.rankings(None)
  lists = {name: ranking.ad_RK for name, ranking in rankings.items()}
  for r, request in enumerate(requests.request):
    own = (events.user == requests.user[r]) & (events.request < request)
    score = np.mean([vectors @ vectors[ad] for ad in events.ad[own]], axis=0)
    expected = np.sort(score)[::-1][:10]
    np.testing.assert_allclose(score[lists["content"][r]], expected, atol=1e-5)
  assert (np.diff(methods._lines_N[lists["popularity"][0]]) <= 0).all()
  # A place of ten for two ads: the better one takes it where neither stands in the list anyway.
  group_N = np.isin(np.arange(len(methods._lines_N)), np.argsort(methods._lines_N)[:2])
  alone = methods.rankings(group_N)["content"]
  placed = new_ad_study.with_place(rankings["content"], alone, group_N)
  for plain, row, best in zip(lists["content"], placed.ad_RK, alone.ad_RK, strict=True):
    there = group_N[plain].any()
    assert row.tolist() == (plain.tolist() if there else [*plain[:9].tolist(), best[0]])
    assert (best[:2] >= 0).all() and (best[2:] == -1).all()


def test_a_run_that_knows_all_ads_is_refused(config, inputs, small_run):
  plain = dataclasses.replace(config, data=dataclasses.replace(config.data, held_out_ads=0.0))
  with pytest.raises(ConfigError, match="--study=new_ads is not allowed: the run knows events"):
    new_ad_study.measure(plain, inputs)
  with pytest.raises(ConfigError, match="--split=valid is not allowed"):
    new_ad_study.measure(config, inputs, "valid")
  nothing = dataclasses.replace(
    inputs.dataset, events=inputs.dataset.events.take(inputs.dataset.events.ad < 0)
  )
  with pytest.raises(DataError):
    new_ad_study.measure(config, dataclasses.replace(inputs, dataset=nothing))


@pytest.mark.long
def test_new_ads_by_the_binaries(tmp_path):
  log = tiny.write_log(tmp_path / "log")
  once = ("--max_steps=4", "--noevaluate", "--layers=1", "--lazy_layers=0", "--held_out_ads=0.25")
  arguments = (*tiny.source_flags(log), *tiny.SETTINGS, *once)
  for name, more in (("run", ()), ("other", ("--seed=1",))):
    done = tiny.run("train", *arguments, *more, f"--workdir={tmp_path}/{name}")
    assert (done.status, done.err) == (0, "")
  study = ("risks", f"--workdir={tmp_path}/run", "--study=new_ads")
  done = tiny.run(*study, f"--beside={tmp_path}/other")
  assert (done.status, done.err) == (0, "")
  found = json.loads((tmp_path / "run" / "eval" / "new_ads.json").read_text())
  names = set(found["groups"][0]["systems"])
  assert {"gr4ad", "other", "content", "popularity"} <= names
  # A list of ten of the six new ads has all of them, whoever makes it.
  among_new = [part for part in found["groups"] if part["among"] == "new ads"]
  assert all(s["recall@10"]["mean"] == 1 for s in among_new[0]["systems"].values())
  assert "in lists of new ads" in done.out
  # A run that has seen these ads cannot stand beside.
  known = tiny.run("train", *arguments, "--held_out_ads=0", f"--workdir={tmp_path}/known")
  assert known.status == 0
  refused = tiny.run(*study, f"--beside={tmp_path}/known")
  assert refused.status == 2 and "--beside=" in refused.err and "another event log" in refused.err
