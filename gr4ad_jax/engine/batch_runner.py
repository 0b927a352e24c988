"""Runs batches with the parameters and the searches that are in use. Both are swapped between two
batches: a newer checkpoint is loaded, or more searches are compiled behind those in use.
"""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from gr4ad_jax.answering.computing import Computed, Loaded, Searches
from gr4ad_jax.answering.messages import Answer, Query
from gr4ad_jax.engine import plans
from gr4ad_jax.engine.batcher import Batcher, Closed, Limits
from gr4ad_jax.engine.metrics import Metrics
from gr4ad_jax.engine.opening import Opened
from gr4ad_jax.engine.plans import Plan
from gr4ad_jax.engine.result_cache import ResultCache, key

_log = logging.getLogger(__name__)


class BatchRunner:
  """Times the searches that are compiled, then answers batches of queries from a queue.

  Args:
    opened: the run.
    cache: keeps what may be answered again.
    metrics: hears of batches.

  Attributes:
    batcher: the queue, with the thread that takes batches from it.
  """

  def __init__(self, opened: Opened, cache: ResultCache, metrics: Metrics):
    self._config = opened.config
    self._living = opened.living
    self._searcher = opened.searcher
    self._computer = opened.computer
    self._loaded = opened.loaded
    self._neighbors = opened.neighbors
    self._cache = cache
    self._metrics = metrics
    # Whoever computes holds it: the batcher's thread, and what times searches behind it.
    self._turn = threading.Lock()
    self._closing = threading.Event()
    self._widener: threading.Thread | None = None
    self._plan = self._planned(opened.searches)
    serving = opened.config.serving
    limits = Limits(
      max(serving.buckets), serving.max_wait_ms / 1e3, serving.queue_size, serving.target_ms / 1e3
    )
    # `_plan` is looked up at each call, since it may be another one by then.
    self.batcher = Batcher(self._run, limits, lambda size: self._plan.costs.seconds(0, size))

  @property
  def loaded(self) -> Loaded:
    """The parameters in use."""
    return self._loaded

  @property
  def step(self) -> int:
    """Step of the checkpoint in use."""
    return self._loaded.step

  @property
  def neighbor_visits(self) -> int:
    """Visits of the stream that the co-visit neighbours in use know."""
    return self._neighbors.visits

  @property
  def schedules(self) -> tuple[tuple[int, ...], ...]:
    """Widths of the searches in use, narrowest first."""
    return self._plan.searches.schedules

  @property
  def beams(self) -> tuple[int, ...]:
    """Widths of the latest search."""
    # Read once: the controller's number is of its own plan's schedules.
    plan = self._plan
    return plan.searches.schedules[plan.controller.schedule]

  @property
  def utilisation(self) -> float:
    """Share of the time that the load needs; above 1 in overload."""
    return round(self._plan.controller.utilisation(self.batcher.load().arrivals), 4)

  @property
  def compiling(self) -> bool:
    """Whether searches are compiled behind the one that is in use."""
    return self._widener is not None and self._widener.is_alive()

  def use(self, step: int, params: Any) -> None:
    """Swaps the parameters, and the neighbours that belong to them, between two batches. Raises as
    `NeighborsInUse.read`; then all stays as it was.
    """
    neighbors = self._neighbors.read(step)
    loaded = Loaded(step, self._searcher.variables(params))
    # Whoever computes holds the turn, so a batch reads contexts and parameters of one checkpoint.
    with self._turn:
      self._neighbors.use(neighbors)
      self._loaded = loaded
    _log.info("checkpoint %d is in use", step)

  def widen(self, told: Callable[[int, int, float], None]) -> None:
    """Starts a thread that compiles the searches that are left, and uses them when all are there.

    Args:
      told: hears of the compilation: programs ready, programs in all, seconds so far.
    """
    self._widener = threading.Thread(target=self._widen, args=(told,), name="compiler", daemon=True)
    self._widener.start()

  def close(self) -> None:
    """Answers what waits, and takes nothing more. The compiler stops before its next search."""
    self._closing.set()
    self.batcher.close()

  def join(self) -> None:
    """Waits for the search that is being compiled, if there is one."""
    if self._widener is not None:
      self._widener.join()

  def _planned(self, searches: Searches) -> Plan:
    """Times searches, with users of the log, and plans with them. Queries that come meanwhile take
    turns.
    """
    # As many users as the largest bucket. A smaller batch takes the first of them.
    some = self._living.state.histories.user_ids[: searches.buckets[-1]]
    # A log with few users is filled up with requests without a history.
    users = [Query(user=user) for user in some]
    users += [Query(history=())] * (searches.buckets[-1] - len(users))

    def compute(schedule: int, size: int) -> None:
      with self._turn:
        self._computer.compute(users[:size], self._loaded, searches, schedule, shown=False)

    return plans.plan(
      searches, compute, self._config.search.beams, self._config.serving.target_ms / 1e3
    )

  def _widen(self, told: Callable[[int, int, float], None]) -> None:
    plans.yield_to_others()

    def heard(done: int, wanted: int, seconds: float) -> None:
      if self._closing.is_set():
        # What is left need not be compiled.
        raise Closed("the server is shutting down")
      told(done, wanted, seconds)

    try:
      self._computer.prepare(self._loaded.variables, told=heard)
      # The old plan answers until this one is whole.
      self._plan = self._planned(self._computer.searches)
    except Exception:
      # The searches that are compiled go on answering.
      if not self._closing.is_set():
        _log.exception("the other searches could not be compiled; the first one stays in use")

  def _key(self, query: Query, step: int) -> bytes:
    # The version grows with each event of the user, so an answer of before it is not found.
    version = self._living.lately.version(query.user)
    return key(query, step, self._config.serving.cache_seconds, version)

  def _run(self, queries: Sequence[Query]) -> list[Answer | Exception]:
    """A batch, on the batcher's thread."""
    with self._turn:
      return self._run_batch(queries, self._plan)

  def _run_batch(self, queries: Sequence[Query], plan: Plan) -> list[Answer | Exception]:
    begin = time.monotonic()
    # Both are taken before the search. An ad that is removed while it runs was known to it, and
    # the cache sees by the moment that the answer is older than the removal.
    moment = self._cache.moment
    loaded = self._loaded
    load = self.batcher.load()
    # The batch itself has left the queue, but it is load all the same.
    schedule = plan.controller.choose(
      begin, dataclasses.replace(load, queued=load.queued + len(queries))
    )
    # Before the histories are read: an event that comes meanwhile makes the key one of before.
    keys = [self._key(query, loaded.step) for query in queries]
    # The batcher predicts with the fastest schedule; this batch may run a wider one.
    self.batcher.expect(plan.costs.seconds(schedule, len(queries)))
    results = self._computer.compute(queries, loaded, plan.searches, schedule)
    widths = plan.searches.schedules[schedule]
    for query, name, result in zip(queries, keys, results, strict=True):
      # What was drawn for one request is not another's.
      if isinstance(result, Computed) and query.cache and not self._config.serving.explore:
        # A receipt belongs to one showing. Whoever gets the kept answer is counted anew.
        kept = dataclasses.replace(result.answer, source="cache", receipt=None)
        self._cache.put(name, kept, result.rows, moment, widths)
    seconds = time.monotonic() - begin
    # Costs follow what batches really take, so the next choice knows of a slower machine.
    plan.costs.observe(schedule, len(queries), seconds)
    self._metrics.batch(len(queries), seconds)
    return [result.answer if isinstance(result, Computed) else result for result in results]
