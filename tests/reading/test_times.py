"""Moments in every form that files have, against datetime; what is ambiguous or would lose
digits is refused.
"""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.reading import checks, times

UTC = datetime.UTC
TEN = int(datetime.datetime(2025, 3, 1, 10, tzinfo=UTC).timestamp())


def seconds(values):
  return checks.Cells("log.parquet", "time", values).times().tolist()


@pytest.mark.parametrize("text,expected", [
  ("2025-03-01 10:00:00 UTC", TEN), ("2025-03-01 10:00:00.999999 UTC", TEN),
  ("2025-03-01 10:00:00 gmt", TEN),
  ("2025-03-01 10:00:00 +0000 UTC", TEN), ("2025-03-01 10:00:00+00:00 UTC", TEN),
  ("2025-03-01t10:00:00z", TEN),
  ("2025-03-01T10:00:00Z", TEN), ("2025-03-01T10:00:00.000Z", TEN), ("2025-03-01 10:00:00 Z", TEN),
  ("2025-03-01T11:00:00.000+01:00", TEN), ("2025-03-01 02:00:00.5 -0800", TEN),
  ("2025-03-01 15:30+05:30", TEN),
  ("2025-03-01 10:00:00,5", TEN), ("2025-03-01T10:00:00.123456789", TEN),
  ("2025-03-01 10:00:00+00", TEN),
  ("20250301T100000Z", TEN), (" 2025-03-01 10:00 ", TEN), ("2025-03-01", TEN - 36000),
  (str(TEN), TEN),
  (f"{TEN}.9", TEN), (f" {TEN} ", TEN), ("0", 0), ("2099-12-31T23:59:59Z", times.MAX_TIME - 1),
  ("1970-01-01", 0), ("1900000000", 1900000000), ("1899010110", 1899010110),
])  # fmt: skip
def test_texts(text, expected):
  assert seconds(pa.array(["2025-03-01T10:00:00", text, "7"])) == [TEN, expected, 7]


@pytest.mark.parametrize("text,problem", [
  ("2025030110", "may be a date or unix seconds: write 2025-03-01"),
  ("202503011030", "may be a date"),
  ("20250301103059", "may be a date"), ("202503", "may be a date"), ("2024022910", "may be a date"),
  ("2025030110.0", "may be a date"), ("1900010100", "may be a date"),
  ("2100123123", "may be a date"),
  ("1.7408E+09", "has an exponent"), ("17e8", "has an exponent"),
  ("1740823200000", "look like milliseconds"), ("1740823200000000", "look like microseconds"),
  ("1740823200000000000", "look like nanoseconds"), ("100000000000", "look like milliseconds"),
  ("4102444800", r"is no time from 1970 to 2099 \(unix time counts in seconds\)$"),
  ("1e30", "has an exponent"),
  ("-1", r"from 1970 to 2099 \(unix time counts in seconds\)$"),
  ("1969-12-31 23:59:59", "from 1970 to 2099"),
  ("2100-01-01", r"from 1970 to 2099 \(unix time counts in seconds\)$"),
  ("9999-12-31", "from 1970 to 2099"),
  ("inf", "from 1970 to 2099"), ("nan", "is no time: unix"), ("None", "is no time"),
  ("NULL", "is no time"),
  ("now", "is no time"), ("2025-13-01", "is no time"), ("2025-02-30", "is no time"),
  ("03/01/2025", "is no time"),
  ("2025-03-01 10:00:00 CET", "is no time"), ("2025-03-01 10:00 [Europe/Berlin]", "is no time"),
  ("", "is empty"),
  ("10:00:00", "is no time"), ("UTC", "is no time"),
])  # fmt: skip
def test_texts_that_are_refused(text, problem):
  with pytest.raises(DataError, match=problem) as caught:
    seconds(pa.array(["7", text]))
  assert f"column 'time', row 2: '{text}'" in str(caught.value)


def test_digits_of_no_date_are_seconds():
  values = [
    20251301,
    20250230,
    2025130110,
    2025022910,
    202513,
    1899,
    2101,
    210101,
    21010101,
    7,
    1740823200,
  ]
  assert seconds(pa.array(values)) == values
  assert seconds(pa.array(values, pa.float64())) == values


@pytest.mark.parametrize("value,date", [
  (202503011059, True), (202503011060, False), (20250301105959, True), (20250301105960, False),
  (20250301235959, True), (20250301245959, True), (20250301255959, False), (20000229, True),
  (19000229, False), (20240229, True),
  (20250431, False), (20250430, True), (20250400, False), (20250001, False), (20251231, True),
  (2100, True),
  (1900, True), (1, False), (0, False), (2025030, False), (202503011, False), (np.nan, False),
  (-2025, False),
])  # fmt: skip
def test_what_looks_like_a_date(value, date):
  assert times.looks_like_date(np.array([5.0, value])).tolist() == [False, date]


def test_seconds_of_the_next_decade_are_not_taken_for_dates():
  later = [1_900_010_100 + 701 * n for n in range(400)]
  assert times.looks_like_date(np.array(later[:1], float)).all()
  assert seconds(pa.array(later)) == later
  dates = np.array([2025030110, 2025030111, 1740823200], float)
  assert times.looks_like_date(dates).tolist() == [True, True, False]
  # One odd row makes no seconds of them, and hour 24 is midnight.
  dates = [2025030110, 2025030124, 2025030218, 2025030225, *range(2025030300, 2025030323)]
  assert times.looks_like_date(np.array(dates, float)).tolist() == [
    True,
    True,
    True,
    False,
    *[True] * 23,
  ]
  with pytest.raises(DataError, match="row 1: 2025030110 may be a date"):
    seconds(pa.array(dates))
  seconds_of_2034 = [2025030110, *range(2025320000, 2025320008)]
  assert (
    times.looks_like_date(np.array([*seconds_of_2034, 2025320008], float)).sum() == 0
  )  # 1 of 10
  assert times.looks_like_date(np.array(seconds_of_2034, float)).sum() == 1  # 1 of 9
  # What lies beyond the allowed years is no witness.
  assert times.looks_like_date(np.array([2025030110, 9_999_999_999], float)).tolist() == [
    True,
    False,
  ]


def test_dates_with_a_year_of_two_digits():
  dates = [2503011000, 2503011059, 2512312400, 1901010000, 4012312359]
  assert times.looks_like_date(np.array(dates, float)).all()
  with pytest.raises(DataError, match="row 1: '2503011000' may be a date"):
    seconds(pa.array([str(date) for date in dates]))
  assert not times.looks_like_date(
    np.array([2513011000, 2503321000, 2503012500, 2503011060.0])
  ).any()
  assert seconds(pa.array([1701011030])) == [1701011030]  # of 2023, not of 2017
  # An hour of 2033 whose seconds have the digits 20-01-31 10:MM; six in ten of them end in less
  # than 60.
  hour = np.arange(2001311000, 2001312000, 7.0)
  assert not times.looks_like_date(hour).any()
  # 9 of 10 may still be seconds.
  assert not times.looks_like_date(
    np.array([2503011000 + n for n in range(9)] + [2513011000.0])
  ).any()
  assert (
    times.looks_like_date(np.array([2503011000 + n for n in range(10)] + [2513011000.0])).sum()
    == 10
  )


@pytest.mark.parametrize("values,year", [
  ([20148, 20149], 1970), ([45717.41, 45718.5], 1970), ([250301, 250302], 1970),
  ([2025060, 2025061], 1970),
  ([31122025, 1032025], 1970), (["483562", " "], 1970), (["03012025", "03022025"], 1970),
  ([0, 631151999], 1989),
  ([631151999.5, None], 1989), ([decimal.Decimal(20148)], 1970),
])  # fmt: skip
def test_numbers_that_all_lie_before_1990_are_no_seconds(values, year):
  message = (
    rf"^log.parquet: column 'created': all numbers lie in 1970 to {year} as unix seconds; "
    "are they days, or"
  )
  with pytest.raises(DataError, match=message):
    checks.Cells("log.parquet", "created", pa.array(values)).times(-1)


def test_old_moments_that_name_their_year_are_read():
  assert seconds(pa.array([0, 631152000])) == [0, 631152000]
  assert seconds(pa.array(["1985-03-01", "86400"])) == [478483200, 86400]
  assert seconds(pa.array([datetime.date(1985, 3, 1)])) == [478483200]
  assert checks.Cells("", "created", pa.array(["", " "])).times(-1).tolist() == [-1, -1]


def test_columns_of_every_type():
  moment = datetime.datetime(2025, 3, 1, 10)
  for unit in ("s", "ms", "us", "ns"):
    assert seconds(pa.array([moment, moment], pa.timestamp(unit))) == [TEN, TEN]
    zoned = pa.array([moment.replace(tzinfo=UTC)], pa.timestamp(unit, tz="America/New_York"))
    assert seconds(zoned) == [TEN]
  late = pa.array([10**9 * TEN + 999_999_999], pa.timestamp("ns"))
  assert seconds(late) == [TEN]
  day = datetime.date(2025, 3, 1)
  assert (
    seconds(pa.array([day], pa.date32())) == seconds(pa.array([day], pa.date64())) == [TEN - 36000]
  )
  assert seconds(pa.array([decimal.Decimal(f"{TEN}.750")], pa.decimal128(18, 3))) == [TEN]
  assert seconds(pa.array([TEN + 0.75])) == seconds(pa.array([TEN], pa.int64())) == [TEN]
  assert (
    seconds(pa.array([TEN], pa.uint32()))
    == seconds(pa.array([str(TEN)]).dictionary_encode())
    == [TEN]
  )
  assert seconds(pa.array([b"2025-03-01 10:00:00 UTC"], pa.binary())) == [TEN]
  assert checks.Cells("", "created", pa.nulls(2)).times(-1).tolist() == [-1, -1]
  assert checks.Cells("", "created", pa.array([moment, None])).times(-1).tolist() == [TEN, -1]
  assert checks.Cells("", "created", pa.array(["", " ", str(TEN)])).times(-1).tolist() == [
    -1,
    -1,
    TEN,
  ]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_a_moment_before_1970_is_not_rounded_into_it(unit):
  with pytest.raises(DataError, match="row 1: .*1969.* is no time from 1970"):
    seconds(pa.array([-1], pa.timestamp(unit)))
  assert seconds(pa.array([0, 1], pa.timestamp(unit))) == [0, 0]


def test_texts_and_numbers_agree_with_datetime():
  rng = np.random.default_rng(0)
  moments = rng.integers(1_000_000_000, 1_890_000_000, 200)
  stamps = [datetime.datetime.fromtimestamp(int(moment), UTC) for moment in moments]
  for form in (
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%d %H:%M:%S UTC",
    "%Y-%m-%d %H:%M:%S.5+00:00",
    "%Y/%m/%d %H:%M:%S",
  ):
    assert seconds(pa.array([stamp.strftime(form) for stamp in stamps])) == moments.tolist()
