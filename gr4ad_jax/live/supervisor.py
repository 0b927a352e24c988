"""Processes that are to run all the time: started in order, started again when they die, stopped in
order.

A process that ends by itself is started again after a pause, which doubles from one to 60 seconds
and is one second again after a good minute. Status 2 is a mistake of the user's (a flag, a file):
to start again would not help, so all stop. What a process says goes on, line by line, behind its
name.
"""

import ctypes
import dataclasses
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

_FIRST_PAUSE = 1.0  # seconds
_LONGEST_PAUSE = 60.0
_GOOD = 60.0  # seconds after which a process counts as one that works
_GRACE = 60.0  # seconds that a process has to stop: a learner may be compiling
_LOOK = 0.1  # seconds between two looks
_MISTAKE = 2  # exit status of the binaries for what the user has to mend
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclasses.dataclass(frozen=True)
class Service:
  """A process to keep alive.

  Attributes:
    name: stands before each of its lines.
    command: its words.
    ready: whether it can be used; the next ones are started then. None: at once.
    once: whether it is done when it ends with status 0.
    nice: by how much it lets others go first, as nice(1).
  """

  name: str
  command: Sequence[str]
  ready: Callable[[], bool] | None = None
  once: bool = False
  nice: int = 0


class _Running:
  """A service with its process."""

  def __init__(self, service: Service):
    self.service = service
    self.process: subprocess.Popen | None = None
    self.began = 0.0
    self.pause = _FIRST_PAUSE
    self.again_at = 0.0  # when to start again
    self.starts = 0
    self.done = False
    self.was_ready = False
    self.reader: threading.Thread | None = None


class Supervisor:
  """Keeps services alive.

  Args:
    services: in the order in which they are started; they are stopped in the other one.
    told: hears of every line.
    clock: seconds.

  Attributes:
    restarts: name -> how often a service was started again.
  """

  def __init__(
    self,
    services: Sequence[Service],
    told: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
  ):
    self._running = [_Running(service) for service in services]
    self._told = told
    self._clock = clock
    self._stop = threading.Event()

  @property
  def restarts(self) -> dict[str, int]:
    """Name -> how often a service was started again."""
    return {one.service.name: max(one.starts - 1, 0) for one in self._running}

  def stop(self) -> None:
    """Ends `run`; may be called from a signal's handler."""
    self._stop.set()

  def run(self) -> int:
    """Runs all until `stop`, or until one ends by the user's mistake.

    Returns:
      0, or the status of that one.
    """
    status = 0
    try:
      while not self._stop.is_set():
        status = self._look()
        if status:
          break
        self._stop.wait(_LOOK)
    finally:
      self._stop_all()
    return status

  def _look(self) -> int:
    """Starts what is to run, and looks at what runs. Returns the status that ends all, else 0."""
    for one in self._running:
      if one.done:
        continue
      if one.process is not None and (status := one.process.poll()) is not None:
        self._ended(one, status)
        # Others would fail by the same mistake.
        if status == _MISTAKE:
          return status
      if one.done:
        continue
      if one.process is None and self._clock() >= one.again_at:
        self._start(one)
      if not one.was_ready:
        self._look_whether_ready(one)
      if not one.was_ready:
        return 0  # those behind it wait
    return 0

  def _look_whether_ready(self, one: _Running) -> None:
    ready = one.service.ready
    if one.process is None or ready is not None and not ready():
      return
    one.was_ready = True
    self._told(f"{one.service.name}: {'started' if ready is None else 'ready'}")

  def _start(self, one: _Running) -> None:
    one.starts += 1
    one.began = self._clock()
    # A session of its own: Ctrl-C on the terminal reaches the supervisor alone, which stops all in
    # order. Where the supervisor is killed, the kernel ends the process.
    one.process = subprocess.Popen(
      list(one.service.command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
      stdin=subprocess.DEVNULL, start_new_session=True,
      preexec_fn=functools.partial(_begin, one.service.nice),
    )  # fmt: skip
    name = f"lines of {one.service.name}"
    one.reader = threading.Thread(target=self._pass_on, args=(one,), name=name, daemon=True)
    one.reader.start()

  def _pass_on(self, one: _Running) -> None:
    # The pipe was asked for above; this tells it to type checkers.
    assert one.process is not None and one.process.stdout is not None
    with one.process.stdout as lines:
      for line in lines:
        # Whatever a process writes, it must not end the thread that reads it: a full
        # pipe would stop it.
        text = line.decode("utf-8", "replace").rstrip()
        if text:
          self._told(f"{one.service.name}: {text}")

  def _ended(self, one: _Running, status: int) -> None:
    if one.reader is not None:
      one.reader.join(1.0)  # its last words come first
    name = one.service.name
    one.process = None
    if status == 0 and one.service.once:
      one.done = True
      self._told(f"{name}: done")
      return
    # A negative status is the number of a signal.
    how = signal.Signals(-status).name if status < 0 else f"status {status}"
    if status == _MISTAKE:
      self._told(f"{name}: ended with {how}, a mistake that starting again does not mend: stopping")
      return
    # It worked for a while, so its next failure is a first one again.
    if self._clock() - one.began >= _GOOD:
      one.pause = _FIRST_PAUSE
    self._told(f"{name}: ended with {how}; starts again in {one.pause:.0f} s")
    one.again_at = self._clock() + one.pause
    one.pause = min(2 * one.pause, _LONGEST_PAUSE)

  def _stop_all(self) -> None:
    # Those that need others stop before them. First of all what comes to an end by itself: it keeps
    # the others busy.
    order = sorted(reversed(self._running), key=lambda one: not one.service.once)
    for one in order:
      if one.process is None:
        continue
      if one.process.poll() is None:
        one.process.send_signal(signal.SIGTERM)
      try:
        # Time to save and to close what it has open.
        one.process.wait(_GRACE)
      except subprocess.TimeoutExpired:
        self._told(f"{one.service.name}: does not stop: killed")
        one.process.kill()
        one.process.wait()
      if one.reader is not None:
        one.reader.join(1.0)
      self._told(f"{one.service.name}: stopped")
      one.process = None


def _begin(nice: int) -> None:
  """In the new process. The kernel sends it SIGTERM when the supervisor is gone (Linux)."""
  os.nice(nice)
  if _LIBC is not None:
    # The kernel tells it, so that no process outlives the supervisor.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
