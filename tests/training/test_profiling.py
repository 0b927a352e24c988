"""A trace holds the steps of its window, wherever the run begins, and no trouble with it stops a
run.
"""

import glob
import gzip
import json
import logging

import jax
import pytest

from gr4ad_jax.training import loop
from gr4ad_jax.training.profiling import StepProfiler
from tests.training import toy


def _steps(folder):
  """Numbers of the steps in the traces below a folder, or None where there is no trace."""
  paths = glob.glob(f"{folder}/plugins/profile/*/*.trace.json.gz")
  if not paths:
    return None
  found = set()
  for path in paths:
    with gzip.open(path, "rt", encoding="utf-8") as file:
      events = json.load(file)["traceEvents"]
    found |= {int(event["args"]["step_num"]) for event in events if event.get("name") == "train"}
  return found


def _run(folder, window, *stages):
  """Trains the toy, from one stage's end to the next, and returns how it ended."""
  state, step, batch_at = toy.setup(20)
  with StepProfiler(str(folder), *window) as profiler:
    for until in stages:
      result = loop.fit(
        state, step, batch_at, loop.Schedule(stages[-1], until=until), profiler=profiler
      )
      state = result.state
  return int(state.step)


@pytest.mark.parametrize(
  ("window", "stages"),
  [pytest.param((2, 4), (6,), marks=pytest.mark.long), ((2, 5), (3, 6))],
)
def test_the_steps_of_the_window_are_traced_and_no_others(tmp_path, window, stages):
  assert _run(tmp_path, window, *stages) == 6
  assert _steps(tmp_path) == set(range(*window))


def test_a_run_that_goes_on_within_the_window_begins_there(tmp_path, caplog):
  state, step, batch_at = toy.setup(20)
  state = loop.fit(state, step, batch_at, loop.Schedule(6, until=3)).state
  with StepProfiler(str(tmp_path / "within"), 2, 5) as profiler:
    state = loop.fit(state, step, batch_at, loop.Schedule(6, until=4), profiler=profiler).state
  assert _steps(tmp_path / "within") == {3}  # the run ended within the window too
  with StepProfiler(str(tmp_path / "past"), 2, 4) as profiler, caplog.at_level(logging.WARNING):
    loop.fit(state, step, batch_at, loop.Schedule(6), profiler=profiler)
  assert _steps(tmp_path / "past") is None
  assert caplog.messages == ["no trace of steps 2 to 4: the run goes on from step 4"]


def test_without_a_window_nothing_is_traced_or_said(tmp_path, caplog):
  assert _run(tmp_path, (0, 0), 2) == 2
  assert _steps(tmp_path) is None and not caplog.messages


@pytest.mark.parametrize("broken", ["start_trace", "stop_trace"])
def test_a_profiler_that_fails_stops_no_run(tmp_path, monkeypatch, caplog, broken):
  def fail(*_, **__):
    raise RuntimeError("no profiler here")

  with monkeypatch.context() as patch:
    patch.setattr(jax.profiler, broken, fail)
    assert _run(tmp_path, (1, 2), 4) == 4
  if broken == "stop_trace":
    jax.profiler.stop_trace()  # what the run could not end
  assert [message for message in caplog.messages if "no profiler" in message] == [
    "the run goes on without a trace: no profiler here"
  ]
