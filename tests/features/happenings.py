"""A log told event by event: the plain machine that all columns and states are compared with.

Events of any visits come in order of time, and between them requests open. At its opening a request
is told what the machine knows by then, and nothing else.
"""

import math

import numpy as np
from hypothesis import strategies as st

from gr4ad_jax.data import visits

DAY = 86_400
ADS = 5
HALF_DAYS = 40
# User, visit, ad, half day, depth, quarters of money (below 0: given back), units.
EVENTS = st.lists(
  st.tuples(
    st.integers(0, 2),
    st.integers(0, 3),
    st.integers(0, ADS - 1),
    st.integers(0, HALF_DAYS),
    st.integers(0, 2),
    st.integers(-40, 60),
    st.integers(-2, 3),
  ),
  min_size=1,
  max_size=24,
)


def log_of(events):
  """The events as a log, in the order in which they stand."""
  user, visit, ad, half, depth, quarters, quantity = np.array(events).T
  return visits.ordered_log(
    np.array(["a", "b", "c"]),
    user=user,
    ad=ad,
    time=19_000 * DAY + half * DAY // 2,
    behavior=depth,
    value=quarters / 4,
    quantity=quantity,
    request=visit,
  )


class Line:
  """One ad between two requests."""

  def __init__(self, ad, visit, time):
    self.ad, self.visit, self.first, self.last = ad, visit, time, time
    self.depth, self.value, self.quantity = 0, 0.0, 0.0


class Person:
  """One user: lines in the order in which they began, and the moments of his requests."""

  def __init__(self):
    self.lines, self.moments = [], []

  def happens(self, event):
    """Takes one event in; `event`: ad, time, depth, value, quantity."""
    ad, time, depth, value, quantity = event
    now = len(self.moments) - 1
    line = next((x for x in self.lines if (x.visit, x.ad) == (now, ad)), None)
    if line is None:
      line = Line(ad, now, time)
      self.lines.append(line)
    line.last, line.depth = time, max(line.depth, depth)
    line.value += value
    line.quantity += quantity

  def history(self):
    """Distinct ads, each with its lines; in the order of the last time."""
    latest = {}
    for line in self.lines:
      lines = latest.pop(line.ad, [])
      latest[line.ad] = [*lines, line]
    return latest

  def ad_features(self, lines, time):
    """Of an ad with these lines, by name, at the moment of a request that opens now."""
    visits_before, last = len(self.moments), lines[-1]
    ago = [visits_before - line.visit for line in lines]
    days = (time - last.last) / DAY
    interval = (last.last - lines[0].first) / DAY / max(len(lines) - 1, 1)
    value = max(last.value, 0)
    quantity = max(last.quantity, 0)
    return {
      "depth": last.depth,
      "count": math.log1p(len(lines)),
      "decayed_count": math.log1p(sum(0.9 ** (visits_ago - 1) for visits_ago in ago)),
      "last_value": math.log1p(value),
      "total_value": math.log1p(max(sum(line.value for line in lines), 0)),
      "unit_price": math.log1p(value / max(quantity, 1)),
      "quantity": math.log1p(quantity),
      "gap_days": math.log1p(days) / 2,
      "gap_visits": math.log1p(ago[-1]),
      "interval_days": math.log1p(interval) / 2,
      "due": math.tanh(math.log((days + 1) / (interval + 1))) if len(lines) > 1 else 0,
      "rate": len(lines) / visits_before,
      "in_last_visit": float(ago[-1] == 1),
    }

  def user_features(self, time):
    """By name, at the moment of a request that opens now."""
    visits_before = len(self.moments)
    some = max(visits_before, 1)
    first, previous = (self.moments[0], self.moments[-1]) if self.moments else (time, time)
    return {
      "visits": math.log1p(visits_before),
      "gap_days": math.log1p((time - previous) / DAY) / 2,
      "tenure_days": math.log1p((time - first) / DAY) / 2,
      "lines_per_visit": math.log1p(len(self.lines) / some),
      "value_per_visit": math.log1p(max(sum(x.value for x in self.lines), 0) / some) / 2,
      "distinct_share": len(self.history()) / max(len(self.lines), 1),
    }


def told(log, opened):
  """Plays a log, and calls opened(number, person, time) when each request opens.

  At one moment the events of earlier visits come before a request, its own after it. What comes
  after the last request is played too.

  Returns:
    The persons, by user number, as they are in the end.
  """
  people = {user: Person() for user in set(log.user.tolist())}
  first = np.unique(log.request, return_index=True)[1]
  happenings = [(int(log.time[at]), int(log.request[at]), -1, int(at)) for at in first]
  happenings += [(int(log.time[at]), int(log.request[at]), at, at) for at in range(len(log))]
  for time, request, is_event, at in sorted(happenings):
    person = people[int(log.user[at])]
    if is_event < 0:
      opened(request, person, time)
      person.moments.append(time)
    else:
      columns = log.behavior, log.value, log.quantity
      person.happens((int(log.ad[at]), time, *(float(column[at]) for column in columns)))
  return people
