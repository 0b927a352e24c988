"""Preparation: the right splits, the same data again, nothing stale and nothing half-written."""

import dataclasses
import logging
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from gr4ad_jax.builders import prepare
from gr4ad_jax.builders.ad_log import AdLog
from gr4ad_jax.builders.base import digest
from gr4ad_jax.builders.online_retail import OnlineRetail
from gr4ad_jax.config import DataConfig
from gr4ad_jax.data.schema import SPLITS, DataError

HOUR = 3600
START = 19_675 * 24 * HOUR  # a midnight of 2023


@pytest.fixture
def config(tmp_path):
  """Ten users on disk; user i has i visits of two events, one a day at midnight, the second five
  minutes later.
  """
  ads = "".join(f"ad{i},text {i},account\n" for i in range(4))
  (tmp_path / "ads.csv").write_text("ad_id,text,account_id\n" + ads)
  rows = [
    f"u{user},ad{(user + day + second) % 4},{START + 24 * HOUR * day + 300 * second},"
    f"{('click', 'purchase')[second]},{second}"
    for day in range(11)
    for user in range(1, 11)
    for second in range(2)
    if day < user
  ]
  (tmp_path / "events.csv").write_text(
    "user_id,ad_id,time,behavior,value\n" + "\n".join(rows) + "\n"
  )
  return DataConfig(
    dataset="ad_log",
    data_dir=str(tmp_path / "prepared"),
    ads_path=str(tmp_path / "ads.csv"),
    events_path=str(tmp_path / "events.csv"),
  )


def digests(dataset):
  return digest(dataset.ads), digest(dataset.events)


def test_ten_users_of_a_csv_pair(config):
  dataset = prepare.load_dataset(config)
  log = dataset.events
  assert dataset.name == "ad_log" and dataset.behaviors == ("click", "cart", "purchase")
  assert sorted(log.user_id) == sorted(f"u{i}" for i in range(1, 11))
  for row, name in enumerate(log.user_id):
    user, own = int(name[1:]), np.flatnonzero(log.user == row)
    day = np.repeat(np.arange(user), 2)
    assert ((log.time[own] - START) // (24 * HOUR)).tolist() == day.tolist()
    held_out = {user - 1: "test", user - 2: "valid"} if user >= 3 else {}
    assert [SPLITS[s] for s in log.split[own]] == [held_out.get(d, "train") for d in day]
    assert log.behavior[own].tolist() == [0, 2] * user
    assert log.value[own].tolist() == [0, 1] * user
    assert dataset.ads.ad_id[log.ad[own]].tolist() == [
      f"ad{(user + d + s) % 4}" for d in range(user) for s in range(2)
    ]
  assert (np.diff(log.request) >= 0).all() and log.request[-1] == 54
  assert dataset.report.requests == {"train": 55 - 16, "valid": 8, "test": 8}
  assert dataset.report.events == {"train": 2 * (55 - 16), "valid": 16, "test": 16}


def test_a_shorter_gap_makes_more_visits(config):
  dataset = prepare.load_dataset(dataclasses.replace(config, session_gap_minutes=5))
  assert dataset.events.request[-1] == 109


def test_prepared_data_are_read_again_and_equal(config, monkeypatch, caplog):
  first = prepare.load_dataset(config)
  monkeypatch.setattr(
    prepare, "_prepare", None
  )  # any further preparation fails, and any reading of the source
  monkeypatch.setattr(AdLog, "read", None)
  with caplog.at_level(logging.INFO, "gr4ad_jax"):
    second = prepare.load_dataset(config)
  assert second.report == first.report and str(first.report) in caplog.text
  for table in ("ads", "events"):
    for field in dataclasses.fields(getattr(first, table)):
      one, two = (getattr(getattr(dataset, table), field.name) for dataset in (first, second))
      np.testing.assert_array_equal(one, two)
      assert one is None or one.dtype == two.dtype


def test_a_changed_source_or_option_is_prepared_anew(config):
  first = prepare.load_dataset(config)
  path = pathlib.Path(config.events_path)
  text = path.read_text()
  path.write_text(text.replace("purchase,1\n", "purchase,2\n"))
  assert prepare.load_dataset(config).events.value.max() == 2
  assert (
    len(
      prepare.load_dataset(dataclasses.replace(config, behaviors=("click", "purchase"))).behaviors
    )
    == 2
  )
  assert len(os.listdir(config.data_dir)) == 3
  path.write_text(text)
  assert digests(prepare.load_dataset(config)) == digests(first)
  assert len(os.listdir(config.data_dir)) == 3


def test_options_of_other_data_sets_change_nothing(config):
  fingerprints = {
    OnlineRetail.fingerprint(
      dataclasses.replace(config, dataset="online_retail", on_unknown_ad=option)
    )
    for option in ("error", "drop")
  }
  assert len(fingerprints) == 1


@pytest.mark.parametrize(
  "damage", ["missing", "truncated", "flipped", "no_split", "bad_json", "swapped"]
)
def test_damaged_data_are_never_served(config, damage, caplog):
  good = prepare.load_dataset(config)
  (root,) = pathlib.Path(config.data_dir).iterdir()
  files = {path.name: path for path in root.rglob("*") if path.parent.name == "1.0.0"}
  shard = next(path for path in files.values() if "ad_log-train" in path.name)
  if damage == "missing":
    shard.unlink()
  elif damage == "truncated":
    shard.write_bytes(shard.read_bytes()[:-100])
  elif damage == "flipped":
    content = bytearray(shard.read_bytes())
    content[300] ^= 0xFF
    shard.write_bytes(bytes(content))
  elif damage == "no_split":
    next(path for path in files.values() if "ad_log-valid" in path.name).unlink()
  elif damage == "bad_json":
    (shard.parent / "dataset_info.json").write_text('{"name": ')
  else:  # a whole shard, but of another preparation
    test, valid = (
      next(p for p in files.values() if f"ad_log-{s}" in p.name) for s in ("test", "valid")
    )
    test.write_bytes(valid.read_bytes())
  assert digests(prepare.load_dataset(config)) == digests(good)
  assert "prepared again" in caplog.text
  caplog.clear()
  assert digests(prepare.load_dataset(config)) == digests(good)
  assert not caplog.text


KILLED = """
import os, sys
from gr4ad_jax.config import DataConfig
from gr4ad_jax.builders import prepare
from gr4ad_jax.builders import base
folder, ads, events = sys.argv[1:4]
config = DataConfig(dataset="ad_log", data_dir=folder, ads_path=ads, events_path=events)
whole = base._user_examples
def die_at_the_third(events, split):
  for number, example in enumerate(whole(events, split)):
    if number == 3:
      os._exit(9)
    yield example
base._user_examples = die_at_the_third
assert "tensorflow" not in sys.modules
prepare.load_dataset(config)
"""


def test_a_kill_in_mid_write_leaves_nothing_that_counts(config):
  root = pathlib.Path(__file__).parents[2]
  command = [sys.executable, "-c", KILLED, config.data_dir, config.ads_path, config.events_path]
  environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
  killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
  assert killed.returncode == 9, killed.stderr
  left = [path.name for path in pathlib.Path(config.data_dir).rglob("*") if path.is_dir()]
  assert any(name.startswith("incomplete") for name in left)
  dataset = prepare.load_dataset(config)
  assert dataset.report.users == 10
  left = [path.name for path in pathlib.Path(config.data_dir).rglob("*") if path.is_dir()]
  assert not any(name.startswith("incomplete") for name in left)


def test_two_processes_prepare_at_once_without_tensorflow_and_without_a_word(config):
  code = (
    "import sys; from gr4ad_jax.config import DataConfig; from gr4ad_jax.builders import prepare\n"
    "config = DataConfig(dataset='ad_log', data_dir=sys.argv[1], ads_path=sys.argv[2], "
    "events_path=sys.argv[3])\n"
    "assert prepare.load_dataset(config).report.users == 10\n"
    "assert 'tensorflow' not in sys.modules\n"
  )
  command = [sys.executable, "-c", code, config.data_dir, config.ads_path, config.events_path]
  environment = os.environ | {
    "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
    "JAX_PLATFORMS": "cpu",
  }
  both = [
    subprocess.Popen(
      command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(2)
  ]
  for process in both:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out == "" and "damaged" not in err


def test_data_that_cannot_be_read_back_are_told(config, monkeypatch):
  monkeypatch.setattr(prepare, "_prepare", lambda *_: None)
  with pytest.raises(DataError, match="the prepared data cannot be read back; is the disk sound?"):
    prepare.load_dataset(config)


def test_default_folder_follows_the_users_cache(monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
  assert prepare.default_data_dir() == "/somewhere/gr4ad_jax/data"
  monkeypatch.delenv("XDG_CACHE_HOME")
  assert prepare.default_data_dir() == os.path.expanduser("~/.cache/gr4ad_jax/data")


def test_folders_are_those_of_what_is_prepared_once(config):
  folders = prepare.prepared_folders(config)
  assert sorted(folders) == ["ads", "events"] and all(map(os.path.isdir, folders.values()))
  written = {
    path: os.stat(path).st_mtime_ns
    for folder in folders.values()
    for path in pathlib.Path(folder).iterdir()
  }
  assert prepare.prepared_folders(config) == folders
  assert all(os.stat(path).st_mtime_ns == time for path, time in written.items())
  assert all(str(path).startswith(config.data_dir) for path in written)


def test_until_leaves_a_log_as_it_stood_that_day(config):
  """Users, visits and splits are those of the days before; the whole log is not touched."""
  whole = prepare.load_dataset(config)
  date = "2023-11-16"  # the fixture's third day
  assert prepare.moment(date) == START + 2 * 24 * HOUR
  known = prepare.load_dataset(dataclasses.replace(config, until=date))
  before = whole.events.time < prepare.moment(date)
  assert 0 < before.sum() < len(whole.events)
  for column in ("ad", "time", "value"):
    np.testing.assert_array_equal(
      getattr(known.events, column), getattr(whole.events, column)[before]
    )
  assert known.events.split.max() == 0  # nobody has three visits after two days
  assert known.report.requests == {"train": 19, "valid": 0, "test": 0}
  assert known.report.dropped["of 2023-11-16 or later"] == (~before).sum()


def test_until_leaves_out_ads_first_heard_of_later(config):
  """Those with an event before it and those of which nothing is known stay, in their order."""
  whole = prepare.load_dataset(config)
  ads = dataclasses.replace(whole.ads, created=np.array([-1, -1, START + 99 * 24 * HOUR, -1]))
  later = START + 2 * 24 * HOUR
  events = dataclasses.replace(
    whole.events,
    ad=np.where(whole.events.time < later, whole.events.ad % 2, 2).astype(np.int32),
  )
  known = prepare.until(dataclasses.replace(whole, ads=ads, events=events), "2023-11-16")
  assert known.ads.ad_id.tolist() == ["ad0", "ad1", "ad3"]
  assert set(known.events.ad) == {0, 1}
  with pytest.raises(DataError, match="--until=1999-01-01 is not allowed: ad_log has no event"):
    prepare.until(whole, "1999-01-01")
