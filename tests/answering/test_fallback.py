"""Popular ads by segment: counted with decay, cut by value, and only what may be shown."""

import numpy as np
import pytest

from gr4ad_jax.answering.fallback import PopularLists
from gr4ad_jax.data.schema import EventLog

DAY = 86_400


def log(rows, users=None):
  """An event log of (user, ad, day, value) rows, in order of user."""
  user, ad, day, value = (
    (np.array(column) for column in zip(*rows, strict=True)) if rows else ([], [], [], [])
  )
  count = len(rows)
  users = users or (max(user, default=-1) + 1)
  plain = np.zeros(count, np.int8)
  return EventLog(
    np.array([f"u{n}" for n in range(users)]), np.array(user, np.int32),
    np.arange(count, dtype=np.int32), np.array(ad, np.int32), np.array(day, np.int64) * DAY, plain,
    np.array(value, np.float32), np.ones(count, np.float32), plain,
  )  # fmt: skip


def everything(row):
  return row >= 0


def rows_of(found):
  return [entry[0] for entry in found]


def test_segments_have_their_own_lists():
  cheap = [(user, 0, 0, 1.0) for user in range(20)]
  dear = [(user, 1, 0, 100.0) for user in range(20, 40)]
  lists = PopularLists.fit(log(cheap + dear), 3, segments=2)
  assert rows_of(lists.best(log([(0, 2, 0, 1.0)]), 1, everything)) == [0]
  assert rows_of(lists.best(log([(0, 2, 0, 500.0)]), 1, everything)) == [1]
  assert (
    rows_of(lists.best(None, 1, everything))
    == [0]
    == rows_of(lists.best(log([], users=1), 1, everything))
  )


def test_shares_and_values_are_those_of_a_plain_count():
  rng = np.random.default_rng(0)
  events = [
    (int(u), int(rng.integers(5)), int(rng.integers(90)), float(rng.exponential()))
    for u in range(30)
  ] * 3
  lists = PopularLists.fit(log(sorted(events)), 6, segments=1)
  last, weight, money = max(day for _, _, day, _ in events), np.zeros(6), [[] for _ in range(6)]
  for _, ad, day, value in events:
    weight[ad] += 0.5 ** ((last - day) / 28)
    money[ad].append(np.float32(value))
  found = lists.best(None, 9, everything)
  assert rows_of(found) == sorted(range(5), key=lambda ad: -weight[ad])  # ad 5 was never taken
  for row, log_p, score, value in found:
    assert score == log_p and np.exp(log_p) == pytest.approx(weight[row] / weight.sum(), rel=1e-5)
    assert value == pytest.approx(np.mean(money[row]), rel=1e-5)


def test_lately_counts_more():
  lists = PopularLists.fit(log([(0, 0, 0, 1.0)] * 3 + [(1, 1, 100, 1.0)]), 2, segments=1)
  assert rows_of(lists.best(None, 2, everything)) == [1, 0]


def test_what_may_not_be_shown_is_left_out():
  lists = PopularLists.fit(log([(0, ad, 0, 1.0) for ad in (0, 0, 0, 1, 1, 2)]), 3, segments=1)
  assert rows_of(lists.best(None, 2, lambda row: row != 0)) == [1, 2]
  assert lists.best(None, 2, lambda row: False) == []


def test_without_values_users_are_cut_by_their_events():
  few, many = (
    [(user, 0, 0, 0.0) for user in range(9)],
    [(user, 1, 0, 0.0) for user in range(9, 18) for _ in range(5)],
  )
  lists = PopularLists.fit(log(few + many), 2, segments=2)
  assert rows_of(lists.best(log([(0, 0, 0, 0.0)] * 7), 1, everything)) == [1]
  assert rows_of(lists.best(log([(0, 0, 0, 0.0)]), 1, everything)) == [0]


def test_an_empty_log_has_empty_lists():
  lists = PopularLists.fit(log([], users=0), 4, segments=8)
  assert lists.best(None, 5, everything) == []
