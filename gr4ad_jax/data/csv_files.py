"""CSV files, read strictly: whatever is not plain CSV is refused, with file, row and column.

Plain CSV (RFC 4180): UTF-8, commas, and quotes only around a whole field, doubled within it. A line
ends in LF, CR or both. Blank lines are no rows. Rows are counted from 1 after the header, as in
every message of this package.

Arrow parses the file; it would take a quote that never closes for one long text, so `_survey` first
passes over the bytes and counts the rows by itself. What it finds wrong is named by `_fault`, which
is slow and runs only then.
"""

import codecs
import dataclasses
import logging
import mmap
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.schema import DataError

_log = logging.getLogger(__name__)

COMMA, QUOTE, LF, CR = b',"\n\r'
BLOCK = 1 << 22  # bytes looked at together
LONGEST_ROW = 1 << 29  # bytes; Arrow counts the bytes of a block in 32 bits
DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}  # that are not read, but told
SHOWN_NAMES = 12  # of a header, in a message
_QUOTED = re.compile(rb'"(?:[^"]++|"")*+"')
_BARE = re.compile(rb"[^,\r\n]*+")
_HARD_COMMA = re.compile(",(?! )")  # prose has a space after a comma
_BREAK = re.compile(rb"\r\n|\r|\n")
_ELSE = (
  (b"\x1f\x8b", "is compressed (gzip): unpack it first"),
  (b"PK\x03\x04", "is a zip archive or a spreadsheet: export it as CSV"),
  (b"PAR1", "is a Parquet file: let its name end in .parquet"),
  (b"\xff\xfe", "is UTF-16: save it as UTF-8"),
  (b"\xfe\xff", "is UTF-16: save it as UTF-8"),
)


def header(path: str) -> list[str]:
  """Names of the header, none for an empty file. Raises DataError where the header is not plain
  CSV.
  """
  with open(path, "rb") as file:
    start = file.read(4)
  for begin, problem in _ELSE:
    if start.startswith(begin):
      raise DataError(f"{path}: {problem}")
  if not start:
    return []
  with _mapped(path) as data:
    first = next(_records(data), None)
    if first is None:
      return []
    if problem := _problem(data, first, [], 0):
      raise DataError(f"{path}: {problem}")
    return [_text(data[begin:end]) for begin, end in first.fields]


def names_shown(names: list[str]) -> str:
  """The names of a file's columns for a message: a line, and not a long one."""
  shown = [name if name.isprintable() else repr(name)[1:-1] for name in names[:SHOWN_NAMES]]
  cut = [name if len(name) <= 40 else f"{name[:40]}…" for name in shown]
  return ", ".join(cut) + (
    f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
  )


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
  if found is None or found.longest > LONGEST_ROW:
    raise _fault(path)
  if found.rows <= 0:
    return arrow.table({name: arrow.array([], arrow.large_string()) for name in names})
  # A quote that opens in one row and closes in a later one may have swallowed rows in any column,
  # wanted or not; so all are read. They go by number here: a header may name two columns alike.
  columns = header(path)
  numbers = [str(place) for place in range(len(columns))]
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
    raise _fault(path) from error
  if len(table) != found.rows:
    raise DataError(f"{path}: {found.rows} rows stand in the file, {len(table)} were read")
  if found.has_breaks:
    many = {
      name: _check_swallowed(path, columns, int(name), table[name]) for name in table.column_names
    }
    places = ", ".join(
      f"{count} in {_name(columns, int(name))}" for name, count in many.items() if count
    )
    _log.info("%s: texts of several lines: %s", path, places or "none but in the header")
  return arrow.table({name: table[str(columns.index(name))] for name in names})


def line_of(path: str, row: int) -> int:
  """The line of a file, from 1, where its row begins (from 0; the header is -1); 0 where the
  file has no such row.
  """
  with _mapped(path) as data:
    for number, record in enumerate(_records(data), -1):
      if number == row:
        return record.line
  return 0


@dataclasses.dataclass(frozen=True)
class _Survey:
  """What one pass over the bytes tells of a file whose quotes are in order."""

  rows: int  # the header left out
  longest: int  # bytes of the longest row, or more
  has_breaks: bool  # whether a quoted field runs over a line


def _survey(path: str) -> _Survey | None:
  """Passes over the bytes once; None where they are not UTF-8, hold NUL, or a quote stands where
  none may.

  Quotes are numbered over the file: one with an even number opens a field, or goes on after its
    doubled twin; one with
  an odd number closes it, or is the first of two. So with each its neighbour byte says whether it
  may stand there.
  """
  decoder = codecs.getincrementaldecoder("utf-8")()
  quotes, records, longest, last_break, has_breaks = 0, 0, 0, 0, False
  start = -1  # where in the file `bytes_X` begins; a line break is thought before the first byte
  kept = bytes([LF])
  with open(path, "rb") as file:
    if file.read(3) != codecs.BOM_UTF8:
      file.seek(0)
    while True:
      block = file.read(BLOCK)
      try:
        decoder.decode(block, final=not block)
      except UnicodeDecodeError:
        return None
      # The first byte was looked at and is a neighbour only; the last one waits for its own
      # neighbour.
      bytes_X = np.frombuffer(kept + (block or bytes([LF])), np.uint8)
      middle = bytes_X[1:-1]
      if not middle.all():
        return None
      quote_Q = np.flatnonzero(middle == QUOTE) + 1
      if not _quotes_stand_right(bytes_X, quote_Q, quotes):
        return None
      break_L = np.flatnonzero((middle == LF) | (middle == CR)) + 1
      outside_L = (np.searchsorted(quote_Q, break_L) + quotes) % 2 == 0
      has_breaks |= not outside_L.all()
      break_L = break_L[outside_L]
      records += int(np.count_nonzero(~_is_break(bytes_X[break_L - 1])))
      at_L = np.concatenate([[last_break], break_L + start])
      longest = max(
        longest, int(np.diff(at_L).max(initial=0)), len(bytes_X) + start - int(at_L[-1])
      )
      last_break, quotes = int(at_L[-1]), quotes + len(quote_Q)
      start += len(bytes_X) - 2
      kept = bytes_X[-2:].tobytes()
      if not block:
        break
  if quotes % 2:
    return None
  return _Survey(records + (not _is_break(np.uint8(kept[0]))) - 1, longest, has_breaks)


def _is_break(byte: Any) -> Any:
  return (byte == LF) | (byte == CR)


def _quotes_stand_right(bytes_X: np.ndarray, quote_Q: np.ndarray, before: int) -> bool:
  """Whether each quote has a neighbour that lets it stand there; `before` quotes stand before
  the block.
  """
  opens = quote_Q[before % 2 :: 2]
  closes = quote_Q[1 - before % 2 :: 2]
  beside = np.concatenate([bytes_X[opens - 1], bytes_X[closes + 1]])
  return bool(((beside == COMMA) | (beside == QUOTE) | _is_break(beside)).all())


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
    first, *inner, last = [len(_HARD_COMMA.findall(line)) for line in re.split("\r\n|\r|\n", text)]
    if first >= most - place and last == place and all(commas == most for commas in inner):
      raise DataError(
        f"{path}: column {_name(columns, place)}, row {row + 1}: a quote opens here and closes "
        f"{len(inner) + 1} lines "
        f"later, and these lines have their {most + 1} cells like a row; a quote within a text "
        "is written twice"
      )
  return len(rows)


@dataclasses.dataclass(frozen=True)
class _Record:
  """A row of a file as its bytes: where it begins, its fields, and what ends them too early."""

  line: int  # from 1
  fields: list[tuple[int, int]]  # begin and end of each
  broken: str = (
    ""  # "open": the last field's quote never closes; "after": text stands behind its closing quote
  )


def _mapped(path: str) -> mmap.mmap:
  with open(path, "rb") as file:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _records(data: mmap.mmap) -> Iterator[_Record]:
  """The rows of a file, the header first, blank lines passed over; ends after the first that is
  broken.
  """
  at = 3 if data[:3] == codecs.BOM_UTF8 else 0
  line = 1
  while at < len(data):
    if blank := _BREAK.match(data, at):
      at = blank.end()
      line += 1
      continue
    record = _record(data, at, line)
    yield record
    if record.broken:
      return
    begin, at = at, record.fields[-1][1]
    line += len(_BREAK.findall(data, begin, at))
    if end := _BREAK.match(data, at):
      at = end.end()
      line += 1


def _record(data: mmap.mmap, at: int, line: int) -> _Record:
  fields = []
  while True:
    is_quoted = data[at : at + 1] == b'"'
    found = (_QUOTED if is_quoted else _BARE).match(data, at)
    if found is None:
      return _Record(line, [*fields, (at, len(data))], "open")
    fields.append((at, found.end()))
    after = data[found.end() : found.end() + 1]
    if after == b",":
      at = found.end() + 1
    elif after in (b"", b"\n", b"\r"):
      return _Record(line, fields)
    else:
      return _Record(line, fields, "after")


def _fault(path: str) -> DataError:
  """The first thing in a file that is not plain CSV, by row and column."""
  with _mapped(path) as data:
    names: list[str] = []
    for number, record in enumerate(_records(data)):
      if problem := _problem(data, record, names, number):
        return DataError(f"{path}: {problem}")
      names = names or [_text(data[begin:end]) for begin, end in record.fields]
  return DataError(f"{path}: not a readable CSV file")


def _problem(data: mmap.mmap, record: _Record, names: list[str], number: int) -> str:
  """What is wrong with a record, empty where nothing is; without `names` it is the header, else
  row `number`.
  """
  row = f"row {number}" + ("" if record.line == number + 1 else f" (line {record.line})")
  for place, (begin, end) in enumerate(record.fields):
    field = data[begin:end]
    where = (
      f"column {_name(names, place)}, {row}: " if names else f"column {place + 1} of the header: "
    )
    is_last = place == len(record.fields) - 1
    first_line = _BREAK.split(field, maxsplit=1)[0]
    if is_last and record.broken == "open":
      return f"{where}a quote opens and does not close: {_shown(first_line)}"
    other = DELIMITERS.get(data[end : end + 1].decode("latin-1"))
    if is_last and record.broken == "after" and not names and other:
      return f"the delimiter of the header seems to be {other}: write commas"
    if is_last and record.broken == "after":
      lines = len(_BREAK.findall(field))
      after = (
        f"the next quote, {lines} lines later, is inside a field"
        if lines
        else "text follows its closing quote"
      )
      return (
        f"{where}a quote opens and {after}: {_shown(first_line)}; a quote within a text is "
        "written twice"
      )
    if not field.startswith(b'"') and b'"' in field:
      return (
        f"{where}a quote within a field that has none around it: {_shown(field)}; quote the "
        "field, and double it"
      )
    if b"\0" in field:
      return f"{where}a NUL byte: {_shown(field)}; is the file UTF-16? save it as UTF-8"
    try:
      field.decode()
    except UnicodeDecodeError:
      return f"{where}not UTF-8: {_shown(field)}; save the file as UTF-8"
  begin, end = record.fields[0][0], record.fields[-1][1]
  if end - begin > LONGEST_ROW:
    return f"{row}: {end - begin} bytes, at most {LONGEST_ROW} are allowed"
  if names and len(record.fields) != len(names):
    tail = (
      "; it ends in a comma"
      if len(record.fields) == len(names) + 1 and data[end - 1 : end] == b","
      else ""
    )
    return f"{row}: {len(record.fields)} cells, the header has {len(names)}{tail}"
  return ""


def _name(names: list[str], place: int) -> str:
  """A column in a message; by its number where the header does not name it."""
  name = names[place] if place < len(names) else ""
  return f"'{names_shown([name])}'" if name else str(place + 1)


def _text(field: bytes) -> str:
  """What a field says: its quotes taken off."""
  text = field.decode()
  return text[1:-1].replace('""', '"') if text.startswith('"') else text


def _shown(field: bytes) -> str:
  """A field in a message: in one line, and not a long one; bytes that are not UTF-8 as escapes."""
  text = field[:60].decode(errors="backslashreplace")
  return (f"'{text}'" if text.isprintable() else repr(text)) + ("…" if len(field) > 60 else "")
