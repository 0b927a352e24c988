"""What a server tells about itself: Prometheus metrics, and the last ten minutes, second by
second, for the page.
"""

import collections
import copy
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

OUTCOMES = ("model", "cache", "fallback", "refused", "deadline", "bad", "failed")
"""How a request ended.

Answered by the model, the cache or the fallback list; or refused, late, faulty, failed.
"""

ANSWERED = ("model", "cache", "fallback")

_LATENCY = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds
_SPAN = 600  # seconds that the series goes back
_SAMPLES = 512  # latencies kept a second


@dataclasses.dataclass
class _Second:
  at: int
  outcomes: dict[str, int]
  latencies: list[float]


def _quantile(ordered: list[float], share: float) -> float | None:
  # The nearest observation, without interpolation.
  return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None


class Series:
  """One point a second over the last ten minutes; a second in which nothing was told has none.

  Args:
    clock: unix seconds.
  """

  def __init__(self, clock: Callable[[], float] = time.time):
    self._clock = clock
    self._lock = threading.Lock()
    self._second = _Second(int(clock()), {}, [])
    self._state: dict[str, Any] = {}
    self._points: collections.deque[dict] = collections.deque(maxlen=_SPAN)

  def record(self, outcome: str, latency: float) -> None:
    """Counts a request. Latencies (seconds) are those of answered requests."""
    with self._lock:
      second = self._now()
      second.outcomes[outcome] = second.outcomes.get(outcome, 0) + 1
      # So many latencies are enough for quantiles of a second.
      if outcome in ANSWERED and len(second.latencies) < _SAMPLES:
        second.latencies.append(latency)

  def state(self, **values: Any) -> None:
    """Notes the present queue length, widths and so on; the last word of a second counts."""
    with self._lock:
      self._now()
      self._state.update(values)

  def points(self) -> list[dict]:
    """The points, oldest first; the present second, which is not over, is left out."""
    with self._lock:
      self._now()
      # A quiet server makes no points, so the oldest may be older than the span.
      return [point for point in self._points if point["time"] > self._second.at - _SPAN]

  def _now(self) -> _Second:
    at = int(self._clock())
    # The second is over: it becomes a point.
    if at > self._second.at:
      self._points.append(_point(self._second) | self._state)
      self._second = _Second(at, {}, [])
    return self._second


def _point(second: _Second) -> dict[str, Any]:
  ordered = sorted(second.latencies)
  count = second.outcomes
  # The hit rate is of answers that the model or the cache gave; a fallback asked neither.
  asked = count.get("model", 0) + count.get("cache", 0)
  return {
    "time": second.at,
    "requests": sum(count.values()),
    "answered": sum(count.get(name, 0) for name in ANSWERED),
    "refused": count.get("refused", 0),
    "fallback": count.get("fallback", 0),
    "cache_hit_rate": round(count.get("cache", 0) / asked, 4) if asked else None,
    "p50_ms": _milliseconds(_quantile(ordered, 0.5)),
    "p99_ms": _milliseconds(_quantile(ordered, 0.99)),
  }


def _milliseconds(seconds: float | None) -> float | None:
  return None if seconds is None else round(1e3 * seconds, 3)


class Metrics:
  """Prometheus metrics of one engine, in a registry of their own.

  Args:
    readings: name -> (help, function of the present value); read when Prometheus asks.

  Raises:
    ImportError: the `serve` extra is missing.
  """

  def __init__(self, readings: Mapping[str, tuple[str, Callable[[], float]]]):
    try:
      import prometheus_client as prometheus
    except ImportError as error:
      raise ImportError("prometheus_client is missing: pip install 'gr4ad_jax[serve]'") from error
    self._registry = registry = prometheus.CollectorRegistry()
    self._write = prometheus.generate_latest
    self.content_type = prometheus.CONTENT_TYPE_LATEST
    requests = prometheus.Counter(
      "gr4ad_requests", "Requests by how they ended.", ["outcome"], registry=registry
    )
    self._outcome = {name: requests.labels(name) for name in OUTCOMES}
    buckets = {"buckets": _LATENCY, "registry": registry}
    self._latency = prometheus.Histogram("gr4ad_latency_seconds", "Time to an answer.", **buckets)
    batches = {"buckets": tuple(2**n for n in range(9)), "registry": registry}
    self._batch = prometheus.Histogram("gr4ad_batch_size", "Requests of a batch.", **batches)
    self._search = prometheus.Histogram("gr4ad_batch_seconds", "Time of a batch.", **buckets)
    for name, (text, read) in readings.items():
      prometheus.Gauge(f"gr4ad_{name}", text, registry=registry).set_function(read)

  def request(self, outcome: str, latency: float) -> None:
    """Counts a request by how it ended (see OUTCOMES); latency in seconds."""
    self._outcome[outcome].inc()
    if outcome in ANSWERED:
      self._latency.observe(latency)

  def batch(self, size: int, seconds: float) -> None:
    """Counts a batch."""
    self._batch.observe(size)
    self._search.observe(seconds)

  def text(self) -> bytes:
    """All metrics in Prometheus' text format."""
    return self._write(self._registry)

  def families(self) -> Iterator[Any]:
    """Prometheus' metric families, with their samples of now."""
    return self._registry.collect()


def joined_text(metrics: Mapping[str, Metrics]) -> bytes:
  """Several engines' metrics in Prometheus' text format, each sample with the label `arm`.

  Args:
    metrics: arm -> its metrics; all have the same names.
  """
  import prometheus_client as prometheus

  families: dict[str, Any] = {}
  for arm, own in metrics.items():
    for family in own.families():
      # Samples of one name stand together: the format asks for it.
      joined = families.setdefault(family.name, copy.copy(family))
      samples = [s._replace(labels=s.labels | {"arm": arm}) for s in family.samples]
      # The first arm's samples take the place of the copy's own.
      joined.samples = samples if joined.samples is family.samples else joined.samples + samples

  # The registry asks whatever has `collect`. Families that are made already are handed through.
  class Joined:
    def collect(self) -> Iterator[Any]:
      return iter(families.values())

  registry = prometheus.CollectorRegistry()
  registry.register(Joined())
  return prometheus.generate_latest(registry)
