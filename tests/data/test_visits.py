"""Visits, their order and their splits, against a loop over events."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import DAY, SPLITS

EVENTS = st.lists(
  st.tuples(st.integers(0, 4), st.integers(0, 40), st.integers(0, 5)), min_size=1, max_size=40
)


def ordered(events, *, by_id, gap=0):
  user, time, request = np.array(events).T
  size = len(events)
  return visits.ordered_log(
    np.array(list("abcde"), object),
    user=user,
    ad=np.arange(size),
    time=time,
    behavior=np.zeros(size),
    value=np.arange(size) / 2,
    quantity=np.ones(size),
    request=request if by_id else None,
    gap_seconds=gap,
  )


def by_loops(events, *, by_id, gap=0):
  """[(user, rows of the visit in order, split of each row)] in the order of the log."""
  rows = []
  for user in sorted({event[0] for event in events}):
    own = sorted(
      (time, row, request) for row, (who, time, request) in enumerate(events) if who == user
    )
    groups = {}
    last = None
    for time, row, request in own:
      key = request if by_id else len(groups) - 1 + (last is None or time - last >= gap)
      groups.setdefault(key, []).append((time, row))
      last = time
    own_visits = sorted(
      groups.values(), key=lambda visit: (visit[0][0], min(row for _, row in visit))
    )
    last = len(own_visits) - 1
    held_out = {last: "test", last - 1: "valid"} if last >= 2 else {}
    for number, visit in enumerate(own_visits):
      # Where each event happened: in the latest visit that had begun before it.
      periods = [
        max([number] + [n for n in range(number, last + 1) if own_visits[n][0][0] < time])
        for time, _ in visit
      ]
      splits = [held_out.get(period, "train") for period in periods]
      rows.append((user, [row for _, row in visit], splits))
  return rows


def check(log, expected):
  assert log.request.tolist() == [
    number for number, (_, rows, _) in enumerate(expected) for _ in rows
  ]
  assert log.ad.tolist() == [row for _, rows, _ in expected for row in rows]
  assert [SPLITS[split] for split in log.split] == [
    split for _, _, splits in expected for split in splits
  ]
  assert log.user_id[log.user].tolist() == [
    "abcde"[user] for user, rows, _ in expected for _ in rows
  ]
  assert log.user.max() == len(log.user_id) - 1
  np.testing.assert_array_equal(log.value, log.ad / 2)


@settings(max_examples=80, deadline=None)
@given(EVENTS)
def test_visits_by_request_id(events):
  check(ordered(events, by_id=True), by_loops(events, by_id=True))


@settings(max_examples=80, deadline=None)
@given(EVENTS, st.integers(0, 8))
def test_visits_by_pause(events, gap):
  check(ordered(events, by_id=False, gap=gap), by_loops(events, by_id=False, gap=gap))


def test_held_out_visits_are_the_last_two_of_three_or_more():
  split = visits.split_of_visits(np.array([7, 7, 2, 2, 2, 5, 5, 5, 5, 9]))
  assert [SPLITS[s][:2] for s in split] == [
    "tr",
    "tr",
    "tr",
    "va",
    "te",
    "tr",
    "tr",
    "va",
    "te",
    "tr",
  ]


def test_a_pause_of_exactly_the_gap_starts_a_visit():
  log = ordered([(0, 0, 0), (0, 59, 0), (0, 119, 0), (0, 178, 0)], by_id=False, gap=60)
  assert log.request.tolist() == [0, 0, 1, 1]
  assert ordered([(0, 5, 0), (0, 5, 0), (1, 5, 0)], by_id=False).request.tolist() == [
    0,
    1,
    2,
  ]  # no pause is enough


def test_ids_of_one_user_s_visits_do_not_run_into_another_s():
  """Whatever the numbers: of the first user's largest and the next one's smallest are two
  visits.
  """
  events = [(0, 1, 3), (1, 1, 0), (1, 2, 3), (2, 1, 0), (0, 1, 0)]
  assert ordered(events, by_id=True).request.tolist() == [0, 1, 2, 3, 4]


def test_columns_keep_their_types_and_lose_users_without_events():
  log = ordered([(3, 7, 1), (1, 9, 0)], by_id=True)
  assert (
    log.user_id.tolist() == ["b", "d"]
    and log.user.tolist() == [0, 1]
    and log.time.tolist() == [9, 7]
  )
  kinds = {
    "user": "i4",
    "request": "i4",
    "ad": "i4",
    "time": "i8",
    "behavior": "i1",
    "value": "f4",
    "quantity": "f4",
    "split": "i1",
  }
  assert {name: getattr(log, name).dtype.str[1:] for name in kinds} == kinds


def test_the_log_of_users_without_an_event():
  for log, users in ((visits.no_events(), 1), (visits.no_events(3), 3)):
    assert (len(log), len(log.user_id)) == (0, users)
    assert (log.time.dtype, log.value.dtype, log.split.dtype) == (np.int64, np.float32, np.int8)


def test_visits_are_numbered_anew_where_user_or_visit_changes():
  user = np.array([0, 0, 0, 2, 2, 2, 3])
  visit = np.array([3, 3, 7, 7, 9, 9, 9])
  assert visits.renumbered(user, visit).tolist() == [0, 0, 1, 2, 3, 3, 4]
  assert visits.renumbered(user[:0], visit[:0]).tolist() == []


def late(days=2):
  """Two users; the first one's last visit has an event `days` later."""
  events = [(0, 0, 0), (0, 2 * DAY, 1), (0, (2 + days) * DAY, 1), (3, DAY, 0)]
  return ordered(events, by_id=True)


def test_what_follows_within_the_window_counts():
  log = late()
  for days, last in ((1.99, False), (2, True), (2.5, True)):
    assert visits.attributed(log, days).tolist() == [True, True, last, True], days


def test_a_log_as_it_stood_at_each_users_moment():
  log = late()
  assert visits.until(log, np.array([4 * DAY, DAY])) is log  # all had happened, at the moment too
  found = visits.until(log, np.array([2 * DAY, DAY - 1]))
  assert (found.time.tolist(), found.request.tolist()) == ([0, 2 * DAY], [0, 1])
  found = visits.until(log, np.array([-1, DAY]))
  assert (found.user.tolist(), found.request.tolist()) == ([1], [0])
  assert found.user_id.tolist() == log.user_id.tolist()


def test_an_event_is_of_the_latest_visit_that_had_begun_before_it():
  """Of one user, visits at 0, 10 and 10; events of the first one at 0, 10 and 11."""
  user = np.zeros(5, np.int32)
  request = np.array([0, 0, 0, 1, 2], np.int32)
  time = np.array([0, 10, 11, 10, 10])
  assert visits.periods(user, request, time).tolist() == [0, 0, 2, 1, 2]
  assert visits.periods(user[:0], request[:0], time[:0]).tolist() == []
  # Another user's visits before and after change nothing, though their moments lie between.
  user = np.array([0, 1, 1, 1, 1, 1, 2], np.int32)
  request = np.array([0, 1, 1, 1, 2, 3, 4], np.int32)
  time = np.array([5, 0, 10, 11, 10, 10, 3])
  assert visits.periods(user, request, time).tolist() == [0, 1, 1, 3, 2, 3, 4]
