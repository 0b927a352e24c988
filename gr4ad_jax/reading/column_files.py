"""Files of columns: a .parquet or .csv file, or a folder of such parts as Spark writes, to
checked `Cells`.
"""

import bisect
import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.reading import csv_files, csv_rows, part_types
from gr4ad_jax.reading.checks import Cells

READER = 4  # what is read of the same bytes; a change of it makes prepared data of older code stale
ENDINGS = (".parquet", ".csv")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".lz4", ".snappy", ".br")


def read_file(
  path: str, required: tuple[str, ...], optional_columns: tuple[str, ...] = ()
) -> dict[str, Cells]:
  """Columns that are wanted, by name; CSV cells stay text ('0012' is not 12).

  Args:
    path: a .parquet or .csv file (`csv_files` says how strictly it is read), or a folder of such
      parts, which are read in the order of their names.
    required, optional_columns: names of the columns; those of the second group may be absent.

  Raises:
    DataError: an unreadable file, a column that is missing or stands there twice, parts of which
      one lacks a wanted column or whose types do not become one (`part_types`), no rows.
  """
  filled, wanted = _same_columns(path, required, optional_columns)
  tables = [_read(part, wanted) for part in filled]
  # Of all parts together: one of them may be empty.
  if not sum(map(len, tables)):
    raise DataError(f"{path}: no rows")
  return {name: _joined(path, name, filled, tables) for name in wanted}


def read_parts(
  path: str,
  required: tuple[str, ...],
  optional_columns: tuple[str, ...] = (),
  wanted_part: Callable[[str], bool] = lambda part: True,
) -> Iterator[tuple[str, dict[str, Cells]]]:
  """Each part of what `read_file` reads, one after another: (its file, its columns), where it has
  rows. Never more than one is in memory.

  Args:
    path, required, optional_columns: as in `read_file`.
    wanted_part: which of the parts' files are read; the headers of all are compared.

  Raises:
    DataError: as `read_file`, at the part that does not go with those before it.
  """
  filled, wanted = _same_columns(path, required, optional_columns)
  # A column's type must be one for all parts, also of those that were read before; an empty slice
  # keeps their types.
  empty: dict[str, dict[str, Any]] = {name: {} for name in wanted}  # of each type so far, by part
  for part in filter(wanted_part, filled):
    table = _read(part, wanted)
    if not len(table):
      continue
    cells = {}
    for name in wanted:
      known = empty[name]
      columns = [*known.values(), table[name]]
      whole = part_types.joined(columns)
      if whole is None:
        raise _no_one_type(path, name, [*known, part], columns)
      cells[name] = Cells(path, name, whole, ((part, len(table)),), kinds=(table[name].type,))
      if all(table[name].type != column.type for column in known.values()):
        known[part] = table[name].slice(0, 0)
    yield part, cells


def _same_columns(
  path: str, required: tuple[str, ...], optional_columns: tuple[str, ...]
) -> tuple[list[str], list[str]]:
  """The part files that are no empty CSV, and the wanted columns, which all of them have.

  Raises:
    DataError: a column that is missing, or stands in some of the parts alone.
  """
  parts = part_files(path)
  # Of a folder, parts without rows are passed over; a single file is read as it is, and refused if
  # empty.
  filled = [part for part in parts if len(parts) == 1 or not _is_empty_csv(part)] or parts[:1]
  found = {part: _wanted(part, required, optional_columns) for part in filled}
  wanted = found[filled[0]]
  for part in filled[1:]:
    # The symmetric difference: what one of the two files has and the other lacks.
    if other := next(iter(sorted({*found[part]} ^ {*wanted})), None):
      has, lacks = (part, filled[0]) if other in found[part] else (filled[0], part)
      raise DataError(
        f"{path}: column '{other}' stands in {os.path.basename(has)}, not in "
        f"{os.path.basename(lacks)}"
      )
  return filled, wanted


def _read(part: str, wanted: list[str]) -> Any:
  """The wanted columns of one file, as an Arrow table."""
  return csv_files.read(part, wanted) if _ending(part) == ".csv" else _read_parquet(part, wanted)


def check_file(field: str, path: str) -> None:
  """Raises DataError where `path` (named `field` in the config) is unset, of another ending, no
  file, or no folder of part files.
  """
  if not path:
    raise DataError(f"{field} is not set: name a .parquet or .csv file")
  if os.path.isdir(path):
    part_files(path)
    return
  if path.lower().endswith(COMPRESSED):
    raise DataError(f"{path}: {field} names a compressed file: unpack it to .parquet or .csv")
  if not path.endswith(ENDINGS):
    raise DataError(f"{path}: {field} must end in .parquet or .csv, or be a folder of such parts")
  if not os.path.isfile(path):
    raise DataError(f"{path}: no such file ({field})")


def part_files(path: str) -> list[str]:
  """The files that a path stands for: itself, or the parts of a folder, sorted by name.

  Names that begin with `_` or `.` are notes of the writer (`_SUCCESS`, checksums) and are passed
  over.

  Raises:
    DataError: a folder without parts, or with anything else in it: parts of two formats, a
      compressed part, a pipe, a link that leads nowhere, a folder (partitions, whose columns would
      be lost), a table format's log, which says which parts are still valid.
  """
  if not os.path.isdir(path):
    return [path]
  names = sorted(os.listdir(path))
  # A table with a log holds files that are deleted already, but for the log's word.
  for log in ("_delta_log", "_hudi", ".hoodie"):
    if log in names:
      raise DataError(
        f"{path}: is a table with a log ({log}), not plain part files: export it as Parquet or CSV"
      )
  names = [name for name in names if not name.startswith(("_", "."))]
  for name in names:
    if os.path.isdir(os.path.join(path, name)):
      what = (
        "is a partition: its column stands in its name alone; write"
        if "=" in name
        else "is a folder: give"
      )
      raise DataError(f"{path}: {name} {what} one folder of part files")
    # A pipe would be waited for without end.
    if not os.path.isfile(os.path.join(path, name)):
      raise DataError(f"{path}: {name} is no file, or a link that leads to none")
    if name.lower().endswith(COMPRESSED):
      raise DataError(f"{path}: {name} is compressed: unpack it to .parquet or .csv")
    if not name.endswith(ENDINGS):
      raise DataError(f"{path}: {name} in this folder ends neither in .parquet nor in .csv")
    if _ending(name) != _ending(names[0]):
      raise DataError(f"{path}: holds parts of two formats, {names[0]} and {name}")
  if not names:
    raise DataError(f"{path}: is a folder without a .parquet or .csv file")
  return [os.path.join(path, name) for name in names]


def _ending(path: str) -> str:
  return os.path.splitext(path)[1]


def _is_empty_csv(path: str) -> bool:
  """Whether a part has no header, as Spark leaves it of a partition without rows: nothing in it,
  or line breaks or a byte order mark alone.
  """
  return _ending(path) == ".csv" and not csv_rows.header(path)


def _wanted(path: str, required: tuple[str, ...], optional_columns: tuple[str, ...]) -> list[str]:
  """The wanted columns that a file has."""
  names = csv_rows.header(path) if _ending(path) == ".csv" else _parquet_names(path)
  if missing := [name for name in required if name not in names]:
    raise DataError(
      f"{path}: column '{missing[0]}' is missing; the file has "
      f"{csv_rows.names_shown(names) or 'no columns'}"
      f"{_hint(missing[0], names)}"
    )
  if twice := [name for name in (*required, *optional_columns) if names.count(name) > 1]:
    raise DataError(f"{path}: column '{twice[0]}' stands there twice")
  for name in optional_columns:
    # A column under another spelling would be left out in silence.
    known = {*required, *optional_columns}
    if name not in names and (other := _meant(name, names, known)) is not None:
      raise DataError(f"{path}: the header has {other!r}; is it the column '{name}'?")
  return [name for name in (*required, *optional_columns) if name in names]


def _meant(name: str, names: list[str], known: Iterable[str] = ()) -> str | None:
  """A name of the file that is `name` in another spelling, of those that are not `known` as another
  column.

  Alike are names but for capitals, spaces, dashes and underscores, and long ones but for a letter
  (`behaviour`).
  """

  # Case, spaces, hyphens and underscores are what spellings differ in.
  def plain(text: str) -> str:
    return re.sub(r"[\s_-]", "", text.lower())

  for other in names:
    if other in known:
      continue
    if plain(other) == plain(name):
      return other
    # Short names are too often alike by chance.
    is_long = len(name) >= 8
    if is_long and difflib.SequenceMatcher(None, plain(other), plain(name)).ratio() > 0.9:
      return other
  return None


def _hint(name: str, names: list[str]) -> str:
  """What may be wrong with a header that lacks a column."""
  if (other := _meant(name, names)) is not None:
    return f"; {other!r} is spelled in another way"
  if len(names) == 1:
    for delimiter, words in csv_rows.DELIMITERS.items():
      if delimiter in names[0]:
        return f"; its delimiter seems to be {words}: write commas"
  return ""


def _joined(path: str, name: str, parts: list[str], tables: list) -> Cells:
  """One column of the parts' columns."""
  types = optional("pyarrow").types
  columns = [table[name] for table in tables]
  whole = part_types.joined(columns)
  if whole is None:
    raise _no_one_type(path, name, parts, columns)
  sizes = tuple((part, len(column)) for part, column in zip(parts, columns, strict=True))
  kinds = tuple(column.type for column in columns if not types.is_null(column.type))
  return Cells(path, name, whole, sizes, kinds=kinds)


def _no_one_type(path: str, name: str, parts: list[str], columns: list) -> DataError:
  """Names the first part that does not go with those before it, and one of these."""
  types = optional("pyarrow").types
  ends = range(1, len(columns) + 1)
  # The columns go together up to some part; bisection finds the first with which they do not.
  last = bisect.bisect_left(ends, True, key=lambda end: part_types.joined(columns[:end]) is None)
  kind = columns[last].type
  at, other = next(
    (number, column.type)
    for number, column in enumerate(columns)
    if column.type != kind and not types.is_null(column.type)
  )
  return DataError(
    f"{path}: column '{name}' holds {other} in {os.path.basename(parts[at])}, {kind} in "
    f"{os.path.basename(parts[last])}, and no type holds the values of all parts"
  )


def _parquet(path: str):
  # Spark's INT96 moments reach beyond nanoseconds, where they would wrap around.
  return optional("pyarrow.parquet").ParquetFile(path, coerce_int96_timestamp_unit="us")


def _parquet_names(path: str) -> list[str]:
  arrow = optional("pyarrow")
  try:
    with _parquet(path) as file:
      return file.schema_arrow.names
  except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
    raise DataError(f"{path}: not a readable Parquet file") from error


def _read_parquet(path: str, names: list[str]):
  arrow = optional("pyarrow")
  try:
    with _parquet(path) as file:
      table = file.read(columns=names)
      rows = file.metadata.num_rows
  except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
    raise DataError(
      f"{path}: not a readable Parquet file ({(str(error).splitlines() or [''])[0]})"
    ) from error
  # A file may have lost rows between its footer and its data.
  if len(table) != rows:
    raise DataError(f"{path}: {rows} rows stand in the file, {len(table)} were read")
  return arrow.table({name: part_types.plain(table[name]) for name in names})
