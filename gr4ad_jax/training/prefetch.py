"""Batches made ready in threads while the devices work."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax

_MOST_THREADS = 8


def threads(wanted: int) -> int:
  """How many threads make batches: `wanted`; 0: one where the cores are the devices, else one a
  core, 8 at most.
  """
  if wanted:
    return wanted
  # On a CPU, more threads would take cores away from the step.
  return 1 if jax.default_backend() == "cpu" else min(_MOST_THREADS, os.cpu_count() or 1)


class Prefetcher:
  """Iterates over `(step, make(step))` for `step` in [first, last), a few batches ahead. A context
  manager.

  The order is that of the steps, and the batch depends on the step alone, so reading ahead changes
  nothing. What `make` raises is raised by the iteration, at its step.

  Args:
    make: step -> batch, on the devices already; called in several threads at once.
    first: first step.
    last: one past the last step.
    workers: threads; one batch more than that is ready or being made.
  """

  def __init__(self, make: Callable[[int], Any], first: int, last: int, workers: int = 1):
    self._make = make
    self._next = first
    self._last = last
    self._pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    self._ahead: collections.deque = collections.deque()
    # One more than there are threads: one batch is ready while each of them makes one.
    for _ in range(workers + 1):
      self._begin_one()

  def _begin_one(self) -> None:
    if self._next < self._last:
      self._ahead.append((self._next, self._pool.submit(self._make, self._next)))
      self._next += 1

  def __iter__(self) -> Iterator[tuple[int, Any]]:
    while self._ahead:
      step, future = self._ahead.popleft()
      # Waits for this very step, so that the order is kept however the threads fare.
      batch = future.result()
      # Before the batch is handed out, so that the next is made while it is worked on.
      self._begin_one()
      yield step, batch

  def close(self) -> None:
    """Stops the threads; batches that are ready are dropped."""
    self._pool.shutdown(cancel_futures=True)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()
