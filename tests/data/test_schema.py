"""The tables and what is told of reading them."""

import dataclasses
import importlib
import pkgutil

import flax.linen as nn
import numpy as np
import pytest

from gr4ad_jax import data, index, sid
from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import SPLITS, AdTable, Report

MODULES = [
  f"{room.__name__}.{name}"
  for room in (data, index, sid)
  for _, name, package in pkgutil.iter_modules(room.__path__)
  if not package
]


@pytest.mark.parametrize("module", MODULES)
def test_what_several_parts_share_cannot_be_changed(module):
  made = vars(importlib.import_module(module)).values()
  kinds = [kind for kind in made if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
  # Flax freezes its modules by itself, once they are bound.
  kinds = [kind for kind in kinds if not issubclass(kind, nn.Module)]
  assert all(kind.__dataclass_params__.frozen for kind in kinds)


def test_a_report_in_words():
  events = {"train": 9, "valid": 4, "test": 2}
  requests = {"train": 6, "valid": 3, "test": 1}
  report = Report(ads=5, users=3, events=events, requests=requests, rows=20)
  words = ("5 ads, 3 users, 9 events in 6 requests of train, 4 events in 3 requests of valid, "
           "2 events in 1 requests of test, 20 rows read")  # fmt: skip
  assert SPLITS == ("train", "valid", "test") and str(report) == words
  assert (report.merged, report.dropped) == (0, {})
  more = dataclasses.replace(report, merged=1, dropped={"no ad": 7, "no time": 2})
  assert str(more) == words + ", 1 merged, 7 dropped (no ad), 2 dropped (no time)"


def test_some_of_the_ads_with_vectors_or_without():
  names = ("ad_id", "text", "account_id", "category", "conversion_type", "form")
  columns = {name: np.array([f"{name} {n}" for n in range(3)]) for name in names}
  columns |= {"price": np.array([1.0, np.nan, 3.0], np.float32), "created": np.array([7, -1, 9])}
  for vectors in (None, np.eye(3, dtype=np.float32)):
    ads = AdTable(**columns, vectors=vectors)
    for rows, wanted in ((np.array([2, 0]), [2, 0]), (np.array([False, True, True]), [1, 2])):
      some = ads.take(rows)
      for name, column in columns.items():
        np.testing.assert_array_equal(getattr(some, name), column[wanted])
      assert (some.vectors is None) == (vectors is None)
      if vectors is not None:
        np.testing.assert_array_equal(some.vectors, vectors[wanted])


def test_some_of_the_events_keep_their_users_and_numbers():
  column = np.array([0, 0, 2])
  log = visits.ordered_log(
    np.array(["a", "b", "c"]), user=column, ad=np.array([4, 5, 6]), time=np.array([1, 2, 3]),
    behavior=column, value=column + 0.5, quantity=column + 1, request=np.array([0, 1, 0]),
  )  # fmt: skip
  columns = log.columns(np.array([2, 0]))
  assert list(columns) == [
    "user", "request", "ad", "time", "behavior", "value", "quantity", "split"
  ]  # fmt: skip
  some = log.take(np.array([2, 0]))
  assert (some.ad.tolist(), some.value.tolist()) == ([6, 4], [2.5, 0.5])
  assert (some.user.tolist(), some.request.tolist()) == ([1, 0], [2, 0])
  assert some.user_id.tolist() == log.user_id.tolist() == ["a", "c"]
