"""Writers that arrive together share one write to the disk (*group commit*).

A write that is synced takes long, almost whatever it holds. So while one is under way, changes
wait, and the next write takes them all. Memory hears of a change after the disk has it.
"""

import threading
from collections.abc import Callable
from typing import Any


class Waiting:
  """A change on its way to the disk.

  Attributes:
    value: the change.
    done: whether it is known how it ended.
    error: why it did not get there. None where it did.
  """

  def __init__(self, value: Any):
    self.value = value
    self.done = False
    self.error: Exception | None = None


class GroupCommit:
  """The changes that wait, in order.

  Args:
    lock: of the memory that changes are made from. It is held around `add` by the caller, and
      around `apply` here, but not around `write`: others are prepared meanwhile.
    write: brings a list of changes to the disk, all or none.
    apply: takes one change to memory.

  Attributes:
    waiting: changes that are not in memory yet. The next one is made as if they were. To be read
      with the lock held.
  """

  def __init__(self, lock: Any, write: Callable[[list[Any]], None], apply: Callable[[Any], None]):
    self._lock = lock
    self._write = write
    self._apply = apply
    # Apart from `lock`: a writer whose change is done returns while the next write is under way.
    self._turn = threading.Condition()
    self._busy = False  # whether a thread writes, for all
    self.waiting: list[Waiting] = []

  def add(self, value: Any) -> Waiting:
    """Takes a change. Nothing is written yet."""
    change = Waiting(value)
    self.waiting.append(change)
    return change

  def wait(self, change: Waiting) -> None:
    """Returns when a change is on disk and in memory.

    Raises:
      OSError: it could not be written, or one that it was made upon. Memory is as it was before.
    """
    self._lead_unless(lambda: change.done)
    if change.error is not None:
      raise change.error

  def flush(self) -> None:
    """Writes what waits. Returns when it is written, or when its writers hear why it is not."""
    self._lead_unless(lambda: False)

  def _lead_unless(self, done: Callable[[], bool]) -> None:
    """Waits for the thread that writes; then writes what waits, unless that is no longer needed."""
    # There is no thread for writing: whoever finds none busy leads, and the others' changes go with
    # its own.
    with self._turn:
      self._turn.wait_for(lambda: done() or not self._busy)
      if done():
        return
      self._busy = True
    try:
      self._commit()
    finally:
      with self._turn:
        self._busy = False
        self._turn.notify_all()

  def _commit(self) -> None:
    """Writes what waits now, then takes it to memory, in order. Errors go to those who wait."""
    with self._lock:
      # A copy: changes that come while it is written stay behind it in the list.
      batch = list(self.waiting)
    try:
      if batch:
        self._write([change.value for change in batch])
    except Exception as error:
      with self._lock:
        # Those that came meanwhile fail too: they were made as if these were in memory.
        failed = self.waiting
        self.waiting = []
        for change in failed:
          change.error = error
          change.done = True
      return
    with self._lock:
      for change in batch:
        try:
          self._apply(change.value)
        except Exception as error:
          # It is on disk, and its writer hears why it is not in memory.
          change.error = error
        change.done = True
      # Those in front: what came meanwhile stands behind them and waits for the next write.
      del self.waiting[: len(batch)]
