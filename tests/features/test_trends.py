"""Popularity at a moment and rising ads, against loops over the events."""

import dataclasses
import math
import os

import numpy as np
import pytest

from gr4ad_jax.data.schema import DAY
from gr4ad_jax.features import counts, trends
from gr4ad_jax.features.lines import build_lines
from gr4ad_jax.features.trends import WINDOWS, Trends
from tests.features import logs


def one_event_a_line(events):
  """The log with the first event of each ad in a visit, all at the visit's first moment: events
  are lines.
  """
  _, first, visit = np.unique(events.request, return_index=True, return_inverse=True)
  keep = np.sort(
    np.unique(events.request.astype(np.int64) * logs.ADS + events.ad, return_index=True)[1]
  )
  events = dataclasses.replace(events, time=events.time[first][visit])
  columns = [f.name for f in dataclasses.fields(events) if f.name != "user_id"]
  return dataclasses.replace(events, **{name: getattr(events, name)[keep] for name in columns})


def fit(events):
  return Trends.fit(build_lines(events, logs.ADS), logs.ADS)


@pytest.fixture(params=["table", "search"])
def fitted(request, monkeypatch):
  events = one_event_a_line(logs.make_log(3, users=20))
  if request.param == "search":
    monkeypatch.setattr(counts, "_WORDS", 0)
  found = fit(events)
  assert found._cells._few == (request.param == "table")
  return events, found


def bucket_of(fitted, moment):
  return math.floor((moment - fitted.origin) / (fitted.width * DAY))


def moments(events):
  first, last = int(events.time.min()), int(events.time.max())
  midnight = last // DAY * DAY
  return np.array(
    [first + DAY, *np.linspace(first, last, 9).astype(int), midnight, last + DAY, last + 400 * DAY]
  )


def test_features_equal_a_loop(fitted):
  events, found = fitted
  time_B = moments(events)
  features = found.features(time_B, np.tile(np.arange(logs.ADS), (len(time_B), 1)))
  assert (
    features.shape == (len(time_B), logs.ADS, len(trends.FEATURES)) and features.dtype == np.float32
  )
  for b, moment in enumerate(time_B):
    now = bucket_of(found, moment)
    log_shares = []
    for days in WINDOWS:
      span = max(1, round(days / found.width))
      inside = [now - span <= bucket_of(found, t) < now for t in events.time]
      count = np.bincount(events.ad[inside], minlength=logs.ADS)
      log_shares.append(np.log((count + 0.5) / (count.sum() + 0.5 * logs.ADS) * logs.ADS))
    np.testing.assert_allclose(features[b, :, :3], np.stack(log_shares, axis=-1), atol=1e-5)
    np.testing.assert_allclose(features[b, :, 3], log_shares[0] - log_shares[1], atol=1e-5)


def test_repeats_and_values_equal_a_loop(fitted):
  events, found = fitted
  time_B = moments(events)
  features = found.features(time_B, np.tile(np.arange(logs.ADS), (len(time_B), 1)))
  span = trends.CHARACTER
  order = [(int(user), int(ad)) for user, ad in zip(events.user, events.ad, strict=True)]
  again = np.array([pair in order[:i] for i, pair in enumerate(order)])
  when = np.array([bucket_of(found, t) for t in events.time])
  for b, moment in enumerate(time_B):
    now = bucket_of(found, moment)
    so_far = np.log1p(events.value[when < now])
    for ad in range(logs.ADS):
      mine = (when >= now - span) & (when < now) & (events.ad == ad)
      prior = 4 * so_far.mean() if len(so_far) else 0
      value = np.log1p(events.value[mine]).sum() + prior
      expected = [4 * (again[mine].sum() + 1) / (mine.sum() + 4), value / (mine.sum() + 4)]
      np.testing.assert_allclose(features[b, ad, 4:6], expected, rtol=1e-4)


def test_every_event_is_counted_and_none_of_the_same_day_or_later():
  events = one_event_a_line(logs.make_log(3, users=20))
  found = fit(events)
  np.testing.assert_array_equal(
    found.seen_before(found.buckets), np.bincount(events.ad, minlength=logs.ADS)
  )
  for moment in moments(events):
    before = found.seen_before(found.bucket_of(np.array([moment])))[0]
    earlier = events.ad[events.time // DAY < moment // DAY]
    np.testing.assert_array_equal(before, np.bincount(earlier, minlength=logs.ADS))


def test_events_of_the_moment_and_later_change_nothing(fitted):
  events, found = fitted
  ads, changed = np.arange(logs.ADS)[None], False
  for moment in moments(events):
    later = events.time >= moment
    value = np.where(later, 9 * events.value + 1, events.value).astype(np.float32)
    other = fit(dataclasses.replace(events, ad=np.where(later, 0, events.ad), value=value))
    here = np.array([moment])
    np.testing.assert_array_equal(other.features(here, ads), found.features(here, ads))
    np.testing.assert_array_equal(
      other.rising(other.bucket_of(here), 5), found.rising(found.bucket_of(here), 5)
    )
    changed |= (other.seen_before(found.buckets) != found.seen_before(found.buckets)).any()
  assert changed


def test_an_ad_that_came_later_is_as_one_without_lines(fitted):
  events, _ = fitted
  events = dataclasses.replace(events, ad=np.where(events.ad == 2, 3, events.ad).astype(np.int32))
  found = fit(events)
  later = np.array([[logs.ADS, 0, logs.ADS + 7]])
  for moment in moments(events):
    one = found.features(np.array([moment]), later)[0]
    np.testing.assert_array_equal(
      one[[0, 2]], np.repeat(found.features(np.array([moment]), np.array([[2]]))[0], 2, 0)
    )
    np.testing.assert_array_equal(one[1], found.features(np.array([moment]), np.array([[0]]))[0, 0])


def test_rising_ads_do_not_depend_on_what_was_asked_before(fitted):
  _, found = fitted
  every = found.rising(np.arange(found.buckets + 1), 3)
  asked = np.array([found.buckets, 2, 2, 0])
  np.testing.assert_array_equal(found.rising(asked, 3), every[asked])
  np.testing.assert_array_equal(found.rising(asked, 2), every[asked, :2])
  np.testing.assert_array_equal(dataclasses.replace(found).rising(asked, 3), every[asked])


def test_rising_is_the_order_of_the_rise(fitted):
  events, found = fitted
  for slots in (4, logs.ADS + 2):
    number = found.buckets + 40  # past the log's end as well
    rising = found.rising(np.arange(number), slots)
    assert rising.shape == (number, slots) and rising.dtype == np.int32
    assert (rising[0] == -1).all()
    for b in range(1, number):
      week, month = (max(b - max(1, round(days / found.width)), 0) for days in (7, 28))
      last = np.array([bucket_of(found, t) for t in events.time])
      counts = [
        np.bincount(events.ad[(start <= last) & (last < b)], minlength=logs.ADS)
        for start in (week, month)
      ]
      rise = (counts[0] - counts[1] / 4) / np.sqrt(counts[1] / 4 + 1)
      best = np.sort(rise[rise > 0])[::-1][:slots]
      here = rising[b][rising[b] >= 0]
      assert (
        len(set(here.tolist())) == len(here) == len(best) and (rising[b, len(best) :] == -1).all()
      )
      np.testing.assert_allclose(rise[here], best, atol=1e-9)


def test_no_event_at_all():
  events = one_event_a_line(logs.make_log(3, users=2))
  lines = build_lines(events, logs.ADS)
  none = Trends.fit(lines, logs.ADS, np.zeros(len(lines.ad), bool))
  found = none.features(np.array([5 * DAY]), np.array([[0, 2]]))
  np.testing.assert_allclose(found, [[[0, 0, 0, 0, 1, 0, 7, 0, 0, 0]] * 2], atol=1e-6)
  assert (none.rising(np.array([0, 1]), 2) == -1).all()


def test_file_round_trip(fitted, tmp_path):
  events, found = fitted
  found.save(str(tmp_path))
  back = Trends.load(str(tmp_path))
  time_B = moments(events)
  ads = np.tile(np.arange(logs.ADS), (len(time_B), 1))
  np.testing.assert_array_equal(back.features(time_B, ads), found.features(time_B, ads))
  assert (back.origin, back.width, back.num_ads) == (found.origin, found.width, found.num_ads)
  assert sorted(os.listdir(tmp_path)) == ["SHA256SUMS", "trends.npz"]


def test_ages_and_last_years_season_equal_a_loop():
  events = one_event_a_line(logs.make_log(3, users=12))
  begin = events.time.min()
  events = dataclasses.replace(events, time=begin + (events.time - begin) * 40)  # years
  found = fit(events)
  time_B = np.unique(events.time)[::3]
  features = found.features(time_B, np.tile(np.arange(logs.ADS), (len(time_B), 1)))
  when, seasons = np.array([bucket_of(found, t) for t in events.time]), 0
  for b, moment in enumerate(time_B):
    now = bucket_of(found, moment)
    then = moment - (365 + 14) * DAY
    there = then >= found.origin
    until = bucket_of(found, moment - (365 - 28) * DAY) if there else 0
    season = (
      (when >= bucket_of(found, then)) & (when < until) if there else np.zeros(len(when), bool)
    )
    seasons += bool(season.any())
    for ad in range(logs.ADS):
      sold = when[(events.ad == ad) & (when < now)]
      ages = (
        np.log1p([(now - 1 - sold.max()) * found.width, (now - sold.min()) * found.width])
        if len(sold)
        else (7, 0)
      )
      share = (
        (season[events.ad == ad].sum() + 0.5) / (max(season.sum(), 1) + 0.5 * logs.ADS) * logs.ADS
      )
      expected = [*ages, there, np.log(share) if there else 0]
      np.testing.assert_allclose(features[b, ad, 6:], expected, rtol=1e-4, atol=1e-6)
  assert seasons
