"""Tasks over a pool of processes, each of which may die: its task is done again."""

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

_PATIENCE = 3  # pools that break one after another before a task is done


def run(
  task: Callable[..., Any], arguments: Sequence[tuple], workers: int
) -> Iterator[tuple[int, Any]]:
  """Yields (number, result) of `task(*arguments[number])` as they are done, in any order.

  A task must be one that may be done twice: where a process dies, as by a kill for memory, the pool
  is made anew and does what was not done.

  Args:
    task: a function of a module, with arguments and results that can be pickled.
    arguments: of each call.
    workers: processes; 0: all is done in this one.

  Raises:
    OSError: processes died `_PATIENCE` times, and not one task was done between.
  """
  if not workers:
    yield from ((number, task(*some)) for number, some in enumerate(arguments))
    return
  waiting = set(range(len(arguments)))
  broken = 0
  while waiting:
    # Spawned: a fork of a process with threads (Arrow's, JAX's) may hang.
    context = multiprocessing.get_context("spawn")
    size = min(workers, len(waiting))
    pool = concurrent.futures.ProcessPoolExecutor(size, mp_context=context)
    try:
      futures = {pool.submit(task, *arguments[number]): number for number in sorted(waiting)}
      for future in concurrent.futures.as_completed(futures):
        result = future.result()
        broken = 0
        waiting.discard(futures[future])
        yield futures[future], result
    except BrokenProcessPool as error:
      broken += 1
      if broken == _PATIENCE:
        raise OSError(
          f"worker processes died {broken} times at the same tasks: is memory short? Try fewer "
          "--workers, or less --memory_mb"
        ) from error
    finally:
      pool.shutdown(cancel_futures=True)
