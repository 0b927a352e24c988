"""Tasks over a pool of processes, each of which may die: its task is done again."""

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

_PATIENCE = 3  # pools that break one after another before a task is done


class Pool:
  """Processes that do tasks; a context manager.

  Args:
    workers: processes; 0: all is done in this one.
  """

  def __init__(self, workers: int):
    self._workers = workers
    self._pool: concurrent.futures.ProcessPoolExecutor | None = None

  def run(self, task: Callable[..., Any], arguments: Sequence[tuple]) -> Iterator[tuple[int, Any]]:
    """Yields (number, result) of `task(*arguments[number])` as they are done, in any order.

    A task must be one that may be done twice: where a process dies, as by a kill for memory, the
    pool is made anew and does what was not done.

    Args:
      task: a function of a module, with arguments and results that can be pickled.
      arguments: of each call.

    Raises:
      OSError: processes died `_PATIENCE` times, and not one task was done between.
    """
    if not self._workers:
      yield from ((number, task(*some)) for number, some in enumerate(arguments))
      return
    # What is not done yet. A task that was done is not done again after a break.
    waiting = set(range(len(arguments)))
    broken = 0
    while waiting:
      try:
        for number, result in self._done(task, arguments, sorted(waiting)):
          # A result says that this pool works: only breaks one after another count.
          broken = 0
          waiting.discard(number)
          yield number, result
      except BrokenProcessPool as error:
        self.close()
        broken += 1
        if broken == _PATIENCE:
          raise OSError(
            f"worker processes died {broken} times at the same tasks: is memory short? Try fewer "
            "--workers, or less --memory_mb"
          ) from error

  def _done(self, task, arguments, numbers) -> Iterator[tuple[int, Any]]:
    """The tasks of some numbers, by the processes that there are, or by new ones."""
    if self._pool is None:
      # Spawned: a fork of a process with threads (Arrow's, JAX's) may hang.
      context = multiprocessing.get_context("spawn")
      self._pool = concurrent.futures.ProcessPoolExecutor(self._workers, mp_context=context)
    futures = {self._pool.submit(task, *arguments[number]): number for number in numbers}
    for future in concurrent.futures.as_completed(futures):
      yield futures[future], future.result()

  def close(self) -> None:
    """Ends the processes; tasks that wait are dropped."""
    if self._pool is not None:
      self._pool.shutdown(cancel_futures=True)
      self._pool = None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()
