"""The serving engine: a run, opened to answer queries within a latency target while ads, load and
checkpoints change.

A query meets, in this order: the result cache, admission, the queue, a batch, the search. What
cannot be answered in time gets a list of popular ads, or is refused.
"""

import asyncio
import concurrent.futures
import dataclasses
import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from gr4ad_jax.answering.messages import Answer, Query, UnknownUser
from gr4ad_jax.config import Config
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.engine.batch_runner import BatchRunner
from gr4ad_jax.engine.batcher import DeadlinePassed, Overloaded, Refused
from gr4ad_jax.engine.changes import Changes
from gr4ad_jax.engine.explaining import Explaining
from gr4ad_jax.engine.metrics import Metrics, Series
from gr4ad_jax.engine.opening import Opened, open_run
from gr4ad_jax.engine.reload import Reloader
from gr4ad_jax.engine.result_cache import ResultCache, key
from gr4ad_jax.engine.showing import Showing
from gr4ad_jax.learning.status import LoopStatus

_log = logging.getLogger(__name__)


class ServingEngine(Changes):
  """Answers queries from several threads, or from an event loop.

  Args:
    workdir: a trained run; changes of ads are kept in its `live` folder.
    config: of the run, its search and serving sections as wanted; None: the run's own.
    checkpoint: 'best', 'last' or a step; a newer one of the same kind is loaded when it appears.
    told: hears of the compilation: programs ready, programs in all, seconds so far.
    early: whether to take queries as soon as one search is compiled; the others are compiled behind
      it, at low priority, and used when all are there.
    arm: what its answers are noted as.

  Raises:
    FileNotFoundError, ConfigError, DataError: as `opening.open_run` does.
    ImportError: the `serve` extra is missing.
  """

  def __init__(
    self, workdir: str, config: Config | None = None, checkpoint: int | str = "best",
    told: Callable[[int, int, float], None] = lambda *_: None, early: bool = False, arm: str = "",
  ):  # fmt: skip
    self.series = Series()
    self._arm = arm
    self._loop = LoopStatus(workdir)
    # Opened before the metrics, whose readings name its parts. They are read when somebody asks.
    opened = open_run(workdir, config, checkpoint, told, only_first=early)
    try:
      self.metrics = Metrics(self._readings() | opened.living.readings())
      self._begin(opened, told)
    # What was opened holds files and threads.
    except BaseException:
      opened.living.close()
      opened.catalog.close()
      raise

  def _begin(self, opened: Opened, told: Callable[[int, int, float], None]) -> None:
    """Times the searches, then starts the threads."""
    self.config = opened.config
    self.catalog = opened.catalog
    self.living = opened.living
    self._computer = opened.computer
    self._showing = Showing(opened.catalog, opened.computer, opened.popular)
    serving = opened.config.serving
    self._accounts = opened.accounts
    self._ledger = opened.computer.ledger
    most_bytes = serving.cache_mb << 20
    self._cache = ResultCache(serving.cache_seconds, serving.cache_entries, most_bytes=most_bytes)
    # An ad that is removed must not come out of the cache.
    self.catalog.on_removed.append(self._cache.drop)
    self._closing = threading.Event()
    self._runner = BatchRunner(opened, self._cache, self.metrics)
    self._batcher = self._runner.batcher
    self._explaining = Explaining(
      opened.computer, lambda: self._runner.loaded, serving.explained_ads
    )
    self.catalog.start()
    self._reloader = Reloader(opened.source, self.step, self._runner.use, serving.reload_seconds)
    self._ticker = threading.Thread(target=self._tick, name="ticker", daemon=True)
    self._ticker.start()
    # The first search answers already; the others are compiled behind it.
    if opened.searches != self._computer.searches:
      self._runner.widen(told)

  # Queries

  def submit(self, query: Query) -> concurrent.futures.Future:
    """Queues a query.

    Returns:
      A future of its Answer; it may also hold DataError, UnknownUser or a Refused.

    Raises:
      Overloaded, DeadlinePassed: see `Batcher.submit`.
    """
    kept = None
    if query.cache:
      version = self.living.lately.version(query.user)
      name = key(query, self.step, self.config.serving.cache_seconds, version)
      kept = self._cache.get(name, self.beams)
    # A kept answer is shown once more, and so it counts once more.
    if kept is not None and self._ledger.counts:
      # None where a cap or a budget forbids one of the ads by now: then it is computed anew.
      kept = self._showing.again(query, kept)
    if kept is not None:
      # Done from the start, so that callers need to know one form of answer alone.
      future = concurrent.futures.Future()
      future.set_result(kept)
      return future
    return self._batcher.submit(query, time.monotonic() + self._patience(query))

  def recommend(self, query: Query) -> Answer:
    """Answers a query; waits until its deadline at most.

    Raises:
      DataError: an entry of the history that is not allowed.
      UnknownUser: there is no such user.
      Overloaded, DeadlinePassed: it cannot be answered in time, and the query wants no fallback
        then.
    """
    begin = time.monotonic()
    future = None
    try:
      future = self.submit(query)
      answer = future.result(self._patience(query))
    except Exception as error:
      # It may still be computed, and would be counted for nobody.
      self._showing.forgo(future)
      answer = self._instead(query, error, begin)
    answer = self._given(query, answer, begin)
    return self._explaining.explained(query, answer, begin + self._patience(query))

  async def recommend_async(self, query: Query) -> Answer:
    """As `recommend`, on an event loop."""
    begin = time.monotonic()
    future = None
    try:
      future = self.submit(query)
      # A kept answer is at hand, and nothing is waited for.
      if not future.done():
        # At the deadline the query is cancelled with the wait. While it is still queued, it is then
        # not computed.
        await asyncio.wait_for(asyncio.wrap_future(future), self._patience(query))
      answer = future.result()
    except Exception as error:
      self._showing.forgo(future)
      answer = self._instead(query, error, begin)
    answer = self._given(query, answer, begin)
    return await self._explaining.explained_async(query, answer, begin + self._patience(query))

  def _given(self, query: Query, answer: Answer, begin: float) -> Answer:
    """Counts an answer, and hands it to those who write what is shown."""
    # Each answer has an id of its own, also one that was kept.
    answer = dataclasses.replace(answer, request=uuid.uuid4().hex)
    self._count(answer.source, begin)
    tried = {"trial": answer.trial} if answer.trial else {}
    self.living.impressions.add(query, answer, time.monotonic() - begin, self._arm, **tried)
    return answer

  def _patience(self, query: Query) -> float:
    return (
      self.config.serving.deadline_ms if query.deadline_ms is None else query.deadline_ms
    ) / 1e3

  def _instead(self, query: Query, error: Exception, begin: float) -> Answer:
    """The fallback list where the query wants it after such an error; else raises what the
    caller is to see.
    """
    # The client's mistakes have no fallback.
    if isinstance(error, (DataError, UnknownUser)):
      self._count("bad", begin)
      raise error
    if isinstance(error, TimeoutError):
      error = DeadlinePassed("the deadline passed")
    elif not isinstance(error, Refused):
      _log.error("a query failed: %s", error)
      self._count("failed", begin)
      error = Overloaded("the model failed")
    # Without a wish: not in overload, when every answer costs something.
    wanted = query.fallback if query.fallback is not None else not isinstance(error, Overloaded)
    if wanted and (answer := self._showing.popular(query, self.step)) is not None:
      return answer
    self._count("deadline" if isinstance(error, DeadlinePassed) else "refused", begin)
    raise error

  def _count(self, outcome: str, begin: float) -> None:
    seconds = time.monotonic() - begin
    self.metrics.request(outcome, seconds)
    self.series.record(outcome, seconds)

  # State

  @property
  def ready(self) -> bool:
    """Whether queries are answered."""
    return not self._closing.is_set() and self._batcher.alive

  @property
  def compiling(self) -> bool:
    """Whether searches are compiled behind the one that is in use."""
    return self._runner.compiling

  @property
  def step(self) -> int:
    """Step of the checkpoint in use."""
    return self._runner.step

  @property
  def beams(self) -> tuple[int, ...]:
    """Widths of the latest search."""
    return self._runner.beams

  def reload(self) -> bool:
    """Looks for another checkpoint now. Returns whether one came into use; raises what is wrong
    with it.
    """
    return self._reloader.look()

  def stats(self) -> dict[str, Any]:
    """The present state, and a point a second of the last ten minutes."""
    return {
      "target_ms": self.config.serving.target_ms,
      "beams": self.beams,
      "schedules": self._runner.schedules,
      "checkpoint": self.step,
      "compiling": self.compiling,
      "ads": self.catalog.index.num_active,
      "users": self.living.num_users,
      "cache_entries": len(self._cache),
      "points": self.series.points(),
    } | self._of_loop()

  def _of_loop(self) -> dict[str, Any]:
    """What the page tells of learning; nothing where nobody learns."""
    found = self._loop.read()
    return {} if found is None else {"loop": found}

  def close(self, wait: bool = True) -> None:
    """Takes no more queries, answers those that wait, and lets go of threads and files.

    Args:
      wait: for what is being compiled behind it, if anything is. Who does not must end
        the process by `os._exit`: a thread in the compiler outlives the interpreter's end badly.
    """
    if self._closing.is_set():
      return
    self._closing.set()
    # In this order: no new batches, then no new parameters, then what the batches read.
    self._runner.close()
    self._reloader.close()
    self._ticker.join()
    self.living.close()
    self.catalog.close()
    # Last, since it may take as long as a compilation.
    if wait:
      self._runner.join()
      self._explaining.wait()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def _tick(self) -> None:
    before = self.living.follower.events
    while not self._closing.wait(1.0):
      load = self._batcher.load()
      events = self.living.follower.events
      self.series.state(
        queued=load.queued, utilisation=self._runner.utilisation, beams=self.beams,
        events=events - before,
      )  # fmt: skip
      before = events

  def _readings(self) -> dict[str, tuple[str, Callable[[], float]]]:
    return {
      "queue_length": ("Requests that wait.", lambda: len(self._batcher)),
      "utilisation": (
        "Share of the time that the load needs; above 1 in overload.",
        lambda: self._runner.utilisation,
      ),
      "beam_width": ("Last width of the beams.", lambda: self.beams[-1]),
      "cache_entries": ("Answers in the cache.", lambda: len(self._cache)),
      "cache_bytes": ("Memory of the answers in the cache, bytes.", lambda: self._cache.nbytes),
      "ads": ("Ads that can be generated.", lambda: self.catalog.index.num_active),
      "index_fill": ("Share of the index' overlay in use.", lambda: self.catalog.index.fill),
      "index_bytes": ("Memory of the index, bytes.", lambda: self.catalog.index.nbytes),
      "compiling": (
        "Whether searches are compiled behind the one in use.",
        lambda: float(self.compiling),
      ),
      "checkpoint_step": ("Step of the parameters in use.", lambda: self.step),
      "neighbor_visits": (
        "Visits of the stream that the co-visit neighbours in use know.",
        lambda: self._runner.neighbor_visits,
      ),
    }
