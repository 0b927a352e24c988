"""Group commit: how many writes serve how many writers, in which order; one that fails."""

import threading

import pytest

from gr4ad_jax.streams.group_commit import GroupCommit


class Disk:
  """Holds what was written and what was then applied."""

  def __init__(self):
    self.lock, self.writes, self.memory = threading.Lock(), [], []

  def write(self, values):
    self.writes.append(list(values))

  def apply(self, value):
    assert any(value in batch for batch in self.writes)
    self.memory.append(value)


def test_writers_that_wait_together_share_one_write():
  """8 writers of 10 changes each: all add, then all wait."""
  disk, meet = Disk(), threading.Barrier(8)
  commits = GroupCommit(disk.lock, disk.write, disk.apply)

  def write(writer):
    for n in range(10):
      with disk.lock:
        change = commits.add((writer, n))
      meet.wait(60)
      commits.wait(change)
      assert (writer, n) in disk.memory

  threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(disk.memory) == [(writer, n) for writer in range(8) for n in range(10)]
  assert disk.memory == [value for batch in disk.writes for value in batch] and not commits.waiting
  assert all([n for w, n in disk.memory if w == writer] == list(range(10)) for writer in range(8))
  assert len(disk.writes) == 10


def test_those_that_are_written_return_while_the_next_write_is_under_way():
  disk, threads = Disk(), {}
  begun, go = threading.Event(), threading.Event()

  def begin(*names):
    for name in names:
      change = commits.add(name)
      threads[name] = threading.Thread(target=commits.wait, args=(change,))
    for name in names:
      threads[name].start()

  def write(values):
    disk.write(values)
    if values == ["a"]:
      begin("b", "c")
    elif "late" not in threads:
      begin("late")
    else:
      begun.set()
      assert go.wait(60)

  commits = GroupCommit(disk.lock, write, disk.apply)
  commits.wait(commits.add("a"))
  assert begun.wait(60)
  threads["b"].join(60)
  threads["c"].join(60)
  assert not threads["b"].is_alive() and not threads["c"].is_alive()
  assert disk.writes == [["a"], ["b", "c"], ["late"]] and disk.memory == ["a", "b", "c"]
  go.set()
  threads["late"].join()
  assert disk.memory[-1] == "late"


def test_a_write_that_fails_is_heard_by_all_that_were_made_upon_it():
  disk = Disk()

  def full(values):
    late.append(commits.add("late"))  # comes while the disk is busy
    raise OSError(28, "full")

  commits, late = GroupCommit(disk.lock, full, disk.apply), []
  changes = [commits.add("a"), commits.add("b")]
  for change in (*changes, *late):
    with pytest.raises(OSError, match="full"):
      commits.wait(change)
  assert len(late) == 1 and late[0].done and disk.memory == [] and commits.waiting == []
  with pytest.raises(OSError, match="full"):
    commits.wait(late[0])


def test_one_that_memory_cannot_take_does_not_stop_the_others():
  disk = Disk()

  def apply(value):
    if value == "b":
      raise ValueError("no room")
    disk.memory.append(value)

  commits = GroupCommit(disk.lock, disk.write, apply)
  a, b, c = (commits.add(value) for value in "abc")
  commits.wait(c)
  commits.wait(a)
  with pytest.raises(ValueError, match="no room"):
    commits.wait(b)
  assert disk.memory == ["a", "c"] and disk.writes == [["a", "b", "c"]]
  commits.flush()
  assert len(disk.writes) == 1  # nothing waits, nothing is written
