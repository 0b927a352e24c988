"""A request's history: good entries become a log in order, bad ones are named, whatever JSON
there is.
"""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gr4ad_jax.answering.histories import check_now, default_now, events_of
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.data.visits import no_events
from gr4ad_jax.reading.times import MAX_TIME

ROWS = {f"ad{n}": n for n in range(9)} | {"7": 7}
BEHAVIORS = ("click", "cart", "purchase")
NOW = 1_700_000_000


def log_of(events, now=NOW, gap=1800.0):
  return events_of(events, ROWS.get, BEHAVIORS, now, gap)


def test_an_event_keeps_what_it_says():
  event = {
    "ad_id": "ad3",
    "time": 5,
    "behavior": "cart",
    "value": 2.5,
    "quantity": 3,
    "request_id": "a",
  }
  log = log_of([event])
  assert [(column.tolist()) for column in (log.user, log.request, log.ad, log.time)] == [
    [0],
    [0],
    [3],
    [5],
  ]
  assert [(column.tolist()) for column in (log.behavior, log.value, log.quantity)] == [
    [1],
    [2.5],
    [3],
  ]


def test_what_is_left_out_or_null_has_a_default():
  nothing = dict.fromkeys(("time", "behavior", "value", "quantity", "request_id"))
  for entry in (
    "ad3",
    {"ad_id": "ad3"},
    {"ad_id": "ad3"} | nothing,
    {"ad_id": "ad3", "user_id": "u"},
  ):
    log = log_of([entry])
    found = [column.item() for column in (log.ad, log.time, log.behavior, log.value, log.quantity)]
    assert found == [3, NOW - 1, 2, 0, 1]


def test_numbers_that_are_ids_are_ids():
  assert log_of([{"ad_id": 7}, {"ad_id": np.int64(7)}]).ad.tolist() == [7, 7]


def test_the_last_moments_that_a_log_may_have_can_be_asked_about():
  last = MAX_TIME - 1
  now = default_now([last], 0)
  assert now == MAX_TIME
  log = log_of([{"ad_id": "ad1", "time": last}], now)
  assert log.time.tolist() == [last]
  with pytest.raises(DataError, match=f"now={MAX_TIME + 1} is not allowed: unix seconds, 0 to "):
    check_now(MAX_TIME + 1)
  with pytest.raises(DataError, match=f"time {MAX_TIME} is not allowed: a number, 0 to {last}"):
    log_of([{"ad_id": "ad1", "time": MAX_TIME}], now)


def test_entries_come_in_order_of_time():
  events = [{"ad_id": f"ad{n}", "time": 10_000 * n} for n in range(5)]
  expected = log_of(events)
  assert expected.ad.tolist() == expected.request.tolist() == [0, 1, 2, 3, 4]
  for column, other in zip(
    vars(expected).values(), vars(log_of(events[::-1])).values(), strict=True
  ):
    np.testing.assert_array_equal(column, other)


def test_visits_are_by_request_id_or_by_pause():
  times = [100, 200, 5_000, 5_100]
  by_id = [
    {"ad_id": "ad1", "time": t, "request_id": i}
    for t, i in zip(times, ("b", "a", "b", 1), strict=True)
  ]
  assert log_of(by_id).request.tolist() == [0, 0, 1, 2]  # b at 100 and 5,000, then a, then 1
  without = [event | {"request_id": None} for event in by_id[:1]] + by_id[1:]
  assert log_of(without).request.tolist() == [0, 0, 1, 1]
  assert log_of(without, gap=100).request.tolist() == [0, 1, 2, 3]
  assert log_of(without, gap=4_801).request.tolist() == [0, 0, 0, 0]


def test_no_entry_at_all():
  log = log_of([])
  assert len(log) == 0 and len(log.user_id) == 1
  assert {name: column.dtype for name, column in vars(log).items() if name != "user_id"} == {
    name: column.dtype for name, column in vars(log_of(["ad1"])).items() if name != "user_id"
  }
  assert len(no_events(3).user_id) == 3


@pytest.mark.parametrize(
  ("event", "message"),
  [
    ("ad99", "ad_id 'ad99' is not in the ad table"),
    (5, "5 is neither an ad_id nor a mapping with one"),
    (None, "None is neither"),
    (["ad1"], "['ad1'] is neither"),
    ({}, "ad_id None is not in the ad table"),
    ({"ad_id": True}, "ad_id True is not in the ad table"),
    ({"ad_id": ["ad1"]}, "ad_id ['ad1'] is not in the ad table"),
    ({"ad_id": 10**5_000}, "ad_id of too many digits is not in the ad table"),
    (
      {"ad_id": "ad1", "behavior": "look"},
      "behavior 'look' is not known; allowed: click, cart, purchase",
    ),
    ({"ad_id": "ad1", "behavior": {}}, "behavior {} is not known"),
    (
      {"ad_id": "ad1", "price": 3},
      "field 'price' is not known; allowed: ad_id, time, behavior, value, quantity",
    ),
    (
      {"ad_id": "ad1", "value": -1, "behavior": "click"},
      "value -1 is negative, and only a purchase",
    ),
    ({"ad_id": "ad1", "quantity": -1}, "quantity -1 is negative, and nothing is taken back"),
    (
      {"ad_id": "ad1", "value": -2e12},
      "value -2000000000000.0 is not allowed: a number, -1000000000000 to 1000000000000",
    ),
    ({"ad_id": "ad1", "value": float("nan")}, "value nan is not allowed"),
    ({"ad_id": "ad1", "value": 1e39}, "value 1e+39 is not allowed"),
    ({"ad_id": "ad1", "quantity": float("inf")}, "quantity inf is not allowed"),
    ({"ad_id": "ad1", "quantity": True}, "quantity True is not allowed"),
    ({"ad_id": "ad1", "time": "now"}, "time 'now' is not allowed"),
    ({"ad_id": "ad1", "time": 10**5_000}, "time of too many digits is not allowed"),
    (
      {"ad_id": "ad1", "request_id": [1]},
      "request_id [1] is not allowed: text or a number, at least 0",
    ),
    (
      {"ad_id": "ad1", "time": 2**63},
      "time 9223372036854775808 is not allowed: a number, 0 to 4102444799",
    ),
  ],
  ids=range(22),
)
def test_a_bad_entry_is_named(event, message):
  with pytest.raises(DataError) as error:
    log_of(["ad0", event])
  assert str(error.value).startswith(f"history, entry 2: {message}")


def test_a_purchase_is_taken_back():
  bought = {"ad_id": "ad1", "time": 10, "value": 5}
  log = log_of([bought, bought | {"time": 20, "value": -3, "quantity": -1}], 30)
  assert (log.value.tolist(), log.quantity.tolist()) == ([5, -3], [1, -1])


def test_a_long_value_is_cut_short():
  with pytest.raises(DataError) as error:
    log_of(["x" * 100_000])
  assert len(str(error.value)) < 200


def test_the_request_comes_after_its_history():
  assert len(log_of([{"ad_id": "ad1", "time": NOW}])) == 1
  with pytest.raises(
    DataError, match=f"now={NOW} is not allowed: the history goes on to {NOW + 1}"
  ):
    log_of([{"ad_id": "ad1", "time": NOW + 1}, "ad2"])


@pytest.mark.parametrize(
  "now", [-1, 2**70, 10**5_000, float("nan"), "soon", None, True], ids=range(7)
)
def test_a_moment_is_a_number_of_seconds(now):
  for events in ([], ["ad1"]):
    with pytest.raises(DataError, match="^now=.* is not allowed: unix seconds, 0 to 4102444800$"):
      log_of(events, now)


def test_now_is_the_end_of_the_log_or_of_the_history():
  assert default_now([], 50) == default_now([3, None, "x", float("nan"), 2**80, True], 50) == 50
  assert default_now([49, 70.5, 60], 50) == 71
  check_now(default_now([80], 50), 80)


_SCALARS = (
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats()
  | st.text(max_size=6)
  | st.sampled_from(list(ROWS))
)
_JSON = st.recursive(
  _SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner)
)
_FIELDS = st.sampled_from(
  ("ad_id", "time", "behavior", "value", "quantity", "request_id", "user_id", "other")
)
_ENTRY = (
  _JSON
  | st.dictionaries(_FIELDS, _JSON)
  | st.dictionaries(_FIELDS, _JSON).map(lambda x: x | {"ad_id": "ad1"})
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_ENTRY, max_size=4), st.integers(0, 2 * NOW))
@example(["ad1", {"ad_id": "ad2", "request_id": "\ud800\0"}], 0)
@example([{"ad_id": "ad1", "value": 1e12, "quantity": 1e-300, "request_id": 10**5_000}], NOW)
def test_any_json_is_a_log_or_one_line_of_words(events, now):
  try:
    log = log_of(events, now)
  except DataError as error:
    assert "\n" not in str(error) and len(str(error)) < 300
  else:
    assert len(log) == len(events) and (log.time <= now).all() and (np.diff(log.request) >= 0).all()
    assert np.isfinite(log.value).all() and np.isfinite(log.quantity).all()
