"""From streams to the table: joins by loops, and the binary on a world with a known difference."""

import json

import numpy as np
import pytest

from gr4ad_jax.arms import measures, report
from gr4ad_jax.arms.journal import Journal
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.streams.opening import open_stream
from tests import tiny
from tests.arms import simulated

DAY = 86_400


def _impression(user, moment, arm, ads, **more):
  entries = [
    {"ad": ad, "position": at, "log_p": -1.0, "ecpm": 1.0, "source": "model"}
    for at, ad in enumerate(ads)
  ]
  base = {"request": f"{user}-{moment}", "checkpoint": 7}
  return base | {"user": user, "moment": moment, "arm": arm, "list": entries} | more


def _event(user, time, ad, value):
  return {"event_id": f"{user}{time}{ad}", "user_id": user, "ad_id": ad, "time": time} | {
    "value": value
  }


@pytest.fixture
def small(tmp_path):
  """Three users: anna of arm a, bert of arm b, carl of both; and one whose week is not over."""
  url = f"sqlite:{tmp_path}/s.sqlite"
  stream = open_stream(url)
  stream.append(
    "impressions",
    [
      _impression("anna", 10 * DAY, "a", ["x", "y"], latency_ms=10.0),
      _impression("anna", 11 * DAY, "a", ["z", "w"], latency_ms=30.0),
      _impression("bert", 10 * DAY, "b", ["x"]),
      _impression("carl", 10 * DAY, "a", ["x"]),
      _impression("carl", 12 * DAY, "b", ["x"]),
      _impression("late", 16 * DAY, "b", ["x"]),
      _impression(None, 16 * DAY, "b", ["x"]),
    ],
  )
  stream.append(
    "events",
    [
      _event("anna", 9 * DAY, "x", 3.0),  # before
      _event("anna", 10 * DAY + 60, "x", 4.0),
      _event("anna", 10 * DAY + 61, "q", 5.0),
      _event("anna", 11 * DAY + 60, "x", 6.0),  # is not in the second list
      _event("anna", 11 * DAY + 2 * DAY, "z", 7.0),  # later than 24 hours, still in the week
      _event("anna", 17 * DAY, "z", 100.0),  # after the week
      _event("late", 18 * DAY, "x", 1.0),
    ],
  )
  yield stream, url
  stream.close()


def test_revenue_and_recall_of_users_whose_days_are_over(small):
  journal = Journal.read(small[0])
  arms, mixed = measures.one_arm_users(journal)
  assert (arms, mixed) == ({"anna": "a", "bert": "b", "late": "b"}, 1)
  revenue = measures.revenue(journal, arms, 7, {"anna": 10.0})
  assert revenue.arm_U.tolist() == ["a", "b"]
  assert revenue.y_U.tolist() == [22.0, 0.0]
  assert revenue.x_U.tolist() == [13.0, 0.0]
  assert revenue.known_U.tolist() == [17 * DAY, 17 * DAY]
  recall = measures.recall(journal, arms, 7, 24, k=10)
  assert recall.arm_U.tolist() == ["a"] and recall.y_U.tolist() == [(1 / 2 + 0) / 2]
  # Of the first place alone, with 72 hours: x of {x, q}, then z of {x, z}.
  recall = measures.recall(journal, arms, 7, 72, k=1)
  assert recall.y_U.tolist() == [(1 / 2 + 1 / 2) / 2]
  assert measures.latencies(journal, arms)["a"].tolist() == [10.0, 30.0]
  assert measures.arrivals(journal, arms)[-1] == {"a": 1, "b": 2}


def test_a_record_that_misses_a_field_is_named(small):
  stream, _ = small
  stream.append("events", [{"user_id": "anna", "time": 3}])
  with pytest.raises(DataError, match="topic 'events', offset 8: 'ad_id' is missing"):
    Journal.read(stream)


TRIED = {"ads": ["p", "q", "r"], "log_p": [-1.0, -2.0, -3.0], "ecpm": [1.0, 2.0, 9.0]}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """700 users in two arms; the second brings half as much again, and has a place for trying."""
  url = f"sqlite:{tmp_path_factory.mktemp('arms')}/s.sqlite"
  rng = np.random.default_rng(11)
  arm_U, y_U, x_U = simulated.outcomes(rng, 700, 0.5)
  impressions = []
  events = []
  for user, (arm, y, x) in enumerate(zip(arm_U, y_U, x_U, strict=True)):
    moment = (20 + user // 100) * DAY
    at = int(rng.choice(3, p=[0.5, 0.3, 0.2]))
    tried = {"trial": TRIED | {"propensity": [0.5, 0.3, 0.2], "at": at}} if arm else {}
    impressions.append(_impression(f"u{user}", moment, "ab"[arm], ["x", "y"], **tried))
    events.append(_event(f"u{user}", moment - DAY, "y", float(x)))
    events.append(_event(f"u{user}", moment + 60, "x", float(y)))
    if arm and at == 2:
      events.append(_event(f"u{user}", moment + 70, "r", 1.0))
  events.append(_event("end", 60 * DAY, "x", 0.0))
  stream = open_stream(url)
  stream.append("impressions", impressions)
  stream.append("events", events)
  stream.close()
  return url, y_U.reshape(-1), arm_U


def test_the_binary_tells_the_difference(world, tmp_path):
  url, y_U, arm_U = world
  out = tmp_path / "report.json"
  argv = [f"--stream={url}", "--arms=a=0.5,b=0.5", "--days=3", "--aim=700", f"--out={out}"]
  done = tiny.run("compare_arms", *argv)
  assert done.status == 0, done.err
  found = json.loads(out.read_text())
  mine = found["arms"]["b"]["revenue"]
  assert found["arms"]["a"]["revenue"]["mean"] == pytest.approx(y_U[arm_U == 0].mean())
  assert mine["low"] > 0 and mine["low"] < y_U.mean() * 0.4 < mine["high"]
  assert mine["known before"] > 0.1
  assert found["arms"]["a"]["recall@10"]["mean"] == 1.0  # x stands in every list
  assert found["split"]["p"] > 0.01 and found["split"]["mixed"] == 0
  looks = [day["users"] for day in found["days"]]
  assert looks == sorted(looks) and looks[-1] == 700 and len(looks) == 7
  rules = found["tried"]["b"]["rules"]
  # Only r, the dearest, brings something: always 1. The rule by eCPM takes it, that by log p never.
  draws = arm_U.sum()
  assert rules["ecpm"]["snips"][0] == pytest.approx(1.0)
  assert rules["log_p"]["ips"][0] == 0.0
  assert abs(rules["ecpm"]["ips"][0] - 1.0) < 4 * rules["ecpm"]["ips"][1]
  assert abs(rules["ecpm"]["dr"][0] - 1.0) < 4 * rules["ecpm"]["dr"][1]
  assert found["tried"]["a"] is None and found["tried"]["b"]["draws"] == draws
  assert all(words in done.out for words in ("The split fits", "ahead of a", "by ecpm"))


def test_users_lost_by_one_arm_are_told(world):
  stream = open_stream(world[0])
  journal = Journal.read(stream)
  stream.close()
  shown = dict(journal.shown)
  for user in [u for u, one in shown.items() if one[0].arm == "b"][:160]:
    del shown[user]
  short = Journal(shown, journal.taken, journal.end)
  terms = report.Terms({"a": 0.5, "b": 0.5}, 3.0, 24.0, 10, 0.05, 700)
  assert "The split is OFF" in report.text(report.report(short, terms, {}))


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    ("--arms=a=0.5", "sum to 0.5"),
    ("--arms=a=x,b=1", "frozen=0.5,learning=0.5"),
    ("--arms=a=0.5,a=0.5", "stands there twice"),
    ("--arms=", "--arms= is not allowed"),
    ("--stream=file:x", "--stream=file:x is not allowed"),
    ("--stream=sqlite:/nowhere/s.sqlite", "/nowhere/s.sqlite: there is no such stream"),
    ("--arms=c=1", "topic 'impressions' has arm 'a'"),
  ],
)
def test_bad_input_is_one_line(world, flag, words):
  argv = [f"--stream={world[0]}", "--arms=a=0.5,b=0.5", flag]
  done = tiny.run("compare_arms", *argv)
  assert done.status == 2 and words in done.err and done.err.count("error: ") == 1
