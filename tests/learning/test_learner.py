"""A learner over a stream: what it learns from, and that being killed changes nothing."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gr4ad_jax.config import ConfigError, load_config, with_knobs
from gr4ad_jax.evaluation import metrics
from gr4ad_jax.learning.learn_task import LearnTask
from gr4ad_jax.learning.learner import Learner
from gr4ad_jax.training.trainer import Trainer
from tests.learning import streams


def test_a_run_with_promotions_is_refused(small_run):
  config = with_knobs(load_config(str(small_run)), {"promotions": True})
  with pytest.raises(ConfigError, match="it has --promotions, of which a stream tells nothing"):
    LearnTask.check(config)


class Killed(BaseException):
  """Ends a learner as a kill does: nothing more is saved."""


@pytest.mark.long
def test_a_killed_learner_ends_with_the_parameters_of_one_that_was_not(small_run, tmp_path):
  """It dies after every round's checkpoint, and once in the middle of a round."""
  stream = streams.filled(tmp_path / "stream.sqlite", streams.visits())
  whole = Learner(streams.task_of(streams.copied(small_run, tmp_path / "whole"), stream)).run(
    follow=False
  )
  assert whole.status == "ended"
  rounds = 0
  workdir = streams.copied(small_run, tmp_path / "killed")

  def killed(_):
    raise Killed

  while True:
    task = streams.task_of(workdir, stream)
    try:
      ended = Learner(task, on_round=killed).run(follow=False)
      break
    except Killed:
      rounds += 1
  assert rounds == 3  # of 59 visits that are over, 48
  assert int(ended.state.step) == int(whole.state.step) == task.first_step + 12
  for one, other in zip(streams.leaves(ended.state), streams.leaves(whole.state), strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.long
def test_a_round_tells_its_visits_and_not_its_batches(small_run, tmp_path):
  """Groups of a day hold as many visits as the day had: here 24, an hour apart; a batch has 8."""
  stream = streams.filled(tmp_path / "stream.sqlite", streams.visits(80))
  task = streams.task_of(
    streams.copied(small_run, tmp_path / "run"), stream, learn_from="day", round_groups=1
  )
  told = []
  Learner(task, on_round=told.append).run(follow=False)
  times = [event["time"] // 86_400 for event in streams.visits(80)[::3]]
  days = [times.count(day) for day in sorted(set(times))]
  # The last day is not over.
  assert [one.visits for one in told] == np.cumsum(days)[:-1].tolist()
  assert all(one.rate > 0 for one in told)


@pytest.mark.long
def test_a_refit_begins_anew_and_being_killed_changes_nothing(small_run, tmp_path):
  """The parameters after a round are those of a run of its own: fresh ones, by the run's schedule,
  on the round's batches alone. It dies after each round.
  """
  stream = streams.filled(tmp_path / "stream.sqlite", streams.visits())
  knobs = {"refit_steps": 6, "round_groups": 2}
  workdir = streams.copied(small_run, tmp_path / "run")

  def killed(_):
    raise Killed

  ends = []
  for _ in range(5):
    learner = Learner(streams.task_of(workdir, stream, **knobs), on_round=killed, guarded=False)
    try:
      ended = learner.run(follow=False)
      break
    except Killed:
      ends.append(learner)
  assert len(ends) == 3
  task = streams.task_of(workdir, stream, **knobs)
  assert int(ended.state.step) == task.first_step + 18
  assert task.source.gather(0, 6)
  trainer = Trainer(task)
  begin = task.first_step + 12
  state = trainer.state.replace(step=trainer.state.step + begin)
  rates = []
  for step in range(begin, begin + 6):
    state, metrics_of = trainer.step(state, trainer.make_batch(step))
    rates.append(float(metrics_of["learning_rate"]))
  for one, other in zip(streams.leaves(ended.state), streams.leaves(state), strict=True):
    np.testing.assert_array_equal(one, other)
  # It rises and falls within the refit, as in a run of six steps.
  steps = np.arange(6)
  warmup = min(task.training.warmup_steps, 3)
  wanted = task.training.learning_rate * np.minimum(1, (steps + 1) / warmup)
  wanted *= (1 + np.cos(np.pi * np.clip((steps - warmup) / (6 - warmup), 0, 1))) / 2
  np.testing.assert_allclose(rates, wanted, rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("moment", ["gather", "groups"])
def test_a_learner_that_is_behind_stops_when_it_is_asked(small_run, tmp_path, monkeypatch, moment):
  """Asked while visits are gathered, or while the checkpoint is judged: neither is waiting."""
  stream = streams.filled(tmp_path / "stream.sqlite", streams.visits())
  task = streams.task_of(streams.copied(small_run, tmp_path / "run"), stream)
  call = getattr(task.source, moment)

  def asked(*arguments):
    signal.raise_signal(signal.SIGTERM)
    return call(*arguments)

  monkeypatch.setattr(task.source, moment, asked)
  ended = Learner(task).run(follow=True)
  assert ended.status == "stopped" and int(ended.state.step) == task.first_step


@pytest.mark.long
def test_a_learner_that_judges_stops_after_a_group(small_run, tmp_path):
  """Nothing is learned from what was judged in part, and nothing is told of it."""
  stream = streams.filled(tmp_path / "stream.sqlite", streams.visits())
  task = streams.task_of(streams.copied(small_run, tmp_path / "run"), stream)
  predicted = []

  def asked(group, _):
    predicted.append(group.number)
    signal.raise_signal(signal.SIGTERM)

  ended = Learner(task, on_predicted=asked).run(follow=True)
  assert ended.status == "stopped" and predicted == [0]
  assert int(ended.state.step) == task.first_step
  assert not (tmp_path / "run" / "live" / "learner" / "metrics.jsonl").read_text()


@pytest.mark.long
def test_kill_9_in_the_middle_changes_no_bit(small_run, tmp_path):
  """The binary, killed at moments that it does not choose, over a stream that grows meanwhile."""
  events = streams.visits(number=90)
  whole = streams.filled(tmp_path / "whole.sqlite", events)
  ended = Learner(streams.task_of(streams.copied(small_run, tmp_path / "whole"), whole)).run(
    follow=False
  )
  growing = streams.filled(tmp_path / "growing.sqlite", events[:60])
  workdir = streams.copied(small_run, tmp_path / "killed")
  command = [
    sys.executable, "-m", "experiments.learn", f"--workdir={workdir}", "--round_groups=2",
    f"--stream=sqlite:{tmp_path}/growing.sqlite",
  ]  # fmt: skip
  checkpoints = workdir / "live" / "learner" / "checkpoints"
  for part in (events[60:150], events[150:], []):
    seen = set(checkpoints.glob("*"))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    growing.append("events", part)
    while process.poll() is None and set(checkpoints.glob("[0-9]*")) <= seen:
      time.sleep(0.01)  # until it has saved once more
    process.kill()
    process.wait()
  task = streams.task_of(workdir, growing)
  found = Learner(task).run(follow=False)
  assert int(found.state.step) == int(ended.state.step) == task.first_step + 20
  for one, other in zip(streams.leaves(found.state), streams.leaves(ended.state), strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.long
def test_what_would_harm_is_refused_and_the_learner_goes_back(small_run, tmp_path):
  """A learning rate far too high: nothing is promoted, and the run's own parameters stay."""
  stream = streams.filled(tmp_path / "stream.sqlite", streams.visits(42))
  task = streams.task_of(
    streams.copied(small_run, tmp_path / "run"), stream, learn_rate=5.0, guard_bound=0.02
  )
  rounds = []
  learner = Learner(task, on_round=rounds.append)
  learner.run(follow=False)
  (first, second) = rounds
  assert first.verdict is None
  assert not second.verdict.promote and second.verdict.worst < -0.02
  assert learner.promotions.in_use is None and learner.promotions.kept == []
  aside = tmp_path / "run" / "live" / "learner" / "refused"
  assert [path.name for path in aside.iterdir()] == [str(task.first_step + 4)]
  assert task.source.state(task.first_step + 8)["forgotten"] == [0, 1]


def poisoned(number):
  """Visits of which those in the middle third are of random ads, for one user in three."""
  third = number // 3
  parts = streams.visits(number, seed=7), streams.visits(number, seed=7, random_share=1.0)
  clean, random = ({(e["request_id"], n): e for n, e in enumerate(part)} for part in parts)
  found = []
  for key, event in clean.items():
    visit = int(event["request_id"].split("-")[1])
    is_poison = third <= visit < 2 * third and int(event["user_id"][1:]) % 3 == 0
    found.append(random[key] | {"user_id": event["user_id"]} if is_poison else event)
  return found


@pytest.mark.long
@pytest.mark.parametrize(("what", "rate"), [("poison", 5e-3), ("rate", 0.1)])
def test_what_is_served_stays_beside_a_frozen_arm(small_run, tmp_path, what, rate):
  """Fed the same events, it falls below the run's own parameters by no more than the bound. Where
  the rate is too high, a checkpoint may be good by chance, and is then promoted as any other.
  """
  bound = 0.02
  events = poisoned(192) if what == "poison" else streams.visits(96, seed=7)
  task = streams.task_of(
    streams.copied(small_run, tmp_path / "run"), streams.filled(tmp_path / "s", events),
    learn_rate=rate, guard_bound=bound, round_groups=3,
  )  # fmt: skip
  served, frozen, rounds = [], [], []

  def recall(lists, requests):
    return metrics.per_request(lists, requests, (10,))["recall@10"].numerator_R

  def predicted(_, found):
    start = found.ad_RK.get("start", found.ad_RK["candidate"])
    frozen.append(recall(start, found.requests))
    served.append(recall(found.ad_RK.get("in_use", start), found.requests))

  Learner(task, on_predicted=predicted, on_round=rounds.append).run(follow=False)
  verdicts = [one.verdict.promote for one in rounds if one.verdict]
  assert not all(verdicts)  # something was refused
  assert np.concatenate(served).mean() >= np.concatenate(frozen).mean() - bound
