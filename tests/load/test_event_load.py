"""Event to effect, against a server that knows an event some time after it was acknowledged."""

import asyncio
import itertools
import json

import numpy as np
import pytest

from gr4ad_jax.load import event_load
from gr4ad_jax.load.event_load import Effect, Measured, Rates
from gr4ad_jax.load.http_load import Outcome
from tests.load import fake_server

ANSWER = json.dumps({"source": "model", "beams": [8], "ads": []}).encode()
ADS = [f"ad{n}" for n in range(9)]


class Shop:
  """Knows u0, and users of events `later` questions for them after their event; refuses the third
  post.
  """

  def __init__(self, later):
    self.later, self.asked, self.posts = later, {}, 0

  async def __call__(self, method, path, body):
    content = json.loads(body)
    if path == "/v1/events":
      self.posts += 1
      if self.posts == 3:
        return 503, {"Retry-After": "1"}, b"{}"
      for event in content["events"]:
        self.asked.setdefault(event["user_id"], 0)
      return 202, {}, b"{}"
    user = content["user"]
    if user == "u0":
      return 200, {}, ANSWER
    assert not content["cache"] and not content["fallback"]
    self.asked[user] += 1
    return (200, {}, ANSWER) if self.asked[user] > self.later else (404, {}, b"{}")


def test_an_effect_is_the_first_answer_for_a_new_user():
  async def run():
    shop = Shop(later=2)
    async with await fake_server.start(shop) as server:
      address = fake_server.address_of(server)
      batches = event_load.events_of(["u0"], ADS, 1_000, 10, seed=1)
      return await event_load.load(address, address, batches, ["u0"], Rates(100, 10, 20), 0.5)

  measured = asyncio.run(run())
  assert [one.status for one in measured.effects] == [202, 202, 503, 202, 202]
  good = [one for one in measured.effects if one.status == 202]
  assert all(one.asked == 3 and one.effect >= 2 * event_load.PAUSE for one in good)
  assert np.isnan(measured.effects[2].effect) and measured.effects[2].asked == 0
  assert {one.status for one in measured.asked} <= {200}
  figures = event_load.report(measured, Rates(100, 10, 20), 0.5)
  assert (figures["posts"], figures["refused"], figures["lost"]) == (5, 1, 0)
  assert figures["events_per_s"] == 80 and "1 of 5 batches refused" in event_load.in_words(figures)


def test_batches_are_visits_that_end():
  """Visits of five events a minute apart, ids that never come again, a new user first."""
  (one, first), (two, second) = itertools.islice(
    event_load.events_of(["u0", "u1"], ADS, 1_000, 12, seed=3), 2
  )
  assert one != two and first[0]["user_id"] == one and second[0]["user_id"] == two
  events = first + second
  assert len({event["event_id"] for event in events}) == 24
  visits = {}
  for event in events:
    visits.setdefault(event["request_id"], []).append(event)
  assert [len(some) for some in visits.values()] == [5, 5, 2, 5, 5, 2]
  for number, some in enumerate(visits.values()):
    assert len({event["user_id"] for event in some}) == 1
    assert [event["time"] for event in some] == [
      1_000 + 60 * number + at for at in range(len(some))
    ]
    assert len({event["ad_id"] for event in some}) == len(some)


def test_figures_are_of_what_was_acknowledged():
  effects = [Effect(202, 0.1, 0.2, 3), Effect(202, 0.3, float("nan"), 9), Effect(0, 5.0, 0.9, 0)]
  asked = [Outcome(0, 0, 0.05, 200, "model", 8, False), Outcome(0, 0, 9.0, 503, "", 0, True)]
  figures = event_load.report(Measured(effects, asked), Rates(500, 50, 50), 2.0)
  taken = {
    "post_ms": {"p50": 200.0, "p90": 280.0, "p99": 298.0, "most": 300.0},
    "effect_ms": dict.fromkeys(("p50", "p90", "p99", "most"), 200.0),
    "ask_ms": dict.fromkeys(("p50", "p90", "p99", "most"), 50.0),
  }
  for name, expected in taken.items():
    assert figures.pop(name) == pytest.approx(expected), name
  assert figures == {
    "events_per_s": 50.0, "posts": 3, "refused": 1, "lost": 1, "asks_per_s": 7.0, "answered": 0.5,
  }  # fmt: skip
  nothing = event_load.report(Measured([], []), Rates(), 1.0)
  assert nothing["effect_ms"] is None and "nan" in event_load.in_words(nothing)
