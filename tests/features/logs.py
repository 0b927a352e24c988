"""Random event logs with everything that can happen in one, and the plain loops that they are
checked against.
"""

import collections
import dataclasses

import numpy as np

from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import DAY

ADS = 9
START = 19_000 * DAY + 5_000  # unix seconds, not at midnight


def make_log(seed=0, users=6, most_visits=7, ads=ADS, days=9):
  """Clicks, carts and purchases: several events of one ad in a visit, users of one visit, visits of
  the same second.

  `days` is the longest pause between two visits.
  """
  rng = np.random.default_rng(seed)
  rows = []
  for user in range(users):
    moment = START + int(rng.integers(0, 20 * DAY))
    number = 1 if user == 1 else int(rng.integers(2, most_visits + 1))
    pauses = [int(rng.choice([0, 3600, DAY, days * DAY])) for _ in range(number)] + [3600]
    for visit in range(number):
      moment += pauses[visit]
      step = 10 if pauses[visit + 1] else 0  # a visit is over when the next one begins
      for k in range(int(rng.integers(1, 7))):
        depth = int(rng.choice([0, 0, 1, 2]))
        value = float(rng.integers(1, 900)) / 10 if depth == 2 else 0.0
        rows.append(
          (
            user,
            int(rng.integers(0, ads)),
            moment + step * k,
            depth,
            value,
            float(rng.integers(0, 5)),
            visit,
          )
        )
  user, ad, time, depth, value, quantity, request = map(np.asarray, zip(*rows, strict=True))
  names = np.array([f"u{i}" for i in range(users)])
  columns = dict(
    user=user, ad=ad, time=time, behavior=depth, value=value, quantity=quantity, request=request
  )
  return visits.ordered_log(names, **columns)


Line = collections.namedtuple("Line", "request ad depth value quantity first_time time")


def lines_of(events):
  """Lines of a log without late events, as dictionaries make them, in order."""
  found = {}
  columns = (events.behavior, events.value, events.quantity, events.time, events.time)
  for request, ad, *row in zip(events.request, events.ad, *columns, strict=True):
    event = Line(int(request), int(ad), *map(float, row))
    old = found.get(event[:2], event._replace(depth=0, value=0.0, quantity=0.0))
    found[event[:2]] = Line(
      *event[:2],
      max(old.depth, event.depth),
      old.value + event.value,
      old.quantity + event.quantity,
      old.first_time,
      event.time,
    )
  return list(found.values())


def visits_of(events):
  """User, time and number among the user's visits of each request."""
  user, time = {}, {}
  for request, who, moment in zip(events.request, events.user, events.time, strict=True):
    user.setdefault(int(request), int(who))
    time.setdefault(int(request), int(moment))
  numbers = sorted(user)
  visit = [sum(user[q] == user[r] for q in numbers if q < r) for r in numbers]
  return [user[r] for r in numbers], [time[r] for r in numbers], visit


def replaced_from(events, request, seed=1):
  """The log with other ads, depths, values and quantities from `request` on, of all users' later
  requests.
  """
  rng = np.random.default_rng(seed)
  later = events.request >= request
  n = len(events)
  return dataclasses.replace(
    events,
    ad=np.where(later, rng.integers(0, ADS, n), events.ad).astype(np.int32),
    behavior=np.where(later, rng.integers(0, 3, n), events.behavior).astype(np.int8),
    value=np.where(later, rng.exponential(50, n), events.value).astype(np.float32),
    quantity=np.where(later, 9, events.quantity).astype(np.float32),
  )
