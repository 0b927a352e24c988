"""A bounded queue in front of one worker thread: requests become batches, and those that would be
late are told so.

A request is refused when it arrives, not after it has waited: the time until its answer is
predicted from the queue and from what batches take. So accepted requests stay near the target
however many come.
"""

import collections
import concurrent.futures
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from gr4ad_jax.decoding.traffic import Load, Rate

_log = logging.getLogger(__name__)
_RECENT = 128  # requests whose latency is remembered
# Shares of the target: what the predicted time to an answer may take, by how load lasts.
_BURST = 1.5
_LASTING = 0.9
_FULL = 0.9  # utilisation from which load is taken to last


class Refused(Exception):
  """A request that is not computed."""


class Overloaded(Refused):
  """The queue is full, or so long that the answer would come too late.

  Attributes:
    retry_after: seconds after which the queue should be empty.
  """

  def __init__(self, message: str, retry_after: float = 1.0):
    super().__init__(message)
    self.retry_after = retry_after


class DeadlinePassed(Refused):
  """The answer would come, or has come, after the request's own deadline."""


class Closed(Overloaded):
  """The server is shutting down."""


@dataclasses.dataclass
class _Job:
  request: Any
  arrived: float
  deadline: float
  future: concurrent.futures.Future


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a batcher keeps to.

  Attributes:
    largest: requests of the largest batch.
    max_wait: seconds that a batch waits for more requests.
    queue_size: requests that may wait.
    target: latency to hold, seconds. A burst may go somewhat over it; in lasting overload it is
      kept. Where it is less than two batches take, those two count.
  """

  largest: int
  max_wait: float
  queue_size: int
  target: float


class Batcher:
  """Collects requests into batches and runs them on a thread of its own.

  Args:
    run: computes a batch, at most `limits.largest` requests; returns as many results, in order. A
      result that is an exception is raised for its request alone.
    limits: see `Limits`.
    seconds: expected seconds of a batch of so many requests, at the fastest that is allowed.
    clock: monotonic seconds.
  """

  def __init__(
    self,
    run: Callable[[list[Any]], Sequence[Any]],
    limits: Limits,
    seconds: Callable[[int], float],
    clock: Callable[[], float] = time.monotonic,
  ):
    self._run = run
    self._limits = limits
    self._seconds = seconds
    self._clock = clock
    self._queue: collections.deque[_Job] = collections.deque()
    self._wake = threading.Condition()
    self._closed = False
    # Of the batch at work: the moment at which it began, and seconds that it should take.
    self._started: float | None = None  # None: the worker is idle
    self._expected = 0.0
    self._offered = Rate(1.0)
    self._latencies: collections.deque[tuple[float, float]] = collections.deque(maxlen=_RECENT)
    self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
    self._thread.start()

  def __len__(self):
    return len(self._queue)

  @property
  def alive(self) -> bool:
    """Whether requests are taken."""
    return self._thread.is_alive() and not self._closed

  def submit(self, request: Any, deadline: float = math.inf) -> concurrent.futures.Future:
    """Queues a request.

    Args:
      request: what `run` takes.
      deadline: on the clock; a request whose turn comes too late for it is answered by
        DeadlinePassed, uncomputed.

    Returns:
      A future of the result. It may hold Overloaded or DeadlinePassed too, where the queue moved
      slower than predicted.

    Raises:
      Overloaded: no room, or the answer would come too late; Closed after `close`.
      DeadlinePassed: it would come after the deadline.
    """
    with self._wake:
      now = self._clock()
      # Counted before it is admitted: what was refused is load as well.
      self._offered.add(now)
      self._admit(now, deadline)
      job = _Job(request, now, deadline, concurrent.futures.Future())
      self._queue.append(job)
      self._wake.notify()
      return job.future

  def load(self) -> Load:
    """What the beam controller looks at."""
    with self._wake:
      now = self._clock()
      # Two seconds: older requests tell of a load that is over.
      recent = sorted(latency for when, latency in self._latencies if now - when < 2.0)
      # The 95th percentile, which one slow request in twenty does not move.
      latency = recent[int(0.95 * (len(recent) - 1))] if recent else 0.0
      return Load(len(self._queue), latency, self._offered.per_second(now))

  def expect(self, seconds: float) -> None:
    """For `run`: how long the batch at work should take, where that is not what `seconds` tells."""
    with self._wake:
      self._expected = seconds

  def close(self, timeout: float | None = None) -> None:
    """Takes no more requests, answers those that wait, and ends the thread."""
    with self._wake:
      self._closed = True
      self._wake.notify_all()
    self._thread.join(timeout)

  def _admit(self, now: float, deadline: float) -> None:
    if self._closed:
      raise Closed("the server is shutting down")
    wait = self._wait(now)
    if len(self._queue) >= self._limits.queue_size:
      raise Overloaded(f"{len(self._queue)} requests are waiting", wait)
    # Nothing runs and nobody waits.
    if self._started is None and not self._queue:
      # An idle worker always tries, so that a wrong prediction is corrected.
      return
    if wait > self._hold(now):
      raise Overloaded(f"{len(self._queue)} requests are waiting, {wait * 1e3:.0f} ms in all", wait)
    if now + wait > deadline:
      raise DeadlinePassed(f"the answer would take {wait * 1e3:.0f} ms")

  def _hold(self, now: float) -> float:
    """Seconds that a request's answer may be predicted to take; one that would take twice as
    long is given up.
    """
    share = _LASTING if self._lasts(now) else _BURST
    # Below two batches nothing could ever be answered: one that runs, and the request's own.
    return max(share * self._limits.target, 2 * self._seconds(self._limits.largest))

  def _lasts(self, now: float) -> bool:
    """Whether more comes than can be answered, so that a queue would not empty by itself."""
    largest = self._limits.largest
    # Requests a second, times seconds a request in full batches.
    return self._offered.per_second(now) * self._seconds(largest) / largest > _FULL

  def _wait(self, now: float) -> float:
    # This request counts, too.
    full, rest = divmod(len(self._queue) + 1, self._limits.largest)
    wait = full * self._seconds(self._limits.largest) + (self._seconds(rest) if rest else 0.0)
    if self._started is not None:
      # Below 0 where the batch takes longer than it should.
      left = self._expected - (now - self._started)
      # In overload, as long again as the batch is late already.
      wait += left if left > 0 else -left * self._lasts(now)
    return wait

  def _work(self) -> None:
    while (jobs := self._next()) is not None:
      results = self._results([job.request for job in jobs]) if jobs else ()
      with self._wake:
        now = self._clock()
        self._latencies.extend((now, now - job.arrived) for job in jobs)
        self._started = None
      # Outside the lock: whoever waits for a result may call the batcher from its callback.
      for job, result in zip(jobs, results, strict=True):
        _finish(job.future, result)

  def _results(self, requests: list[Any]) -> Sequence[Any]:
    try:
      return self._run(requests)
    except (
      Exception
    ) as error:  # whatever it is, it is these requests' answer, and the thread goes on
      _log.exception("a batch of %d requests failed", len(requests))
      return [error] * len(requests)

  def _next(self) -> list[_Job] | None:
    """Waits for the next batch; None when all is done."""
    with self._wake:
      while not self._queue:
        if self._closed:
          return None
        self._wake.wait()
      # A batch that is not full waits for more, but no longer than its first request may.
      while len(self._queue) < self._limits.largest and not self._closed:
        left = self._queue[0].arrived + self._limits.max_wait - self._clock()
        if left <= 0:
          break
        self._wake.wait(left)
      jobs, late = self._take()
      self._started = self._clock()
      # Where all were late, nothing is computed; a batch of one is the least that has a time.
      self._expected = self._seconds(max(len(jobs), 1))
    # Likewise outside the lock.
    for job, error in late:
      _finish(job.future, error)
    return jobs

  def _take(self) -> tuple[list[_Job], list[tuple[_Job, Refused]]]:
    """The next jobs that can still be answered in time, and those before them that cannot."""
    now = self._clock()
    jobs = []
    late = []
    hold = self._hold(now)
    # Seconds of the batch that would begin now.
    need = self._seconds(min(len(self._queue), self._limits.largest))
    while self._queue and len(jobs) < self._limits.largest:
      job = self._queue.popleft()
      # False: the client has given up meanwhile.
      if not job.future.set_running_or_notify_cancel():
        continue
      if now > job.deadline:
        late.append((job, DeadlinePassed("the deadline passed in the queue")))
      # It has waited twice what it was promised: others behind it still have a chance.
      elif now + need > job.arrived + 2 * hold:
        late.append((job, Overloaded("the queue moves slower than predicted", need)))
      else:
        jobs.append(job)
    return jobs, late


def _finish(future: concurrent.futures.Future, result: Any) -> None:
  if isinstance(result, BaseException):
    future.set_exception(result)
  else:
    future.set_result(result)
