"""Balanced k-means over devices, processes and files: the same result, and never more than a few
rows in memory.
"""

import dataclasses
import socket
import subprocess
import sys
import time
import tracemalloc
import types

import jax
import numpy as np
import pytest

from gr4ad_jax import config
from gr4ad_jax.sid import kmeans, rows, tokenizer
from tests import devices

_RUN = """
import sys
import jax, numpy as np
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.sid import kmeans

folder, process, mesh_text = sys.argv[1], int(sys.argv[2]), sys.argv[4]
if process >= 0:
  jax.distributed.initialize(f"localhost:{sys.argv[3]}", 2, process)
points = np.load(folder + "/points.npy", mmap_mode="r")
mine = points if process < 0 else (points[:5120], points[5120:])[process]
centroids, cluster = kmeans.balanced_kmeans(mine, 520, iterations=2, seed=3, mesh=mesh_lib.make_mesh(mesh_text))
np.savez(f"{folder}/found{process}.npz", centroids=centroids, cluster=cluster, devices=jax.device_count())
if process >= 0:
  bad = np.array(mine)
  if process:
    bad[17] = np.nan
  try:
    kmeans.balanced_kmeans(bad, 4, iterations=1, seed=0, mesh=mesh_lib.make_mesh(mesh_text))
  except ValueError as error:
    assert "row 5138 is not" in str(error), error
  else:
    raise AssertionError("not refused")
"""


@pytest.fixture(scope="module")
def points():
  """7,000 points in lopsided groups, more than eight devices' tiles and no multiple of one."""
  rng = np.random.default_rng(0)
  group = rng.choice(60, 7000, p=(p := 1 / np.arange(1, 61)) / p.sum())
  return (rng.normal(size=(60, 24))[group] + rng.normal(0, 0.4, (7000, 24))).astype(np.float32)


@pytest.fixture(scope="module")
def alone(points):
  """The result on one device."""
  return kmeans.balanced_kmeans(points, 520, iterations=2, seed=3)


def _start(folder, count: int, process: int, port: int, mesh: str) -> subprocess.Popen:
  command = [sys.executable, "-c", _RUN, str(folder), str(process), str(port), mesh]
  return subprocess.Popen(
    command, stderr=subprocess.PIPE, text=True, env=devices.environment(count)
  )


@pytest.mark.parametrize(
  ("processes", "count", "mesh"),
  [(1, 8, "data:2,fsdp:2,tensor:2"), pytest.param(2, 2, "data:2,fsdp:2", marks=pytest.mark.long)],
)
def test_equal_on_many_devices_and_processes(tmp_path, points, alone, processes, count, mesh):
  np.save(tmp_path / "points.npy", points)
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  numbers = range(processes) if processes > 1 else [-1]
  running = [_start(tmp_path, count, number, port, mesh) for number in numbers]
  told = [one.communicate(timeout=240)[1] for one in running]
  assert [one.returncode for one in running] == [0] * processes, told
  found = [np.load(tmp_path / f"found{number}.npz") for number in numbers]
  assert all(one["devices"] == processes * count for one in found)
  np.testing.assert_array_equal(np.concatenate([one["cluster"] for one in found]), alone[1])
  for one in found:
    np.testing.assert_array_equal(one["centroids"], alone[0])


def test_only_processes_that_share_ask_each_other(monkeypatch):
  asked = []

  def gathered(value):
    asked.append(np.asarray(value).tolist())
    return np.stack([value, np.asarray(value) + [0, 3]])

  monkeypatch.setattr(rows.multihost_utils, "process_allgather", gathered)
  alone = rows.Rows(np.zeros((5, 2), np.float32))
  most = np.array([4, 2], np.int32)
  assert alone.most(most).tolist() == [4, 2] and not asked
  alone._shared = True
  assert alone.most(most).tolist() == [4, 5] and asked == [[4, 2]]


def test_shards_are_put_in_the_order_of_their_rows():
  values = np.arange(8).reshape(4, 2)
  # A shard that begins with the first row names no beginning.
  parts = ((slice(2, 4), values[2:]), (slice(None), values[:2]))
  shards = [types.SimpleNamespace(index=(run, slice(None)), data=data) for run, data in parts]
  answer = types.SimpleNamespace(addressable_shards=shards)
  found = np.zeros((5, 2), int)
  rows._take((found,), 1, 3, (answer,))
  assert found.tolist() == [[0, 0], [0, 1], [2, 3], [4, 5], [0, 0]]


class FewRows:
  """Points that may only be read a few rows at a time."""

  def __init__(self, points, most):
    self.shape, self.asked, self._points, self._most = points.shape, 0, points, most

  def __getitem__(self, which):
    found = self._points[which]
    self.asked = max(self.asked, len(found))
    assert len(found) <= self._most, len(found)
    return np.array(found)


def test_a_pass_asks_for_one_step_of_rows(monkeypatch, points, alone):
  monkeypatch.setattr(rows, "STEP", 1024)
  few = FewRows(points, 1040)  # a step, and the start's 2 * 520 points
  found = kmeans.balanced_kmeans(few, 520, iterations=2, seed=3)
  assert few.asked == 1040
  np.testing.assert_array_equal(found[0], alone[0])
  np.testing.assert_array_equal(found[1], alone[1])


def test_a_slow_device_is_waited_for(monkeypatch, points):
  monkeypatch.setattr(rows, "STEP", 1024)
  real, ready = rows._sums_on, []

  def slow(mesh):
    @jax.jit
    def late(total):
      return jax.pure_callback(lambda value: (time.sleep(0.05), value)[1], total, total)

    def run(total, *arguments):
      ready.append(total.is_ready())
      return late(real(mesh)(total, *arguments))

    return run

  arguments = np.arange(7000) % 5, 5, np.full(24, 2.0**-16)
  expected = rows.Rows(points).sums(*arguments)
  monkeypatch.setattr(rows, "_sums_on", slow)
  np.testing.assert_array_equal(rows.Rows(points).sums(*arguments), expected)
  assert ready == [True] * 7  # no rows wait in memory but those of one step


def test_a_file_gives_the_array_s_codes_without_being_read_whole(monkeypatch, tmp_path, make):
  monkeypatch.setattr(rows, "STEP", 512)
  monkeypatch.setattr(tokenizer, "STEP", 512)
  monkeypatch.setattr("gr4ad_jax.sid.encoders.CHUNK", 512)
  path, num, width = str(tmp_path / "vectors.npy"), 10_000, 512
  vectors = np.random.default_rng(0).normal(size=(num, width)).astype(np.float32)
  np.save(path, vectors)
  bare, events = make[0](num), make[1]([[0, 1]])
  sid = config.SidConfig(
    codebooks=(8, 4, 64), tower_steps=0, kmeans_iterations=2, last_level="hash", encoder=path
  )
  expected, expected_codes = tokenizer.fit(
    dataclasses.replace(bare, vectors=vectors), events, sid, seed=0
  )
  del vectors
  tracemalloc.start()
  try:
    fitted, codes = tokenizer.fit(bare, events, sid, seed=0)
    encoded = fitted.encode(bare)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < 1100 * num, (
    peak
  )  # of 2,048 of the vectors; the auction takes 400, and steps do not grow with N
  np.testing.assert_array_equal(codes, expected_codes)
  np.testing.assert_array_equal(
    encoded, expected.encode(dataclasses.replace(bare, vectors=np.load(path)))
  )


@pytest.mark.parametrize(
  ("clusters", "bytes_a_point"), [(1024, 210), pytest.param(64, 400, marks=pytest.mark.long)]
)
def test_memory_is_as_stated(clusters, bytes_a_point):
  points = np.random.default_rng(0).normal(size=(30_000, 8)).astype(np.float32)
  kmeans.balanced_kmeans(
    points[:2048], clusters, iterations=1, seed=0
  )  # what is loaded on first use
  tracemalloc.start()
  try:
    kmeans.balanced_kmeans(points, clusters, iterations=1, seed=0)
    peak = tracemalloc.get_traced_memory()[1] / len(points)
  finally:
    tracemalloc.stop()
  assert 0.9 * bytes_a_point < peak < 1.1 * bytes_a_point


def test_progress_is_told_to_the_end(monkeypatch, points):
  monkeypatch.setattr(rows, "STEP", 1024)
  heard = []
  kmeans.balanced_kmeans(points, 8, iterations=1, seed=0, told=lambda *counts: heard.append(counts))
  begun = [7000 * done + count for done in (0, 1) for count in range(0, 7000, 1024)]
  assert heard == [(done, 14000) for done in [*begun, 14000]]


def test_a_tokenizer_tells_of_each_level(make):
  heard = []
  sid = config.SidConfig(codebooks=(4, 3, 64), tower_steps=0, kmeans_iterations=2)
  tokenizer.fit(make[0](40), make[1]([[0, 1]]), sid, seed=0, told=lambda *what: heard.append(what))
  assert [what for what in heard if what[1] == what[2]] == [
    (f"k-means, level {level}", 120, 120) for level in (1, 2)
  ]
