"""What the tests of buckets share."""

import os

import pytest

from gr4ad_jax.remote import inputs, mirrors, urls
from tests.remote.buckets import Machines


@pytest.fixture
def in_memory(monkeypatch):
  """An empty bucket in memory, and a process that has not asked any yet."""
  fsspec = pytest.importorskip("fsspec", reason="fsspec is missing: the extra s3 or gs brings it")
  system = fsspec.filesystem("memory")
  monkeypatch.setitem(urls.SCHEMES, "memory", ("fsspec", "s3"))
  monkeypatch.setattr(mirrors, "_mirrors", {})
  monkeypatch.setattr(inputs, "_asked", {})
  monkeypatch.setattr(os, "fsync", lambda _: None)  # no power cut is tested, and a disk may be slow
  system.store.clear()
  yield system
  system.store.clear()


@pytest.fixture
def machines(in_memory, monkeypatch, tmp_path):
  """Machines that see one bucket in memory."""
  return Machines(monkeypatch, tmp_path)
