"""A state that follows a stream in a folder, as a server has it."""

import numpy as np

from gr4ad_jax.data import visits
from gr4ad_jax.features.counts import Counts
from gr4ad_jax.features.state import State
from gr4ad_jax.features.trends import Trends
from gr4ad_jax.people.follower import Follower, popularity_of
from gr4ad_jax.people.histories import StoredHistories
from gr4ad_jax.people.store import PeopleStore
from gr4ad_jax.streams.opening import open_stream
from tests.features.happenings import ADS, DAY
from tests.features.test_state import CONFIG, FIXED, NEAR

BEHAVIORS = ("click", "cart", "purchase")


class Server:
  """What a server has of users; `ads` are the known ones, as a row each."""

  def __init__(self, folder, *, hot=2, log=None, popularity=None, ads=None):
    self.ads = {f"ad{n}": n for n in range(ADS)} if ads is None else ads
    self.heard = []
    log = visits.no_events(0) if log is None else log
    self.stream = open_stream(f"sqlite:{folder}/stream.sqlite")
    self.store = PeopleStore(f"{folder}/people.sqlite", str(len(log)))
    histories = StoredHistories(log, self.store, hot)
    counts = popularity_of(self.store, popularity or Trends.empty(ADS))
    self.state = State(CONFIG, FIXED, NEAR, histories, counts)
    if waiting := self.store.note("waiting counts"):
      latest = int(waiting.pop("latest"))
      self.state.with_counts(Counts(**waiting), latest)
    self.follower = Follower(
      self.stream, self.state, self.store, self.ads.get, BEHAVIORS, 1e9, self.heard.extend
    )
    self.follower.catch_up()

  def post(self, *values):
    """Appends events and follows them; returns their offsets."""
    offsets = self.stream.append("events", values, [value["event_id"] for value in values])
    self.follower.catch_up()
    return offsets

  def kill(self):
    """Ends without a word: what was not saved is lost."""
    self.store.close()
    self.stream.close()

  def context(self, users, moment):
    """The contexts of users at one moment."""
    return self.state.features(users, np.full(len(users), moment))


def event(number, user="a", ad=0, time=19_000 * DAY, **fields):
  """An event as it stands in the stream."""
  plain = {"behavior": "purchase", "value": 1.0, "quantity": 1.0, "request_id": None}
  named = {"event_id": f"e{number}", "user_id": user, "ad_id": f"ad{ad}", "time": time}
  return named | plain | fields
