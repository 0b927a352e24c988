"""`experiments.replay`: a log's later part played to a learner, its table, and what it refuses."""

import json

import pytest

from gr4ad_jax import config as config_lib
from tests import tiny


@pytest.fixture
def knows(tmp_path):
  """Makes the directory of an untrained run that knows the tiny log up to a day."""

  def make(until):
    (tmp_path / "run").mkdir()
    data = config_lib.DataConfig(
      dataset="ad_log", ads_path="a.csv", events_path="e.csv", until=until
    )
    text = config_lib.to_json(config_lib.Config(workdir=str(tmp_path / "run"), data=data))
    (tmp_path / "run" / "config.json").write_text(text)
    return tmp_path / "run"

  return make


@pytest.mark.parametrize(
  ("until", "flags", "words"),
  [
    ("2024-01-10", ["--before=soon"], "--before=soon is not allowed: a day as 2010-12-01"),
    (
      "2024-01-10",
      ["--before=2024-01-10"],
      "--before=2024-01-10 is not allowed: the run knows the log up to 2024-01-10",
    ),
    ("", [], "--before=2011-06-01 is not allowed: the run knows the log up to its end"),
    ("2024-01-10", ["--report=online"], "online holds no lists: replay to it first"),
  ],
)
def test_what_cannot_be_replayed_is_told_and_leaves_nothing(knows, until, flags, words):
  run = knows(until)
  done = tiny.run("replay", f"--workdir={run}", *flags)
  assert done.status == 2 and words in done.err and done.err.count("\n") == 1
  assert [path.name for path in run.iterdir()] == ["config.json"]


@pytest.mark.long
@pytest.mark.usefixtures("compile_cache")
def test_ways_to_learn_are_replayed_and_stand_in_one_table(tmp_path):
  log = tiny.write_log(tmp_path / "log")
  run = tmp_path / "run"
  done = tiny.run(
    "train", *tiny.source_flags(log), *tiny.SETTINGS, "--until=2024-01-10", "--max_steps=2",
    "--fit_splits=train+valid+test", f"--workdir={run}",
  )  # fmt: skip
  assert (done.status, done.err) == (0, "")
  replayed = ("replay", f"--workdir={run}", "--before=2024-01-16")
  done = tiny.run(*replayed, "--name=online")
  assert done.status == 0, done.err
  assert "20 visits from 2024-01-10 to 2024-01-16" in done.out and "frozen" in done.out
  table = (run / "replay" / "results.md").read_text()
  again = tiny.run(*replayed, "--name=online")  # finished: the same table, and nothing is learned
  assert again.status == 0 and "step" not in again.out
  assert (run / "replay" / "results.md").read_text() == table
  daily = tiny.run(*replayed, "--name=daily", "--learn_from=day", "--day_steps=2")
  assert daily.status == 0, daily.err
  refit = ("--learn_from=day", "--round_groups=3", "--refit_steps=6")
  weekly = tiny.run(*replayed, "--name=weekly", *refit)
  assert weekly.status == 0, weekly.err
  done = tiny.run("replay", f"--workdir={run}", "--report=online,daily,weekly")
  assert (done.status, done.err) == (0, "")
  folder = run / "replay"
  assert done.out.rstrip() == (folder / "results.md").read_text().rstrip()
  for name in ("frozen", "online", "daily", "weekly"):
    assert f"| {name} " in done.out and name in (folder / "results.json").read_text()
  assert json.loads((folder / "results.json").read_text())
  assert (folder / "by_month.png").stat().st_size > 1000
