"""What plain loops over a log say of it: what the tests of this room compare with."""

import numpy as np

from gr4ad_jax.data.schema import DAY
from tests.features import logs


class Told:
  """A log as a list of lines, with what was known before each request.

  Attributes:
    events: the log.
    lines: its lines in order, (request, ad, depth, value, quantity) each.
    user: of each request.
    time: of each request, unix seconds.
    visit: how many requests of its user came before each.
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
    user = self.user[request]
    return [x for x in self.lines if x.request < request and self.user[x.request] == user]

  def history(self, request, slots):
    """A user's ads before a request, each where it was taken last: the `slots` latest at most."""
    latest = []
    for line in self.past(request):
      latest = [ad for ad in latest if ad != line.ad] + [line.ad]
    return latest[-slots:]

  def before(self, request, ad, days):
    """The lines of an ad in the `days` days before the day of a request."""
    today = self.time[request] // DAY
    of_ad = [line for line in self.lines if line.ad == ad]
    return [x for x in of_ad if today - days <= self.time[x.request] // DAY < today]

  def lately(self, request, days=28):
    """How many lines each ad has in the `days` days before the day of a request: [N]."""
    return np.array([len(self.before(request, ad, days)) for ad in range(logs.ADS)])

  def repeat_share(self, request, ad):
    """Share of an ad's lines in half a year whose user had it before.

    To both counts a prior is added: one repeat in four lines.
    """
    recent = self.before(request, ad, 182)
    repeats = [x for x in recent if any(old.ad == ad for old in self.past(x.request))]
    return (len(repeats) + 1) / (len(recent) + 4)
