"""Rows of a CSV file, one by one: its header, the line of a row, and what is wrong with it.

The walk is slow, so it begins at the block that `csv_scan` has found to be the one in question.
"""

import codecs
import dataclasses
import mmap
import re
from collections.abc import Iterator

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.reading.csv_scan import Place, blocks

LONGEST_ROW = 1 << 29  # bytes; Arrow counts the bytes of a block in 32 bits
DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}  # that are not read, but told
SHOWN_NAMES = 12  # of a header, in a message
_LOOKED_AT = 1 << 10  # bytes of a field that a message may show
# Possessive: a quoted field is long, and must not be tried again from each of its quotes.
_QUOTED = re.compile(rb'"(?:[^"]++|"")*+"')
_BARE = re.compile(rb"[^,\r\n]*+")
_BREAK = re.compile(rb"\r\n|\r|\n")
_ELSE = (
  (b"\x1f\x8b", "is compressed (gzip): unpack it first"),
  (b"PK\x03\x04", "is a zip archive or a spreadsheet: export it as CSV"),
  (b"PAR1", "is a Parquet file: let its name end in .parquet"),
  (b"\xff\xfe", "is UTF-16: save it as UTF-8"),
  (b"\xfe\xff", "is UTF-16: save it as UTF-8"),
)


def header(path: str) -> list[str]:
  """Names of the header, none for a file of nothing but blank lines or a byte order mark. Raises
  DataError where the header is not plain CSV.
  """
  with open(path, "rb") as file:
    start = file.read(4)
  # Told by their first bytes, since as CSV they would be refused for something odd.
  for begin, problem in _ELSE:
    if start.startswith(begin):
      raise DataError(f"{path}: {problem}")
  if not start:
    return []
  with _mapped(path) as data:
    first = next(_records(data, _start(data)), None)
    if first is None:
      return []
    if problem := _problem(data, first, [], 0):
      raise DataError(f"{path}: {problem}")
    return [_text(data[begin:end]) for begin, end in first.fields]


def fault(path: str) -> DataError:
  """The first thing in a file that is not plain CSV, by row and column."""
  names = header(path)
  with _mapped(path) as data:
    for block in blocks(path):
      # Only blocks that look wrong are walked through row by row.
      is_right_R = block.commas_R == len(names) - 1
      if block.is_sound and block.longest <= LONGEST_ROW and is_right_R.all():
        continue
      for number, record in enumerate(_records(data, block.place), block.place.row):
        # Row 0 is the header, which was looked at.
        if number and (problem := _problem(data, record, names, number)):
          return DataError(f"{path}: {problem}")
  return DataError(f"{path}: not a readable CSV file")


def line_of(path: str, row: int) -> int:
  """The line of a file, from 1, where its row begins (from 0; the header is -1); 0 where the
  file has no such row.
  """
  with _mapped(path) as data:
    place = _start(data)
    # The last block that begins before the row.
    for block in blocks(path):
      if block.place.row > row + 1:
        break
      place = block.place
    # Rows are counted from the header, which is -1 here.
    for number, record in enumerate(_records(data, place), place.row - 1):
      if number == row:
        return record.line
  return 0


def names_shown(names: list[str]) -> str:
  """The names of a file's columns for a message: a line, and not a long one."""
  shown = [name if name.isprintable() else repr(name)[1:-1] for name in names[:SHOWN_NAMES]]
  cut = [name if len(name) <= 40 else f"{name[:40]}…" for name in shown]
  return ", ".join(cut) + (
    f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
  )


@dataclasses.dataclass(frozen=True)
class _Record:
  """A row of a file as its bytes.

  Attributes:
    line: where it begins, from 1.
    fields: begin and end of each.
    broken: what ends it too early. "open": the last field's quote never closes. "after": text
      stands behind the last field's closing quote.
  """

  line: int
  fields: list[tuple[int, int]]
  broken: str = ""


def _mapped(path: str) -> mmap.mmap:
  with open(path, "rb") as file:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _start(data: mmap.mmap) -> Place:
  # A byte order mark is no part of the first name.
  return Place(3 if data[:3] == codecs.BOM_UTF8 else 0, 0, 1)


def _records(data: mmap.mmap, place: Place) -> Iterator[_Record]:
  """The rows of a file from a place on, blank lines passed over; ends after the first that is
  broken.
  """
  at = place.at
  line = place.line
  while at < len(data):
    if blank := _BREAK.match(data, at):
      at = blank.end()
      line += 1
      continue
    record = _record(data, at, line)
    yield record
    if record.broken:
      return
    # Line breaks inside of quotes count as lines, and not as rows.
    begin = at
    at = record.fields[-1][1]
    line += _breaks(data, begin, at)
    if end := _BREAK.match(data, at):
      at = end.end()
      line += 1


def _breaks(data: mmap.mmap, begin: int, end: int) -> int:
  """Line breaks between two bytes."""
  return sum(1 for _ in _BREAK.finditer(data, begin, end))


def _record(data: mmap.mmap, at: int, line: int) -> _Record:
  fields = []
  while True:
    is_quoted = data[at : at + 1] == b'"'
    # The bare pattern takes nothing as well, so None means a quote that does not close.
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


def _problem(data: mmap.mmap, record: _Record, names: list[str], number: int) -> str:
  """What is wrong with a record, empty where nothing is; without `names` it is the header, else
  row `number`.
  """
  row = f"row {number}" + ("" if record.line == number + 1 else f" (line {record.line})")
  for place, (begin, end) in enumerate(record.fields):
    is_last = place == len(record.fields) - 1
    if is_last and record.broken:
      problem = _problem_of_quotes(data, begin, end, record.broken)
    else:
      problem = _problem_within(data[begin:end])
    other = DELIMITERS.get(data[end : end + 1].decode("latin-1"))
    if is_last and record.broken == "after" and not names and other:
      return f"the delimiter of the header seems to be {other}: write commas"
    if problem:
      where = (
        f"column {name(names, place)}, {row}" if names else f"column {place + 1} of the header"
      )
      return f"{where}: {problem}"
  begin = record.fields[0][0]
  end = record.fields[-1][1]
  if end - begin > LONGEST_ROW:
    return f"{row}: {end - begin} bytes, at most {LONGEST_ROW} are allowed"
  if names and len(record.fields) != len(names):
    is_one_more = len(record.fields) == len(names) + 1
    tail = "; it ends in a comma" if is_one_more and data[end - 1 : end] == b"," else ""
    return f"{row}: {len(record.fields)} cells, the header has {len(names)}{tail}"
  return ""


def _problem_of_quotes(data: mmap.mmap, begin: int, end: int, broken: str) -> str:
  """What is wrong with the field that breaks a record (`_Record.broken`); it may be the rest of a
  large file.
  """
  # One line of it is enough for a message.
  first_line = _BREAK.split(data[begin : min(end, begin + _LOOKED_AT)], maxsplit=1)[0]
  if broken == "open":
    return f"a quote opens and does not close: {_shown(first_line)}"
  lines = _breaks(data, begin, end)
  after = (
    f"the next quote, {lines} lines later, is inside a field"
    if lines
    else "text follows its closing quote"
  )
  return f"a quote opens and {after}: {_shown(first_line)}; a quote within a text is written twice"


def _problem_within(field: bytes) -> str:
  """What is wrong with a whole field, empty where nothing is."""
  if not field.startswith(b'"') and b'"' in field:
    return (
      f"a quote within a field that has none around it: {_shown(field)}; quote the field, and "
      "double it"
    )
  if b"\0" in field:
    return f"a NUL byte: {_shown(field)}; is the file UTF-16? save it as UTF-8"
  try:
    field.decode()
  except UnicodeDecodeError:
    return f"not UTF-8: {_shown(field)}; save the file as UTF-8"
  return ""


def name(names: list[str], place: int) -> str:
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
