"""What was shown, in the stream; and what the ledger makes of it after a start, and of others'."""

import pytest

from gr4ad_jax.answering.impressions import Impressions, first_since
from gr4ad_jax.answering.messages import Answer, Query
from gr4ad_jax.answering.terms import Ledger
from gr4ad_jax.streams.opening import open_stream
from tests.streams.streams import Clock, fill, numbers

DAY = 86_400
ROWS = {"cup": 0, "pan": 1}


@pytest.fixture
def clock():
  return Clock(20_000 * DAY + 3600.0)


@pytest.fixture
def stream(tmp_path, clock):
  opened = open_stream(f"sqlite:{tmp_path}/s.sqlite", clock)
  yield opened
  opened.close()


def ad(name, ecpm=2.0, **more):
  return {"ad_id": name, "log_p": -1.5, "ecpm": ecpm, "score": 0.0, "text": "not kept"} | more


def answer(request, *ads, source="model", receipt=None):
  return Answer(source, 7, (8,), ads, now=500, request=request, receipt=receipt)


def made(stream, clock, **settings):
  ledger = Ledger(lambda row: "shop", clock=clock, **settings)
  return Impressions(stream, ledger, ROWS.get, clock), ledger


def test_a_record_says_what_was_shown_to_whom(stream, clock):
  impressions, _ = made(stream, clock)
  drawn = [ad("cup", propensity=1.0), ad("pan", 3.0, propensity=0.25)]
  impressions.add(Query(user="u", k=2), answer("r1", *drawn), 0.0123)
  impressions.add(Query(history=()), answer("r2", ad("cup"), source="fallback"), 1.0, "b", trial=3)
  assert impressions.write() == 2 and impressions.write() == 0
  first, second = stream.read("impressions", 0)
  assert (first.key, second.key) == ("r1", "r2")
  plain = {"log_p": -1.5, "ecpm": 2.0}
  assert first.value == {
    "request": "r1", "user": "u", "time": clock.now, "moment": 500, "server": impressions.server,
    "arm": "", "checkpoint": 7, "source": "model", "latency_ms": 12.3, "list": [
      {"ad": "cup", **plain, "source": "model", "propensity": 1.0},
      {"ad": "pan", "log_p": -1.5, "ecpm": 3.0, "source": "explore", "propensity": 0.25},
    ],
  }  # fmt: skip
  assert (second.value["user"], second.value["arm"], second.value["trial"]) == (None, "b", 3)
  assert second.value["list"] == [{"ad": "cup", **plain, "source": "fallback"}]


def test_what_could_not_be_written_is_written_later_and_once(stream, clock, monkeypatch):
  impressions, _ = made(stream, clock)
  append, lost = stream.append, []

  def refusing(*arguments):
    if not lost:
      append(*arguments)  # it is there, but the answer is lost
      lost.append(1)
      raise OSError("gone")
    return append(*arguments)

  monkeypatch.setattr(stream, "append", refusing)
  impressions.add(Query(user="u"), answer("r1", ad("cup")), 0.1)
  with pytest.raises(OSError, match="gone"):
    impressions.write()
  impressions.add(Query(user="u"), answer("r2", ad("cup")), 0.1)
  assert impressions.write() == 2
  assert [record.key for record in stream.read("impressions", 0)] == ["r1", "r2"]


def test_caps_and_budgets_hold_over_a_restart_and_at_others(stream, clock):
  impressions, ledger = made(stream, clock, cap_times=2, cap_days=2.0)
  for number in range(2):
    _, receipt = ledger.take("u", [(0, -1.0, 0.0, 2.0)], list)
    given = answer(f"r{number}", ad("cup"), ad("gone"), receipt=receipt)
    impressions.add(Query(user="u"), given, 0.1)
  impressions.write()
  assert ledger.capped("u").tolist() == [0]
  for _ in range(2):  # as after a restart, and as at another server
    other, known = made(stream, clock, cap_times=2, cap_days=2.0)
    other.start()
    other.close()
    assert known.capped("u").tolist() == [0] and known.capped("v").tolist() == []
    assert known.account("shop")["spent_today"] == 4.0
  impressions.count_others()  # its own count once
  assert ledger.account("shop")["spent_today"] == 4.0
  clock.now += DAY  # of yesterday, yet within the cap's window
  other, known = made(stream, clock, cap_times=2, cap_days=2.0)
  other.start()
  other.close()
  assert known.capped("u").tolist() == [0] and known.account("shop")["spent_today"] == 0.0
  known.forget("u")
  assert known.capped("u").tolist() == []
  clock.now += DAY + 1
  other, known = made(stream, clock, cap_times=2, cap_days=2.0)
  other.start()
  other.close()
  assert known.capped("u").tolist() == [] and not known._window


def test_what_was_shown_without_a_limit_counts_when_there_is_one(stream, clock):
  impressions, ledger = made(stream, clock)
  impressions.add(Query(user="u"), answer("r1", ad("cup"), ad("pan", 0.5)), 0.1)
  impressions.write()
  impressions.count_others()  # not once more
  ledger.set_budget("shop", 5.0)
  assert ledger.account("shop")["spent_today"] == 2.5


@pytest.mark.parametrize("gone", [(), (2,), (1, 2, 3), (6,), (4, 5, 6, 7)])
def test_records_since_a_moment_are_found_by_halves(stream, clock, gone):
  begin = clock.now
  for n in range(1, 10):
    clock.now = begin + 10 * n
    fill(stream, 1, start=n)
  for n in gone:
    assert stream.erase("events", "n", n) == 1
  for since in (0, 10, 15, 40, 55, 90, 91):
    after = first_since(stream, "events", begin + since)
    expected = [n for n in range(1, 10) if 10 * n >= since and n not in gone]
    assert [n for _, _, n in numbers(stream, after=after)] == expected
  stream.retain("events", size=21)
  kept = numbers(stream, after=first_since(stream, "events", begin))
  assert kept == numbers(stream, after=first_since(stream, "events", 0.0))
  assert 0 < len(kept) <= 3
