"""Batching, admission, deadlines and shutdown, with a worker whose speed the test sets."""

import contextlib
import math
import random
import threading
import time

import pytest

from gr4ad_jax.engine.batcher import Batcher, Closed, DeadlinePassed, Limits, Overloaded
from tests.timing import quickest

# A machine may stand still for a second or two: what is about lateness has a clock that the test
# moves, and the rest a target that such a pause does not reach.
LIMITS = Limits(largest=4, max_wait=0.01, queue_size=100, target=100.0)
STRICT = Limits(largest=4, max_wait=0.0, queue_size=100, target=0.1)


class Clock:
  """Seconds that the test sets."""

  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


class Worker:
  """Doubles numbers; waits at `gate` when it is shut. Remembers the batches."""

  def __init__(self):
    self.batches, self.gate, self.entered = [], threading.Event(), threading.Event()
    self.gate.set()

  def __call__(self, requests):
    self.batches.append(list(requests))
    self.entered.set()
    self.gate.wait(10)
    return [ValueError("odd") if request == "bad" else 2 * request for request in requests]


@pytest.fixture
def made():
  """Makes batchers, and closes them."""
  found = []

  def make(worker, limits=LIMITS, seconds=lambda size: 0.001, clock=time.monotonic):
    found.append((worker, Batcher(worker, limits, seconds, clock)))
    return found[-1][1]

  yield make
  for worker, batcher in found:
    worker.gate.set()
    batcher.close(10)
    assert not batcher.alive


def busy(worker, batcher):
  """Shuts the gate behind one request, so that all others wait."""
  worker.gate.clear()
  first = batcher.submit(0)
  assert worker.entered.wait(10)
  return first


def idle(batcher):
  """Whether nothing is queued or at work."""
  with batcher._wake:
    return not batcher._queue and batcher._started is None


def test_each_gets_its_own_answer(made):
  batcher = made(Worker())
  futures = [batcher.submit(n) for n in range(50)]
  assert [future.result(10) for future in futures] == [2 * n for n in range(50)]


def test_what_waits_becomes_one_batch(made):
  worker = Worker()
  batcher = made(worker)
  futures = [busy(worker, batcher), *(batcher.submit(n) for n in range(1, 7))]
  worker.gate.set()
  assert [future.result(10) for future in futures] == [0, 2, 4, 6, 8, 10, 12]
  assert [len(batch) for batch in worker.batches] == [1, 4, 2]


def test_a_lone_request_waits_no_longer_than_max_wait(made):
  batcher = made(Worker(), Limits(largest=4, max_wait=0.05, queue_size=9, target=100.0))

  def ask():
    assert batcher.submit(1).result(10) == 2

  assert 0.04 < quickest(ask) < 0.5


def test_a_full_batch_does_not_wait(made):
  batcher = made(Worker(), Limits(largest=4, max_wait=1000.0, queue_size=9, target=100.0))

  def ask():
    assert [future.result(10) for future in [batcher.submit(n) for n in range(4)]] == [0, 2, 4, 6]

  assert quickest(ask) < 2.0


def test_a_full_queue_refuses_and_says_when_to_come_again(made):
  worker = Worker()
  batcher = made(
    worker, Limits(largest=4, max_wait=0, queue_size=3, target=100.0), seconds=lambda size: 2.0
  )
  busy(worker, batcher)
  waiting = [batcher.submit(n) for n in range(3)]
  with pytest.raises(Overloaded, match="3 requests are waiting") as refusal:
    batcher.submit(9)
  assert 2.0 <= refusal.value.retry_after <= 5.0
  worker.gate.set()
  assert [future.result(10) for future in waiting] == [0, 2, 4]


def test_a_wait_past_the_target_is_refused_at_once(made):
  worker = Worker()
  batcher = made(worker, STRICT, lambda size: 0.04, Clock())
  busy(worker, batcher)
  accepted = 0
  with pytest.raises(Overloaded):
    for n in range(99):
      batcher.submit(n)
      accepted += 1
  assert (
    accepted == 8
  )  # a burst: the batch at work and two more are 120 ms; a third would end past 1.5 times 100


def test_lasting_overload_is_held_to_the_target(made):
  clock, worker = Clock(), Worker()
  batcher = made(
    worker, Limits(4, 0.0, queue_size=1, target=0.1), lambda size: 0.02, clock
  )  # 200 a second
  busy(worker, batcher)
  batcher.submit(1)

  def hold_at(rate):
    for _ in range(4 * rate):
      clock.now += 1 / rate
      with pytest.raises(Overloaded):
        batcher.submit(1)
    return batcher._hold(clock.now)

  assert [hold_at(rate) for rate in (100, 600, 100)] == pytest.approx([0.15, 0.09, 0.15])


def test_a_model_slower_than_the_target_still_serves(made):
  worker = Worker()
  batcher = made(worker, STRICT, lambda size: 1.0, Clock())
  first = busy(worker, batcher)
  second = batcher.submit(1)
  worker.gate.set()
  assert (first.result(10), second.result(10)) == (0, 2)


def test_a_deadline_that_cannot_be_met_is_told_at_once(made):
  worker = Worker()
  batcher = made(worker, STRICT, lambda size: 0.04, Clock())
  busy(worker, batcher)
  with pytest.raises(DeadlinePassed, match="would take 80 ms"):
    batcher.submit(1, 0.06)


def test_what_expires_in_the_queue_is_not_computed(made):
  clock, worker = Clock(), Worker()
  batcher = made(worker, STRICT, clock=clock)
  busy(worker, batcher)
  late, fine = batcher.submit(1, 0.03), batcher.submit(2)
  clock.now = 0.05
  worker.gate.set()
  assert fine.result(10) == 4
  with pytest.raises(DeadlinePassed):
    late.result(10)
  assert worker.batches[1:] == [[2]]


def test_a_stall_does_not_make_the_queue_late(made):
  clock, worker = Clock(), Worker()
  batcher = made(worker, STRICT, clock=clock)
  first = busy(worker, batcher)
  waiting = batcher.submit(1)
  clock.now = 3.2 * STRICT.target
  worker.gate.set()
  assert first.result(10) == 0
  with pytest.raises(Overloaded, match="slower than predicted"):
    waiting.result(10)


@pytest.mark.parametrize(("rate", "refused"), [(100, False), (600, True)])
def test_a_stalled_batch_stops_admission_in_overload_only(made, rate, refused):
  clock, worker = Clock(), Worker()
  batcher = made(
    worker, Limits(4, 0.0, queue_size=9, target=0.1), lambda size: 0.02, clock
  )  # 200 a second
  for _ in range(2 * rate):
    clock.now += 1 / rate
    with contextlib.suppress(Overloaded, DeadlinePassed):
      batcher.submit(1, -1.0).cancel()  # comes, and counts, but leaves nothing
  while not idle(batcher):
    time.sleep(0.001)
  first = busy(worker, batcher)
  clock.now += 0.15
  taken = []
  with contextlib.suppress(Overloaded):
    taken.append(batcher.submit(2))
  assert bool(taken) is not refused
  worker.gate.set()
  assert first.result(10) == 0


def test_one_fault_is_one_requests_fault(made):
  worker = Worker()
  batcher = made(worker)
  busy(worker, batcher)
  bad, good = batcher.submit("bad"), batcher.submit(3)
  worker.gate.set()
  assert good.result(10) == 6
  with pytest.raises(ValueError, match="odd"):
    bad.result(10)


def test_a_failing_batch_fails_its_requests_and_the_thread_lives_on(made):
  class Failing(Worker):
    def __call__(self, requests):
      if "fail" in requests:
        raise RuntimeError("broken")
      return super().__call__(requests)

  batcher = made(Failing())
  with pytest.raises(RuntimeError, match="broken"):
    batcher.submit("fail").result(10)
  assert batcher.submit(2).result(10) == 4


def test_a_cancelled_request_is_not_computed(made):
  worker = Worker()
  batcher = made(worker)
  busy(worker, batcher)
  dropped, kept = batcher.submit(1), batcher.submit(2)
  assert dropped.cancel()
  worker.gate.set()
  assert kept.result(10) == 4 and worker.batches[1:] == [[2]]


def test_close_answers_what_waits_and_refuses_the_rest(made):
  worker = Worker()
  batcher = made(worker)
  futures = [busy(worker, batcher), *(batcher.submit(n) for n in range(1, 6))]
  closing = threading.Thread(target=batcher.close)
  closing.start()
  while batcher.alive:
    time.sleep(0.001)
  with pytest.raises(Closed):
    batcher.submit(9)
  worker.gate.set()
  closing.join(10)
  assert [future.result(0) for future in futures] == [0, 2, 4, 6, 8, 10]


def test_the_load_is_what_came(made):
  worker = Worker()
  batcher = made(worker, Limits(largest=4, max_wait=0, queue_size=2, target=9.0), clock=Clock())
  busy(worker, batcher)
  for n in range(10):
    try:
      batcher.submit(n)
    except Overloaded:
      continue
  load = batcher.load()
  assert load.queued == 2 and load.arrivals == pytest.approx(11)
  worker.gate.set()


class Stepped(Worker):
  """Ends a batch whenever the test says so."""

  def __init__(self):
    super().__init__()
    self.gate.clear()
    self._ended = 0

  def __call__(self, requests):
    results = super().__call__(requests)
    self.gate.clear()
    return results

  def end(self):
    self._ended += 1
    self.gate.set()

  def at_work(self, batcher):
    """Waits until a batch is at work or nothing is left to do; says which."""
    while len(self.batches) == self._ended and not idle(batcher):
      time.sleep(0)
    return len(self.batches) > self._ended


def test_three_times_the_capacity_is_answered_in_time_or_refused_quickly(made):
  clock, worker, seconds, capacity = Clock(), Stepped(), 0.01, 400  # a second
  batcher = made(
    worker,
    Limits(largest=4, max_wait=0.0, queue_size=100, target=0.05),
    lambda size: seconds,
    clock,
  )
  rng, at, end, accepted, waits, refusals = random.Random(0), 0.0, math.inf, [], [], []

  def until(moment):
    nonlocal end
    while worker.at_work(batcher) and (end := min(end, clock.now + seconds)) <= moment:
      clock.now = end
      waits.extend(end - came for came in worker.batches[-1])
      worker.end()
      end = math.inf

  while at < 20.0:
    at += rng.expovariate(3 * capacity)
    until(at)
    clock.now = at
    began = time.perf_counter()
    try:
      accepted.append(batcher.submit(at))
    except Overloaded:
      refusals.append(time.perf_counter() - began)
    until(at)
  until(math.inf)
  good = sum(future.exception(10) is None for future in accepted)
  assert max(waits) <= 0.1 and len(waits) == good
  assert good >= 0.9 * 20.0 * capacity and len(refusals) >= 0.4 * (len(refusals) + len(accepted))
  assert sorted(refusals)[int(0.99 * len(refusals))] < 0.005
