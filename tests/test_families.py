"""A second family, in a file of its own, through the whole of `experiments.train`."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gr4ad_jax import families
from gr4ad_jax.config import Config, ConfigError, load_config
from gr4ad_jax.examples import order
from gr4ad_jax.runs import run
from gr4ad_jax.training.checkpoint import Checkpointer
from tests import devices, tiny, toy_family

_ROOT = pathlib.Path(__file__).parents[1]
_FLAGS = (
  "--batch_size=8", "--max_steps=12", "--epochs=9", "--log_every=4", "--save_every=3",
  "--eval_every=6", "--learning_rate=0.3", "--warmup_steps=2",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def toy():
  families.FAMILIES["toy"] = toy_family.FAMILY
  yield
  del families.FAMILIES["toy"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compile_cache):
  workdir = tmp_path_factory.mktemp("toy") / "run"
  done = tiny.run("train", "--family=toy", *_FLAGS, "--profile_steps=4:6", f"--workdir={workdir}")
  assert (done.status, done.err) == (0, ""), done
  return workdir, done.out


def _lines(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [{key: x for key, x in line.items() if key != "train/mfu"} for line in lines]


def test_it_trains_with_cost_progress_profile_and_checkpoints(whole):
  workdir, out = whole
  assert "24 images of 6 x 6 pixels" in out and "parameters: 45" in out
  assert " images/s, " in out and " pixels/s" in out and "valid iou " in out and "test iou " in out
  assert list((workdir / "profile").rglob("*.xplane.pb"))
  with Checkpointer(
    str(workdir / "checkpoints"), best_metric="iou", read_only=True
  ) as checkpointer:
    assert checkpointer.steps[-1] == 12 and checkpointer.best_step in (6, 12)
  lines = _lines(workdir)
  assert [line["step"] for line in lines] == [4, 6, 8, 12]
  assert lines[-1]["valid/iou"] > lines[0]["train/iou"] + 0.1


def test_what_reads_beside_the_training_is_ended_with_it(tmp_path, monkeypatch, compile_cache):
  """Also where the training is stopped."""
  closed = []
  source = order.OrderedSource
  monkeypatch.setattr(source, "close", lambda self: closed.append(1), raising=False)
  take = source.batch

  def stopped(self, step, *part):
    if step == 3:
      signal.raise_signal(signal.SIGTERM)
    return take(self, step, *part)

  monkeypatch.setattr(source, "batch", stopped)
  done = tiny.run("train", "--family=toy", *_FLAGS, f"--workdir={tmp_path}/run")
  assert done.status == 0 and "stopped and saved" in done.out and closed == [1]
  assert tiny.run("train", "--family=toy", *_FLAGS, f"--workdir={tmp_path}/run").status == 0
  assert closed == [1, 1]


def test_its_config_holds_what_it_reads_alone(whole):
  saved = json.loads((whole[0] / "config.json").read_text())
  assert set(saved) == {"workdir", "family", "training", "own", "checksums"}
  assert load_config(str(whole[0])).own == toy_family.ToyConfig()
  assert Config().own is None and Config(family="toy").own.channels == 4


def test_iou_is_a_ratio_of_sums_over_the_steps_of_a_line(whole):
  """Steps 1 to 4 stand in the first line: by a loop over their pixels, with the parameters of
  before.
  """
  import jax

  from gr4ad_jax.training.trainer import Trainer

  config = load_config(str(whole[0]))
  trainer = Trainer(toy_family.ToyTask(config))
  state, above, below, means = trainer.state, 0, 0, []
  for number in range(4):
    batch = trainer.make_batch(number)
    logit = trainer.task.net.apply({"params": state.params}, batch["image"])
    pairs = list(zip(np.ravel(logit) > 0, np.ravel(batch["label"]), strict=True))
    both, either = sum(a and b for a, b in pairs), sum(a or b for a, b in pairs)
    above, below = above + both, below + either
    means.append(both / either)
    state, _ = trainer.step(state, jax.tree.map(lambda x: x, batch))
  found = _lines(whole[0])[0]["train/iou"]
  assert found == pytest.approx(above / below, rel=1e-6)
  assert abs(found - np.mean(means)) > 1e-4  # which is another number


def test_evaluate_scores_it_again(whole):
  workdir, out = whole
  done = tiny.run("evaluate", f"--workdir={workdir}", "--split=test")
  assert done.status == 0 and done.out.splitlines()[0] in out
  found = json.loads((workdir / "eval" / "metrics.json").read_text())
  assert f"test iou {found['metrics']['iou']:.4f}" in out


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--family=toy", "--width=8"], "--width=8 is not allowed: --family=toy does not read it"),
    (["--family=toy", "--period=0,0.5"], "--period=0.0,0.5 is not allowed: --family=toy does not"),
    (["--channels=2"], "--channels=2 is not allowed: --family=requests does not read it"),
    (["--family=toy", "--channels=3"], "--channels=3 is not allowed: an even number"),
    (["--family=toy", "--channels=0"], "--channels=0 is not allowed: a whole number, at least 1"),
    (["--family=toy", "--preset=0.03b"], "--preset=0.03b is not allowed: --family=toy has no"),
    (["--family=bird"], "--family=bird"),
  ],
)
def test_what_a_family_does_not_read_is_refused(flags, message, tmp_path):
  done = tiny.run("train", *flags, f"--workdir={tmp_path}/run")
  assert done.status == 2 and message in done.err and done.err.count("\n") == 1
  assert not (tmp_path / "run").exists()


def test_a_run_keeps_its_family_and_its_shape(whole):
  for flags, message in (
    (["--channels=6", "--family=toy"], "--channels=6 is not allowed: the run in"),
    (["--threshold=0.6", "--family=toy"], "--threshold=0.6 is not allowed: the run in"),
    ([], "--family=requests is not allowed: the run in"),
  ):
    done = tiny.run("train", *flags, *_FLAGS, f"--workdir={whole[0]}")
    assert done.status == 2 and message in done.err


def test_what_is_for_request_models_refuses_it(whole):
  for binary in ("recommend", "serve", "reward"):
    done = tiny.run(binary, f"--workdir={whole[0]}")
    assert done.status == 2 and "this is for requests alone" in done.err


def test_an_unknown_family_is_named():
  known = ", ".join(families.FAMILIES)
  with pytest.raises(ConfigError, match=f"--family=bird is not allowed: any of {known}"):
    Config(family="bird")


@pytest.mark.long
def test_killed_between_two_lines_it_ends_as_the_uninterrupted_run(whole, tmp_path):
  """Saved at step 6 and 9, in the middle of a window of sums."""
  job = _job(tmp_path / "run", pause=0.3)
  _wait_for(lambda: (tmp_path / "run" / "checkpoints" / "6").exists(), job)
  job.send_signal(signal.SIGKILL)
  job.communicate(timeout=60)
  assert job.returncode == -signal.SIGKILL
  out, _ = (job := _job(tmp_path / "run")).communicate(timeout=300)
  assert job.returncode == 0, out
  assert _lines(tmp_path / "run") == _lines(whole[0])


@pytest.mark.long
def test_two_processes_and_four_devices_learn_the_same(whole, tmp_path):
  where = f"--coordinator=127.0.0.1:{tiny.free_port()}"
  jobs = [
    _job(tmp_path / "two", where, "--num_processes=2", f"--process_id={n}", count=2)
    for n in range(2)
  ]
  jobs.append(_job(tmp_path / "mesh", "--mesh=data:2,fsdp:2", count=4))
  for job in jobs:
    out, _ = job.communicate(timeout=300)
    assert job.returncode == 0, out
  for name in ("two", "mesh"):
    for ours, theirs in zip(_lines(tmp_path / name), _lines(whole[0]), strict=True):
      assert ours == pytest.approx(theirs, rel=1e-4)


def _job(workdir, *flags, count=1, pause=0.0):
  """A process that trains the toy."""
  command = [sys.executable, "-m", "tests.toy_family", *_FLAGS, *flags, f"--workdir={workdir}"]
  return subprocess.Popen(
    command, cwd=_ROOT, env=devices.environment(count, TOY_PAUSE=str(pause)),
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip


def _wait_for(here, job):
  deadline = time.monotonic() + 300
  while not here():
    assert job.poll() is None and time.monotonic() < deadline, job.communicate()
    time.sleep(0.02)


def test_a_default_report_without_anything_to_judge_by_says_so(whole, monkeypatch):
  task = toy_family.ToyTask(load_config(str(whole[0])))
  monkeypatch.setattr(toy_family.ToyTask, "evaluation", lambda self, split: None)
  assert run.report(task, "valid").startswith("nothing to evaluate on")
  with pytest.raises(ConfigError, match="--beside is not allowed"):
    run.report(task, "valid", ["other"])
