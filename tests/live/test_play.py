"""`experiments.play`: from the day on at which a run's knowledge ends, and what it refuses."""

import dataclasses
import json

import pytest

from gr4ad_jax import config as config_lib
from tests import tiny
from tests.live.shop import Shop


@pytest.fixture
def workdir(tmp_path):
  """The config of a run of the tiny log that knows what was before 7 January."""
  log = tiny.write_log(tmp_path)
  data = config_lib.DataConfig(
    dataset="ad_log", ads_path=f"{log}/ads.csv", events_path=f"{log}/events.csv",
    data_dir=f"{log}/data", until="2024-01-07",
  )  # fmt: skip
  return _written(tmp_path / "run", data)


def _written(folder, data):
  folder.mkdir()
  text = config_lib.to_json(config_lib.Config(workdir=str(folder), data=data))
  (folder / "config.json").write_text(text)
  return folder


def test_plays_what_the_run_does_not_know(workdir):
  shop = Shop()
  done = tiny.run("play", f"--workdir={workdir}", f"--address={shop.address}")
  shop.close()
  assert done.status == 0, done.err
  posted = [event for _, path, body, _ in shop.heard if path == "/v1/events"
            for event in body["events"]]  # fmt: skip
  _, rows = tiny.rows()
  wanted = [(u, a) for u, a, time, *_ in rows if time >= "2024-01-07"]
  assert sorted((e["user_id"], e["ad_id"]) for e in posted) == sorted(wanted)
  assert len({event["event_id"] for event in posted}) == len(posted)
  asked = [body for _, path, body, _ in shop.heard if path == "/v1/recommend"]
  assert len(asked) == len({visit for *_, time, _, _, visit in rows if time >= "2024-01-07"})
  assert "ETA 0:00" in done.err
  kept = json.loads((workdir / "live" / "replay.json").read_text())
  assert kept["done"] == kept["steps"]


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    (
      "--from=2024-01-06",
      "--from=2024-01-06 is not allowed: the run knows the log up to 2024-01-07",
    ),
    ("--from=soon", "--from=soon is not allowed: a day as 2010-12-01"),
    ("--from=2024-02-01", "no visit from the replay's first day on"),
    ("--address=x", "--address=x is not allowed: http://host:port"),
    ("--workdir=", "--workdir= is not allowed"),
    ("--workdir=nowhere", "nowhere holds no config.json"),
  ],
)
def test_refusals(workdir, flag, words):
  done = tiny.run("play", f"--workdir={workdir}", flag)
  assert done.status == 2 and words in done.err


def test_a_run_that_knows_the_whole_log_has_nothing_to_play(workdir, tmp_path):
  data = config_lib.load_config(str(workdir)).data
  whole = _written(tmp_path / "whole", dataclasses.replace(data, until=""))
  done = tiny.run("play", f"--workdir={whole}")
  assert done.status == 2 and "its run knows the whole log" in done.err
