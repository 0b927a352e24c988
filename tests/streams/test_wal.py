"""The write-ahead log as a kill leaves it, then cut, changed or taken away: all is told."""

import os
import random
import struct

import numpy as np
import pytest

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.streams import wal
from tests.streams import topics

LOG, SHARED = "t.sqlite-wal", "t.sqlite-shm"


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
  """A folder as a kill left it, and its records."""
  folder = tmp_path_factory.mktemp("wal") / "killed"
  return folder, topics.killed(folder)


def sums(content, s0, s1, order):
  """The checksum as SQLite's documentation gives it, a pair of words at a time."""
  for x0, x1 in struct.iter_unpack(order + "II", content):
    s0 = (s0 + x0 + s1) % 2**32
    s1 = (s1 + x1 + s0) % 2**32
  return [s0, s1]


@pytest.mark.parametrize("order", "<>")
def test_checksums_equal_a_loop(order):
  rng = random.Random(0)
  rows = [rng.randbytes(32) for _ in range(3)]
  starts = [[rng.randrange(2**32), rng.randrange(2**32)] for _ in rows]
  row_FB = np.array([list(row) for row in rows], np.uint8)
  found = wal._sums(row_FB, np.array(starts, np.uint32), order)
  assert found.tolist() == [
    sums(row, *start, order) for row, start in zip(rows, starts, strict=True)
  ]


def test_what_a_kill_leaves_is_whole(killed, tmp_path):
  folder, records = killed
  assert topics.records(topics.copied(folder, tmp_path / "copy")) == records
  without = topics.copied(folder, tmp_path / "copy", topics.FILES[:2])
  assert topics.records(without) == records


def test_a_changed_bit_is_told_or_does_no_harm(killed, tmp_path):
  folder, records = killed
  rng, size = random.Random(2), (folder / LOG).stat().st_size
  # With the -shm file every frame has its turn. Without it the last two transactions cannot be told
  # from an end that was torn.
  places = [(at, topics.FILES) for at in (*range(0, 56, 3), *range(56, size, size // 60))]
  places += [(at, topics.FILES[:2]) for at in range(0, size * 9 // 10, size // 20)]
  for at, names in places:
    copy = topics.copied(folder, tmp_path / "copy", names)
    topics.flip(copy / LOG, at, rng.randrange(8))
    damaged = (copy / LOG).read_bytes()
    with pytest.raises(DataError, match=f"{LOG}: frame [0-9]+ is damaged"):
      topics.records(copy)
    assert (copy / LOG).read_bytes() == damaged
  for at in range(0, 136, 5):
    copy = topics.copied(folder, tmp_path / "copy")
    topics.flip(copy / SHARED, at, rng.randrange(8))
    assert topics.records(copy) == records


def test_an_end_that_was_torn_is_left_out(killed, tmp_path):
  """After a loss of power the -shm file may be gone: whole transactions count, from the first."""
  folder, records = killed
  size, found = (folder / LOG).stat().st_size, set()
  for cut in [*range(0, size, size // 23), size - 1, 31, 33]:
    for junk in (b"", bytes(9000)):
      copy = topics.copied(folder, tmp_path / "copy", topics.FILES[:2])
      os.truncate(copy / LOG, cut)
      with open(copy / LOG, "ab") as log:
        log.write(junk)
      kept = topics.records(copy)
      assert kept == records[: len(kept)]
      found.add(len(kept))
  assert len(found) > 15 and min(found) == 1 and max(found) == len(records) - 1


@pytest.mark.parametrize("cut", [0, 20, 5000, -1])
def test_frames_that_were_counted_and_are_gone_are_told(killed, tmp_path, cut):
  folder, _ = killed
  copy = topics.copied(folder, tmp_path / "copy")
  os.truncate(copy / LOG, cut % (copy / LOG).stat().st_size)
  with pytest.raises(DataError, match="frame [0-9]+ is damaged|frames are missing"):
    topics.records(copy)
  os.remove(copy / LOG)
  with pytest.raises(DataError, match=f"{LOG}: [0-9]+ frames are missing that were acknowledged"):
    topics.records(copy)


def test_a_log_that_was_moved_into_the_file_may_be_gone(tmp_path):
  topic = topics.made(tmp_path, [topics.change(0)])
  topic.append([topics.change(1)])
  topic._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
  copy = topics.copied(tmp_path, tmp_path / "copy", ["t.sqlite", SHARED])
  topic.close()
  assert len(topics.records(copy)) == 2


def test_a_count_of_an_older_log_says_nothing(killed, tmp_path):
  """The -shm file is never synced: after a loss of power it may be of the log before."""
  folder, records = killed
  copy = topics.copied(folder, tmp_path / "copy")
  content = bytearray((copy / SHARED).read_bytes())
  for at in (0, 48):
    content[at + 16 : at + 20] = (10**6).to_bytes(4, "little")  # frames
    content[at + 32] ^= 1  # salt
  (copy / SHARED).write_bytes(content)
  assert topics.records(copy) == records
