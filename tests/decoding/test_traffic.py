"""Traffic-aware beams, by simulation: a server of known speed under steady load, overload, and
recovery.
"""

import collections
import random

import pytest

from gr4ad_jax.decoding.traffic import BeamController, Costs, Load, Rate

BUCKETS = (1, 2, 4, 8)
TARGET = 0.1  # seconds
TABLE = [
  [f * (0.006 + 0.002 * b) for b in BUCKETS] for f in (0.4, 0.6, 1.0, 1.6)
]  # seconds of a batch
BASE = 2  # of the schedules
CAPACITY = 8 / TABLE[BASE][-1]  # requests a second at the base widths


def controller(start=BASE, **settings):
  return BeamController(Costs(TABLE, BUCKETS), start, TARGET, **settings)


Run = collections.namedtuple("Run", "schedules latencies refused offered times")


def simulate(picks, load_of, seconds, slowness=1.0, seed=0):
  """A queue before one server, with admission as in serving: refused where the wait would pass the
  target.

  Args:
    picks: the controller.
    load_of: moment -> requests a second.
    seconds: length.
    slowness: how much longer batches really take than the table says.
  """
  rng, costs = random.Random(seed), picks._costs
  now, arrival, queue, refused, offered, rate = 0.0, 0.0, collections.deque(), 0, 0, Rate(1.0)
  schedules, latencies, times = [], [], []
  while now < seconds:
    while arrival <= now:
      rate.add(arrival)
      offered += 1
      if costs.drain(0, len(queue) + 1) <= TARGET:
        queue.append(arrival)
      else:
        refused += 1
      arrival += rng.expovariate(load_of(arrival))
    if not queue:
      now = arrival
      continue
    recent = sorted(latency for when, latency in latencies[-64:] if now - when < 1.0)
    high = recent[int(0.95 * (len(recent) - 1))] if recent else 0.0
    schedule = picks.choose(now, Load(len(queue), high, rate.per_second(now)))
    batch = [queue.popleft() for _ in range(min(len(queue), BUCKETS[-1]))]
    spent = (
      slowness * TABLE[schedule][BUCKETS.index(costs.bucket(len(batch)))] * rng.uniform(0.9, 1.1)
    )
    now += spent
    costs.observe(schedule, len(batch), spent)
    latencies.extend((now, now - begun) for begun in batch)
    schedules.append(schedule)
    times.append(now)
  return Run(schedules, latencies, refused, offered, times)


def p99(latencies):
  ordered = sorted(latency for _, latency in latencies)
  return ordered[int(0.99 * (len(ordered) - 1))]


def changes(run, begin=0.0):
  late = [s for s, t in zip(run.schedules, run.times, strict=True) if t >= begin]
  return sum(a != b for a, b in zip(late, late[1:], strict=False))


def test_idle_means_wider():
  run = simulate(controller(), lambda t: 5.0, 10)
  assert run.schedules[-1] == 3 and changes(run) <= 1 and not run.refused


@pytest.mark.parametrize("times", [1, 2, 3])
def test_the_target_holds_under_load(times):
  run = simulate(controller(), lambda t: times * CAPACITY, 20)
  assert p99(run.latencies) <= 1.2 * TARGET
  assert (
    len(run.latencies) / 20 >= 0.9 * min(times, 2.5) * CAPACITY
  )  # the narrowest is 2.5 times as fast
  assert run.refused <= 0.02 * run.offered if times <= 2 else run.refused < 0.35 * run.offered


@pytest.mark.parametrize("times", [0.1, 0.3, 0.5, 0.7, 0.9, 1, 1.5, 2, 3])
def test_steady_load_does_not_oscillate(times):
  run = simulate(controller(), lambda t: times * CAPACITY, 60, seed=3)
  assert changes(run, begin=10.0) <= 6


def test_more_load_means_narrower_beams():
  def mean(times):
    run = simulate(controller(), lambda t: times * CAPACITY, 30)
    return sum(run.schedules) / len(run.schedules)

  widths = [mean(times) for times in (0.1, 0.5, 1.0, 2.0)]
  assert widths == sorted(widths, reverse=True) and widths[0] - widths[-1] > 1.5


def test_it_recovers_after_a_burst():
  run = simulate(controller(), lambda t: 3 * CAPACITY if 5 <= t < 15 else 0.1 * CAPACITY, 40)
  burst = [s for s, t in zip(run.schedules, run.times, strict=True) if 6 <= t < 15]
  assert max(burst) == 0 and run.schedules[-1] == 3
  assert p99(run.latencies) <= 1.2 * TARGET


def test_a_machine_slower_than_measured_is_learned():
  run = simulate(controller(), lambda t: 0.6 * CAPACITY, 30, slowness=2.0)
  late = [entry for entry in run.latencies if entry[0] > 5]
  assert p99(late) <= 1.2 * TARGET and run.schedules[-1] < BASE


def test_measured_latency_has_the_last_word():
  picks = controller(dwell=1.0)
  seen = [picks.choose(t, Load(0, 2 * TARGET, 1.0)) for t in (0.0, 0.5, 1.1, 2.2, 3.3)]
  assert seen == [1, 1, 0, 0, 0]


def test_a_widening_that_is_taken_back_is_tried_less_often():
  picks, switched, before = controller(start=0), [], 0
  for step in range(6000):
    now = step / 100
    busy = Load(0, 0.0, 1e4 if before else 1.0)  # fits the narrowest alone
    schedule = picks.choose(now, busy)
    if schedule > before:
      switched.append(now)
    before = schedule
  gaps = [b - a for a, b in zip(switched, switched[1:], strict=False)]
  assert len(gaps) >= 3 and all(
    later > 1.5 * sooner for sooner, later in zip(gaps, gaps[1:], strict=False)
  )


def test_one_schedule_stays():
  picks = BeamController(Costs([[0.01, 0.02]], (1, 4)), 0, TARGET)
  assert {picks.choose(t, Load(t, t, t)) for t in range(20)} == {0}


def test_costs_scale_with_what_is_seen():
  costs = Costs(TABLE, BUCKETS)
  assert (costs.bucket(3), costs.bucket(99), costs.seconds(1, 3)) == (4, 8, TABLE[1][2])
  assert (
    costs.drain(0, 19) == pytest.approx(2 * TABLE[0][3] + TABLE[0][2]) and costs.drain(0, 0) == 0
  )
  for _ in range(100):
    costs.observe(2, 8, 3 * TABLE[2][3])
  assert costs.seconds(0, 1) == pytest.approx(3 * TABLE[0][0], rel=1e-3)
  costs.observe(2, 8, 1e6)
  assert costs.seconds(0, 1) < 6 * TABLE[0][0]
