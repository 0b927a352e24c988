"""Running columns, history rows and features against plain loops over a log."""

import dataclasses
import math
import warnings

import numpy as np
import pytest

from gr4ad_jax.data.schema import DAY
from gr4ad_jax.features import history
from gr4ad_jax.features.lines import DECAY, NEVER, build_lines
from tests.features import logs


@pytest.fixture(params=range(4))
def log(request):
  events = logs.make_log(request.param)
  return events, build_lines(events, logs.ADS), logs.lines_of(events)


def earlier(events, plain, request):
  """(line, its request's visit number) of the user's lines before a request, oldest first."""
  user, _, visit = logs.visits_of(events)
  mine = [line for line in plain if line.request < request and user[line.request] == user[request]]
  return [(line, visit[line.request]) for line in mine]


def test_events_of_one_ad_in_one_visit_are_one_line(log):
  events, lines, plain = log
  assert len(plain) < len(events)  # there is something to fold
  for i, line in enumerate(plain):
    found = (lines.request[i], lines.ad[i], lines.depth[i], lines.value[i], lines.quantity[i])
    assert found == pytest.approx(line[:5], rel=1e-5)
    assert lines.time[i] == line.time
  assert len(lines.request) == len(plain)


def test_columns_of_requests(log):
  events, lines, plain = log
  user, time, visit = logs.visits_of(events)
  assert (
    lines.request_user.tolist(),
    lines.request_time.tolist(),
    lines.request_visit.tolist(),
  ) == (user, time, visit)
  numbers = np.array([line.request for line in plain])
  for r in range(len(user)):
    here = np.arange(lines.request_first[r], lines.request_first[r + 1])
    np.testing.assert_array_equal(np.flatnonzero(numbers == r), here)
    assert lines.user_first[r] == min(
      i for i, line in enumerate(plain) if user[line.request] == user[r]
    )
    assert (events.split[events.request == r] == lines.request_split[r]).all()


def test_running_columns(log):
  events, lines, plain = log
  user, time, visit = logs.visits_of(events)
  for i, line in enumerate(plain):
    pair = [
      other for other in plain if other.ad == line.ad and user[other.request] == user[line.request]
    ]
    past = [other for other in pair if other.request <= line.request]
    assert lines.count[i] == len(past)
    ago = [visit[line.request] - visit[other.request] for other in past]
    assert lines.decayed_count[i] == pytest.approx(sum(DECAY**n for n in ago), rel=1e-5)
    assert lines.total_value[i] == pytest.approx(sum(other.value for other in past), rel=1e-5)
    assert lines.first_time[i] == pair[0].first_time
    following = [other.request for other in pair if other.request > line.request]
    assert lines.next_request[i] == min(following, default=NEVER)


@pytest.mark.parametrize("slots", [3, 9])
def test_history_is_the_latest_line_of_each_distinct_ad(log, slots):
  events, lines, plain = log
  requests = np.arange(len(lines.request_time))
  rows = history.history_rows(lines, requests, slots)
  for r in requests:
    latest = {}
    for line, _ in earlier(events, plain, r):
      latest.pop(line.ad, None)  # keeps the dictionary in order of the last time
      latest[line.ad] = plain.index(line)
    expected = list(latest.values())[-slots:]
    assert rows[r].tolist() == expected + [-1] * (slots - len(expected))


def test_features_equal_a_loop(log):
  events, lines, plain = log
  requests = np.arange(len(lines.request_time))
  _, time, visit = logs.visits_of(events)
  rows = history.history_rows(lines, requests, 9)
  with warnings.catch_warnings(action="error"):
    found = history.history_features(lines, requests, rows)
  assert (
    found.shape == (*rows.shape, len(history.FEATURES))
    and found.dtype == np.float32
    and np.isfinite(found).all()
  )
  assert (found[rows < 0] == 0).all() and (rows < 0).any()
  column = {name: found[..., i] for i, name in enumerate(history.FEATURES)}
  for b, s in np.argwhere(rows >= 0):
    last = plain[rows[b, s]]
    past = [(line, at) for line, at in earlier(events, plain, b) if line.ad == last.ad]
    days = (time[b] - last.time) / DAY
    interval = (last.time - past[0][0].first_time) / DAY / max(len(past) - 1, 1)
    expected = {
      "depth": last.depth,
      "count": math.log1p(len(past)),
      "decayed_count": math.log1p(sum(DECAY ** (visit[b] - 1 - at) for _, at in past)),
      "last_value": math.log1p(last.value),
      "total_value": math.log1p(sum(line.value for line, _ in past)),
      "unit_price": math.log1p(last.value / max(last.quantity, 1)),
      "quantity": math.log1p(last.quantity),
      "gap_days": math.log1p(days) / 2,
      "gap_visits": math.log1p(visit[b] - visit[last.request]),
      "interval_days": math.log1p(interval) / 2,
      "due": math.tanh(math.log((days + 1) / (interval + 1))) if len(past) > 1 else 0,
      "rate": len(past) / visit[b],
      "in_last_visit": visit[b] - visit[last.request] == 1,
    }
    assert set(expected) == set(history.FEATURES)
    for name, value in expected.items():
      assert column[name][b, s] == pytest.approx(float(value), rel=1e-4, abs=1e-5), name


def test_user_features_equal_a_loop(log):
  events, lines, plain = log
  user, time, visit = logs.visits_of(events)
  with warnings.catch_warnings(action="error"):
    found = history.user_features(lines, np.arange(len(user)))
  assert found.shape == (len(user), len(history.USER_FEATURES)) and found.dtype == np.float32
  for r in range(len(user)):
    past = [line for line, _ in earlier(events, plain, r)]
    moments = [time[q] for q in range(len(user)) if user[q] == user[r] and q < r] or [time[r]]
    some = max(visit[r], 1)
    expected = {
      "visits": math.log1p(visit[r]),
      "gap_days": math.log1p((time[r] - moments[-1]) / DAY) / 2,
      "tenure_days": math.log1p((time[r] - moments[0]) / DAY) / 2,
      "lines_per_visit": math.log1p(len(past) / some),
      "value_per_visit": math.log1p(sum(line.value for line in past) / some) / 2,
      "distinct_share": len({line.ad for line in past}) / max(len(past), 1),
      "season_sin": math.sin(2 * math.pi * time[r] / (365.25 * 86_400)),
      "season_cos": math.cos(2 * math.pi * time[r] / (365.25 * 86_400)),
    }
    assert set(expected) == set(history.USER_FEATURES)
    for name, value in expected.items():
      assert found[r, history.USER_FEATURES.index(name)] == pytest.approx(
        value, rel=1e-4, abs=1e-5
      ), name


def test_neither_the_request_nor_anything_later_is_seen(log):
  events, lines, _ = log
  for r in range(1, len(lines.request_time)):
    other = build_lines(logs.replaced_from(events, r), logs.ADS)
    here = np.array([r])
    rows, other_rows = (history.history_rows(x, here, 9) for x in (lines, other))
    np.testing.assert_array_equal(lines.ad[rows[rows >= 0]], other.ad[other_rows[other_rows >= 0]])
    features = (
      history.history_features(x, here, y) for x, y in ((lines, rows), (other, other_rows))
    )
    np.testing.assert_array_equal(*features)
    np.testing.assert_array_equal(
      history.user_features(lines, here), history.user_features(other, here)
    )


def test_a_request_before_its_history_stays_finite():
  """A caller may ask for a moment before the newest event that it hands over."""
  events = logs.make_log()
  lines = build_lines(events, logs.ADS)
  last = np.flatnonzero(np.diff(lines.request_user, append=-1))
  lines.request_time[last] -= 90 * DAY
  rows = history.history_rows(lines, last, 9)
  with warnings.catch_warnings(action="error"):
    assert np.isfinite(history.history_features(lines, last, rows)).all()
    assert np.isfinite(history.user_features(lines, last)).all()


def test_a_day_and_the_weight_of_a_visit_are_those_of_the_protocol():
  assert (DAY, DECAY) == (24 * 60 * 60, 0.9)


def test_decayed_counts_equal_a_loop(log):
  events, lines, plain = log
  _, _, visit = logs.visits_of(events)
  requests = np.arange(len(lines.request_time))
  rows = history.history_rows(lines, requests, 5)
  found = history.decayed_counts(lines, requests, rows)
  np.testing.assert_array_equal(history.ads_of(lines, rows) >= 0, rows >= 0)
  for b, s in np.ndindex(*rows.shape):
    expected = 0
    if rows[b, s] >= 0:
      ad = plain[rows[b, s]].ad
      assert history.ads_of(lines, rows)[b, s] == ad
      expected = sum(
        0.9 ** (visit[b] - 1 - at) for line, at in earlier(events, plain, b) if line.ad == ad
      )
    assert found[b, s] == pytest.approx(expected, rel=1e-5)


def test_a_log_without_an_event_has_neither_lines_nor_requests():
  events = logs.make_log()
  none = {
    name: getattr(events, name)[:0]
    for name in ("user", "request", "ad", "time", "behavior", "value", "quantity", "split")
  }
  lines = build_lines(dataclasses.replace(events, **none), logs.ADS)
  assert lines.request_first.tolist() == [0] and len(lines.ad) == len(lines.request_time) == 0
  assert lines.spent.tolist() == []
  assert lines.fresh.tolist() == [0]


def test_a_log_of_one_line_has_nothing_before_it():
  """Padding is looked up in the only line there is."""
  events = logs.make_log()
  names = ("user", "request", "ad", "time", "behavior", "value", "quantity", "split")
  first = dataclasses.replace(events, **{name: getattr(events, name)[:1] for name in names})
  lines, here = build_lines(first, logs.ADS), np.array([0])
  rows = history.history_rows(lines, here, 3)
  assert rows.tolist() == history.ads_of(lines, rows).tolist() == [[-1, -1, -1]]
  assert not history.decayed_counts(lines, here, rows).any()
  assert not history.history_features(lines, here, rows).any()
  names = [name for name in history.USER_FEATURES if not name.startswith("season")]
  assert all(
    history.user_features(lines, here)[0, history.USER_FEATURES.index(name)] == 0 for name in names
  )
