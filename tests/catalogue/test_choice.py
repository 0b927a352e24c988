"""Which ads a request wants, as rows."""

import dataclasses

import numpy as np
import pytest

from gr4ad_jax.catalogue.choice import AdSets, Choice, rows_left_out
from gr4ad_jax.config import SearchConfig
from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import DataError

DAY = 86_400
NOW = 100 * DAY
ROWS = {"a": 0, "b": 1, "c": 2}


def log_of(*days_ago):
  """Rows 5, 6, … taken so many days ago."""
  log = visits.no_events()
  count = len(days_ago)
  columns = {f.name: np.zeros(count, getattr(log, f.name).dtype) for f in dataclasses.fields(log)}
  columns |= {
    "user_id": log.user_id,
    "ad": np.arange(5, 5 + count, dtype=np.int32),
    "time": np.array([NOW - days * DAY for days in days_ago], np.int64),
  }
  return type(log)(**columns)


@pytest.mark.parametrize(
  ("choice", "search", "expected"),
  [
    ({}, {}, []),
    ({}, {"seen_ads": "masked"}, [5, 6, 7]),
    ({}, {"seen_ads": "masked", "seen_days": 30}, [6, 7]),
    ({"seen_ads": "masked"}, {}, [5, 6, 7]),
    ({"seen_ads": "left"}, {"seen_ads": "masked"}, []),
    ({"seen_days": 2.5}, {"seen_ads": "masked", "seen_days": 30}, [7]),
    ({"seen_ads": "masked", "seen_days": 0}, {"seen_days": 30}, [5, 6, 7]),
    ({"not_ads": ("c", "a")}, {}, [0, 2]),
    ({"not_ads": ("b",), "seen_ads": "masked", "seen_days": 30}, {}, [1, 6, 7]),
  ],
)
def test_rows_that_are_not_wanted(choice, search, expected):
  log = log_of(90, 30, 1)
  found = rows_left_out(Choice(**choice), log, NOW, SearchConfig(**search), ROWS.get)
  assert sorted(found.tolist()) == expected


def test_an_ad_that_there_is_none_of_is_named():
  with pytest.raises(DataError, match="not_ads: 'z' is no ad"):
    rows_left_out(Choice(not_ads=("a", "z")), log_of(), NOW, SearchConfig(), ROWS.get)


def test_sets_follow_the_ads():
  sets = AdSets(["x", "y", "x", "z"], ["red", "red", "blue", ""])
  assert sets.allowed(Choice()) is None
  of_x = Choice(only_accounts=("x",))
  assert sets.allowed(of_x).tolist() == [True, False, True, False]
  assert sets.allowed(Choice(only_accounts=("x", "x"))) is sets.allowed(of_x)
  both = Choice(only_accounts=("x", "y"), only_categories=("red",))
  assert sets.allowed(both).tolist() == [True, True, False, False]
  assert sets.allowed(Choice(), frozenset({"x"})).tolist() == [False, True, False, True]
  assert sets.allowed(of_x, frozenset({"x"})).tolist() == [False] * 4
  before = sets.allowed(of_x)
  sets.set(1, "x", "green")
  sets.set(9, "new", "red")  # rows between are nobody's yet
  assert sets.allowed(of_x).tolist() == [True, True, True] + [False] * 7
  assert before.tolist() == [True, False, True, False]  # what a batch holds does not change
  assert np.flatnonzero(sets.allowed(Choice(only_categories=("red",)))).tolist() == [0, 9]


@pytest.mark.parametrize(
  ("choice", "message"),
  [
    ({"only_accounts": ("x", "q")}, "only_accounts: no ad has 'q'"),
    ({"only_categories": ("q" * 200,)}, f"only_categories: no ad has '{'q' * 80}'"),
  ],
)
def test_words_that_no_ad_has_are_named(choice, message):
  with pytest.raises(DataError, match=message):
    AdSets(["x"], ["red"]).allowed(Choice(**choice))


def test_only_so_many_sets_are_kept():
  sets = AdSets([str(n) for n in range(100)], [""] * 100)
  first = sets.allowed(Choice(only_accounts=("0",)))
  for n in range(1, 100):
    sets.allowed(Choice(only_accounts=(str(n),)))
  assert len(sets._made) == 64
  assert sets.allowed(Choice(only_accounts=("0",))) is not first
