"""What comes through the stream is known as if it had been there from the beginning."""

import sqlite3

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.features.contexts import contexts_at
from gr4ad_jax.features.histories import Histories
from gr4ad_jax.features.lines import build_lines
from gr4ad_jax.features.neighbors import NeighborFolds
from gr4ad_jax.features.trends import Trends
from gr4ad_jax.people import events as events_lib
from gr4ad_jax.people import follower as follower_lib
from gr4ad_jax.people.follower import Lately, moment
from tests.features.happenings import ADS, DAY, EVENTS, log_of
from tests.features.test_state import CONFIG, FIXED, NEAR, assert_same
from tests.people.living_state import BEHAVIORS, Server, event

MOMENTS = [19_000 * DAY + half * DAY // 2 + 60 for half in (10, 25, 40, 90)]


def posted(number, row):
  """A row of `EVENTS` as an event."""
  user, visit, ad, half, depth, quarters, quantity = row
  return event(
    number, "abc"[user], ad, 19_000 * DAY + half * DAY // 2, behavior=BEHAVIORS[depth],
    value=quarters / 4, quantity=float(quantity), request_id=str(visit),
  )  # fmt: skip


STEPS = st.lists(st.sampled_from(["post", "post", "again", "kill", "save", "ad"]), max_size=30)


@settings(max_examples=25, deadline=None)
@given(EVENTS, STEPS)
def test_kills_repeats_and_late_ads_change_nothing(tmp_path_factory, rows, steps):
  """Against all events at once, in the order in which they and their ads came."""
  folder = tmp_path_factory.mktemp("server")
  ads = {f"ad{n}": n for n in range(ADS - 2)}  # two are not known yet
  server = Server(folder, hot=1, ads=ads)
  came, waits, at, count = [], [], 0, len(rows)
  for step in [*steps, "ad", "ad", *["post"] * len(rows)]:
    if step == "post" and at < count:
      server.stream._writer.execute("PRAGMA synchronous=OFF")  # for speed
      assert server.post(posted(at, rows[at])) == [at + 1]
      (came if f"ad{rows[at][2]}" in ads else waits).append(rows[at])
      at += 1
    elif step == "again" and at:
      assert server.post(posted(at // 2, rows[at // 2 - (at == 1)]), posted(0, rows[0]))[1] is None
    elif step == "kill":
      server.kill()
      server = Server(folder, hot=1, ads=ads)
    elif step == "save":
      server.follower.snapshot()
    elif step == "ad" and len(ads) < ADS:
      ads[f"ad{len(ads)}"] = len(ads)
      server.follower.catch_up()
      came += [row for row in waits if row[2] == len(ads) - 1]
      waits = [row for row in waits if row[2] != len(ads) - 1]
    assert server.follower.num_waiting == len(waits)
    assert server.state.histories.in_memory <= 1 + len(server.state.histories.changed)
  log = log_of(came)
  popularity = Trends.fit(build_lines(log, ADS), ADS)
  users = log.user_id.tolist()
  for asked in MOMENTS:
    now_B = np.full(len(users), asked)
    about = popularity, NeighborFolds.of(NEAR), FIXED, CONFIG
    expected = contexts_at(Histories(log).take(range(len(users))), now_B, *about)
    assert_same(server.state.features(users, now_B), expected)
  assert len(server.state.histories) == len(users)
  assert server.state.histories.starting_with("", 9) == users
  server.kill()


def test_a_snapshot_carries_its_offset(tmp_path):
  server = Server(tmp_path)
  server.post(event(1), event(2, "b"))
  server.follower.snapshot()
  server.post(event(3, "a", 1))
  before = server.context(["a", "b"], MOMENTS[1])
  server.kill()
  again = Server(tmp_path)
  assert (again.store.offset, again.follower.offset, again.follower.events) == (2, 3, 1)
  assert_same(again.context(["a", "b"], MOMENTS[1]), before)
  again.follower.close()
  again.kill()
  last = Server(tmp_path)
  assert (last.store.offset, last.follower.events) == (3, 0)
  last.kill()


def test_the_log_goes_on_with_the_stream(tmp_path):
  rows = [(0, 0, 1, 2, 0, 4, 1), (0, 1, 2, 8, 2, 8, 1), (1, 0, 3, 4, 1, 0, 1)]
  later = [(0, 2, 1, 12, 2, 20, 1), (2, 2, 4, 14, 0, 0, 1)]
  log = log_of(rows)
  popularity = Trends.fit(build_lines(log, ADS), ADS)
  server = Server(tmp_path, log=log, popularity=popularity)
  server.post(*(posted(n, row) for n, row in enumerate(later)))
  server.follower.snapshot()
  server.kill()
  server = Server(tmp_path, log=log, popularity=popularity)
  whole = log_of(rows + later)
  about = Trends.fit(build_lines(whole, ADS), ADS), NeighborFolds.of(NEAR), FIXED, CONFIG
  now_B = np.full(3, MOMENTS[3])
  expected = contexts_at(Histories(whole).take(range(3)), now_B, *about)
  assert_same(server.context(["a", "b", "c"], MOMENTS[3]), expected)
  assert len(server.state.histories) == 3
  server.kill()
  with pytest.raises(DataError, match="people.sqlite: it goes on from another log; remove it"):
    Server(tmp_path)


def test_an_erased_user_is_nowhere_and_may_come_back(tmp_path):
  rows = [(0, 0, 1, 2, 0, 4, 1), (1, 0, 3, 4, 1, 0, 1)]
  server = Server(tmp_path, log=log_of(rows))  # a and b are of the log
  secret = "Wanda Unspeakable"
  server.post(event(1, secret), event(2, "a", 2), event(3, secret, ad=77), event(4, "b", ad=77))
  server.follower.snapshot()
  assert server.follower.num_waiting == 2
  for user in (secret, "a"):
    mark = events_lib.erasure(user, server.stream.end("events"))
    assert secret not in str(mark)
    server.stream.append("erasures", [mark])
    server.stream.erase("events", "user_id", user)
    server.follower.catch_up()
    assert server.state.find(user) is None
  assert server.follower.num_waiting == 1  # the event of b
  server.post(event(5, "a", 4))
  assert server.state.find("a").ad.tolist() == [4]  # a new user of the same name
  server.follower.snapshot()
  assert server.stream.compact() and server.store.compact()
  assert server.state.histories.starting_with("", 9) == ["a", "b"]
  assert len(server.state.histories) == 2
  server.kill()
  again = Server(tmp_path, log=log_of(rows))
  assert again.state.find("a").ad.tolist() == [4] and again.state.find(secret) is None
  assert again.state.find("b") is not None
  again.kill()
  assert not any(secret.encode() in path.read_bytes() for path in tmp_path.iterdir())


def test_what_follows_an_erasure_stays_whoever_reads_it_when(tmp_path):
  server = Server(tmp_path)
  server.stream.append("events", [event(n, "a", n % 3) for n in range(3)])
  server.stream.append("erasures", [events_lib.erasure("a", 3)])
  server.stream.append("events", [event(9, "a", 4), event(10, "b", 2)])
  server.kill()
  late = Server(tmp_path)  # it reads all at once
  assert late.state.find("a").ad.tolist() == [4] and len(late.state.histories) == 2
  assert late.follower.wait_for_erasure(1, 0) and not late.follower.wait_for_erasure(2, 0)
  late.follower.snapshot()
  late.kill()
  again = Server(tmp_path)
  assert again.state.find("a").ad.tolist() == [4] and again.follower.events == 0
  again.kill()


def test_who_fell_behind_says_so_and_goes_on(tmp_path, caplog):
  server = Server(tmp_path)
  server.post(event(1), event(2, "b"))
  server.follower.snapshot()
  offsets = server.stream.append("events", [event(n, "c", n % 3) for n in range(3, 9)])
  server.kill()
  stream = Server(tmp_path).stream
  stream.retain("events", size=2 * len(str(event(3))))
  kept = stream.read("events", 6)
  assert 0 < len(kept) < len(offsets)
  (tmp_path / "people.sqlite").unlink()
  again = Server(tmp_path)
  assert again.follower.missed == 8 - len(kept)
  assert "fallen behind the retention: start from a snapshot" in caplog.text
  assert len(again.state.find("c")) == len(kept)
  again.kill()


def test_events_that_no_one_can_read_are_counted(tmp_path):
  server = Server(tmp_path)
  server.post(event(1), event(2, behavior="sniff"), event(3))
  assert server.follower.refused == 1
  assert len(server.state.find("a")) == 2
  server.kill()


def test_waiting_events_are_bounded(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(follower_lib, "MOST_WAITING", 3)
  server = Server(tmp_path)
  server.post(*(event(n, ad=70 + n % 2) for n in range(4)))
  assert server.follower.num_waiting == 2  # those of the ad that waited longest are given up
  assert "2 of ad 'ad70' are given up" in caplog.text
  server.ads["ad71"] = 3
  server.follower.catch_up()
  assert server.state.find("a").ad.tolist() == [3, 3]
  server.kill()


def test_a_damaged_user_is_told(tmp_path):
  server = Server(tmp_path)
  server.post(event(1, request_id="visit name"))
  server.follower.close()
  server.kill()
  path = tmp_path / "people.sqlite"
  with sqlite3.connect(path) as connection:
    (blob,) = connection.execute("SELECT events FROM people").fetchone()
    connection.execute("UPDATE people SET events = ?", (blob[:-1] + bytes([blob[-1] ^ 1]),))
  with pytest.raises(DataError, match="people.sqlite: user 'a' is damaged: the checksum is wrong"):
    Server(tmp_path).state.find("a")


def test_the_thread_follows_and_tries_again(tmp_path, monkeypatch):
  server = Server(tmp_path)
  read, fails = server.stream.read, [OSError("gone"), OSError("gone")]

  def refusing(*arguments):
    if fails:
      raise fails.pop()
    return read(*arguments)

  monkeypatch.setattr(server.stream, "read", refusing)
  monkeypatch.setattr(follower_lib, "_AGAIN", 0.01)
  server.follower.start()
  (offset,) = server.stream.append("events", [event(1)])
  assert server.follower.wait_for(offset, 60) and not fails
  assert server.heard == ["a"]
  server.follower.close()
  assert server.store.offset == 1
  server.kill()


def test_the_moment_is_the_clocks_while_events_come(tmp_path):
  server = Server(tmp_path)
  server.post(event(1, time=19_000 * DAY))
  assert server.state.end == 19_000 * DAY + 1
  assert moment(server.state, 19_000 * DAY + 500.5) == 19_000 * DAY + 500
  assert moment(server.state, 19_010 * DAY) == 19_000 * DAY + 1  # a log that is played again
  assert moment(server.state, 19_000 * DAY - 5) == 19_000 * DAY + 1
  server.kill()


def test_versions_change_with_what_is_heard():
  lately = Lately(1e9)
  lately.heard(["a", "b"])
  first = lately.version("a")
  lately.heard(["a"])
  assert lately.version("a") > first > 0 and lately.version("x") == lately.version(None) == 0
  short = Lately(-1)
  short.heard(["a"])
  assert not short


def test_what_is_posted_is_checked():
  given = [
    {"event_id": "1", "user_id": "u", "ad_id": "x", "time": 100},
    {"event_id": "2", "user_id": "u", "ad_id": "x", "time": 100 + DAY, "value": 2.5,
     "behavior": "click", "quantity": 3.0, "request_id": "r"},
    {"event_id": "3", "user_id": "u", "ad_id": "x", "time": 101 + DAY},
  ]  # fmt: skip
  found = events_lib.checked(given, BEHAVIORS, 100)
  assert found.keys == ["1", "2"] and found.set_aside == {"3": events_lib.FUTURE}
  plain = {"behavior": "purchase", "value": 0.0, "quantity": 1.0, "request_id": None}
  assert found.values[0] == {"user_id": "u", "ad_id": "x", "time": 100, **plain}
  assert found.values[1] == {name: x for name, x in given[1].items() if name != "event_id"}
  with pytest.raises(DataError, match="entry 1: behavior 'sniff' is not known; allowed: click"):
    events_lib.checked([given[0] | {"behavior": "sniff"}], BEHAVIORS, 100)
