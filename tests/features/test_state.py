"""The state that events are added to, against columns that are made of a whole log at once."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr4ad_jax.config import DataConfig
from gr4ad_jax.data import visits
from gr4ad_jax.features.batches import RequestContexts
from gr4ad_jax.features.contexts import FixedAds, contexts_at
from gr4ad_jax.features.counts import Counts
from gr4ad_jax.features.histories import Events, Histories
from gr4ad_jax.features.lines import build_lines
from gr4ad_jax.features.neighbors import CoVisitNeighbors, NeighborFolds
from gr4ad_jax.features.state import State
from gr4ad_jax.features.trends import FEATURES, Trends
from tests.features.happenings import ADS, DAY, EVENTS, log_of, told

CONFIG = DataConfig(history_slots=4, neighbor_slots=2, rising_slots=2, targets=3, ad_age=True)
CODES = np.arange(3 * ADS, dtype=np.int32).reshape(ADS, 3) % 7
CREATED = np.array([DAY // 2, 3 * DAY, -1, 9 * DAY + 7, 0][:ADS])  # of the log's days, and unknown
FIXED = FixedAds(CODES, np.arange(ADS, dtype=np.float32), CREATED)
NEAR = CoVisitNeighbors(
  np.array([[1, 2], [0, 3], [4, 0], [1, -1], [2, -1]], np.int32),
  np.array([[0.5, 0.25], [0.5, 0.25], [0.5, 0.25], [0.25, 0], [0.5, 0]], np.float32),
)
CONTEXT = ("slot_kind_BS", "slot_ad_BS", "slot_features_BSF", "user_features_BF", "user_value_B")


def assert_same(one, other):
  for name in CONTEXT:
    np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def empty_state():
  return State(CONFIG, FIXED, NEAR, Histories(visits.no_events(0)), Trends.empty(ADS))


def events_of(log, rows):
  """Rows of a log as events that come."""
  rows = np.asarray(rows, int)
  columns = (getattr(log, name)[rows] for name in ("ad", "time", "behavior", "value", "quantity"))
  ids = [str(request) for request in log.request[rows]]
  return Events(log.user_id[log.user[rows]].tolist(), *columns, ids)


@settings(max_examples=10, deadline=None)
@given(EVENTS)
def test_event_by_event_gives_the_same_bits_as_all_at_once(events):
  """Each request is asked for when it opens: the state has seen what happened before, no more."""
  log = log_of(events)
  lines = build_lines(log, ADS)
  about = Trends.fit(lines, ADS), NeighborFolds.of(NEAR), CONFIG
  whole = RequestContexts(lines, CODES, FIXED.price_N, *about, created_N=CREATED)
  state, order = empty_state(), []

  def opened(request, _, time):
    while order and order[0] is not None:
      state.observe(events_of(log, [order.pop(0)]))
    order.pop(0)
    user = log.user_id[lines.request_user[request]]
    found = state.features([user], np.array([time]))
    assert_same(found, whole.batch(np.array([request])))

  # What `told` plays, in its order: None where a request opens.
  first = np.unique(log.request, return_index=True)[1]
  happenings = [(int(log.time[at]), int(log.request[at]), -1) for at in first]
  happenings += [(int(log.time[at]), int(log.request[at]), at) for at in range(len(log))]
  order += [None if at < 0 else at for _, _, at in sorted(happenings)]
  told(log, opened)


@settings(max_examples=10, deadline=None)
@given(EVENTS, st.randoms(use_true_random=False), st.integers(1, 5), st.integers(-1, 500))
def test_the_order_in_which_events_come_changes_nothing(events, random, size, later):
  """Late ones too; and windows go on after the last of them."""
  rows = list(range(len(events)))
  random.shuffle(rows)
  shuffled = [events[row] for row in rows]
  log = log_of(shuffled)  # in the order in which they come
  raw = {name: np.array(column) for name, column in zip("uvahdqn", zip(*shuffled), strict=True)}  # noqa: B905
  state = empty_state()
  moments = [19_000 * DAY + half * DAY // 2 + 60 for half in (10, 25, 40)]
  moments.append(moments[-1] + later * DAY)
  for begin in range(0, len(shuffled), size):
    part = slice(begin, begin + size)
    state.observe(
      Events(
        ["abc"[user] for user in raw["u"][part]],
        raw["a"][part],
        19_000 * DAY + raw["h"][part] * DAY // 2,
        raw["d"][part],
        (raw["q"][part] / 4).astype(np.float32),
        raw["n"][part].astype(np.float32),
        [str(visit) for visit in raw["v"][part]],
      )
    )
    state.features(["a"], np.array([moments[begin % 3]]))  # asking in between changes nothing
  popularity = Trends.fit(build_lines(log, ADS), ADS)
  known = Histories(log)
  for moment in moments:
    users = log.user_id.tolist()
    now_B = np.full(len(users), moment)
    numbers = range(len(users))
    about = popularity, NeighborFolds.of(NEAR), FIXED, CONFIG
    assert_same(state.features(users, now_B), contexts_at(known.take(numbers), now_B, *about))
  counted = state.popularity(10**11)
  for field in dataclasses.fields(Trends):
    np.testing.assert_array_equal(getattr(counted, field.name), getattr(popularity, field.name))


def one_event(user="a", ad=0, time=0, value=1.0, visit=None, depth=2):
  columns = ([ad], [time], [depth], np.float32([value]), np.float32([1]))
  return Events([user], *map(np.array, columns), [visit])


def test_windows_go_on_after_the_end_of_a_log():
  """An ad of day 0, in a log of 11 days, is 400 days old on day 400; nothing is lately then."""
  state = empty_state()
  for day in (0, 10):
    state.observe(one_event(ad=1 if day == 0 else 2, time=day * DAY))
  now = np.array([400 * DAY])
  row = state.popularity(400 * DAY).features(now, np.array([[1, 2, 3]]))[0]
  column = dict(zip(FEATURES, row.T, strict=True))
  np.testing.assert_allclose(np.expm1(column["days_known"]), [400, 390, 0], rtol=1e-5)
  np.testing.assert_allclose(np.expm1(column["days_unsold"][:2]), [399, 389], rtol=1e-5)
  assert len({*column["share_91"].tolist()}) == 1  # nobody was sold in the last 91 days
  assert column["last_year"].tolist() == [1, 1, 1]


def test_events_of_today_are_counted_tomorrow_and_late_ones_at_once():
  state = empty_state()
  state.observe(one_event(time=5 * DAY + 60))
  assert not len(state.popularity(5 * DAY + 3600).ad)
  known = state.popularity(6 * DAY)
  assert known.lately(np.array([6 * DAY]))[0, 0] == 1
  state.observe(one_event(user="b", time=6 * DAY + 60))
  assert state.popularity(6 * DAY + 3600) is known  # nothing was counted anew
  state.observe(one_event(user="c", time=2 * DAY))
  assert state.popularity(6 * DAY + 3600).lately(np.array([6 * DAY]))[0, 0] == 2


def test_a_late_purchase_is_in_no_answer_before_it_happens():
  """Observed today, with a time before and after the moments that are asked for."""
  state = empty_state()
  state.observe(one_event(ad=1, time=DAY, value=0, depth=0, visit="r1"))
  early = state.features(["a"], np.array([3 * DAY]))
  state.observe(one_event(ad=1, time=9 * DAY, value=30, visit="r1"))
  assert_same(state.features(["a"], np.array([3 * DAY])), early)
  late = state.features(["a"], np.array([10 * DAY]))
  assert late.user_value_B.tolist() == [pytest.approx(30)] and early.user_value_B.tolist() == [0]


def test_a_log_goes_on_with_the_events_that_come():
  """From a log of some users with named visits: a visit goes on, another begins, a user is new."""
  events = [(0, 0, 1, 2, 0, 4, 1), (0, 1, 2, 8, 2, 8, 1), (1, 0, 3, 4, 1, 0, 1)]
  later = [(0, 0, 1, 12, 2, 20, 1), (0, 2, 4, 14, 0, 0, 1), (2, 0, 0, 9, 2, 4, 1)]
  log, whole = log_of(events), log_of(events + later)
  known = Histories(log, visit_ids=["0", "1", "0"])
  counts = Counts.of(build_lines(log, ADS))
  state = State(CONFIG, FIXED, NEAR, known, Trends.empty(ADS).adding(counts))
  user, visit, ad, half, depth, quarters, quantity = np.array(later).T
  time = 19_000 * DAY + half * DAY // 2
  columns = ad, time, depth, (quarters / 4).astype("f"), quantity.astype("f")
  state.observe(Events(["abc"[u] for u in user], *columns, [str(v) for v in visit]))
  assert known.user_ids == ["a", "b", "c"] and known.starting_with("c", 3) == ["c"]
  for number, name in enumerate("abc"):
    found, expected = known.log_of(name), Histories(whole).take([number])
    for column in ("request", "ad", "time", "behavior", "value", "quantity"):
      np.testing.assert_array_equal(getattr(found, column), getattr(expected, column))
  counted = state.popularity(10**11)
  fitted = Trends.fit(build_lines(whole, ADS), ADS)
  np.testing.assert_array_equal(counted.units, fitted.units)
  assert known.log_of("nobody") is None


def test_events_without_a_visit_are_parted_by_pauses():
  known = Histories(visits.no_events(0), gap_seconds=60)
  for time in (1000, 1200, 1055, 1110):  # the two that come last join what stands around them
    known.observe(one_event(time=time))
  assert known.log_of("a").time.tolist() == [1000, 1055, 1110, 1200]
  assert known.log_of("a").request.tolist() == [0, 0, 0, 1]


def test_a_user_of_whom_nothing_is_known_has_no_history():
  state = empty_state()
  batch = state.features(["x", "y"], np.array([DAY, 2 * DAY]))
  assert (batch.slot_kind_BS == 0).all() and not batch.target_mask_BM.any()


def test_counts_grow_with_the_table_of_ads():
  state = empty_state()
  state.observe(one_event(ad=ADS - 1, time=DAY))
  none = np.full(ADS + 2, -1)
  state._ads = FixedAds(np.zeros((ADS + 2, 3), np.int32), np.zeros(ADS + 2, np.float32), none)
  state.observe(one_event(ad=ADS + 1, time=DAY))
  assert state.popularity(3 * DAY).num_ads == ADS + 2


@pytest.mark.parametrize("late", [False, True])
def test_what_was_asked_before_changes_no_answer(late):
  """Ads come, and sell, in the middle of a day. One state is asked at each step, one at the end."""
  answers = []
  for asked in (True, False):
    state = empty_state()

    def step(ad, time, known, state=state, asked=asked):
      none = np.full(known, -1)
      state._ads = FixedAds(np.zeros((known, 3), np.int32), np.zeros(known, np.float32), none)
      state.observe(one_event(ad=ad, time=time))
      if asked:
        state.popularity(state.end)

    step(1, DAY, ADS)
    step(ADS, 2 * DAY + 60, ADS + 2)
    step(ADS + 4, 2 * DAY + 120, ADS + 5)
    if late:
      step(ADS + 3, DAY + 30, ADS + 6)
    now = 2 * DAY + 600
    answers.append(state.features(["a"], np.array([now])))
    # Those that were known when the day began, and one more that has sold before it.
    assert state.popularity(now).num_ads == (ADS + 4 if late else ADS + 2)
    assert state.popularity(3 * DAY).num_ads == ADS + 5
  assert_same(*answers)


def test_what_is_in_both_counts_is_in_neither():
  ad, time = np.array([3, 3, 1]), np.array([5, 5, 9])
  one = Counts(ad, time, np.array([1, 2, 1]), np.array([0, 1, 0]), np.array([7, 8, 9]))
  other = Counts(ad[1:], time[1:], np.array([3, 1]), np.array([1, 0]), np.array([10, 9]))
  rest = one.less(other)
  assert [column.tolist() for column in rest] == [[3], [5], [0], [0], [5]]
  assert not len(one.less(one).ad)
