"""From a CSV pair to recommendations, by the binaries a user calls; what they do with bad input
and signals.
"""

import csv
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from gr4ad_jax import config as config_lib
from gr4ad_jax.answering.recommender import Recommender
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.requests import request_task
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training import trainer
from gr4ad_jax.training.checkpoint import Checkpointer
from tests import tiny

_ROOT = pathlib.Path(__file__).parents[1]
_SMALL = (*tiny.SETTINGS, "--layers=1", "--lazy_layers=0", "--max_steps=4")  # of `small_run`
_SETTINGS = (*tiny.SETTINGS, "--tower_steps=3", "--tower_width=8", "--layers=1", "--lazy_layers=0")
# As many steps as `small_run` has: the programs of both are in the compilation cache.
_CADENCE = ("--max_steps=4", "--eval_every=2", "--save_every=3")
_LONG = (
  "--epochs=100",
  "--max_steps=150",
  "--save_every=20",
  "--eval_every=0",
  "--noevaluate",
  "--remat=dots",
)

pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return tiny.write_log(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
  """A finished run with its evaluation: the workdir, and what the binary said."""
  workdir = tmp_path_factory.mktemp("runs") / "tiny"
  speed = ("--peak_tflops=0.001", "--profile_steps=1:3")
  done = tiny.run(
    "train", *tiny.source_flags(source), *_SETTINGS, *_CADENCE, *speed, f"--workdir={workdir}"
  )
  assert (done.status, done.err) == (0, "")
  return workdir, done


@pytest.fixture(scope="module")
def small_log(small_run, shared_folder):
  """The log that the small run is of."""
  return shared_folder / "small_log"


@pytest.fixture(scope="module")
def finished(small_run, small_log, tmp_path_factory):
  """A copy of the small run that `train` was called for again, so that it is evaluated: the
  workdir, and what the binary said.
  """
  workdir = shutil.copytree(small_run, tmp_path_factory.mktemp("runs") / "small")
  done = tiny.run("train", *tiny.source_flags(small_log), *_SMALL, f"--workdir={workdir}")
  assert (done.status, done.err) == (0, "")
  return workdir, done


def _found(workdir, *arguments):
  done = tiny.run("recommend", f"--workdir={workdir}", "--json", *arguments)
  assert (done.status, done.err) == (0, "")
  return json.loads(done.out)


def assert_whole(workdir, out):
  """The files of a run that is trained and evaluated, and what is said of its data and scores."""
  assert {
    "config.json",
    "tokenizer",
    "index",
    "features",
    "checkpoints",
    "metrics.jsonl",
    "eval",
  } <= set(os.listdir(workdir))
  assert "24 ads, 10 users" in out and "personal_recency" in out
  metrics = json.loads((workdir / "eval" / "metrics.json").read_text())
  assert (metrics["dataset"], metrics["split"], metrics["users"]) == ("ad_log", "test", 10)
  assert metrics["checkpoint"] in (2, 4)
  tiny.assert_settings_told(metrics)
  assert metrics["protocol"] and {"gr4ad", "popularity", "ease"} <= set(metrics["systems"])
  for score in metrics["systems"]["gr4ad"]["all"].values():
    assert 0 <= score["low"] <= score["mean"] <= score["high"] <= 1
  for picture in ("comparison.png", "training.png"):
    assert (workdir / "eval" / picture).read_bytes().startswith(b"\x89PNG")
  assert not [name for _, _, names in os.walk(workdir) for name in names if ".part" in name]


@pytest.mark.long
def test_train_leaves_a_whole_run(trained):
  workdir, done = trained
  assert_whole(workdir, done.out)
  assert "step 4/4" in done.out


def test_a_finished_run_is_whole_and_evaluated(finished, small_run):
  workdir, done = finished
  assert_whole(workdir, done.out)
  assert "finished already, at step 4" in done.out
  assert (workdir / "metrics.jsonl").read_bytes() == (small_run / "metrics.jsonl").read_bytes()


@pytest.mark.long
def test_train_tells_what_a_step_costs(trained):
  workdir, done = trained
  said = done.out.splitlines()
  first = next(number for number, line in enumerate(said) if line.startswith("parameters: "))
  assert int(said[first].split()[1].replace(",", "")) > 0
  assert re.fullmatch(
    r"memory of a device: arguments \S+ MiB, temporaries \S+ MiB, peak \S+ MiB", said[first + 1]
  )
  counts = (
    r"a step: \S+ GFLOP of the model, \S+ GFLOP by XLA's count; peak of the devices 0.001 TFLOP/s"
  )
  assert re.fullmatch(counts, said[first + 2])
  last = next(line for line in said if line.startswith("step 4/4"))
  assert re.search(r"steps/s, \S+ requests/s, \S+ tokens/s, MFU \S+ %  ETA 0:00", last)
  shares = [
    json.loads(line).get("train/mfu")
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]
  assert shares[-1] > 0
  assert list((workdir / "profile").glob("plugins/profile/*/*.xplane.pb"))


def test_a_trace_beyond_the_end_is_refused(finished, small_log):
  arguments = (*tiny.source_flags(small_log), *_SMALL, "--profile_steps=3:5")
  done = tiny.run("train", *arguments, f"--workdir={finished[0]}")
  assert (
    done.status == 2
    and done.err == "error: --profile_steps=3:5 is not allowed: the run has 4 steps\n"
  )


@pytest.mark.long
def test_a_finished_run_is_not_trained_again(trained, source):
  workdir, first = trained
  lines = (workdir / "metrics.jsonl").read_text()
  again = tiny.run(
    "train", *tiny.source_flags(source), *_SETTINGS, *_CADENCE, f"--workdir={workdir}"
  )
  assert again.status == 0 and "finished already, at step 4" in again.out
  assert (
    again.out[again.out.index("ad_log, test") :] == first.out[first.out.index("ad_log, test") :]
  )
  assert (workdir / "metrics.jsonl").read_text() == lines


def test_a_trained_run_refuses_other_settings(finished, small_log, tmp_path):
  workdir, _ = finished
  before = (workdir / "config.json").read_text()
  for changed, message in {
    "--learning_rate=0.1": "--learning_rate=0.1 is not allowed",
    "--width=32": "--width=32 is not allowed",
    "--codebooks=4,4,6": "--codebooks=4,4,6 is not allowed",
    "--fit_splits=train+valid": "--fit_splits=train+valid is not allowed",
  }.items():
    arguments = (*_SMALL, f"--workdir={workdir}", changed)
    done = tiny.run("train", *tiny.source_flags(small_log), *arguments)
    assert (
      done.status == 2 and done.err.startswith(f"error: {message}") and done.err.count("\n") == 1
    )
  other = tiny.write_log(tmp_path / "other", seed=1)
  done = tiny.run("train", *tiny.source_flags(other), *_SMALL, f"--workdir={workdir}")
  assert done.status == 2 and "another ad table" in done.err
  (other / "ads.csv").write_bytes((small_log / "ads.csv").read_bytes())
  done = tiny.run("train", *tiny.source_flags(other), *_SMALL, f"--workdir={workdir}")
  assert done.status == 2 and "another event log" in done.err
  assert (workdir / "config.json").read_text() == before


@pytest.mark.long
def test_evaluate_and_tokenize_take_the_workdir(trained):
  workdir, _ = trained
  done = tiny.run("evaluate", f"--workdir={workdir}", "--split=valid", "--beams=4,4,4")
  assert (done.status, done.err) == (0, "") and "ad_log, valid: 10 users" in done.out
  assert json.loads((workdir / "eval" / "metrics.json").read_text())["split"] == "valid"
  done = tiny.run("tokenize", f"--workdir={workdir}")
  assert (done.status, done.err) == (0, "") and "collision rate" in done.out
  assert json.loads((workdir / "eval" / "sid.json").read_text())["ads"] == 24


@pytest.mark.long
def test_recommend_says_the_same_in_every_way(trained, source, tmp_path):
  workdir, _ = trained
  by_user = _found(workdir, "--user=u3", "--k=5")
  assert by_user["user"] == "u3" and len(by_user["ads"]) == 5
  fields = {"ad_id", "text", "account_id", "log_p", "score", "ecpm", "codes", "seen"}
  assert fields == set(by_user["ads"][0])
  scores = [ad["score"] for ad in by_user["ads"]]
  assert scores == sorted(scores, reverse=True) and all(np.isfinite(scores))
  with open(source / "events.csv", newline="") as file:
    mine = [event for event in csv.DictReader(file) if event["user_id"] == "u3"]
  history = tmp_path / "history.csv"
  columns = ("ad_id", "time", "behavior", "value", "request_id")
  tiny.write_csv(history, columns, [[event[name] for name in columns] for event in mine])
  assert _found(workdir, f"--history={history}", "--k=5")["ads"] == by_user["ads"]
  seconds = [
    int(np.datetime64(event["time"]).astype("datetime64[s]").astype(int)) for event in mine
  ]
  events = [
    {"ad_id": event["ad_id"], "time": second, "value": float(event["value"])}
    | {name: event[name] for name in ("behavior", "request_id")}
    for event, second in zip(mine, seconds, strict=True)
  ]
  in_python = Recommender.load(str(workdir)).recommend(events, k=5)
  assert [ad.ad_id for ad in in_python] == [ad["ad_id"] for ad in by_user["ads"]]
  np.testing.assert_allclose([ad.score for ad in in_python], scores, rtol=1e-6)
  table = tiny.run("recommend", f"--workdir={workdir}", "--user=u3", "--k=5")
  ranked = (line.split() for line in table.out.splitlines()[1:])
  by_rank = {int(words[0]): words[1] for words in ranked if words[0].isdigit()}
  assert [by_rank[n + 1] for n in range(5)] == [ad["ad_id"] for ad in by_user["ads"]]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((), "--user, --history and --ads"),
    (("--user=u1", "--history=x.csv"), "--user, --history and --ads"),
    (("--user=nobody",), "no such user_id"),
    (("--history=absent.csv",), "absent.csv: no such file"),
    (("--user=u1", "--checkpoint=7"), "no checkpoint 7"),
    (("--user=u1", "--k=0"), "k"),
  ],
)
def test_recommend_tells_mistakes_in_one_line(small_run, arguments, message):
  done = tiny.run("recommend", f"--workdir={small_run}", *arguments)
  assert (done.status, done.out) == (2, "")
  assert done.err.startswith("error: ") and message in done.err and done.err.count("\n") == 1


def test_a_history_file_is_checked(small_run, tmp_path):
  path = tmp_path / "history.csv"
  for header, row, message in (
    (("ad_id", "time"), ("ad99", 1_700_000_000), "'ad99' is not in the ad table"),
    (("ad_id",), ("ad01",), "column 'time' is missing"),
    (("ad_id", "time"), ("ad01", "soon"), "'soon' is no time"),
  ):
    tiny.write_csv(path, header, [row])
    done = tiny.run("recommend", f"--workdir={small_run}", f"--history={path}")
    assert done.status == 2 and message in done.err and done.err.count("\n") == 1
  tiny.write_csv(
    path, ("user_id", "ad_id", "time"), [("a", "ad01", 1_700_000_000), ("b", "ad02", 1_700_000_000)]
  )
  assert (
    "a history is of one"
    in tiny.run("recommend", f"--workdir={small_run}", f"--history={path}").err
  )


def _start(source, workdir):
  command = [
    sys.executable,
    "-m",
    "experiments.train",
    *tiny.source_flags(source),
    *_SETTINGS,
    *_LONG,
  ]
  pipe = subprocess.PIPE
  return subprocess.Popen(
    [*command, f"--workdir={workdir}"], cwd=_ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    stdout=pipe, stderr=pipe, text=True,
  )  # fmt: skip


def _until(process, word):
  for line in process.stdout:
    if word in line:
      return
  pytest.fail(f"ended without saying {word!r}: {process.stderr.read()}")


def _last_state(workdir):
  config = config_lib.load_config(str(workdir))
  target = trainer.Trainer(request_task.make(config, inputs_lib.prepare_inputs(config))).state
  with Checkpointer(
    str(workdir / "checkpoints"), best_metric=request_task.BEST_METRIC, read_only=True
  ) as checkpointer:
    return checkpointer.restore(state_lib.abstract(target)).state


@pytest.mark.long
def test_stopped_and_killed_runs_end_as_the_uninterrupted_one(source, tmp_path):
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  arguments = (*tiny.source_flags(source), *_SETTINGS, *_LONG)
  assert tiny.run("train", *arguments, f"--workdir={whole}").status == 0
  stopped = _start(source, broken)
  _until(stopped, "step 4/")
  stopped.send_signal(signal.SIGTERM)
  out, err = stopped.communicate(timeout=120)
  assert (stopped.returncode, err) == (0, "") and "stopped and saved at step" in out
  killed = _start(source, broken)
  _until(killed, "step ")
  killed.kill()
  killed.communicate(timeout=120)
  assert tiny.run("train", *arguments, f"--workdir={broken}").status == 0
  states = [_last_state(workdir) for workdir in (whole, broken)]
  assert [int(state.step) for state in states] == [150, 150]
  for a, b in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_array_equal(a, b)

  def lines(
    workdir,
  ):  # but for what only a resumed run has: no valid metrics are written where it was stopped
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]

  assert [line for line in lines(broken) if line["step"] % 2 == 0] == lines(whole)
