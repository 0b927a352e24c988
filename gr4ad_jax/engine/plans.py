"""The searches that the server has compiled, what a batch of each takes, and what chooses among
them.
"""

import dataclasses
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence

from gr4ad_jax.answering.computing import Searches
from gr4ad_jax.decoding.traffic import BeamController, Costs

_TIMINGS = 3  # batches that are timed of each schedule and bucket
_PAUSE = 1e-4  # seconds between two of them, so that a batch of queries that waits gets its turn


@dataclasses.dataclass(frozen=True)
class Plan:
  """Swapped as a whole, so that schedules, costs and controller always speak of the same searches.

  Attributes:
    searches: those that are compiled.
    costs: seconds of a batch.
    controller: picks the schedule of each batch.
  """

  searches: Searches
  costs: Costs
  controller: BeamController


def plan(
  searches: Searches, compute: Callable[[int, int], None], base: Sequence[int], target: float
) -> Plan:
  """Times searches, and plans with them.

  Args:
    searches: those that are compiled.
    compute: computes a batch by the number of a schedule and a size.
    base: beam widths to begin with; the widest schedule up to them is taken.
    target: latency to hold, seconds.
  """
  table = []
  for schedule in range(len(searches.schedules)):
    # In the order of schedules and buckets, by whose numbers costs are looked up.
    table.append([_median_seconds(compute, schedule, size) for size in searches.buckets])
  costs = Costs(table, searches.buckets)
  return Plan(searches, costs, BeamController(costs, searches.up_to(base), target))


def _median_seconds(compute: Callable[[int, int], None], schedule: int, size: int) -> float:
  seconds = []
  for _ in range(1 + _TIMINGS):
    begin = time.monotonic()
    compute(schedule, size)
    seconds.append(time.monotonic() - begin)
    # Whoever waits for the processor gets it here.
    time.sleep(_PAUSE)
  return statistics.median(seconds[1:])  # the first one warms caches


def yield_to_others() -> None:
  """Makes the calling thread run only where no other one wants the processor, on Linux."""
  # Elsewhere a priority is that of the whole process.
  if sys.platform == "linux":
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
