"""The reward model as a user trains it: reports on valid, goes on where it was stopped, refuses
what it cannot do.
"""

import dataclasses
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from gr4ad_jax.config import ConfigError, load_config, with_knobs
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.requests.request_task import RequestTask
from gr4ad_jax.runs import run
from gr4ad_jax.value import reward_run
from gr4ad_jax.value.reward_model import RewardModel
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_cache")
REWARD = (
  "--reward_width=8",
  "--reward_bins=3",
  "--reward_epochs=2",
  "--reward_shown=6",
  "--reward_negatives=6",
  "--reward_calibration=0.5",
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tiny.write_log(tmp_path_factory.mktemp("log"), users=20)
  arguments = (
    *tiny.SETTINGS,
    *REWARD,
    "--max_steps=2",
    "--noevaluate",
    "--layers=1",
    "--lazy_layers=0",
  )
  done = tiny.run("train", *tiny.source_flags(folder), *arguments, f"--workdir={folder / 'run'}")
  assert (done.status, done.err) == (0, "")
  return folder / "run"


@pytest.fixture(scope="module")
def trained(workdir):
  done = tiny.run("reward", f"--workdir={workdir}")
  assert (done.status, done.err) == (0, "")
  return done.out


@pytest.fixture(scope="module")
def model(workdir, trained):
  config = load_config(str(workdir))
  return RewardModel.load(config, inputs_lib.prepare_inputs(config))


@pytest.mark.long
def test_the_report_says_how_far_to_trust_it(workdir, trained):
  assert "parameters: " in trained and " pairs/s" in trained
  assert "AUC" in trained and "calibration error by decile" in trained and "| p x value" in trained
  report = json.loads((workdir / "reward" / "report.json").read_text())
  assert report["split"] == "valid" and report["pairs"] == report["requests"] * 24
  assert (
    0 < report["auc"] < 1
    and len(report["deciles"]) == 10
    and report["ranking"]["p"]["recall@10"] > 0
  )


@pytest.mark.long
def test_estimates_of_an_ad_do_not_depend_on_the_others(model):
  requests = np.array([4, 9, 2])
  whole = model.estimate(requests, np.broadcast_to(np.arange(24), (3, 24)))
  some = model.estimate(requests[1:], np.array([[5, -1, 0], [5, 23, -1]]))
  np.testing.assert_allclose(some.purchase_BC[:, 0], whole.purchase_BC[1:, 5], rtol=1e-5)
  np.testing.assert_allclose(some.value_BC[1, 1], whole.value_BC[2, 23], rtol=1e-5)
  assert (some.purchase_BC[0, 1], some.value_BC[1, 2]) == (0, 0)
  assert ((0 < whole.purchase_BC) & (whole.purchase_BC < 1)).all() and (whole.value_BC > 0).all()


@pytest.mark.long
def test_stopped_and_gone_on_it_is_the_uninterrupted_model(workdir, model, tmp_path):
  copy = tmp_path / "run"
  shutil.copytree(workdir, copy, ignore=shutil.ignore_patterns("reward"))
  config = load_config(str(copy))
  inputs = inputs_lib.prepare_inputs(config)

  def stop(progress):
    if progress.step == 3:
      os.kill(os.getpid(), signal.SIGTERM)

  assert reward_run.train(config, inputs, stop).status == "preempted"
  assert not reward_run.is_finished(config)
  with pytest.raises(FileNotFoundError, match="experiments.reward"):
    RewardModel.load(config, inputs)
  assert reward_run.train(config, inputs).status == "done"
  again = RewardModel.load(config, inputs)
  for ours, theirs in zip(*map(jax.tree.leaves, (again._params, model._params)), strict=True):
    np.testing.assert_array_equal(ours, theirs)
  assert again._calibration == model._calibration


@pytest.mark.long
def test_other_settings_are_refused(workdir, trained):
  done = tiny.run("reward", f"--workdir={workdir}", "--reward_width=16")
  assert (
    done.status == 2 and "error: --reward_width=16 is not allowed: the reward model in" in done.err
  )
  config = load_config(str(workdir))
  inputs = inputs_lib.prepare_inputs(config)
  other = dataclasses.replace(inputs.index, codes_NT=inputs.index.codes_NT[::-1].copy())
  with pytest.raises(ConfigError, match="other UA-SIDs"):
    RewardModel.load(config, dataclasses.replace(inputs, index=other))


@pytest.mark.long
def test_a_list_objective_learns_from_it(workdir, trained, tmp_path):
  knobs = {
    "init_from": str(workdir),
    "objective": "unified",
    "max_steps": 2,
    "refresh_steps": 2,
    "candidate_beams": 8,
    "policy_candidates": 4,
    "other_candidates": 2,
  }
  config = dataclasses.replace(
    with_knobs(load_config(str(workdir)), knobs), workdir=str(tmp_path / "rl")
  )
  task = RequestTask.open(config)
  inputs = task.inputs
  assert run.train(task).status == "done"
  with np.load(tmp_path / "rl" / "candidates" / "round_00000000.npz") as made:
    real = made["ad_RC"] >= 0
    model = RewardModel.load(load_config(str(workdir)), inputs)
    expected = model.estimate(made["request_R"], made["ad_RC"])
    np.testing.assert_allclose(
      made["reward_RC"][real], (expected.purchase_BC * expected.value_BC)[real], rtol=1e-4
    )


def test_without_a_run_there_is_one_line(tmp_path):
  done = tiny.run("reward", f"--workdir={tmp_path}")
  assert done.status == 2 and done.err.startswith("error: ") and "config.json" in done.err
