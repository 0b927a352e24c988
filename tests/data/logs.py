"""Random event logs with everything that can happen in one, and the plain loops that they are
checked against.
"""

import collections
import dataclasses

import numpy as np

from gr4ad_jax.data import visits
from gr4ad_jax.data.history import DAY

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
    moment, number = (
      START + int(rng.integers(0, 20 * DAY)),
      1 if user == 1 else int(rng.integers(2, most_visits + 1)),
    )
    for visit in range(number):
      moment += int(rng.choice([0, 3600, DAY, days * DAY]))
      for k in range(int(rng.integers(1, 7))):
        depth = int(rng.choice([0, 0, 1, 2]))
        value = float(rng.integers(1, 900)) / 10 if depth == 2 else 0.0
        rows.append(
          (
            user,
            int(rng.integers(0, ads)),
            moment + 10 * k,
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


Line = collections.namedtuple("Line", "request ad depth value quantity")


def lines_of(events):
  """Lines as dictionaries make them, in order."""
  found = {}
  columns = (events.request, events.ad, events.behavior, events.value, events.quantity)
  for event in (Line(*map(float, row)) for row in zip(*columns, strict=True)):
    key = int(event.request), int(event.ad)
    old = found.get(key, Line(*key, 0, 0.0, 0.0))
    found[key] = Line(
      *key, max(old.depth, event.depth), old.value + event.value, old.quantity + event.quantity
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
