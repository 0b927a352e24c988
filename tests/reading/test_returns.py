"""Events that take back: what a negative value does from the file to histories and targets."""

import dataclasses

import numpy as np
import pytest

from gr4ad_jax.answering.fallback import PopularLists
from gr4ad_jax.builders import prepare
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.features import history
from gr4ad_jax.features.lines import build_lines
from gr4ad_jax.features.trends import Trends

DAY = 86_400
HEADER = "user_id,ad_id,time,behavior,value,quantity,request_id\n"
ROWS = (
  "u1,13,2024-01-02T10:00:00Z,purchase,10,2,a\n"
  "u1,0012,2024-01-02T10:00:00Z,purchase,4,1,a\n"
  "u1,13,2024-01-05T10:00:00Z,purchase,-4,-1,a\n"  # a part of it, within the window
  "u1,0012,2024-01-04T10:00:00Z,purchase,-5,1,a\n"  # more than was paid
  "u1,13,2024-01-20T10:00:00Z,click,0,1,b\n"
  "u1,0012,2024-03-01T10:00:00Z,purchase,-1,-1,c\n"  # a visit that only gives back
)


@pytest.fixture
def dataset(config, tmp_path):
  (tmp_path / "events.csv").write_text(HEADER + ROWS)
  return prepare.load_dataset(config)


def test_the_file_keeps_them(dataset):
  assert sorted(dataset.events.value.tolist()) == [-5, -4, -1, 0, 4, 10]
  assert sorted(dataset.events.quantity.tolist()) == [-1, -1, 1, 1, 1, 2]


def test_a_target_has_what_is_left_and_what_was_only_given_back_is_none(dataset):
  outcomes = build_lines(dataset.events, len(dataset.ads)).outcomes
  found = {
    (int(request), dataset.ads.ad_id[ad]): float(value)
    for request, ad, value in zip(outcomes.request, outcomes.ad, outcomes.value, strict=True)
  }
  assert found == {(0, "13"): 6.0, (1, "13"): 0.0}


def test_a_return_after_the_window_leaves_the_target(config, tmp_path):
  (tmp_path / "events.csv").write_text(HEADER + ROWS)
  short = dataclasses.replace(config, attribution_days=1.0)
  outcomes = build_lines(
    prepare.load_dataset(short).events, 2, attribution_days=short.attribution_days
  ).outcomes
  assert outcomes.value[outcomes.request == 0].tolist() == [10.0, 4.0]


def test_a_request_knows_of_it_from_its_moment_on(dataset):
  lines = build_lines(dataset.events, len(dataset.ads))
  mug = dataset.ads.ad_id.tolist().index("13")
  rows = history.history_rows(lines, np.array([1, 2]), 4)
  features = history.history_features(lines, np.array([1, 2]), rows)
  total = features[..., history.FEATURES.index("total_value")]
  known = np.where(history.ads_of(lines, rows) == mug, total, 0).max(axis=1)
  np.testing.assert_allclose(known, np.log1p([6, 6]), rtol=1e-6)
  other = np.where(history.ads_of(lines, rows) == 1 - mug, total, 0).max(axis=1)
  assert other.tolist() == [0, 0]  # 4 less 5: 0 at the least
  # Before the return nobody knew of it: popularity of 3 January has the whole value.
  trends = Trends.fit(lines, len(dataset.ads))
  moment = np.array([int(lines.request_time[0]) + DAY, int(lines.request_time[0]) + 5 * DAY])
  value = trends.features(moment, np.array([[mug], [mug]]))[..., 5]
  assert value[0, 0] > value[1, 0]


def test_the_fallback_counts_no_return_as_a_wish(dataset):
  lists = PopularLists.fit(dataset.events, len(dataset.ads), 1)
  assert (lists.mean_value_N >= 0).all()
  events = dataset.events
  kept = events.value >= 0
  columns = {
    field.name: getattr(events, field.name)[kept]
    for field in dataclasses.fields(events)
    if field.name != "user_id"
  }
  bought = dataclasses.replace(events, **columns)
  without = PopularLists.fit(bought, len(dataset.ads), 1)
  np.testing.assert_array_equal(lists.row_GK, without.row_GK)


def test_a_click_cannot_be_taken_back(config, tmp_path):
  (tmp_path / "events.csv").write_text(HEADER + ROWS.replace("click,0", "click,-2"))
  with pytest.raises(DataError, match=r"row 5: '?-2'? is negative, and only a purchase can be"):
    prepare.load_dataset(config)
