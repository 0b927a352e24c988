"""Journals and change logs: what is read back after cuts, damage, full disks and crashes at every step."""

import os
import shutil
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.serving import journal
from gr4ad_jax.serving.change_log import ChangeLog

PAYLOADS = st.lists(st.binary(min_size=1, max_size=50), max_size=12)


class Crash(BaseException):
  """The process ends here."""


def written(folder, records, digest="d"):
  """A change log with records, all on disk."""
  log = ChangeLog(str(folder), digest)
  assert list(log.replay()) == []
  for record in records:
    log.append(record)()
  return log


def read(folder, digest="d"):
  """The records of a folder."""
  log = ChangeLog(str(folder), digest)
  try:
    return list(log.replay())
  finally:
    log.close()


@settings(max_examples=40, deadline=None)
@given(payloads=PAYLOADS, data=st.data())
def test_a_cut_file_keeps_the_records_before_the_cut(tmp_path_factory, payloads, data):
  path = str(tmp_path_factory.mktemp("cut") / "journal")
  journal.write_whole(path, payloads)
  assert list(journal.read(path)) == payloads
  ends = [0]
  for payload in payloads:
    ends.append(ends[-1] + len(journal.framed(payload)))
  size = data.draw(st.integers(0, ends[-1]))
  os.truncate(path, size)
  kept = sum(end <= size for end in ends) - 1
  if size not in ends:
    with pytest.raises(DataError, match=f"byte {ends[kept]} of {size} is damaged"):
      list(journal.read(path))
  assert list(journal.read(path, cut=True)) == payloads[:kept]
  assert os.path.getsize(path) == ends[kept]
  tail = journal.Journal(path)
  tail.wait(tail.append(b"more"))
  tail.close()
  assert list(journal.read(path)) == [*payloads[:kept], b"more"]


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_changed_bit_is_noticed(tmp_path_factory, at, bit):
  path = str(tmp_path_factory.mktemp("bit") / "journal")
  payloads = [b"one", b"two and more", b"three"]
  journal.write_whole(path, payloads)
  with open(path, "r+b") as file:
    content = bytearray(file.read())
    content[at % len(content)] ^= 1 << bit
    file.seek(0)
    file.write(content)
  with pytest.raises(DataError, match="is damaged"):
    list(journal.read(path))
  assert list(journal.read(path, cut=True)) in (payloads[:0], payloads[:1], payloads[:2])


def test_zeros_after_the_end_are_no_record(tmp_path):
  path = str(tmp_path / "journal")
  journal.write_whole(path, [b"one"])
  os.truncate(path, 4096)  # as a file system may leave a file that it had made longer
  assert list(journal.read(path, cut=True)) == [b"one"]


@pytest.mark.parametrize("payload", [b"", bytes(journal.MAX_RECORD + 1)])
def test_records_have_a_size(payload):
  with pytest.raises(DataError, match="bytes is not allowed"):
    journal.framed(payload)


def _syncs(path, monkeypatch, together=False):
  """How often a journal is brought to disk for 8 writers of 10 records each; `together`: all append, then all wait."""
  syncs, fsync, meet = [], os.fsync, threading.Barrier(8 if together else 1)
  journal.write_whole(path, [])

  def slow(handle):
    syncs.append(handle)
    time.sleep(0.005)
    fsync(handle)

  def write(writer):
    for n in range(10):
      position = log.append(f"{writer} {n}".encode())
      meet.wait(60)
      log.wait(position)

  with monkeypatch.context() as patch:
    patch.setattr(os, "fsync", slow)
    log = journal.Journal(path)
    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    log.close()
  found = [tuple(map(int, record.split())) for record in journal.read(path)]
  assert sorted(found) == [(writer, n) for writer in range(8) for n in range(10)]
  assert all([n for w, n in found if w == writer] == list(range(10)) for writer in range(8))
  return len(syncs)


def test_writers_that_wait_together_share_one_wait(tmp_path, monkeypatch):
  assert _syncs(str(tmp_path / "journal"), monkeypatch, together=True) == 10


def test_writers_share_their_waits(tmp_path, monkeypatch):
  path = str(tmp_path / "journal")
  assert min(_syncs(path, monkeypatch) for _ in range(3)) < 60  # threads may wake late, in one of them


def test_a_full_disk_is_told_and_tried_again(tmp_path, monkeypatch):
  log, pwrite = written(tmp_path, [b"first"]), os.pwrite
  monkeypatch.setattr(os, "pwrite", lambda handle, data, at: pwrite(handle, data[: len(data) // 2], at) and full())

  def full():
    raise OSError(28, "No space left on device")

  with pytest.raises(OSError, match="No space"):
    log.append(b"second")()
  with pytest.raises(OSError, match="No space"):
    log.check()
  monkeypatch.setattr(os, "pwrite", pwrite)
  log.check()
  log.append(b"third")()
  log.close()
  assert read(tmp_path) == [b"first", b"second", b"third"]


def test_a_snapshot_takes_the_place_of_what_was_before(tmp_path):
  log = written(tmp_path, [b"a1", b"b1", b"a2"])
  log.rotate()
  log.append(b"c1")()
  log.snapshot([b"a2", b"b1"], 2)
  log.append(b"d1")()
  log.close()
  assert sorted(os.listdir(tmp_path)) == ["journal.000002", "lock", "snapshot"]
  assert read(tmp_path) == [b"a2", b"b1", b"c1", b"d1"]


def test_a_crash_at_any_step_of_a_snapshot_loses_nothing(tmp_path, monkeypatch):
  """Stops before the n-th call that reaches the disk, for every n; what is there then is opened as a copy."""
  real, outcomes = {name: getattr(os, name) for name in ("replace", "remove", "fsync")}, []
  for step in range(100):
    folder, calls = tmp_path / f"run{step}", []

    def counted(name, step=step, calls=calls):
      def call(*arguments):
        calls.append(name)
        if len(calls) == step + 1:
          raise Crash
        return real[name](*arguments)

      return call

    log = written(folder, [b"a1", b"b1", b"a2"])
    for name in real:
      monkeypatch.setattr(os, name, counted(name))
    try:
      log.rotate()
      log.append(b"c1")()
      log.snapshot([b"a2", b"b1"], 2)
      crashed = False
    except Crash:
      crashed = True
    monkeypatch.undo()
    copy = shutil.copytree(folder, tmp_path / f"copy{step}")
    found = read(copy)
    state = {record[:1]: record for record in found}
    assert {b"a": b"a2", b"b": b"b1"}.items() <= state.items()
    outcomes.append((b"c" in state, len(found)))
    again = ChangeLog(str(copy), "d")
    assert list(again.replay()) == found  # opening changed nothing
    again.rotate()
    again.snapshot(state.values(), len(state))
    again.close()
    assert read(copy) == list(state.values())
    log.close()
    if not crashed:
      break
  assert step >= 8 and (False, 3) in outcomes and (True, 4) in outcomes and outcomes[-1] == (True, 3)


def test_what_is_not_its_own_is_refused(tmp_path):
  log = written(tmp_path, [b"a"])
  with pytest.raises(DataError, match="in use by another process"):
    ChangeLog(str(tmp_path), "d")
  log.close()
  with pytest.raises(DataError, match="another index"):
    read(tmp_path, "other")
  assert read(tmp_path) == [b"a"]  # a refusal leaves it free


def test_missing_and_damaged_files_are_named(tmp_path):
  log = written(tmp_path, [b"a"])
  log.rotate()
  log.snapshot([b"a"], 1)
  log.rotate()
  log.append(b"b")()
  log.close()
  lost, kept = shutil.copytree(tmp_path, tmp_path / "lost"), shutil.copytree(tmp_path, tmp_path / "kept")
  os.remove(lost / "journal.000002")
  with pytest.raises(DataError, match="journal.000002: no such file"):
    read(lost)
  os.truncate(kept / "journal.000002", os.path.getsize(kept / "journal.000002") - 1)  # not the last: never cut
  with pytest.raises(DataError, match="journal.000002: the record at byte"):
    read(kept)
  os.remove(kept / "snapshot")
  with pytest.raises(DataError, match="journal.000001: no such file"):
    read(kept)
