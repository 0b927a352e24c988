"""Streams of every kind, for tests that all of them pass."""

from gr4ad_jax.streams.opening import open_stream


class Clock:
  """A clock that is set by hand."""

  def __init__(self, now: float = 1_000_000.0):
    self.now = now

  def __call__(self) -> float:
    return self.now


def numbers(stream, topic="events", after=0):
  """[(offset, key, n)] of all records behind an offset, of values {"n": n}."""
  return [(r.offset, r.key, r.value["n"]) for r in stream.read(topic, after)]


def fill(stream, count, topic="events", start=1):
  """Appends {"n": n} under the key `k<n>`, from `start` on."""
  values = [{"n": n} for n in range(start, start + count)]
  return stream.append(topic, values, [f"k{value['n']}" for value in values])


__all__ = ["Clock", "fill", "numbers", "open_stream"]
