"""Moments in the forms that files have them in, to unix seconds."""

import calendar
import re

import numpy as np

from gr4ad_jax.data.extras import optional

# 2100-01-01, exclusive: later dates stand for "never", and no request could follow them
MAX_TIME = 4_102_444_800
# unix seconds from here on have the digits of YYYYMMDDHH, or of YYMMDDHHMM since 2019
MIN_SINCE_2030 = 1_900_000_000
MOST_BY_CHANCE = 0.1  # share of unix seconds that look like a date
LEAST_SHORT = 0.9  # share of a column that looks like YYMMDDHHMM, where it holds dates
MIN_PLAUSIBLE = (
  631_152_000  # 1990-01-01: a column of numbers that all lie before counts days, or is of dates
)
IS_DATE = "may be a date or unix seconds: write 2025-03-01 or unix seconds"
EXPONENT = r"^\s*[0-9.]+[eE][+-]?[0-9]+\s*$"  # of a number as spreadsheets shorten it
NO_TIME = "is no time: unix seconds, ISO 8601 or a timestamp is needed"
_OUTSIDE = "is no time from 1970 to 2099 (unix time counts in seconds)"
# (unix time of the 1970s to the 2090s in this unit begins here, its name)
_UNITS = ((1e17, "nanoseconds"), (1e14, "microseconds"), (1e11, "milliseconds"))
_ZONE = re.compile(r"\s*(?:[+-]00:?00\s*)?(?:UTC|GMT|Z)$")
# Of a leap year.
_MONTH_DAYS = np.array([0, *(calendar.monthrange(2024, month)[1] for month in range(1, 13))])


def looks_like_date(value_E: np.ndarray) -> np.ndarray:
  """Whether numbers read as a date from 1900 to 2100 that was written without dashes, [E] bool.

  Such are YYYY, YYYYMM, YYYYMMDD and, with hours, minutes and seconds, YYYYMMDDHH, YYYYMMDDHHMM,
  YYYYMMDDHHMMSS; and YYMMDDHHMM. Hour 24 counts, as some write midnight by it.

  Ten digits are unix seconds, too, from the year 2030 on; those before 2030 are never taken for
  dates. Which they are is decided for the column. One in a hundred seconds looks like YYYYMMDDHH by
  chance: dates they are where more than `MOST_BY_CHANCE` of the numbers from 2030 on do. Of the
  seconds of one hour most may look like YYMMDDHHMM: dates they are where more than `LEAST_SHORT` of
  those numbers do.

  Args:
    value_E: [E] float64 numbers, NaN where there is none.
  """
  date_E = np.zeros(len(value_E), bool)
  whole_E = np.floor(np.where(value_E > 0, value_E, 0))
  # Each length of digits is another way to write a date.
  for digits in (4, 6, 8, 10, 12, 14):
    some = np.flatnonzero((whole_E >= 10.0 ** (digits - 1)) & (whole_E < 10.0**digits))
    text = whole_E[some].astype(np.int64)
    date = _is_date(text, digits)
    if digits == 10:
      # Ten digits are what unix seconds have today, so one number says little; the share in the
      # column does.
      since_2030 = (text >= MIN_SINCE_2030) & (text < MAX_TIME)
      short = _is_date(text + 20 * 10**10, 12)  # YYMMDDHHMM, of 2019 to 2041
      date = _if_common(date, since_2030, MOST_BY_CHANCE) | _if_common(
        short, since_2030, LEAST_SHORT
      )
    date_E[some] = date
  return date_E


def _is_date(text: np.ndarray, digits: int) -> np.ndarray:
  """Whether whole numbers of 4, 6, … 14 digits read as YYYY, YYYYMM, … YYYYMMDDHHMMSS, bool."""
  # Month, day, hour, minute, second.
  pairs = [text // 10 ** (digits - end) % 100 for end in range(6, digits + 1, 2)]
  # The year is what is left when all later pairs are cut off.
  year = text // 10 ** (digits - 4)
  date = (year >= 1900) & (year <= 2100)
  if pairs:
    date &= (pairs[0] >= 1) & (pairs[0] <= 12)
  if len(pairs) > 1:
    # The Gregorian rule.
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    # Month 0 where it is no month: `_MONTH_DAYS` has a 0 there.
    last = _MONTH_DAYS[np.where(date, pairs[0], 0)] - ((pairs[0] == 2) & ~leap)
    date &= (pairs[1] >= 1) & (pairs[1] <= last)
  for number, limit in zip(pairs[2:], (25, 60, 60), strict=False):
    date &= number < limit
  return date


def _if_common(date: np.ndarray, among: np.ndarray, share: float) -> np.ndarray:
  """`date` where it holds for more than `share` of the numbers `among`, which may be seconds;
  else False, bool.
  """
  return date & among & (np.count_nonzero(date & among) > share * np.count_nonzero(among))


def problem_outside(value: float) -> str:
  """What is wrong with unix seconds that lie outside of the years 1970 to 2099."""
  for least, unit in _UNITS:
    if least <= value < 1000 * least:
      return f"{_OUTSIDE}: these look like {unit}"
  return _OUTSIDE


def parse(values: np.ndarray, number_V: np.ndarray) -> np.ndarray:
  """Texts to unix seconds, [V] float64 (exact to the year 2100), NaN where a text is no time.

  Read are numbers and ISO 8601: with a `T` or a space, with or without fractions (cut off), an
    offset, `Z`, `UTC` or
  `GMT`. Without a zone a moment is UTC.

  Args:
    values: [V] str.
    number_V: `to_numbers` of them.
  """
  # Fractions of a second are cut off.
  seconds = np.floor(number_V)
  other = np.flatnonzero(np.isnan(seconds))
  # Only texts that begin with a year: pandas also reads words such as "now".
  other = other[
    np.fromiter((value.strip()[:4].isdigit() for value in values[other]), bool, len(other))
  ]
  seconds[other] = _iso_seconds(values[other])
  # What the strict form refused is tried again with the zone's name and a comma put right.
  other = other[np.isnan(seconds[other])]
  plain = [_ZONE.sub("Z", value.strip().upper().replace(",", ".")) for value in values[other]]
  seconds[other] = _iso_seconds(np.array(plain, object))
  return seconds


def year(seconds: float) -> int:
  """The year of unix seconds from 1970 to 2099."""
  return int(np.datetime64(int(seconds), "s").astype("datetime64[Y]").astype(int)) + 1970


def to_numbers(values: np.ndarray) -> np.ndarray:
  """Texts to float64, NaN where a text is no number."""
  return optional("pandas").to_numeric(values, errors="coerce").astype(np.float64)


def _iso_seconds(values: np.ndarray) -> np.ndarray:
  if not len(values):
    return np.zeros(0)
  pandas = optional("pandas")
  parsed = pandas.to_datetime(
    pandas.Series(values, dtype=object), format="ISO8601", utc=True, errors="coerce"
  )
  elapsed = parsed - pandas.Timestamp("1970-01-01", tz="UTC")
  return np.floor(elapsed.dt.total_seconds().to_numpy())
