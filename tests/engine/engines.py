"""What tests of the engine share: lists compared, a batch that is held, a clock that is set."""

import contextlib
import threading

import numpy as np


def ids(answer):
  return [ad["ad_id"] for ad in answer.ads]


def assert_same(answer, expected):
  assert ids(answer) == [ad.ad_id for ad in expected]
  for name in ("log_p", "score", "ecpm"):
    numbers = [ad[name] for ad in answer.ads]
    np.testing.assert_allclose(
      numbers, [getattr(ad, name) for ad in expected], rtol=1e-4, atol=1e-5
    )
  assert [tuple(ad["codes"]) for ad in answer.ads] == [ad.codes for ad in expected]


@contextlib.contextmanager
def held(engine, monkeypatch):
  """No batch ends before the block does. Gives the event that one has begun."""
  compute, begun, over = engine._computer.compute, threading.Event(), threading.Event()

  def hold(*arguments):
    begun.set()
    assert over.wait(60)
    return compute(*arguments)

  monkeypatch.setattr(engine._computer, "compute", hold)
  try:
    yield begun
  finally:
    over.set()


class Clock:
  """Noon, until it is set."""

  def __init__(self, now=20_000.5 * 86_400):
    self.now = now

  def __call__(self):
    return self.now
