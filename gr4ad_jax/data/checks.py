"""Cells of a column to NumPy, each checked; the first bad cell is named by file, column, row and value.

Rows are counted from 1 and do not count a header. A cell is *empty* where it is null or, as text, blank.
"""

import datetime
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from gr4ad_jax.data.schema import DataError

MAX_TIME = 253_402_300_800  # the year 10000; unix milliseconds of any recent date lie beyond it
MAX_NUMBER = float(np.finfo(np.float32).max)


def optional(module: str, extra: str = "data") -> Any:
  """Imports a module of an extra. Raises ImportError, in one line that names the extra, where it is missing."""
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ImportError(f"{module.split('.')[0]} is missing: pip install 'gr4ad_jax[{extra}]'") from error


def bad_cell(path: str, column: str, row: int, value: Any, problem: str) -> DataError:
  """The error of one cell; `row` is 0-based here and 1-based in the message."""
  shown = repr(value)
  return DataError(f"{path}: column '{column}', row {row + 1}: {shown[:80]}{'…' if len(shown) > 80 else ''} {problem}")


class Cells:
  """One column of a file: where it came from, and its Arrow array.

  Every method raises `DataError`, in one line, for a column of the wrong type and for the first bad cell.
  """

  def __init__(self, path: str, column: str, array: Any):
    arrow = optional("pyarrow")
    if arrow.types.is_dictionary(array.type):
      array = array.cast(array.type.value_type)
    if array.type in (arrow.large_string(), arrow.string_view()):
      array = array.cast(arrow.string())
    if isinstance(array, arrow.ChunkedArray):
      array = array.combine_chunks()
    self.path, self.column, self.array = path, column, array

  def __len__(self):
    return len(self.array)

  def labels(self, *, allow_empty: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Text or whole numbers, as codes: (codes [E] int32, values [distinct] str in order of first appearance)."""
    encoded = self._text().dictionary_encode()
    codes, values = encoded.indices.to_numpy(), encoded.dictionary.to_numpy(zero_copy_only=False)
    if not allow_empty:
      blank = np.fromiter((not value.strip() for value in values), bool, len(values))
      self._refuse(blank[codes], "is empty", lambda row: values[codes[row]])
    return codes.astype(np.int32, copy=False), values

  def text(self, *, allow_empty: bool = False) -> np.ndarray:
    """Text or whole numbers, as [N] str."""
    codes, values = self.labels(allow_empty=allow_empty)
    return values[codes]

  def numbers(self, default: float | None = None, signed: bool = False) -> np.ndarray:
    """Finite numbers as [E] float32, of 0 or more unless `signed`; empty cells become `default`; None refuses them."""
    types = optional("pyarrow").types
    kind = self.array.type
    if types.is_string(kind):
      value_E, empty_E = self._parsed(_to_numbers, "is not a number")
    elif types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
      value_E, empty_E = self._plain("float64")
    else:
      raise self._wrong_type("a number")
    if default is None:
      self._refuse(empty_E, "is empty, a number is needed")
    self._refuse(~empty_E & ~(np.abs(value_E) <= MAX_NUMBER), "is not a finite float32 number")
    self._refuse(~empty_E & (value_E < 0) & (not signed), "is negative")
    return np.where(empty_E, 0 if default is None else default, value_E).astype(np.float32)

  def times(self, default: int | None = None) -> np.ndarray:
    """Timestamps, ISO 8601 text (UTC where no zone is given) or unix seconds, as [E] int64 unix seconds.

    Fractions of a second are cut off. Empty cells become `default`, or are refused where that is None. So are texts
    that are a bare year or a date without dashes (1900 to 2100): as unix seconds they would lie in 1970.
    """
    arrow = optional("pyarrow")
    kind = self.array.type
    if arrow.types.is_string(kind):
      codes, values = self.labels(allow_empty=True)
      date = np.fromiter((_is_bare_date(value.strip()) for value in values), bool, len(values))
      self._refuse(
        date[codes], "may be a date or unix seconds: write 2025-03-01 or unix seconds", lambda row: values[codes[row]]
      )
      value_E, empty_E = self._parsed(_to_seconds, "is no time: unix seconds, ISO 8601 or a timestamp is needed")
    elif arrow.types.is_timestamp(kind) or arrow.types.is_date(kind):
      array = self.array.cast(arrow.timestamp("s", tz=getattr(kind, "tz", None)), safe=False)
      value_E, empty_E = Cells(self.path, self.column, array)._plain("int64")
    elif arrow.types.is_integer(kind) or arrow.types.is_floating(kind):
      value_E, empty_E = self._plain("float64")
    else:
      raise self._wrong_type("a time")
    if default is None:
      self._refuse(empty_E, "is empty, a time is needed")
    inside_E = (value_E >= 0) & (value_E < MAX_TIME)  # False for NaN
    self._refuse(~empty_E & ~inside_E, "is no time from 1970 to 9999 (unix time counts in seconds)")
    return np.where(empty_E, -1 if default is None else default, value_E).astype(np.int64)

  def lists(self) -> list[list]:
    """The entries of a list column, null as an empty one."""
    if not self._is_list():
      raise self._wrong_type("a list")
    return [entry or [] for entry in self.array.to_pylist()]

  def vectors(self) -> np.ndarray:
    """Lists of one length of finite numbers, as [N, D] float32."""
    types = optional("pyarrow").types
    kind = self.array.type
    if not self._is_list() or not (types.is_floating(kind.value_type) or types.is_integer(kind.value_type)):
      raise self._wrong_type("a list of numbers")
    compute = optional("pyarrow.compute")
    size_N = compute.list_value_length(self.array).fill_null(0).to_numpy(zero_copy_only=False)
    self._refuse(size_N == 0, "is an empty vector")
    self._refuse(size_N != size_N[0], f"has another length than the vector of row 1 ({size_N[0]})")
    flat = self.array.flatten().cast("float32", safe=False).fill_null(np.nan)
    vector_ND = flat.to_numpy(zero_copy_only=False).reshape(len(self), -1)
    self._refuse(~np.isfinite(vector_ND).all(axis=1), "is not finite")
    return vector_ND

  def _is_list(self) -> bool:
    types = optional("pyarrow").types
    return any(is_kind(self.array.type) for is_kind in (types.is_list, types.is_large_list, types.is_fixed_size_list))

  def _text(self):
    """The column as an Arrow string array without nulls."""
    arrow = optional("pyarrow")
    kind = self.array.type
    if not (arrow.types.is_string(kind) or arrow.types.is_integer(kind) or arrow.types.is_null(kind)):
      raise self._wrong_type("text or whole numbers")
    return self.array.cast(arrow.string()).fill_null("")

  def _plain(self, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """(values [E] of a numeric column, empty [E] bool); an empty cell's value is 0."""
    empty_E = self.array.is_null().to_numpy(zero_copy_only=False)
    return self.array.cast(dtype, safe=False).fill_null(0).to_numpy(zero_copy_only=False), empty_E

  def _parsed(self, parse: Callable, problem: str) -> tuple[np.ndarray, np.ndarray]:
    """As `_plain`, of a text column: each distinct text is parsed once; NaN from `parse` is a bad cell."""
    codes, values = self.labels(allow_empty=True)
    empty = np.fromiter((not value.strip() for value in values), bool, len(values))
    parsed = np.where(empty, 0, parse(values))
    self._refuse(np.isnan(parsed)[codes], problem, lambda row: values[codes[row]])
    return parsed[codes], empty[codes]

  def _refuse(self, bad_E: np.ndarray, problem: str, show: Callable[[int], Any] | None = None) -> None:
    """Raises for the first True of `bad_E`."""
    if bad_E.any():
      row = int(np.argmax(bad_E))
      raise bad_cell(self.path, self.column, row, show(row) if show else self.array[row].as_py(), problem)

  def _wrong_type(self, wanted: str) -> DataError:
    return DataError(f"{self.path}: column '{self.column}' holds {self.array.type}, {wanted} is needed")


def _to_numbers(values: np.ndarray) -> np.ndarray:
  """Texts to float64, NaN where a text is no number."""
  return optional("pandas").to_numeric(values, errors="coerce").astype(np.float64)


def _is_bare_date(text: str) -> bool:
  """Whether a text is a year, or YYYYMMDD of a day, from 1900 to 2100."""
  if not (text.isascii() and text.isdigit() and len(text) in (4, 8) and 1900 <= int(text[:4]) <= 2100):
    return False
  try:
    datetime.date(int(text[:4]), int(text[4:6] or 1), int(text[6:] or 1))
  except ValueError:
    return False
  return True


def _to_seconds(values: np.ndarray) -> np.ndarray:
  """Texts to unix seconds, float64 (exact to the year 10000), NaN where a text is no time."""
  pandas = optional("pandas")
  seconds = np.floor(_to_numbers(values))
  other = np.flatnonzero(np.isnan(seconds))
  if len(other):
    # Only texts that begin with a year: pandas also reads words such as "now".
    other = other[[value.strip()[:4].isdigit() for value in values[other]]]
    parsed = pandas.to_datetime(pandas.Series(values[other]), format="ISO8601", utc=True, errors="coerce")
    elapsed = parsed - pandas.Timestamp("1970-01-01", tz="UTC")
    seconds[other] = np.floor(elapsed.dt.total_seconds().to_numpy())
  return seconds
