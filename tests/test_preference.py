"""Preference learning as whole runs: from a trained run, in rounds, stopped and gone on,
predicted before learned.
"""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from gr4ad_jax.config import ConfigError, load_config, with_knobs
from gr4ad_jax.decoding.ranker import Ranker
from gr4ad_jax.evaluation import metrics, protocols
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.requests import request_task
from gr4ad_jax.requests.candidates import CandidateMaker, Candidates
from gr4ad_jax.requests.request_task import RequestTask
from gr4ad_jax.runs import run

pytestmark = pytest.mark.usefixtures("compile_cache")
KNOBS = {
  "objective": "rspo",
  "reward": "logged",
  "max_steps": 8,
  "refresh_steps": 3,
  "candidate_beams": 8,
  "policy_candidates": 6,
  "other_candidates": 2,
  "learning_rate": 1e-3,
  "eval_every": 0,
}


@pytest.fixture(scope="module")
def start(small_run):
  return str(small_run)


def config_of(start, folder, **knobs):
  base = load_config(start)
  return dataclasses.replace(
    with_knobs(base, {"init_from": start, **KNOBS, **knobs}), workdir=str(folder)
  )


def trained(config, on_progress=None):
  RequestTask.check(config)
  return run.train(run.start(config), on_progress)


def lines(config):
  with open(os.path.join(config.workdir, "metrics.jsonl"), encoding="utf-8") as file:
    return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
  config = config_of(start, tmp_path_factory.mktemp("whole"))
  return config, trained(config)


@pytest.mark.long
def test_rounds_are_told_and_only_the_last_are_kept(whole):
  config, result = whole
  assert int(result.state.step) == 8 and result.status == "done"
  rounds = [line for line in lines(config) if "round/entropy" in line]
  assert [line["step"] for line in rounds] == [0, 3, 6]
  kept = sorted(os.listdir(os.path.join(config.workdir, "candidates")))
  assert kept == ["SHA256SUMS", "round_00000003.npz", "round_00000006.npz", "start.json"]


@pytest.mark.long
def test_the_policy_starts_from_the_other_run_with_its_codes(start, whole):
  config, _ = whole
  inputs = inputs_lib.prepare_inputs(config)
  theirs = inputs_lib.prepare_inputs(load_config(start))
  np.testing.assert_array_equal(inputs.index.codes_NT, theirs.index.codes_NT)
  again = config_of(start, os.path.join(config.workdir, "again"))
  made = []
  original = CandidateMaker.make

  def spy(self, params, *rest):
    made.append(jax.device_get(params))
    return original(self, params, *rest)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(CandidateMaker, "make", spy)
    trained(again)
  model = GR4AD.build(load_config(start), 0)
  for ours, best in zip(
    *map(jax.tree.leaves, (made[0], request_task.load_params(load_config(start), model))),
    strict=True,
  ):
    np.testing.assert_array_equal(ours, best)
  assert len(made) == 3


@pytest.mark.long
def test_stopped_in_mid_round_it_ends_as_the_uninterrupted_run(start, whole, tmp_path):
  config = config_of(start, tmp_path)

  def stop(progress):
    if progress.step == 4:
      os.kill(os.getpid(), signal.SIGTERM)

  first = trained(config, stop)
  assert first.status == "preempted" and int(first.state.step) % 3
  second = trained(config)
  assert second.status == "done"
  for ours, theirs in zip(*map(jax.tree.leaves, (second.state, whole[1].state)), strict=True):
    np.testing.assert_array_equal(ours, theirs)
  told = [line for line in lines(config) if "round/entropy" in line]
  assert told == [line for line in lines(whole[0]) if "round/entropy" in line]


@pytest.mark.long
def test_in_order_of_time_each_request_is_predicted_before_it_is_learned_from(start, tmp_path):
  config = config_of(start, tmp_path, data_order="time", refresh_steps=2, max_steps=2)
  trained(config)
  first = next(line for line in lines(config) if "prequential/recall@10" in line)
  made = Candidates.load(str(tmp_path / "candidates" / "round_00000000.npz"))
  inputs = inputs_lib.prepare_inputs(config)
  everyone = np.sort(inputs.lines.request_time[inputs.learned(config)])
  np.testing.assert_array_equal(
    np.sort(inputs.lines.request_time[made.request_R]), everyone[: len(made.request_R)]
  )
  requests = protocols.eval_requests(inputs.dataset, "train")
  requests = requests.take(np.flatnonzero(np.isin(requests.request, made.request_R)))
  model = GR4AD.build(config, 0)
  params = request_task.load_params(load_config(start), model)
  ranker = Ranker(model, inputs.index, inputs.ecpm, config.search)
  ranking = ranker.rank(params, inputs.contexts(config, "train"), requests.request, 10)
  expected = metrics.per_request(ranking.ad_RK, requests, (10,))["recall@10"].value
  assert first["prequential/recall@10"] == pytest.approx(expected)


@pytest.mark.long
def test_candidates_of_an_equal_start_are_taken_from_the_cache(start, tmp_path, monkeypatch):
  knobs = {"candidates_cache": str(tmp_path / "cache"), "refresh_steps": 8, "max_steps": 2}
  trained(config_of(start, tmp_path / "one", **knobs))
  monkeypatch.setattr(CandidateMaker, "make", lambda *_: pytest.fail("made again"))
  trained(config_of(start, tmp_path / "two", **knobs, objective="dpo", beta=0.5))


@pytest.mark.long
def test_candidates_of_another_reward_are_made_anew(start, tmp_path):
  knobs = {"candidates_cache": str(tmp_path / "cache"), "refresh_steps": 8, "max_steps": 2}
  trained(config_of(start, tmp_path / "one", **knobs))
  trained(config_of(start, tmp_path / "two", **knobs, value_exponent=0.5))
  assert len(list((tmp_path / "cache").glob("*.npz"))) == 2


@pytest.mark.long
def test_a_finished_run_goes_on_in_the_round_that_its_end_cut_short(start, tmp_path):
  trained(config_of(start, tmp_path, max_steps=4))
  result = trained(config_of(start, tmp_path, max_steps=8))
  assert result.status == "done" and int(result.state.step) == 8


@pytest.mark.parametrize(
  ("knob", "value"), [("model", "tiger"), ("model", "gr4ad_items"), ("history_bias", True)]
)
def test_models_that_learn_no_lists_are_refused(start, tmp_path, knob, value):
  with pytest.raises(ConfigError, match=f"--(objective=rspo|{knob}=true) is not allowed"):
    RequestTask.check(with_knobs(config_of(start, tmp_path, init_from=""), {knob: value}))


def test_period_leaves_the_rest_out_of_all_that_is_fitted(start, tmp_path):
  config = config_of(start, tmp_path, init_from="", objective="vsl", period=(0.0, 0.5))
  inputs, whole = inputs_lib.prepare_inputs(config), inputs_lib.prepare_inputs(load_config(start))
  learned, everyone = inputs.learned(config), whole.learned(load_config(start))
  time = inputs.lines.request_time
  assert len(learned) == round(len(everyone) / 2)
  assert time[learned].max() <= time[np.setdiff1d(everyone, learned)].min()
  assert inputs.neighbors.cosine.sum() < whole.neighbors.cosine.sum()


@pytest.mark.parametrize(
  ("knobs", "words"),
  [
    (
      {"init_from": "/nowhere"},
      "--init_from=/nowhere is not allowed: it holds no whole checkpoint",
    ),
    ({"width": 32}, "--width=32 is not allowed: the run in --init_from="),
    ({"swing_alpha": 0.5}, "--swing_alpha=0.5 is not allowed: the run in --init_from="),
    (
      {"swing_memory_mb": 99, "swing_path": "/nowhere", "reward": "profit"},
      "--reward=profit is not allowed",
    ),
    ({"reward": "profit"}, "--reward=profit is not allowed"),
  ],
)
def test_what_cannot_be_is_told_before_anything_is_written(start, tmp_path, knobs, words):
  config = config_of(start, tmp_path / "run", **knobs)
  with pytest.raises(ConfigError, match=words):
    trained(config)
  assert not (tmp_path / "run").exists()


def test_a_modelled_reward_needs_its_model(start, tmp_path):
  with pytest.raises(FileNotFoundError, match="experiments.reward"):
    trained(config_of(start, tmp_path / "run", reward="revenue"))
  assert not (tmp_path / "run").exists()
