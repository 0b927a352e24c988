"""CSV files, read strictly: whatever is not plain CSV is refused, with file, row and column.

Plain CSV (RFC 4180): UTF-8, commas, and quotes only around a whole field, doubled within it. A line
ends in LF, CR or both. Blank lines are no rows. Rows are counted from 1 after the header, as in
every message of this package.

Arrow parses the file; it would take a quote that never closes for one long text, so `csv_scan`
first passes over the bytes and counts the rows by itself. What is wrong is named by `csv_rows`.
"""

import dataclasses
import logging
import re
from typing import Any

import numpy as np

from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.reading import csv_rows, csv_scan

_log = logging.getLogger(__name__)

_HARD_COMMA = re.compile(",(?! )")  # prose has a space after a comma


def read(path: str, names: list[str]) -> Any:
  """The named columns as an Arrow table of text, null nowhere.

  Args:
    path: a file whose header has the names, each once.
    names: columns wanted.

  Raises:
    DataError: the first thing that is not plain CSV, or rows that Arrow did not give.
  """
  arrow = optional("pyarrow")
  arrow_csv = optional("pyarrow.csv")
  found = _survey(path)
  if found is None or found.longest > csv_rows.LONGEST_ROW:
    raise csv_rows.fault(path)
  # -1 and 0 rows: nothing but a header, or not even that.
  if found.rows <= 0:
    return arrow.table({name: arrow.array([], arrow.large_string()) for name in names})
  # A quote that opens in one row and closes in a later one may have swallowed rows in any column,
  # wanted or not; so all are read. They go by number here: a header may name two columns alike.
  columns = csv_rows.header(path)
  numbers = [str(place) for place in range(len(columns))]
  # Without line breaks in texts no quote can have swallowed rows, and the wanted columns are
  # enough.
  wanted = numbers if found.has_breaks else [str(columns.index(name)) for name in names]
  try:
    table = arrow_csv.read_csv(
      path,
      read_options=arrow_csv.ReadOptions(
        block_size=max(1 << 20, 2 * found.longest), column_names=numbers
      ),
      parse_options=arrow_csv.ParseOptions(newlines_in_values=found.has_breaks),
      convert_options=arrow_csv.ConvertOptions(
        include_columns=wanted,
        column_types=dict.fromkeys(wanted, arrow.large_string()),
        strings_can_be_null=False,
      ),
    ).slice(1)  # with names from here, the header is a row
  except arrow.ArrowInvalid as error:
    raise csv_rows.fault(path) from error
  if len(table) != found.rows:
    raise DataError(f"{path}: {found.rows} rows stand in the file, {len(table)} were read")
  if found.has_breaks:
    many = {
      name: _check_swallowed(path, columns, int(name), table[name]) for name in table.column_names
    }
    places = ", ".join(
      f"{count} in {csv_rows.name(columns, int(name))}" for name, count in many.items() if count
    )
    _log.info("%s: texts of several lines: %s", path, places or "none but in the header")
  return arrow.table({name: table[str(columns.index(name))] for name in names})


@dataclasses.dataclass(frozen=True)
class _Survey:
  """What one pass over the bytes tells of a file whose quotes are in order.

  Attributes:
    rows: the header left out.
    longest: bytes of the longest row, or more.
    has_breaks: whether a quoted field runs over a line.
  """

  rows: int
  longest: int
  has_breaks: bool


def _survey(path: str) -> _Survey | None:
  """Passes over the bytes once; None where one of the file's blocks is not sound."""
  rows = -1
  longest = 0
  has_breaks = False
  for block in csv_scan.blocks(path):
    if not block.is_sound:
      return None
    rows += len(block.end_R)
    longest = max(longest, block.longest)
    has_breaks |= block.has_breaks
  return _Survey(rows, longest, has_breaks)


def _check_swallowed(path: str, columns: list[str], place: int, texts: Any) -> int:
  """Refuses a field over several lines that look like rows of the file; returns how many fields run
  over lines.

  Two stray quotes make one field of the rows between them. The lines of such a field, as they
  stand, end one row, are whole rows, and begin a last one. So the inner lines have as many commas
  as the header, the last has those before the column, and the first has those after it, or more. A
  comma before a space is prose and is not counted.
  """
  compute = optional("pyarrow.compute")
  most = len(columns) - 1
  many = compute.match_substring_regex(texts, "[\r\n]")
  rows = np.flatnonzero(many.to_numpy())
  for row, text in zip(rows.tolist(), texts.filter(many).to_pylist(), strict=True):
    # Commas in the first line, in those between, and in the last one.
    first, *inner, last = [len(_HARD_COMMA.findall(line)) for line in re.split("\r\n|\r|\n", text)]
    # As many cells as a row has, where the quote opened and where it closed.
    if first >= most - place and last == place and all(commas == most for commas in inner):
      where = f"column {csv_rows.name(columns, place)}, row {row + 1}"
      raise DataError(
        f"{path}: {where}: a quote opens here and closes {len(inner) + 1} lines later, and these "
        f"lines have their {most + 1} cells like a row; a quote within a text is written twice"
      )
  return len(rows)
