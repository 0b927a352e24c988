"""Batches made ready in a thread while the devices work."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Prefetcher:
  """Iterates over `(step, make(step))` for `step` in [first, last), a few batches ahead. A context manager.

  The order is that of the steps, and the batch depends on the step alone, so reading ahead changes nothing. What `make`
  raises is raised by the iteration, at its step.

  Args:
    make: step -> batch, on the devices already; called in one background thread.
    first: first step.
    last: one past the last step.
    depth: batches held ready.
  """

  def __init__(self, make: Callable[[int], Any], first: int, last: int, depth: int = 2):
    self._make, self._first, self._last = make, first, last
    self._ready: queue.Queue = queue.Queue(maxsize=depth)
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)
    self._thread.start()

  def _fill(self) -> None:
    for step in range(self._first, self._last):
      try:
        item = (step, self._make(step), None)
      except BaseException as error:  # handed over to the consumer, which raises it
        item = (step, None, error)
      while not self._stop.is_set():
        try:
          self._ready.put(item, timeout=0.1)
          break
        except queue.Full:
          continue
      if self._stop.is_set() or item[2] is not None:
        return

  def __iter__(self) -> Iterator[tuple[int, Any]]:
    for _ in range(self._first, self._last):
      step, batch, error = self._ready.get()
      if error is not None:
        raise error
      yield step, batch

  def close(self) -> None:
    """Stops the thread; batches that are ready are dropped."""
    self._stop.set()
    self._thread.join()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()
