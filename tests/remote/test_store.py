"""Objects of a bucket: what is asked again, and what each refusal says."""

import logging
import os

import pytest

from gr4ad_jax.config import ConfigError
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.remote import claims, inputs, store, transfers, urls
from gr4ad_jax.remote.store import Entry, Store


@pytest.fixture
def asked(in_memory, monkeypatch):
  """A store whose system answers with what the list holds, first things first; then truly."""
  answers = []
  pauses = []
  monkeypatch.setattr(store.time, "sleep", pauses.append)
  made = Store("memory://bucket/run", patience=60)
  true = made._system.cat_file

  def cat_file(path):
    if answers:
      raise answers.pop(0)
    return true(path)

  monkeypatch.setattr(made._system, "cat_file", cat_file)
  made.answers = answers
  made.pauses = pauses
  return made


def test_what_the_network_refuses_is_asked_again_and_told_once(asked, caplog):
  asked.write("a", b"1")
  asked.answers += [OSError("reset"), TimeoutError(), OSError("busy")]
  with caplog.at_level(logging.WARNING):
    assert asked.read("a") == b"1"
  assert asked.pauses == [0.2, 1.0, 3.0]
  assert [record.message for record in caplog.records] == [
    "memory://bucket/run/a cannot be read (TimeoutError()); trying again for 60 s"
  ]


def test_a_store_that_stays_away_is_one_line(asked):
  asked._patience = 0
  asked.answers += [OSError("no\n  route")] * 3
  with pytest.raises(OSError, match=r"^memory://bucket/run/a cannot be read: no route$"):
    asked.read("a")


class NoCredentialsError(Exception):
  """Named as that of botocore."""


@pytest.mark.parametrize(
  ("answer", "kind", "words"),
  [
    (FileNotFoundError("x"), FileNotFoundError, "there is no such object, or no such bucket"),
    (PermissionError("denied"), PermissionError, r"cannot be read: it is not allowed \(denied\)"),
    (OSError(22, "bad bucket"), OSError, "cannot be read: .*bad bucket"),
    (NoCredentialsError("none"), ConfigError, r"no credentials \(none\)"),
  ],
)
def test_what_is_said_for_good_is_not_asked_again(asked, answer, kind, words):
  asked.answers += [answer, answer]
  with pytest.raises(kind, match=words):
    asked.read("a")
  assert asked.pauses == [] and len(asked.answers) == 1


def test_a_create_whose_answer_was_lost_is_this_writers_own(in_memory, monkeypatch):
  made = Store("memory://bucket/run", patience=60)
  true = made._system.pipe_file
  lost = [True]

  def pipe_file(path, content, **how):
    true(path, content, **how)
    if lost:
      raise OSError(f"the answer is lost {lost.pop()}")

  monkeypatch.setattr(made._system, "pipe_file", pipe_file)
  assert made.create("a", b"mine")
  assert not made.create("a", b"another's")
  assert made.read("a") == b"mine"


def test_neighbours_that_begin_alike_are_no_part_of_an_address(in_memory):
  made = Store("memory://bucket/run")
  made.write("a/b", b"12")
  Store("memory://bucket/run2").write("c", b"1")
  found = made.entries()
  assert {name: entry.size for name, entry in found.items()} == {"a/b": 2}
  assert made.entries("a").keys() == {"a/b"} and made.entries("b") == {}
  assert made.entry() is None and Store("memory://bucket/run/a/b").entry().size == 2
  made.delete(["a/b", "none"])
  assert made.entries() == {}


@pytest.mark.parametrize("url", ["s3://", "s3:///a", "s3://b/../c", "s3://b//c", "s3://b c/d"])
def test_addresses_that_are_none(url):
  assert urls.is_url(url)
  with pytest.raises(ConfigError, match=r"--workdir=.* is not allowed: s3://<bucket>/<name>"):
    urls.checked("workdir", url)


def test_addresses():
  assert urls.checked("workdir", "gs://b/runs/x//") == "gs://b/runs/x"
  assert not urls.is_url("runs/s3") and not urls.is_url("http://b/x")
  assert urls.last_part("s3://b/runs/what*[ever") == "what__ever"
  assert urls.cache_folder("buckets", "s3://b/x") != urls.cache_folder("buckets", "s3://b/y")


def test_an_owner_that_ended_on_this_machine_is_known_at_once(monkeypatch):
  monkeypatch.setattr(claims, "here", lambda: "boot pid:[1]")
  gone = {"machine": "boot pid:[1]", "pid": 2**22 + 1}  # above what Linux gives
  assert claims._ended_here(gone)
  assert not claims._ended_here(gone | {"machine": "another"})
  assert not claims._ended_here(gone | {"pid": 1})  # lives


def _log(system):
  system.pipe_file("/logs/day/1.csv", b"one")
  system.pipe_file("/logs/day/2.csv", b"two")


def test_a_folder_is_fetched_once_and_what_changed_again(machines, in_memory, monkeypatch):
  machines.on("a")
  _log(in_memory)
  heard = []
  monkeypatch.setattr(transfers, "_listener", lambda *what: heard.append(what))
  path = inputs.local_path("events_path", "memory://logs/day/")
  with open(f"{path}/2.csv", encoding="utf-8") as file:
    assert file.read() == "two"
  assert heard[-1] == ("fetching --events_path=memory://logs/day", 6, 6)
  heard.clear()
  assert inputs.local_path("events_path", "memory://logs/day") == path
  inputs._asked.clear()  # another process
  assert inputs.local_path("events_path", "memory://logs/day") == path and heard == []
  in_memory.pipe_file("/logs/day/1.csv", b"1st")  # as long as before
  in_memory.rm_file("/logs/day/2.csv")
  inputs._asked.clear()
  inputs.local_path("events_path", "memory://logs/day")
  assert {total for _, _, total in heard} == {3}  # of one file alone
  assert os.listdir(path) == ["1.csv"]
  with open(f"{path}/1.csv", encoding="utf-8") as file:
    assert file.read() == "1st"


def test_a_fetch_that_broke_off_leaves_nothing_that_counts(machines, in_memory, monkeypatch):
  machines.on("a")
  _log(in_memory)
  true = Store.get

  def breaks(self, name, path, told):
    if name == "2.csv":
      raise OSError("away")
    true(self, name, path, told)

  monkeypatch.setattr(Store, "get", breaks)
  with pytest.raises(OSError, match="away"):
    inputs.local_path("events_path", "memory://logs/day")
  monkeypatch.setattr(Store, "get", true)
  path = inputs.local_path("events_path", "memory://logs/day")
  with open(f"{path}/2.csv", encoding="utf-8") as file:
    assert file.read() == "two"


def test_one_file_and_none(machines, in_memory):
  machines.on("a")
  _log(in_memory)
  path = inputs.local_path("ads_path", "memory://logs/day/1.csv")
  assert path.endswith("/1.csv") and open(path, encoding="utf-8").read() == "one"
  assert inputs.local_path("ads_path", "ads.csv") == "ads.csv"
  with pytest.raises(DataError, match="--ads_path=memory://logs/none.csv: nothing lies there"):
    inputs.local_path("ads_path", "memory://logs/none.csv")


def test_an_entry_is_what_tells_contents_apart():
  about = {"size": 1, "ETag": "x", "type": "file", "StorageClass": "cold"}
  assert Entry(1, store._version(about)) != Entry(1, store._version(about | {"ETag": "y"}))
  assert store._version(about) == store._version(about | {"StorageClass": "warm"})
