"""The memory of a process and of those that it starts, watched from outside."""

import os
import subprocess
import threading
import time
from collections.abc import Sequence

_EVERY = 0.1  # seconds


class Watched:
  """Runs a command to its end, and looks at its processes meanwhile.

  Attributes:
    seconds: it took.
    cpu_seconds: of it and all that it started, of both modes.
    peaks: for each process by number, MiB: the peak of what it held (`rss`, mapped files included)
      and of what was its own (`own`, memory that no file backs), the largest first.
    status: its exit status.
  """

  def __init__(self, command: Sequence[str]):
    begin = time.perf_counter()
    used = _children()
    self._found: dict[int, dict[str, float]] = {}
    with subprocess.Popen(command) as process:
      over = threading.Event()
      thread = threading.Thread(target=self._look, args=(process.pid, over))
      thread.start()
      self.status = process.wait()
      over.set()
      thread.join()
    self.seconds = time.perf_counter() - begin
    self.cpu_seconds = _children() - used
    self.peaks = sorted(self._found.values(), key=lambda peak: -peak["rss"])

  def _look(self, root: int, over: threading.Event) -> None:
    # What lives for less than a tenth of a second may be missed.
    while not over.wait(_EVERY):
      for pid in _tree(root):
        status = _status(pid)
        known = self._found.setdefault(pid, {"rss": 0.0, "own": 0.0})
        # VmHWM is the kernel's own peak, so nothing is missed between two looks. RssAnon is of now,
        # and its peak is that of the looks.
        known["rss"] = max(known["rss"], status.get("VmHWM", 0) / 1024)
        known["own"] = max(known["own"], status.get("RssAnon", 0) / 1024)


def _children() -> float:
  times = os.times()
  return times.children_user + times.children_system


def _tree(root: int) -> list[int]:
  """A process and all below it."""
  found = [root]
  # The list grows while it is walked: children of children come behind.
  for pid in found:
    try:
      with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        found += map(int, file.read().split())
    except OSError:  # it has ended
      continue
  return found


def _status(pid: int) -> dict[str, int]:
  """KiB by name, of /proc/<pid>/status."""
  try:
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
      lines = [line.split() for line in file]
  except OSError:
    return {}
  return {line[0][:-1]: int(line[1]) for line in lines if line[-1] == "kB"}
