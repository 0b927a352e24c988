"""Every popularity feature by its name, from the events of a log of years, one at a time."""

import dataclasses
import math

import numpy as np
import pytest

from gr4ad_jax import files
from gr4ad_jax.features import trends
from gr4ad_jax.features.lines import build_lines
from gr4ad_jax.features.trends import Trends
from tests.features import logs
from tests.whole_files import assert_replaced_whole

DAY = 86_400
ADS = logs.ADS + 1  # the last one is never sold


def log_of_years(seed=3, users=6, days=60):
  """Lines (day, user, ad, value), in order of the log, of visits over about two years; and their
  `Lines`.
  """
  events = logs.make_log(seed, users=users, most_visits=60, days=days)
  lines = build_lines(events, ADS)
  moment = lines.request_time[lines.request]
  who = lines.request_user[lines.request]
  plain = [(int(t) // DAY, int(u), int(ad), float(value)) for t, u, ad, value in
           zip(moment, who, lines.ad, lines.value, strict=True)]  # fmt: skip
  return plain, lines


def by_name(plain, moment, ad):
  """An ad's features at a moment, by name: only lines of earlier days count."""
  today, first_day = moment // DAY, min(day for day, *_ in plain)
  today = max(today, first_day)

  def in_window(begin, end):
    return [line for line in plain if begin <= line[0] < end]

  def log_share(lines, total):
    return math.log((sum(line[2] == ad for line in lines) + 0.5) / (total + 0.5 * ADS) * ADS)

  found = {}
  for days in (7, 28, 91):
    lately = in_window(today - days, today)
    found[f"share_{days}"] = log_share(lately, len(lately))
  found["trend"] = found["share_7"] - found["share_28"]
  repeats, taken, values, all_values = 0, 0, 0.0, []
  known = set()
  for day, user, other, value in plain:  # a user's lines stand in order of time
    again = (user, other) in known
    known.add((user, other))
    if day < today:
      all_values.append(math.log1p(value))
    if other == ad and today - 182 <= day < today:
      taken += 1
      repeats += again
      values += math.log1p(value)
  mean = sum(all_values) / max(len(all_values), 1)
  found["repeat_share"] = 4 * (repeats + 1) / (taken + 4)
  found["mean_value"] = (values + 4 * mean) / (taken + 4)
  sold = [day for day, _, other, _ in plain if other == ad and day < today]
  found["days_unsold"] = math.log1p(today - 1 - max(sold)) if sold else 7.0
  found["days_known"] = math.log1p(today - min(sold)) if sold else 0.0
  begin, end = (moment - days * DAY for days in (365 + 14, 365 - 28))
  there = begin >= first_day * DAY
  season = in_window(begin // DAY, end // DAY) if there else []
  found["last_year"] = float(there)
  found["last_year_share"] = log_share(season, max(len(season), 1)) if there else 0.0
  return found


def before(found, name, bucket):
  """A cumulative column of the counts before a bucket, [N], read cell by cell."""
  column = [0] * ADS
  for ad, at, value in zip(found.ad, found.bucket, getattr(found, name), strict=True):
    column[ad] = value if at < bucket else column[ad]  # an ad's cells ascend
  return column


@pytest.fixture(scope="module")
def log():
  return log_of_years()


def moments(plain):
  first, last = min(day for day, *_ in plain), max(day for day, *_ in plain)
  middle = [first + n * (last - first) // 12 for n in range(1, 12)]
  edges = sorted({line[0] for line in plain})[3::9]
  edges = [day + days for day in edges for days in (0, 1, 7, 8, 28, 29, 91, 92, 182, 183)]
  days = (first - 3, first, *middle, *edges, last, last + 1, last + 2, last + 40)
  return np.array([DAY * day + second for day in days for second in (0, DAY - 1)])


def test_features_by_name_equal_a_loop(log):
  plain, lines = log
  assert max(plain)[0] - min(plain)[0] > 2 * 365
  found = Trends.fit(lines, ADS)
  time_B = moments(plain)
  features = found.features(time_B, np.tile(np.arange(ADS), (len(time_B), 1)))
  seasons = 0
  for b in range(0, len(time_B), 3):
    for ad in range(b % 2, ADS, 2):
      expected = by_name(plain, int(time_B[b]), ad)
      assert list(expected) == list(trends.FEATURES)
      seasons += expected["last_year_share"] > 0
      for name, value in expected.items():
        one = features[b, ad, trends.FEATURES.index(name)]
        assert one == pytest.approx(value, rel=1e-4, abs=1e-5), (name, b, ad)
  assert seasons


def test_counts_of_the_last_days_equal_a_loop(log):
  plain, lines = log
  found = Trends.fit(lines, ADS)
  time_B = moments(plain)[:60]
  for days, counts_BN in (
    (28, found.lately(time_B)),
    (5, found.lately(time_B, 5)),
    (400, found.lately(time_B, 400)),
  ):
    for moment, counts_N in zip(time_B, counts_BN, strict=True):
      today = moment // DAY
      expected = [
        sum(other == ad and today - days <= day < today for day, _, other, _ in plain)
        for ad in range(ADS)
      ]
      assert counts_N.tolist() == expected


def test_lines_that_are_not_shown_are_not_counted(log):
  _, lines = log
  shown = np.random.default_rng(0).random(len(lines.ad)) < 0.6
  found = Trends.fit(lines, ADS, shown)
  origin = int(lines.request_time[lines.request[shown]].min()) // DAY * DAY
  assert (found.origin, found.width) == (origin, 1.0)
  day = (lines.request_time[lines.request] - origin) // DAY
  assert found.buckets == day[shown].max() + 1
  for bucket in range(0, found.buckets + 1, 50):
    some = shown & (day < bucket)
    seen = np.bincount(lines.ad[some], minlength=ADS)
    assert before(found, "seen", bucket) == seen.tolist() == found.seen_before(bucket).tolist()
    again = some & (lines.count > 1)
    assert before(found, "repeats", bucket) == np.bincount(lines.ad[again], minlength=ADS).tolist()
    value = np.bincount(lines.ad[some], np.log1p(lines.value[some]), ADS)
    units = np.array(before(found, "units", bucket))
    np.testing.assert_allclose(units / 2**34, value, rtol=1e-5)


def test_rising_ads_of_a_day_equal_a_loop(log):
  plain, lines = log
  found = Trends.fit(lines, ADS)
  days = sorted({line[0] for line in plain})[2:20]
  first = min(plain)[0]
  for day in days:
    rise = []
    for ad in range(ADS):
      week, month = (
        sum(other == ad and day + 1 - back <= at <= day for at, _, other, _ in plain)
        for back in (7, 28)
      )
      rise.append((week - month / 4) / math.sqrt(month / 4 + 1))
    best = [
      ad for ad in sorted(range(ADS), key=lambda ad: (-np.float64(rise[ad]), ad)) if rise[ad] > 0
    ]
    row = found.rising(np.array([day + 1 - first]), ADS + 2)[0]
    assert row.tolist() == best + [-1] * (ADS + 2 - len(best))


@pytest.mark.parametrize("width", [1.0, 2.7])
def test_a_file_of_before_is_read(tmp_path, log, width):
  """Runs of before kept tables of all buckets and ads, and buckets of days x ads / cells days."""
  plain, lines = log
  origin = min(plain)[0] * DAY
  time = lines.request_time[lines.request]
  bucket = ((time - origin) / (width * DAY)).astype(int)
  tables = np.zeros((3, bucket.max() + 2, ADS))
  for at, ad, count, value in zip(bucket, lines.ad, lines.count, lines.value, strict=True):
    tables[:, at + 1, ad] += 1, count > 1, math.log1p(value)
  seen, repeats, value = np.cumsum(tables, axis=1)
  kinds = {"seen": seen.astype("i4"), "repeats": repeats.astype("i4"), "value": value.astype("f")}
  path = str(tmp_path / "trends.npz")
  files.save_arrays(path, compressed=True, origin=origin, width=width, **kinds)
  found = Trends.load(str(tmp_path))
  assert (found.origin, found.width, found.num_ads) == (origin, width, ADS)
  for at in range(0, bucket.max() + 2, 9):
    assert before(found, "seen", at) == seen[at].tolist() == found.seen_before(at).tolist()
    assert before(found, "repeats", at) == repeats[at].tolist()
    np.testing.assert_allclose(np.array(before(found, "units", at)) / 2**34, kinds["value"][at])
  if width == 1:  # as if it had been counted now
    time_B = moments(plain)
    ads = np.tile(np.arange(ADS), (len(time_B), 1))
    now = Trends.fit(lines, ADS).features(time_B, ads)
    # Sums of a whole log in float32 are rounded by an ulp or two more.
    np.testing.assert_allclose(found.features(time_B, ads), now, atol=1e-5)


def test_the_file_is_replaced_whole(tmp_path, log):
  one = Trends.fit(log[1], ADS)
  other = dataclasses.replace(one, origin=one.origin + DAY)
  path = str(tmp_path / "trends.npz")
  assert_replaced_whole(path, lambda: one.save(str(tmp_path)), lambda: other.save(str(tmp_path)))
