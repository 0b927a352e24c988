"""Cells of a column to NumPy, each checked; the first bad cell is named by file, column, row and
value.

Rows are counted from 1 and do not count a header. A cell is *empty* where it is null or, as text,
blank.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.reading import csv_rows, part_types, text_cells, time_cells, times
from gr4ad_jax.reading.time_cells import plain

# Money or units of a cell: the sum over a million events of an ad in a visit is still at most
# `schema.LARGEST`. What is more, a product of units and price say, is refused there.
MAX_NUMBER = 1e12
LONGEST_ID = 1024  # characters
_CONTROL = r"[\x00-\x1f\x7f\x{80}-\x{9f}]"
_MARK = "\ufeff"  # the byte order mark that begins a file; further on it was joined from others
_SHORTENED = r"^[0-9](\.[0-9]+)?[eE]\+[0-9]+$"  # as spreadsheets write 1234567890123


class Cells:
  """One column of a file: where it came from, and its Arrow array.

  Every method raises `DataError`, in one line, for a column of the wrong type and for the first bad
  cell.

  Args:
    path: the file, or the folder of part files.
    column: its name.
    array: an Arrow array, plain, chunked or of a dictionary; text may be binary that is UTF-8.
    parts: (file, rows) of each part, in order; none where the column is of no file.
    kinds: the Arrow types of the parts, where they were others than the array's.
  """

  def __init__(
    self,
    path: str,
    column: str,
    array: Any,
    parts: tuple[tuple[str, int], ...] = (),
    kinds: tuple[Any, ...] = (),
  ):
    arrow = optional("pyarrow")
    self.path = path
    self.column = column
    self._parts = parts
    array = part_types.plain(array)
    # The types of the parts, before they were joined: some lose digits that the joined type has.
    self._kinds = (array.type, *kinds)
    if isinstance(array, arrow.ChunkedArray):
      array = array.combine_chunks()
    self.array = text_cells.decoded(array, self.bad)

  def __len__(self):
    return len(self.array)

  def bad(self, row: int, value: Any, problem: str) -> DataError:
    """The error of one cell; `row` is 0-based over all parts here, and 1-based in its own file
    in the message.
    """
    path, row = self._place(row)
    where = f"row {row + 1}"
    # A row's number is not its line where texts run over several lines.
    if path.endswith(".csv") and self._parts and (line := csv_rows.line_of(path, row)) != row + 2:
      where += f" (line {line})"
    shown = repr(value)
    cut = f"{shown[:80]}{'…' if len(shown) > 80 else ''}"
    return DataError(f"{path}: column '{self.column}', {where}: {cut} {problem}")

  def _place(self, row: int) -> tuple[str, int]:
    """(file, 0-based row in it) of a row over all parts."""
    path = self.path
    for part, size in self._parts:
      path = part
      if row < size:
        break
      row -= size
    return path, row

  def row_name(self, row: int, beside: int) -> str:
    """A row in a message about the row `beside`: 1-based, with the name of its part where that
    is another one.
    """
    path, place = self._place(row)
    return f"row {place + 1}" + (
      "" if path == self._place(beside)[0] else f" of {os.path.basename(path)}"
    )

  def beside(self, column: str, array: Any) -> "Cells":
    """Another column of the same rows, made of this one."""
    return Cells(self.path, column, array, self._parts)

  def labels(self, *, allow_empty: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Text or whole numbers, as codes: (codes [E] int32, values [distinct] str in order of first
    appearance).
    """
    codes, values = text_cells.encoded(self._text())
    if not allow_empty:
      # White space alone is empty, too.
      blank = np.fromiter((not value.strip() for value in values), bool, len(values))
      self.refuse(blank[codes], "is empty", lambda row: values[codes[row]])
    return codes, values

  def ids(self) -> tuple[np.ndarray, np.ndarray]:
    """As `labels`, of names that other rows and requests repeat; white space around a name is left
    away.

    Refused are control characters, more than `LONGEST_ID` characters, and a number that a
    spreadsheet has shortened (1.23457E+12), which may stand for many.
    """
    compute = optional("pyarrow.compute")
    encoded = self._text().dictionary_encode()
    codes = encoded.indices.to_numpy()
    names = compute.utf8_trim_whitespace(encoded.dictionary)
    # Names are few and rows many, so each distinct name is checked once.
    for bad, problem in (
      (compute.equal(names, ""), "is empty"),
      (compute.match_substring_regex(names, _CONTROL), "has a control character"),
      (
        compute.match_substring(names, _MARK),
        "has a byte order mark (U+FEFF): were files joined here?",
      ),
      (
        compute.equal(names, self.column),
        "is the name of the column: is this row a second header?",
      ),
      (
        compute.greater(compute.utf8_length(names), LONGEST_ID),
        f"is longer than {LONGEST_ID} characters",
      ),
      (
        compute.match_substring_regex(names, _SHORTENED),
        "is a number that was shortened: its last digits are lost",
      ),
    ):
      # (V,) gathered by (E,): whether each row's name is bad.
      bad_V = bad.to_numpy(zero_copy_only=False)
      self.refuse(bad_V[codes], problem)
    return text_cells.encoded(names.take(encoded.indices))

  def text(self, *, allow_empty: bool = False) -> np.ndarray:
    """Text or whole numbers, as [N] str."""
    codes, values = self.labels(allow_empty=allow_empty)
    return values[codes]

  def numbers(self, default: float | None = None, signed: bool = False) -> np.ndarray:
    """Numbers up to `MAX_NUMBER` as [E] float32, of 0 or more unless `signed`; empty cells
    become `default`; None refuses them.
    """
    types = optional("pyarrow").types
    kind = self.array.type
    if types.is_large_string(kind):
      value_E, empty_E = self.parsed(times.to_numbers, "is not a number")
    elif (
      types.is_integer(kind)
      or types.is_floating(kind)
      or types.is_decimal(kind)
      or types.is_null(kind)
    ):
      value_E, empty_E = plain(self.array, "float64")
    else:
      raise self._wrong_type("a number")
    # In this order, so that the message names the cause and not what follows from it.
    if default is None:
      self.refuse(empty_E, "is empty, a number is needed")
    self.refuse(~empty_E & ~np.isfinite(value_E), "is not a finite number")
    # NaN is in no order; it was refused before.
    self.refuse(~empty_E & (value_E < 0) & (not signed), "is negative")
    self.refuse(
      ~empty_E & (np.abs(value_E) > MAX_NUMBER),
      f"is more than {MAX_NUMBER:g}, the largest number allowed",
    )
    # -0 becomes 0.
    return np.where(empty_E, 0 if default is None else default, value_E + 0.0).astype(np.float32)

  def times(self, default: int | None = None) -> np.ndarray:
    """Timestamps, ISO 8601 text (UTC where no zone is given) or unix seconds, as [E] int64 unix
    seconds.

    Fractions of a second are cut off. Empty cells become `default`, or are refused where that is
    None. Refused are numbers that read as a date without dashes (`times.looks_like_date`), moments
    outside of 1970 to 2099, columns or texts that keep too few digits (float32, exponents), and a
    column of numbers that all lie before 1990.
    """
    types = optional("pyarrow").types
    kind = self.array.type
    is_moment = types.is_timestamp(kind) or types.is_date(kind)
    if types.is_large_string(kind):
      value_E, empty_E = time_cells.of_text(self)
    elif is_moment:
      value_E, empty_E = time_cells.seconds(self.array)
    elif short := [k for k in self._kinds if types.is_float32(k) or types.is_float16(k)]:
      raise DataError(
        f"{self.path}: column '{self.column}' holds {short[0]}: unix seconds lose their last "
        "digits in it (float32 has steps of 128 s); store whole numbers, float64 or timestamps"
      )
    elif (
      types.is_integer(kind)
      or types.is_floating(kind)
      or types.is_decimal(kind)
      or types.is_null(kind)
    ):
      value_E, empty_E = plain(self.array, "float64")
      # Numbers such as 20250301 are dates that lost their dashes.
      self.refuse(times.looks_like_date(value_E), times.IS_DATE)
    else:
      raise self._wrong_type("a time")
    if default is None:
      self.refuse(empty_E, "is empty, a time is needed")
    outside_E = ~empty_E & ~((value_E >= 0) & (value_E < times.MAX_TIME))  # True for NaN
    # One bad cell is looked at more closely, for a message that tells the cause.
    if outside_E.any():
      row = int(np.argmax(outside_E))
      shown = str(self._shown(row))
      is_number = not is_moment and np.isfinite(times.to_numbers(np.array([shown], object))[0])
      self.refuse(outside_E, times.problem_outside(float(value_E[row]) if is_number else 0.0))
    time_cells.check_plausible(self, value_E[~empty_E])
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
    if not self._is_list() or not (
      types.is_floating(kind.value_type) or types.is_integer(kind.value_type)
    ):
      raise self._wrong_type("a list of numbers")
    compute = optional("pyarrow.compute")
    size_N = compute.list_value_length(self.array).fill_null(0).to_numpy(zero_copy_only=False)
    self.refuse(size_N == 0, "is an empty vector")
    # All must be as long as the first.
    other_N = size_N != size_N[0]
    first = self.row_name(0, int(np.argmax(other_N)))
    self.refuse(other_N, f"has another length than the vector of {first} ({size_N[0]})")
    # A null entry becomes NaN, and is refused with the others.
    flat = self.array.flatten().cast("float32", safe=False).fill_null(np.nan)
    vector_ND = flat.to_numpy(zero_copy_only=False).reshape(len(self), -1)
    self.refuse(~np.isfinite(vector_ND).all(axis=1), "is not finite")
    return vector_ND

  def _is_list(self) -> bool:
    types = optional("pyarrow").types
    return any(
      is_kind(self.array.type)
      for is_kind in (types.is_list, types.is_large_list, types.is_fixed_size_list)
    )

  def _text(self):
    """The column as an Arrow array of large strings without nulls."""
    arrow = optional("pyarrow")
    types = arrow.types
    kind = self.array.type
    array = self.array
    if types.is_decimal(kind) or types.is_floating(kind):
      array = text_cells.whole(array, self._kinds, self.refuse)
    # No text: whole numbers are read as their digits.
    elif not (types.is_large_string(kind) or types.is_integer(kind) or types.is_null(kind)):
      raise self._wrong_type("text or whole numbers")
    return array.cast(arrow.large_string()).fill_null("")

  def parsed(self, parse: Callable, problem: str) -> tuple[np.ndarray, np.ndarray]:
    """As `time_cells.plain`, of a text column: each distinct text is parsed once.

    NaN from `parse` is a bad cell.
    """
    codes, values = self.labels(allow_empty=True)
    empty = np.fromiter((not value.strip() for value in values), bool, len(values))
    parsed = np.where(empty, 0, parse(values))
    self.refuse(np.isnan(parsed)[codes], problem, lambda row: values[codes[row]])
    return parsed[codes], empty[codes]

  def refuse(
    self, bad_E: np.ndarray, problem: str, show: Callable[[int], Any] | None = None
  ) -> None:
    """Raises for the first True of `bad_E`."""
    if bad_E.any():
      # `argmax` finds the first True.
      row = int(np.argmax(bad_E))
      raise self.bad(row, show(row) if show else self._shown(row), problem)

  def _shown(self, row: int) -> Any:
    """A cell as Python has it; its integer where Python has no such moment (beyond the year
    9999) or no such zone.
    """
    try:
      return self.array[row].as_py()
    except (ValueError, OverflowError, KeyError, OSError):
      # An unknown zone is a KeyError.
      return self.array[row].value

  def _wrong_type(self, wanted: str) -> DataError:
    return DataError(
      f"{self.path}: column '{self.column}' holds {self.array.type}, {wanted} is needed"
    )
