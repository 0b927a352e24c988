"""The binaries on a run, and on a log, in a bucket."""

import dataclasses
import json
import logging
import pathlib
import sys
import time

import jax
import pytest

from gr4ad_jax.answering.recommender import Recommender
from gr4ad_jax.config import ConfigError, load_config
from gr4ad_jax.remote import inputs, mirrors, pointer
from gr4ad_jax.remote.mirror import Mirror
from gr4ad_jax.remote.store import Store
from gr4ad_jax.runs import published
from gr4ad_jax.runs import workdir as workdir_lib
from tests import tiny
from tests.remote.buckets import URL

pytestmark = pytest.mark.usefixtures("compile_cache")


def _machine(machines, monkeypatch, name):
  """A new process on a machine."""
  machines.on(name)
  monkeypatch.setattr(mirrors, "_mirrors", {})
  monkeypatch.setattr(inputs, "_asked", {})


def test_train_evaluate_and_recommend_by_a_bucket(
  machines, in_memory, monkeypatch, tmp_path, shared_folder, trained_run, no_pictures
):
  for name in ("ads.csv", "events.csv"):
    in_memory.pipe_file(f"/logs/{name}", (shared_folder / "small_log" / name).read_bytes())
  sources = (
    "--dataset=ad_log", "--ads_path=memory://logs/ads.csv", "--events_path=memory://logs/events.csv",
    f"--data_dir={tmp_path}/data",
  )  # fmt: skip
  once = ("--max_steps=4", "--save_every=2", "--noevaluate", "--layers=1", "--lazy_layers=0")
  _machine(machines, monkeypatch, "a")
  done = tiny.run("train", *sources, *tiny.SETTINGS, *once, f"--workdir={URL}")
  assert (done.status, done.err) == (0, "")
  assert f"the run lies in {URL} (here in " in done.out
  # Another machine, where nothing of it lies.
  _machine(machines, monkeypatch, "b")
  done = tiny.run("evaluate", f"--workdir={URL}", "--split=valid")
  assert (done.status, done.err) == (0, "") and f"sent to {URL}" in done.out
  _machine(machines, monkeypatch, "c")
  # Parameters, codes and ads, to the bit.
  found = Recommender.load(URL, "last").digest()
  assert found == Recommender.load(str(trained_run), "last").digest()
  here = pathlib.Path(published.locate(URL))
  assert load_config(str(here)).data.ads_path == "memory://logs/ads.csv"
  assert json.loads((here / "eval" / "metrics.json").read_text())["split"] == "valid"
  # A finished run is not trained again, and another setting is refused on any machine.
  done = tiny.run("train", *sources, *tiny.SETTINGS, *once, "--width=32", f"--workdir={URL}")
  assert done.status == 2 and "--width=32 is not allowed" in done.err


def test_a_run_that_is_not_there_or_an_address_that_is_none(machines, monkeypatch):
  _machine(machines, monkeypatch, "a")
  done = tiny.run("evaluate", f"--workdir={URL}")
  assert (done.status, done.err) == (2, f"error: --workdir={URL}: no run lies there\n")
  done = tiny.run("evaluate", "--workdir=memory://bucket//mine")
  assert done.status == 2 and "without empty, . or .. parts" in done.err
  done = tiny.run("learn", f"--workdir={URL}")
  assert done.status == 2
  assert done.err == (
    f"error: --workdir={URL} is not allowed: a learner writes as it goes; name a local directory\n"
  )
  done = tiny.run("train", "--workdir=runs/x", f"--init_from={URL}")
  assert done.status == 2 and f"--init_from={URL} is not allowed: name a local path" in done.err


def test_refused_input_leaves_nothing_in_the_bucket(machines, in_memory, monkeypatch):
  _machine(machines, monkeypatch, "a")
  done = tiny.run(
    "train", f"--workdir={URL}", "--dataset=ad_log", "--ads_path=memory://logs/none.csv",
    "--events_path=memory://logs/none.csv",
  )  # fmt: skip
  assert done.status == 2 and done.err.count("\n") == 1
  assert "--ads_path=memory://logs/none.csv: nothing lies there" in done.err
  assert not in_memory.store


def test_a_missing_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  done = tiny.run("evaluate", "--workdir=gs://bucket/mine")
  assert (done.status, done.err) == (2, "error: gcsfs is missing: pip install 'gr4ad_jax[gs]'\n")


def test_several_processes_need_a_shared_disk(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 4)
  with pytest.raises(ConfigError, match=r"s3://b/x is not allowed in a job of 4 processes: .*disk"):
    published.locate("s3://b/x")


def test_states_are_sent_behind_a_training(machines, monkeypatch, small_run):
  """The library's own block: what is in the directory goes to the bucket when it ends, in whatever
  way; a run of several within it is refused.
  """
  _machine(machines, monkeypatch, "a")
  folder = pathlib.Path(published.locate(URL, new=True))
  config = load_config(str(small_run))
  config = dataclasses.replace(config, workdir=str(folder))
  with pytest.raises(ZeroDivisionError), workdir_lib.alone(config):
    (folder / "metrics.jsonl").write_text("{}\n")
    raise ZeroDivisionError
  assert set(pointer.latest(Store(URL)).files) == {"metrics.jsonl"}
  inner = dataclasses.replace(config, workdir=str(folder / "inner"))
  with (
    pytest.raises(ConfigError, match="runs within a directory need a local one"),
    workdir_lib.alone(inner),
  ):
    pass


def test_a_bucket_that_is_away_loses_nothing(machines, monkeypatch, small_run, caplog):
  _machine(machines, monkeypatch, "a")
  folder = pathlib.Path(published.locate(URL, new=True))
  config = load_config(str(small_run))
  config = dataclasses.replace(config, workdir=str(folder))

  def away(*_):
    raise OSError("the network is down")

  with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
    patch.setattr(Mirror, "push", away)
    words = r"nothing is lost: it lies in .*the same command sends it"
    with pytest.raises(OSError, match=words), workdir_lib.alone(config):
      (folder / "metrics.jsonl").write_text("{}\n")
      mirrors.saved(str(folder / "checkpoints" / "2"))
      # The thread tells; the training goes on.
      for _ in range(500):
        if "it is sent with the next checkpoint" in caplog.text:
          break
        time.sleep(0.01)
  assert "the network is down; it is sent with the next checkpoint" in caplog.text
  assert (folder / "metrics.jsonl").read_text() == "{}\n"
  # The same command, when the bucket answers again.
  _machine(machines, monkeypatch, "a")
  assert published.locate(URL, new=True) == str(folder)
  with workdir_lib.alone(config):
    pass
  assert set(pointer.latest(Store(URL)).files) == {"metrics.jsonl"}
