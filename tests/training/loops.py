"""A random log, and what plain loops over its events say of it: what the tests of this room compare with."""

import numpy as np

from gr4ad_jax.data.history import DAY
from tests.data import logs


class Told:
  """A log as a list of lines, with what was known before each request.

  Attributes:
    events: the log.
    lines: its lines in order, (request, ad, depth, value, quantity) each.
    user, time, visit: of each request; time in unix seconds, visit the number of visits of the user before it.
    split: of each request, 0 train, 1 valid, 2 test.
  """

  def __init__(self, events):
    self.events, self.lines = events, logs.lines_of(events)
    self.user, self.time, self.visit = logs.visits_of(events)
    split_of = dict(zip(events.request.tolist(), events.split.tolist(), strict=True))
    self.split = [split_of[request] for request in range(len(self.user))]

  def own(self, request):
    """The lines of a request."""
    return [line for line in self.lines if line.request == request]

  def past(self, request):
    """The lines of the same user's earlier requests."""
    return [line for line in self.lines if line.request < request and self.user[line.request] == self.user[request]]

  def history(self, request, slots):
    """The user's ads before a request, each where he took it last, oldest first: at most the `slots` latest."""
    latest = []
    for line in self.past(request):
      latest = [ad for ad in latest if ad != line.ad] + [line.ad]
    return latest[-slots:]

  def before(self, request, ad, days):
    """The lines of an ad in the `days` days before the day of a request."""
    today = self.time[request] // DAY
    return [x for x in self.lines if x.ad == ad and today - days <= self.time[x.request] // DAY < today]

  def lately(self, request, days=28):
    """How many lines each ad has in the `days` days before the day of a request: [N]."""
    return np.array([len(self.before(request, ad, days)) for ad in range(logs.ADS)])

  def repeat_share(self, request, ad):
    """Share of an ad's lines in half a year whose user had it before; an ad starts with one repeat of four lines."""
    recent = self.before(request, ad, 182)
    repeats = [x for x in recent if any(old.ad == ad for old in self.past(x.request))]
    return (len(repeats) + 1) / (len(recent) + 4)
