"""Reading ahead changes neither the order nor the errors."""

import threading

import pytest

from gr4ad_jax.training.prefetch import Prefetcher


def test_order_and_range():
  with Prefetcher(lambda step: step * step, 3, 50, depth=4) as batches:
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
  made, third = [], threading.Event()

  def make(step):
    made.append(step)
    if step == 2:
      third.set()
    return step

  with Prefetcher(make, 0, 100, depth=2) as batches:
    assert third.wait(5)  # two ready, a third in hand, nothing asked for yet
    assert made == [0, 1, 2]
    assert next(iter(batches)) == (0, 0)


def test_close_stops_the_thread():
  before = threading.active_count()
  prefetcher = Prefetcher(lambda step: step, 0, 10**9)
  prefetcher.close()
  assert threading.active_count() == before
