"""Reading ahead changes neither the order nor the errors."""

import threading
import time

import pytest

from gr4ad_jax.training.prefetch import Prefetcher, threads


def test_order_and_range():
  with Prefetcher(lambda step: step * step, 3, 50, workers=4) as batches:
    assert list(batches) == [(step, step * step) for step in range(3, 50)]


def test_an_error_comes_at_its_step():
  def make(step):
    if step == 2:
      raise KeyError("bad row")
    return step

  seen = []
  with Prefetcher(make, 0, 10) as batches, pytest.raises(KeyError, match="bad row"):
    for step, _ in batches:
      seen.append(step)
  assert seen == [0, 1]


def test_it_reads_ahead_but_not_too_far():
  made, second = [], threading.Event()

  def make(step):
    made.append(step)
    if step == 1:
      second.set()
    return step

  with Prefetcher(make, 0, 100) as batches:
    assert second.wait(5)  # two ready, nothing asked for yet
    time.sleep(0.1)
    assert made == [0, 1]
    assert next(iter(batches)) == (0, 0)


def test_threads_work_at_once_and_the_order_stays():
  together = threading.Barrier(3, timeout=10)  # passed by three at once or by none

  def make(step):
    if step < 3:
      together.wait()
    return step

  with Prefetcher(make, 0, 20, workers=3) as batches:
    assert [batch for _, batch in batches] == list(range(20))


def test_close_stops_the_threads():
  before = threading.active_count()
  prefetcher = Prefetcher(lambda step: step, 0, 10**9, workers=4)
  prefetcher.close()
  assert threading.active_count() == before


def test_threads_by_device():
  assert threads(3) == 3
  assert threads(0) == 1  # these tests run on CPU
