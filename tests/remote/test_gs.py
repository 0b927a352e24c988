"""The same over gcsfs, where that is installed, with a server on loopback."""

import logging
import pathlib

import pytest

from gr4ad_jax.remote import mirror as mirror_lib
from gr4ad_jax.remote import mirrors, pointer
from gr4ad_jax.remote.store import Store
from tests.remote import buckets, gcs

_URL = "gs://bucket/runs/mine"


@pytest.fixture
def server(monkeypatch, tmp_path):
  pytest.importorskip("gcsfs", reason="gcsfs is missing: the extra gs brings it")
  # It tries to find out the bucket's kind with credentials that are not there, and says so.
  monkeypatch.setattr(logging.getLogger("gcsfs"), "disabled", True)
  there = gcs.Server()
  monkeypatch.setenv("STORAGE_EMULATOR_HOST", there.url)
  monkeypatch.setattr(mirrors, "_mirrors", {})
  yield tmp_path
  there.close()


def test_objects(server):
  store = Store(_URL, patience=0)
  assert store.entries() == {} and store.entry() is None
  store.write("a/b", b"1\n\n2")
  assert store.create("a/c", b"2") and not store.create("a/c", b"3") and store.create("a/c", b"2")
  Store(f"{_URL}2", patience=0).write("z", b"1")
  assert {name: entry.size for name, entry in store.entries().items()} == {"a/b": 4, "a/c": 1}
  heard = []
  (server / "sent").write_bytes(b"x" * 3_000_000)
  store.put(str(server / "sent"), "big", heard.append)
  store.get("big", str(server / "come"), heard.append)
  assert sum(heard) == 6_000_000
  assert (server / "come").read_bytes() == (server / "sent").read_bytes()
  with pytest.raises(FileNotFoundError, match=f"{_URL}/none: there is no such object"):
    store.read("none")
  store.delete(["a/b", "none", "big"])
  assert store.entries().keys() == {"a/c"}


def test_a_run(server, monkeypatch):
  monkeypatch.setenv("GR4AD_CACHE", str(server / "a"))
  job = mirror_lib.Mirror(_URL, Store(_URL, patience=0))
  job.take()
  buckets.first(job.folder)
  assert job.push()
  buckets.second(job.folder)
  assert job.push()
  job.release()
  monkeypatch.setenv("GR4AD_CACHE", str(server / "b"))
  here = mirrors.local_folder(_URL)
  mirrors.bring(str(pathlib.Path(here, "checkpoints", "4")), ("params", "opt_state"))
  assert buckets.content(here) == buckets.content(job.folder)
  store = Store(_URL, patience=0)
  listed = {file.object for file in pointer.latest(store).files.values()}
  assert listed == set(store.entries("files")) and store.entries("alive") == {}
