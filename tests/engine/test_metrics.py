"""What a server tells of itself: points by the second, bounded, and Prometheus' text."""

from gr4ad_jax.engine.metrics import OUTCOMES, Metrics, Series


class Clock:
  """Unix seconds that the test sets."""

  now = 1000.0

  def __call__(self):
    return self.now


def test_a_second_becomes_a_point_when_it_is_over():
  clock = Clock()
  series = Series(clock)
  for outcome, latency in (
    ("model", 0.010),
    ("model", 0.030),
    ("cache", 0.001),
    ("refused", 9.0),
    ("bad", 9.0),
  ):
    series.record(outcome, latency)
  series.state(queued=3, beams=(4, 4))
  assert series.points() == []
  clock.now = 1001.5
  assert series.points() == [
    {
      "time": 1000,
      "requests": 5,
      "answered": 3,
      "refused": 1,
      "fallback": 0,
      "cache_hit_rate": 0.3333,
      "p50_ms": 10.0,
      "p99_ms": 30.0,
      "queued": 3,
      "beams": (4, 4),
    }
  ]


def test_an_idle_second_has_no_latency_and_keeps_the_state():
  clock = Clock()
  series = Series(clock)
  series.state(queued=1)
  for _ in range(3):
    clock.now += 1
    series.state(queued=0)
  last = series.points()[-1]
  assert (last["requests"], last["p99_ms"], last["cache_hit_rate"], last["queued"]) == (
    0,
    None,
    None,
    0,
  )


def test_ten_minutes_are_kept():
  clock = Clock()
  series = Series(clock)
  for _ in range(2000):
    series.record("model", 0.01)
    clock.now += 1
  times = [point["time"] for point in series.points()]
  assert times == list(range(int(clock.now) - 599, int(clock.now)))
  clock.now += 300
  assert len(series.points()) <= 300


def test_prometheus_reads_counts_and_gauges():
  metrics = Metrics({"queue_length": ("Requests that wait.", lambda: 7)})
  for outcome in OUTCOMES:
    metrics.request(outcome, 0.03)
  metrics.batch(3, 0.02)
  lines = metrics.text().decode().splitlines()
  assert (
    "gr4ad_queue_length 7.0" in lines and 'gr4ad_requests_total{outcome="refused"} 1.0' in lines
  )
  assert (
    "gr4ad_latency_seconds_count 3.0" in lines and 'gr4ad_batch_size_bucket{le="4.0"} 1.0' in lines
  )
  assert Metrics({}).text() != metrics.text()  # a registry of its own
