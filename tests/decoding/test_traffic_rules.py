"""The controller against its rules in plain Python, on times and loads in which limits are met
exactly.
"""

import math
import random

import pytest

from gr4ad_jax.decoding.traffic import BeamController, Costs, Load, Rate

BUCKETS = (1, 2, 4)
TABLE = (
  (1 / 16, 1 / 8, 1 / 4),
  (1 / 8, 1 / 4, 1 / 2),
  (1 / 8, 1 / 2, 1.0),
  (1 / 4, 1.0, 2.0),
)  # all sums are exact


def batch_seconds(schedule, size, pace=1.0):
  for place, bucket in enumerate(BUCKETS):
    if size <= bucket:
      return pace * TABLE[schedule][place]
  return pace * TABLE[schedule][-1]


def drain_seconds(schedule, queued):
  total = 0.0
  while queued > 0:
    total += batch_seconds(schedule, min(queued, BUCKETS[-1]))
    queued -= BUCKETS[-1]
  return total


class Rules:
  """What `BeamController` says of itself, once more."""

  def __init__(self, start, target, high=0.85, low=0.6, dwell=1.0):
    self.schedule, self.target, self.high, self.low, self.dwell = start, target, high, low, dwell
    self.changed = self.widened = -math.inf
    self.pause = dwell

  def fits(self, schedule, load, share):
    busy = load.arrivals * TABLE[schedule][-1] / BUCKETS[-1]
    return busy <= share and drain_seconds(schedule, max(load.queued, 1)) <= share * self.target

  def choose(self, now, load):
    best = self.schedule
    if load.latency > self.target and now - self.changed >= self.dwell and best > 0:
      best -= 1
    while best > 0 and not self.fits(best, load, self.high):
      best -= 1
    if best < self.schedule:
      soon = now - self.widened < 2 * self.pause
      self.pause = min(2 * self.pause, 32 * self.dwell) if soon else self.dwell
      self.schedule, self.changed = best, now
      return best
    wider = self.schedule + 1
    if wider < len(TABLE) and now - self.changed >= self.pause and self.fits(wider, load, self.low):
      slower = TABLE[wider][-1] / TABLE[self.schedule][-1]
      if load.latency * slower <= self.high * self.target:
        self.schedule, self.changed, self.widened = wider, now, now
    return self.schedule


def assert_same(settings, loads, start=0, target=4.0):
  """Runs both over (moment, load) and returns the schedules."""
  ours, rules = (
    BeamController(Costs(TABLE, BUCKETS), start, target, **settings),
    Rules(start, target, **settings),
  )
  seen = []
  for moment, load in loads:
    if callable(load):
      load = load(rules)
    seen.append(rules.choose(moment, load))
    assert ours.choose(moment, load) == ours.schedule == seen[-1], (moment, load)
  return seen


@pytest.mark.parametrize(
  "settings",
  [{}, {"high": 0.75, "low": 0.5, "dwell": 0.5}, {"high": 1.0, "low": 0.25, "dwell": 2.0}],
)
@pytest.mark.parametrize("seed", range(4))
def test_schedules_are_those_of_the_rules(settings, seed):
  rng, now, loads = random.Random(seed), 0.0, []
  for step in range(3000):
    now += rng.choice([0.0, 0.25, 0.5, 1.0])
    busy = rng.random() < (0.5 if step // 60 % 2 else 0.02)
    arrivals = rng.choice(
      [1.0, 1.2, 1.5, 2.0, 2.4, 3.0, 4.0, 6.8] if busy else [0.0, 0.5, 1.0, 1.2]
    )
    queued = (
      rng.choice([0, 1, 2, 3, 4, 5, 7, 8, 12, 13]) if busy else rng.choice([0, 0, 1, 2, 4, 5])
    )
    latency = rng.choice([0.0, 0.5, 1.5, 1.7, 3.0, 3.4, 4.0, 4.25])
    loads.append((now, Load(queued, latency, arrivals)))
  seen = assert_same(settings, loads, start=seed)
  moves = [b - a for a, b in zip(seen, seen[1:], strict=False)]
  assert len(set(seen)) >= 3 and max(moves) == 1 and min(moves) < 0


def test_a_widening_taken_back_doubles_the_pause_up_to_32_times():
  def load(rules):
    return Load(0, 0.0, 100.0 if rules.schedule else 0.0)

  seen = assert_same({}, [(step / 4, load) for step in range(1200)])
  rises = [step / 4 for step, (a, b) in enumerate(zip([0, *seen], seen, strict=False)) if b > a]
  gaps = [b - a for a, b in zip(rises, rises[1:], strict=False)]
  assert gaps[:5] == [2.25, 4.25, 8.25, 16.25, 32.25] and set(gaps[5:]) == {32.25}


def test_a_pause_is_short_again_after_a_widening_that_lasted():
  calm, busy = Load(0, 0.0, 0.0), Load(0, 0.0, 100.0)
  moments = [
    (0.0, calm),
    (0.5, busy),
    (2.0, calm),
    (2.5, calm),
    (20.0, busy),
    (20.5, calm),
    (21.0, calm),
  ]
  for apart in (2.0, 3.75, 4.0, 4.25):  # a second widening lasts less than twice the pause, or not
    begin = moments[-1][0] + 8.0
    moments += [(begin, calm), (begin + apart, busy), (begin + apart + 1.0, calm)]
    moments += [(moments[-1][0] + step / 4, calm) for step in range(1, 12)]
  assert_same({}, moments)


def test_utilisation_is_the_share_of_full_batches():
  costs = Costs(TABLE, BUCKETS)
  picks = BeamController(costs, 1, 4.0)
  assert picks.utilisation(3.0) == 3 * 0.5 / 4 and picks.utilisation(3.0, 3) == 3 * 2.0 / 4
  assert picks.utilisation(3.0, 0) == 3 * 0.25 / 4
  costs.observe(0, 4, 0.5)
  assert picks.utilisation(3.0) == pytest.approx(3 * 0.5 * 1.1 / 4)


def test_costs_are_those_of_the_table_and_of_what_was_seen():
  costs, pace = Costs(TABLE, BUCKETS), 1.0
  assert len(costs) == 4 and costs.buckets == BUCKETS
  assert [costs.bucket(size) for size in (0, 1, 2, 3, 4, 5, 99)] == [1, 1, 2, 4, 4, 4, 4]
  for queued in range(14):
    for schedule in range(4):
      assert costs.drain(schedule, queued) == drain_seconds(schedule, queued)
  rng = random.Random(0)
  for _ in range(60):
    schedule, size, seconds = (
      rng.randrange(4),
      rng.randrange(1, 9),
      rng.choice([0.01, 0.1, 0.5, 1.0, 3.0, 500.0]),
    )
    expected = seconds / batch_seconds(schedule, size)  # the pace at which this batch ran
    costs.observe(schedule, size, seconds)
    pace = 0.9 * pace + 0.1 * min(expected, 10 * pace)
    assert costs.pace == pytest.approx(pace, rel=1e-12)
    assert costs.seconds(3, 3) == pytest.approx(2 * pace)
  assert costs.drain(2, 6) == pytest.approx(pace * 1.5)


def test_a_rate_forgets_and_takes_events_that_come_late():
  rng, rate, events, latest = random.Random(1), Rate(2.5), [], 0.0
  assert rate.per_second(3.0) == 0
  for _ in range(50):
    now = latest + rng.choice([0.0, 0.3, 1.7, -0.4])
    amount = rng.choice([1.0, 2.5])
    rate.add(now, amount) if amount != 1 else rate.add(now)
    latest = max(latest, now)
    events.append((latest, amount))  # one that comes late counts from now on
    for ahead in (0.0, 0.7, 5.0):
      expected = (
        sum(amount * math.exp(-(latest + ahead - when) / 2.5) for when, amount in events) / 2.5
      )
      assert rate.per_second(latest + ahead) == pytest.approx(expected, rel=1e-9)
  assert rate.per_second(latest - 9) == rate.per_second(latest)
