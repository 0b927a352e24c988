"""`experiments.rollback`: a former checkpoint is back in one command, and stays."""

import pytest

from gr4ad_jax import config as config_lib
from gr4ad_jax.learning.promotions import LEARNER, Promotions
from tests import tiny


@pytest.fixture
def workdir(tmp_path):
  """A run whose learner has promoted checkpoints 10, 11 and 12."""
  (tmp_path / "config.json").write_text(config_lib.to_json(config_lib.Config()))
  for step in (10, 11, 12, 13):
    place = tmp_path / LEARNER / "checkpoints" / str(step)
    place.mkdir(parents=True)
    (place / "array").write_text(f"of {step}")
  promotions = Promotions(str(tmp_path / LEARNER))
  for step in (10, 11, 12):
    promotions.promote(step)
  return tmp_path


def test_one_command_puts_the_one_before_back_until_released(workdir):
  promotions = Promotions(str(workdir / LEARNER))
  done = tiny.run("rollback", f"--workdir={workdir}")
  assert done.status == 0 and "checkpoint 11 is in use" in done.out
  assert promotions.in_use == 11
  promotions.promote(13)  # the learner goes on
  assert promotions.in_use == 11 and 13 in promotions.kept
  assert tiny.run("rollback", f"--workdir={workdir}", "--to=10").status == 0
  assert promotions.in_use == 10
  assert tiny.run("rollback", f"--workdir={workdir}", "--release").status == 0
  promotions.promote(13)
  assert promotions.in_use == 13


def test_the_runs_own_checkpoint_comes_back(workdir):
  promotions = Promotions(str(workdir / LEARNER))
  done = tiny.run("rollback", f"--workdir={workdir}", "--to=start")
  assert done.status == 0 and "the run's own checkpoint is in use" in done.out
  assert promotions.in_use is None
  done = tiny.run("rollback", f"--workdir={workdir}")
  assert done.status == 2 and "there is none before it" in done.err


def test_a_hold_that_comes_between_wins(workdir, monkeypatch):
  promotions = Promotions(str(workdir / LEARNER))
  use = promotions.use

  def and_meanwhile(step):
    use(step)
    if step == 13:
      Promotions(str(workdir / LEARNER)).hold(10)
      use(13)  # the pointer of before is written last

  monkeypatch.setattr(promotions, "use", and_meanwhile)
  promotions.promote(13)
  assert promotions.in_use == 10


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    ("--to=9", "checkpoint 9 is not there; those that were promoted: 10, 11, 12"),
    ("--to=old", "--to=old is not allowed: 'start' or the number of a step"),
    ("--workdir=", "--workdir= is not allowed"),
    ("--workdir=/nowhere", "/nowhere holds no config.json"),
  ],
)
def test_refusals(workdir, flag, words):
  done = tiny.run("rollback", f"--workdir={workdir}", flag)
  assert done.status == 2 and words in done.err
  assert Promotions(str(workdir / LEARNER)).in_use == 12
