"""A stream's events and ads in one order; what cannot be learned from is counted."""

import numpy as np
import pytest

from gr4ad_jax.data.schema import AdTable, DataError
from gr4ad_jax.learning.feed import Feed
from gr4ad_jax.learning.known_ads import KnownAds
from gr4ad_jax.streams.opening import open_stream


class Counting:
  """An encoder: UA-SIDs in turn, beside those that exist."""

  codebooks = (2, 2, 8)

  def encode(self, ads, existing):
    last = next(code for code in range(8) if code not in existing((1, 1)))
    return np.array([[1, 1, last]] * len(ads), np.int32)


class Taken:
  """In the place of visits: the events that came."""

  def __init__(self):
    self.events = []

  def add(self, event):
    self.events.append(event)


def known_ads(overlay=64):
  text = np.array(["a0", "a1"], object)
  price = np.ones(2, np.float32)
  table = AdTable(text, text, text, text, text, text, price, np.array([-1, -1]))
  return KnownAds(table, np.array([[0, 0, 0], [1, 1, 0]]), Counting(), overlay)


@pytest.fixture
def made(tmp_path):
  clock = iter(range(1, 1000))
  stream = open_stream(f"sqlite:{tmp_path}/s", lambda: next(clock))
  taken = Taken()
  ads = known_ads()
  yield stream, taken, ads, Feed(stream, taken, ads, ("click", "purchase"))
  stream.close()


def event(user="u", ad="a0", time=10, **more):
  return {"event_id": "e", "user_id": user, "ad_id": ad, "time": time, **more}


def test_an_event_is_read_with_what_is_left_out(made):
  stream, taken, _, feed = made
  full = event(behavior="click", value=-2.5, quantity=3, request_id=7)
  stream.append("events", [event(), full])
  assert feed.lag == 2
  while feed.take():
    pass
  assert taken.events[0] == ("u", 0, 10, 1, 0.0, 1.0, None)
  assert taken.events[1] == ("u", 0, 10, 0, -2.5, 3.0, "7")
  assert (feed.offset, feed.lag, feed.bad) == (2, 0, 0)


def test_ads_come_before_the_events_that_were_appended_after_them(made):
  """An event of an ad that is not there yet waits; the order is that of the appending."""
  stream, taken, ads, feed = made
  new = {"text": "new", "account_id": "shop"}
  stream.append("events", [event(ad="new", time=1)])
  stream.append("ads", [{"ad_id": "other", **new}])
  stream.append("events", [event(ad="other", time=2)])
  stream.append("ads", [{"ad_id": "new", **new, "price": 3}])
  assert feed.take() and feed.waiting == 1 and taken.events == []
  assert feed.take() and [e.ad for e in taken.events] == [2]
  assert not feed.take() and feed.waiting == 1  # no event followed the ad yet
  stream.append("events", [event(time=3)])
  assert feed.take() and feed.waiting == 0
  assert [(e.ad, e.time) for e in taken.events] == [(2, 2), (3, 1), (0, 3)]
  assert ads.codes_NT[2:].tolist() == [[1, 1, 1], [1, 1, 2]]
  assert ads.price_N[3] == 3 and np.isnan(ads.price_N[2])


@pytest.mark.parametrize("together", [True, False])
def test_an_ad_of_the_same_moment_comes_after_the_event(tmp_path, together):
  """Whether it was read with the event, or a moment later: the order is the same."""
  now = [1.0]
  stream = open_stream(f"sqlite:{tmp_path}/s", lambda: now[0])
  taken = Taken()
  ads = known_ads()
  known = []  # ads at each event
  taken.add = lambda event: (taken.events.append(event), known.append(len(ads)))
  feed = Feed(stream, taken, ads, ("click", "purchase"))
  stream.append("events", [event(time=1), event(ad="new", time=2)])
  assert together or feed.take()
  stream.append("ads", [{"ad_id": "new", "text": "new", "account_id": "shop"}])
  now[0] = 2.0
  stream.append("events", [event(time=3)])
  while feed.take():
    pass
  assert [(e.ad, e.time) for e in taken.events] == [(0, 1), (2, 2), (0, 3)]
  assert known == [2, 3, 3] and feed.waiting == 0
  stream.close()


@pytest.mark.parametrize("bad", [
  {"user_id": 5}, {"ad_id": 5}, {"ad_id": None}, {"time": None}, {"time": "now"}, {"time": -1},
  {"value": 1e300}, {"quantity": True}, {"behavior": "sale"},
])  # fmt: skip
def test_what_is_no_event_is_counted_and_told(made, bad, caplog):
  stream, taken, _, feed = made
  stream.append("events", [event() | bad, event()])
  while feed.take():
    pass
  assert (feed.bad, feed.offset, len(taken.events)) == (1, 2, 1)
  assert "topic events, offset 1 is passed over" in caplog.text


def test_what_retention_took_is_told_in_a_line(made):
  stream, _, _, feed = made
  stream.append("events", [event(), event()])
  stream.append("events", [event()])
  stream.retain("events", size=1)
  with pytest.raises(DataError, match="no longer holds what a learner starts from"):
    feed.take()


def test_ads_change_leave_and_come_back():
  ads = known_ads(overlay=2)
  before = ads.codes_NT[0].tolist()
  assert ads.put("a0", {"price": 9.0}) == 0 and ads.price_N[0] == 9
  assert ads.codes_NT[0].tolist() != before  # the price is in what the codes are made from
  ads.put("a0", {"status": "removed"})
  assert ads.index.num_active == 1
  ads.put("a0", {"text": "back", "account_id": "shop"})
  assert ads.index.num_active == 2
  for number in range(70):  # more than there is room for: the index is merged on the way
    assert ads.put(f"n{number}", {"text": "x", "account_id": "y", "codes": [0, 1, 3]}) == number + 2
  assert len(ads) == 72 and ads.index.num_active == 72
  assert ads.codes_NT[2:].tolist() == [[0, 1, 3]] * 70


def test_ads_that_came_have_a_date():
  ads = known_ads()
  fields = {"text": "new", "account_id": "shop"}
  ads.put("dated", fields | {"created": 77})
  ads.put("undated", fields)
  assert ads.created_N.tolist() == [-1, -1, 77, -1]
  ads.put("dated", {"status": "removed"})
  assert ads.created_N.tolist() == [-1, -1, 77, -1]
