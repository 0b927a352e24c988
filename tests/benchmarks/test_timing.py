"""Timing matrix products alone, and in turn; memory."""

import pathlib
import re

import pytest

from gr4ad_jax.benchmarks import timing
from tests.timing import undisturbed


def test_plain_dots_grow_with_the_number_of_products():
  shape = (1, 256, 256, 256, "float32")
  one, many = (timing.plain_dots({shape: times}, seconds=0.01) for times in (1, 1000))

  def measured():
    assert 0 < one() < many()

  undisturbed(measured)


def test_interleaving_takes_every_timer_in_turn():
  order = []
  timers = {name: lambda name=name: order.append(name) or 1.0 for name in ("a", "b")}
  seconds = timing.interleaved(timers, 3)
  assert order == ["a", "b"] * 3 and seconds == {"a": [1.0] * 3, "b": [1.0] * 3}
  assert timing.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}


def test_peak_memory_is_in_bytes():
  status = pathlib.Path("/proc/self/status")
  if not status.exists():
    pytest.skip("no /proc to compare with")
  kib = int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])
  assert timing.peak_memory() == pytest.approx(1024 * kib, rel=0.05)
