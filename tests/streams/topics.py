"""A topic with many transactions, and copies of its files as a killed process leaves them."""

import os
import shutil
import subprocess
import sys

from gr4ad_jax.streams.topic import Change, Topic

FILES = ("t.sqlite", "t.sqlite-wal", "t.sqlite-shm")
CHANGES = 40


def made(folder, changes=(), retained=10_000) -> Topic:
  """A new topic in a folder, opened."""
  path = os.path.join(folder, "t.sqlite")
  Topic.create(path, "t", {"of": "tests"}, changes)
  return Topic(path, "t", retained)


def change(number: int) -> Change:
  """The n-th of a few keys' changes."""
  return Change(f"key {number % 7}", b"payload %d " % number * (number % 5 + 1))


def killed(folder) -> list[tuple[int, str, bytes]]:
  """Leaves a topic's files as a kill does; returns its records, one of each transaction."""
  folder.mkdir()
  subprocess.run([sys.executable, "-m", "tests.streams.topics", str(folder)], check=False)
  assert all((folder / name).stat().st_size for name in FILES)
  return [(number + 1, *change(number)[:2]) for number in range(CHANGES)]


def records(folder) -> list[tuple[int, str, bytes]]:
  """The records of a folder."""
  topic = Topic(str(folder / "t.sqlite"), "t")
  try:
    assert topic.notes == {"of": "tests"}
    return topic.records()
  finally:
    topic.close()


def copied(folder, to, names=FILES):
  """A copy of some of the files."""
  shutil.rmtree(to, ignore_errors=True)
  to.mkdir()
  for name in names:
    shutil.copy(folder / name, to)
  return to


def flip(path, at: int, bit: int) -> None:
  """Turns one bit of a file, at a byte counted around its end."""
  content = bytearray(path.read_bytes())
  content[at % len(content)] ^= 1 << bit
  path.write_bytes(content)


if __name__ == "__main__":
  topic = made(sys.argv[1], [change(0)])
  for n in range(1, CHANGES):
    topic.append([change(n)])
  os.kill(os.getpid(), 9)
