"""Lists that wait: for their moment, their ads and their visits; what is put aside is counted."""

import dataclasses

import numpy as np
import pytest

from gr4ad_jax.preference import waiting_lists
from gr4ad_jax.preference.waiting_lists import WaitingLists
from gr4ad_jax.requests.candidates import NO_REFERENCE
from gr4ad_jax.streams.opening import open_stream
from tests.preference.rewarded import CODEBOOKS, Ads, record


@dataclasses.dataclass
class Visit:
  user_id: str
  begin: int
  last: int


@pytest.fixture
def stream(tmp_path):
  """Each append is a second after the one before, from 1 on."""
  clock = iter(range(1, 1000))
  made = open_stream(f"sqlite:{tmp_path}/s", lambda: next(clock))
  yield made
  made.close()


def waiting(stream, ads=4):
  return WaitingLists(stream, Ads(ads), CODEBOOKS)


def counts(of, **expected):
  return of.counts == dict.fromkeys(of.counts, 0) | expected


VISITS = ((0, [Visit("u", 90, 110), Visit("v", 95, 99)]), (1, [Visit("u", 100, 130)]))


def test_lists_up_to_a_moment_are_taken(stream):
  for _ in range(3):
    stream.append("lists", [record()])
  lists = waiting(stream)
  lists.read(2.0)
  assert lists.offset == 2 and counts(lists, waiting=2)
  lists.read(2.5)
  assert lists.offset == 2
  lists.read(3.0)
  assert lists.offset == 3 and counts(lists, waiting=3)


def test_whole_batches_are_due_the_oldest_first(stream):
  stream.append("lists", [record(began=began) for began in (91, 92, 105, 106, 107)])
  lists = waiting(stream)
  lists.read(9.0)
  assert lists.due(VISITS, 6, 1) == () and counts(lists, waiting=5)
  due = lists.due(VISITS, 2, 1)
  assert [one.of.began for one in due] == [91, 92]
  assert [one.of.began for one in lists.due(VISITS, 1, 2)] == [105, 106]
  assert counts(lists, learned=4, waiting=1)
  # Of two visits it is the one that had begun last.
  assert due[0].visit is VISITS[0][1][0] and due[0].group == 0
  (last,) = lists.due(VISITS, 1, 2)
  assert last.visit is VISITS[1][1][0] and last.group == 1


def test_a_list_waits_for_its_ads_and_its_visit(stream):
  stream.append("lists", [record(ads=("a0", "a7")), record(began=200)])
  lists = waiting(stream)
  lists.read(9.0)
  assert lists.due(VISITS, 1, 9) == () and counts(lists, waiting=2)
  lists._ads = Ads(8)
  assert [one.of.ads for one in lists.due(VISITS, 1, 9)] == [("a0", "a7")]
  later = (2, [Visit("u", 180, 220)])
  assert [one.of.began for one in lists.due((*VISITS, later), 1, 9)] == [200]
  assert counts(lists, learned=2)


def test_what_cannot_be_learned_from_is_put_aside(stream, caplog):
  changed = record()
  changed["list"][1]["codes"] = [1, 0, 1]
  stream.append("lists", [changed, record(began=89), record(user="v", began=90), record(user=3)])
  lists = waiting(stream)
  lists.read(9.0)
  assert "topic lists, offset 4 is passed over (1 so far): user 3 is not allowed" in caplog.text
  assert lists.due(VISITS, 1, 9) == ()
  # Before the oldest visit that is remembered there is none to come; behind it one still may.
  assert counts(lists, outgrown=1, late=1, unreadable=1, waiting=1)


def test_too_many_push_the_oldest_out(stream, monkeypatch):
  monkeypatch.setattr(waiting_lists, "_MOST", 2)
  stream.append("lists", [record(began=began) for began in (101, 102, 103)])
  lists = waiting(stream)
  lists.read(9.0)
  assert [one.of.began for one in lists.due(VISITS, 1, 9)] == [102, 103]
  assert counts(lists, learned=2, late=1)


def test_a_restored_one_goes_on(stream, caplog):
  stream.append("lists", [record(began=began) for began in (101, 300, 102, 301)])
  lists = waiting(stream)
  lists.read(9.0)
  lists.due(VISITS, 2, 1)
  state = lists.state()
  assert state == {"offset": 4, "waiting": [2, 4], "counts": {**lists._counts}}
  stream.append("lists", [record(began=103)])
  other = waiting(stream)
  other.restore(state)
  assert other.state() == state and other.counts == lists.counts
  other.read(9.0)
  later = (2, [Visit("u", 299, 310)])
  assert [one.of.began for one in other.due((*VISITS, later), 3, 1)] == [300, 301, 103]
  stream.erase("lists", "user", "u")
  gone = waiting(stream)
  gone.restore(state)
  assert gone.counts["gone"] == 2 and gone.counts["waiting"] == 0
  assert "2 lists that waited are gone from the stream" in caplog.text


def test_what_retention_took_is_counted(stream):
  stream.append("lists", [record(began=101)] * 3)
  stream.append("lists", [record(began=102)])
  stream.retain("lists", size=300)
  lists = waiting(stream)
  lists.read(9.0)
  assert counts(lists, gone=3, waiting=1) and lists.offset == 4


def test_lists_as_columns():
  parsed = [
    waiting_lists.list_records.parse(record(ads=ads), CODEBOOKS) for ads in (("a2",), ("a0", "a1"))
  ]
  ad_BC, codes_BCT, logp_BC, reward_BC = waiting_lists.columns_of(parsed, Ads(3), 3)
  np.testing.assert_array_equal(ad_BC, [[2, -1, -1], [0, 1, -1]])
  np.testing.assert_array_equal(codes_BCT[:, :2, 2], [[2, 0], [0, 1]])
  none = NO_REFERENCE
  np.testing.assert_array_equal(logp_BC, np.float32([[none, none, none], [-1.5, none, none]]))
  np.testing.assert_array_equal(reward_BC, [[1, 0, 0], [2, 1, 0]])
