"""The loop resumes bit for bit, saves when it is asked to stop, and never keeps a broken state."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.training import loop
from gr4ad_jax.training.checkpoint import Checkpointer
from gr4ad_jax.training.cost import StepCost
from gr4ad_jax.training.preemption import Preemption
from gr4ad_jax.training.writers import JsonlWriter
from tests.training import toy

_ROOT = pathlib.Path(__file__).parents[2]


def _lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _same(a, b):
  return all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def _program(workdir, total_steps, save_every, seconds, width=8):
  command = [
    sys.executable,
    "-m",
    "tests.training.toy",
    workdir,
    total_steps,
    save_every,
    seconds,
    width,
  ]
  command, environment = [str(word) for word in command], os.environ | {"JAX_PLATFORMS": "cpu"}
  pipe = subprocess.PIPE
  return subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  seen = []
  result = toy.train(workdir, 20, 5, on_progress=seen.append)
  return workdir, result, seen


def test_what_a_run_leaves(uninterrupted):
  workdir, result, seen = uninterrupted
  assert (
    result.status == "done"
    and int(result.state.step) == 20
    and result.valid_metrics == {"score": -12.0}
  )
  lines = _lines(workdir)
  assert [line["step"] for line in lines] == list(range(2, 21, 2))
  assert [line["step"] for line in lines if "valid/score" in line] == [8, 16, 20]
  assert {"train/loss", "train/grad_norm", "train/learning_rate", "train/absolute_error"} <= set(
    lines[0]
  )
  assert lines[-1]["train/loss"] < lines[0]["train/loss"]
  with Checkpointer(
    str(workdir / "checkpoints"), best_metric="score", read_only=True
  ) as checkpointer:
    assert checkpointer.steps == [8, 16, 20] and checkpointer.best_step == 8


def test_progress_is_told_every_step(uninterrupted):
  _, _, seen = uninterrupted
  assert [progress.step for progress in seen] == list(range(1, 21))
  assert [progress.step for progress in seen if progress.log] == list(range(2, 21, 2))
  assert seen[-1].steps_per_second > 0 and seen[-1].eta_seconds == 0
  assert seen[7].valid == {"score": 0.0} and not seen[8].valid


def test_a_finished_run_is_left_alone(uninterrupted):
  workdir, result, _ = uninterrupted
  lines = _lines(workdir)
  again = toy.train(workdir, 20, 5)
  assert again.status == "done" and _same(again.state, result.state) and _lines(workdir) == lines


@pytest.mark.long  # within this process: the next test
def test_sigterm_saves_and_the_resumed_run_is_the_same_run(uninterrupted, tmp_path):
  whole, result, _ = uninterrupted
  process = _program(tmp_path, 20, 100, 0.2)
  for line in process.stdout:
    if line == "6\n":
      process.send_signal(signal.SIGTERM)
      break
  out, error = process.communicate(timeout=60)
  assert process.returncode == 0, error
  assert out.endswith("preempted\n")
  with Checkpointer(str(tmp_path / "checkpoints"), read_only=True) as checkpointer:
    assert 6 < checkpointer.steps[-1] < 20
  resumed = toy.train(tmp_path, 20, 100)
  assert resumed.status == "done" and _same(resumed.state, result.state)
  assert _lines(tmp_path) == _lines(whole)


def test_a_stop_at_an_evaluated_step_evaluates_first(uninterrupted, tmp_path):
  """Step 8 is the best one: without its evaluation the resumed run would keep another."""
  whole, result, _ = uninterrupted

  def stop_at_8(progress):
    if progress.step == 7:  # told while step 8 runs
      signal.raise_signal(signal.SIGTERM)

  stopped = toy.train(tmp_path, 20, 100, on_progress=stop_at_8)
  assert (stopped.status, int(stopped.state.step), stopped.valid_metrics) == (
    "preempted",
    8,
    {"score": 0.0},
  )
  resumed = toy.train(tmp_path, 20, 100)
  assert (
    resumed.status == "done"
    and _same(resumed.state, result.state)
    and _lines(tmp_path) == _lines(whole)
  )
  with Checkpointer(
    str(tmp_path / "checkpoints"), best_metric="score", read_only=True
  ) as checkpointer:
    assert checkpointer.steps == [8, 16, 20] and checkpointer.best_step == 8


@pytest.mark.long
def test_kill_in_mid_save_goes_on_from_the_last_whole_step(tmp_path):
  total, width = 6, 200_000  # about 15 MB of state: a save takes long enough to be caught
  killed, whole = tmp_path / "killed", tmp_path / "whole"
  process = _program(killed, total, 1, 0.0, width)
  deadline = time.monotonic() + 60
  caught = False
  while not caught and process.poll() is None and time.monotonic() < deadline:
    names = os.listdir(killed / "checkpoints") if (killed / "checkpoints").exists() else []
    caught = any(name.isdigit() for name in names) and not all(name.isdigit() for name in names)
  process.send_signal(signal.SIGKILL)
  process.communicate(timeout=60)
  assert caught and process.returncode == -signal.SIGKILL
  with Checkpointer(str(killed / "checkpoints"), read_only=True) as checkpointer:
    assert 0 < checkpointer.steps[-1] < total
  resumed, expected = (
    toy.train(killed, total, 100, width=width),
    toy.train(whole, total, 100, width=width),
  )
  assert _same(resumed.state, expected.state) and _lines(killed) == _lines(whole)
  assert all(name.isdigit() for name in os.listdir(killed / "checkpoints"))


def test_stop_on_nan_keeps_the_last_good_step(tmp_path):
  state, step, batch_at = toy.setup(20)

  def broken_batch(number):
    batch = batch_at(number)
    return batch | {"y": batch["y"] * jnp.nan} if number == 9 else batch

  with Checkpointer(str(tmp_path)) as checkpointer:
    with pytest.raises(loop.DivergedError, match="at step 10; the last good checkpoint is step 8"):
      loop.fit(
        state, step, broken_batch, loop.Schedule(20, save_every=2), checkpointer=checkpointer
      )
    assert checkpointer.steps == [6, 8]
    assert all(
      np.isfinite(leaf).all()
      for leaf in jax.tree.leaves(checkpointer.restore(toy.setup(20)[0]).state)
    )


@pytest.mark.parametrize("number", [np.nan, np.inf, -3e38])
def test_data_that_nothing_can_be_learned_from_are_blamed(number):
  state, step, batch_at = toy.setup(20)

  def broken_batch(at):
    batch = batch_at(at)
    return batch | {"y": batch["y"].at[3].set(number)} if at == 1 else batch

  shown = re.escape(f"{number:g}")  # -3e+38: the sign of the exponent
  with pytest.raises(
    loop.DivergedError, match=rf"at step 2; .*; its data hold {shown} in \['y'\]"
  ) as error:
    loop.fit(state, step, broken_batch, loop.Schedule(4))
  assert error.value.of_data


def test_a_learning_rate_that_is_too_high_is_not_blamed_on_the_data():
  state, step, batch_at = toy.setup(20)
  state = state.replace(params=jax.tree.map(lambda p: p * 0 + 1e30, state.params))
  with pytest.raises(
    loop.DivergedError, match="at step 1; no checkpoint was saved before it$"
  ) as error:
    loop.fit(state, step, batch_at, loop.Schedule(4))
  assert not error.value.of_data


def test_signal_handlers_come_back():
  before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  state, step, batch_at = toy.setup(20)
  loop.fit(state, step, batch_at, loop.Schedule(2))
  assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_what_is_asked_in_the_last_step_is_for_who_called_the_loop():
  """The loop itself is done; a caller with loops of its own would else go on with the next."""
  state, step, batch_at = toy.setup(20)
  before = signal.getsignal(signal.SIGTERM)

  def last(number):
    signal.raise_signal(signal.SIGTERM)
    return batch_at(number)

  with Preemption() as caller:
    assert not caller.asked(0)
    done = loop.fit(state, step, last, loop.Schedule(1))
    assert (done.status, caller.asked(1)) == ("done", True)
    # And a loop that begins after the request saves and ends with its first step.
    begun = loop.fit(done.state, step, batch_at, loop.Schedule(20))
    assert (begun.status, int(begun.state.step)) == ("preempted", 2)
    # After one request a Ctrl-C is the second, and ends the process.
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_in_parts_is_the_run_in_one(uninterrupted, tmp_path):
  state, step, batch_at = toy.setup(20)
  seen = []
  with Checkpointer(str(tmp_path / "checkpoints"), best_metric="score") as checkpointer:
    for until in (7, 13, 0):
      schedule = loop.Schedule(20, log_every=2, eval_every=8, save_every=100, until=until)
      result = loop.fit(
        state, step, batch_at, schedule, checkpointer=checkpointer,
        on_progress=lambda p: seen.append(p.step),
        evaluate_fn=lambda s: {"score": -abs(int(s.step) - 8)},
      )  # fmt: skip
      state = result.state
      assert int(state.step) == (until or 20) and checkpointer.steps[-1] == int(state.step)
  assert seen == list(range(1, 21)) and result.status == "done"
  assert _same(state.params, uninterrupted[1].state.params)


class _Metric:
  """A scalar that tells when it is asked for."""

  def __init__(self, step, told):
    self._step, self._told = step, told

  def copy_to_host_async(self):
    self._told.append(("copy", self._step))

  def __array__(self, dtype=None, copy=None):
    self._told.append(("read", self._step))
    return np.asarray(1.0, dtype)


def test_a_step_is_read_after_the_next_is_dispatched():
  """The copy to the host is asked for at once, so that the read finds it there: devices never
  wait for the host.
  """
  told = []

  def step(state, batch):
    told.append(("dispatch", batch + 1))
    return state, {"loss": _Metric(batch + 1, told), "finite": _Metric(batch + 1, [])}

  class _State:
    step = 0

  loop.fit(_State(), step, lambda number: number, loop.Schedule(4, log_every=1))
  assert list(dict.fromkeys(told)) == [  # a copy may be asked for again
    ("dispatch", 1),
    ("copy", 1),
    ("dispatch", 2),
    ("copy", 2),
    ("read", 1),
    ("dispatch", 3),
    ("copy", 3),
    ("read", 2),
    ("dispatch", 4),
    ("copy", 4),
    ("read", 3),
    ("read", 4),
  ]


def test_rates_and_utilisation_follow_from_the_cost(tmp_path):
  state, step, batch_at = toy.setup(20)
  cost = StepCost(
    1,
    1,
    1,
    1,
    model_flops=2e6,
    xla_flops=None,
    units={"requests": 16, "tokens": 64},
    peak_flops=1e12,
  )
  seen = []
  writer, schedule = JsonlWriter(str(tmp_path / "metrics.jsonl")), loop.Schedule(6, log_every=2)
  loop.fit(state, step, batch_at, schedule, writer=writer, on_progress=seen.append, cost=cost)
  last = seen[-1]
  assert last.units_per_second["requests"] == 16 * last.steps_per_second > 0
  assert last.units_per_second["tokens"] == 64 * last.steps_per_second
  assert last.utilization == pytest.approx(2e-6 * last.steps_per_second)
  lines = _lines(tmp_path)
  assert lines[-1]["train/mfu"] == pytest.approx(last.utilization) and seen[0].utilization is None
