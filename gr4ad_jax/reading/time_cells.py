"""Numbers and moments in Arrow columns: plain ones, timestamps, text; whether they can be moments
at all.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.reading import times


class TextCells(Protocol):
  """What is needed of `checks.Cells`."""

  path: str
  column: str
  array: Any

  def labels(self, *, allow_empty: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """As `Cells.labels`."""

  def parsed(self, parse: Callable, problem: str) -> tuple[np.ndarray, np.ndarray]:
    """As `Cells.parsed`."""

  def refuse(
    self, bad_E: np.ndarray, problem: str, show: Callable[[int], Any] | None = None
  ) -> None:
    """As `Cells.refuse`."""


def plain(array: Any, dtype: str) -> tuple[np.ndarray, np.ndarray]:
  """(values [E] of a numeric column, empty [E] bool); an empty cell's value is 0."""
  if optional("pyarrow").types.is_float16(array.type):
    # Arrow fills and compares no 16-bit floats.
    array = array.cast("float32")
  # pandas writes NaN for an empty cell.
  empty_E = array.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
  value_E = array.cast(dtype, safe=False).fill_null(0).to_numpy(zero_copy_only=False)
  return np.where(empty_E, 0, value_E), empty_E


def of_text(cells: TextCells) -> tuple[np.ndarray, np.ndarray]:
  """As `plain`, of moments as text."""
  codes, values = cells.labels(allow_empty=True)
  number_V = times.to_numbers(values)
  # Texts with an exponent are read as numbers, and may have lost their digits before.
  shortened_V = (
    optional("pyarrow.compute")
    .match_substring_regex(values, times.EXPONENT)
    .to_numpy(zero_copy_only=False)
  )
  # Looked at as a column: a single number proves nothing.
  for bad_V, problem in (
    (times.looks_like_date(np.where(np.isfinite(number_V), number_V, 0)), times.IS_DATE),
    (shortened_V, "has an exponent, its last digits may be lost: write unix seconds in full"),
  ):
    cells.refuse(bad_V[codes], problem, lambda row: values[codes[row]])
  return cells.parsed(lambda values: times.parse(values, number_V), times.NO_TIME)


def seconds(array: Any) -> tuple[np.ndarray, np.ndarray]:
  """As `plain`, of a column of timestamps or dates; a moment before 1970 is negative."""
  arrow = optional("pyarrow")
  compute = optional("pyarrow.compute")
  if arrow.types.is_date(array.type):
    # Arrow keeps days in 32 bits, and milliseconds in 64.
    array = array.cast(arrow.timestamp("s" if arrow.types.is_date32(array.type) else "ms"))
  if array.type.unit != "s":
    per_second = {"ms": 10**3, "us": 10**6, "ns": 10**9}[array.type.unit]
    # As whole numbers, so that moments of all units are divided alike.
    ticks = array.cast(arrow.int64())
    # Division drops the sign of what lies less than a second before 1970.
    whole = compute.subtract(
      compute.divide(ticks, per_second), compute.less(ticks, 0).cast(arrow.int64())
    )
  else:
    whole = array.cast(arrow.int64())
  return plain(whole, "int64")


def check_plausible(cells: TextCells, value_E: np.ndarray) -> None:
  """Refuses unix seconds that all lie before 1990: days or hours since 1970, serial dates,
  YYMMDD, YYYYDDD, DDMMYYYY.

  Moments that name their year, ISO 8601 and timestamps, are taken as they stand: ads may be
  older.
  """
  types = optional("pyarrow").types
  if not len(value_E) or value_E.max() >= times.MIN_PLAUSIBLE:
    return
  if types.is_timestamp(cells.array.type) or types.is_date(cells.array.type):
    return
  if types.is_large_string(cells.array.type):
    texts = cells.labels(allow_empty=True)[1]
    if np.isnan(times.to_numbers(np.array([text for text in texts if text.strip()], object))).any():
      return
  raise DataError(
    f"{cells.path}: column '{cells.column}': all numbers lie in 1970 to "
    f"{times.year(value_E.max())} as unix seconds; "
    "are they days, or dates without dashes? write 2025-03-01 or unix seconds"
  )
