"""Strict CSV: what Python's csv module reads is read alike, whatever is wrong is named, and no
row is lost.
"""

import csv
import io
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.reading import csv_files, csv_rows, csv_scan

LETTERS = st.sampled_from(["x", "é", "1", " ", ",", '"', "\n", "\r\n", "\r", ", ", "日", "\x1b"])
CELLS = st.lists(LETTERS, max_size=4).map("".join)
TABLES = st.integers(2, 4).flatmap(
  lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), min_size=1, max_size=5)
)
DAMAGE = st.sampled_from(['"', ",", "\n", "\r", "", "\0", "é"])
NAMES = ("first", "second", "third", "fourth")


def read(path):
  """[rows] of texts."""
  names = csv_rows.header(str(path))
  return [[row[name] for name in names] for row in csv_files.read(str(path), names).to_pylist()]


def like_rows(rows):
  """Whether the lines of a cell can be the end of a row, whole rows and the beginning of a row.

  Each line is cut into cells by hand; a comma that a space follows cuts nothing.
  """
  for row in rows:
    for place, text in enumerate(row):
      cells_L = []
      for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        pieces = line.split(",")
        cells_L.append(1 + sum(not piece.startswith(" ") for piece in pieces[1:]))
      if len(cells_L) == 1:
        continue
      ends_a_row = cells_L[0] >= len(row) - place
      are_rows = set(cells_L[1:-1]) <= {len(row)}
      begins_a_row = cells_L[-1] == place + 1
      if ends_a_row and are_rows and begins_a_row:
        return True
  return False


@settings(max_examples=100, deadline=None)
@given(
  TABLES,
  st.sampled_from(["\n", "\r\n", "\r"]),
  st.booleans(),
  st.sampled_from([1, 2, 3, 7, 1 << 22]),
  st.data(),
)
def test_quoted_files_are_read_like_the_standard_library_reads_them(
  tmp_path_factory, rows, end, mark, block, data
):
  path = tmp_path_factory.getbasetemp() / "strict.csv"
  text = io.StringIO()
  writer = csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL)
  writer.writerows([NAMES[: len(rows[0])], *rows])
  content = (
    ("\ufeff" if mark else "") + text.getvalue() + data.draw(st.sampled_from(["", end, 2 * end]))
  )
  path.write_bytes(content.encode())
  before, csv_scan.BLOCK = csv_scan.BLOCK, block
  try:
    assert read(path) == rows
    assert not like_rows(rows)
  except DataError as error:
    assert like_rows(rows) and "like a row" in str(error)
  finally:
    csv_scan.BLOCK = before


@settings(max_examples=100, deadline=None)
@given(
  TABLES,
  st.lists(st.tuples(st.integers(0, 60), DAMAGE), max_size=3),
  st.booleans(),
  st.integers(1, 9),
)
def test_damaged_files_are_refused_or_read_as_they_stand(
  tmp_path_factory, rows, damage, quoted, block
):
  path = tmp_path_factory.getbasetemp() / "damaged.csv"
  text = io.StringIO()
  csv.writer(text, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL).writerows(
    [NAMES[: len(rows[0])], *rows]
  )
  letters = list(text.getvalue())
  for place, letter in damage:
    letters[place % len(letters)] = letter
  content = "".join(letters)
  path.write_bytes(content.encode())
  try:
    found = read(path)
  except DataError as error:
    assert "\n" not in str(error) and str(path) in str(error)
    assert "not a readable CSV" not in str(error) and "were read" not in str(error)
    with mock.patch.object(csv_scan, "BLOCK", block), pytest.raises(DataError) as caught:
      read(path)
    assert str(caught.value) == str(error)  # wherever a block ends, the first fault is named
    return
  expected = [row for row in csv.reader(io.StringIO(content, newline=""), strict=True) if row]
  assert "\0" not in content and found == expected[1:]


BAD_FILES = [
  ('a,b\n1,2\n3,"4\n5,6\n', r"column 'b', row 2: a quote opens and does not close: '\"4'$"),
  (
    'a,b\n1,2\n"3,4\n5,"6"\n',
    r"column 'a', row 2: a quote opens and the next quote, 1 lines later, is inside a field",
  ),
  (
    'a,b\n1,"2"3\n',
    r"column 'b', row 1: a quote opens and text follows its closing quote: '\"2\"'; a quote within",
  ),
  (
    'a,b\n1,5" pipe\n',
    r"column 'b', row 1: a quote within a field that has none around it: '5\" pipe'; quote the",
  ),
  ('a,b\n1,2\n\n1, "x"\n', r"column 'b', row 2 \(line 4\): a quote within a field"),
  ('a,b\n1,"2\n3"\n4\n', r"row 2 \(line 4\): 1 cells, the header has 2$"),
  ("a,b\r\n1,2\r\n3\r\n", r"csv: row 2: 1 cells, the header has 2$"),
  ("a,b\r1,2\r3,4,5\r", r"csv: row 2: 3 cells, the header has 2$"),
  ("a,b\n1,2,\n", r"row 1: 3 cells, the header has 2; it ends in a comma$"),
  ("a,b\n1,2\n3,x\0\n", r"column 'b', row 2: a NUL byte: 'x\\x00'; is the file UTF-16"),
  (
    b"a,b\n1,2\n3,caf\xe9 x\n",
    r"column 'b', row 2: not UTF-8: 'caf\\xe9 x'; save the file as UTF-8",
  ),
  (b"a,b\n1,2\n3,4\n\xc3", r"column 'a', row 3: not UTF-8: '\\xc3'"),
  (b"a,\xe9\n1,2\n", r"column 2 of the header: not UTF-8: '\\xe9'"),
  ('a,"b\n1,2\n', r"column 2 of the header: a quote opens and does not close: '\"b'"),
  ('a,"b\n1,"2"\n', r"column 2 of the header: a quote opens and the next quote, 1 lines later"),
  ('a,b"c\n1,2\n', r"column 2 of the header: a quote within a field"),
  ("a,b\n1,2\n".encode("utf-16"), "is UTF-16: save it as UTF-8"),
  ("a,b\n1,2\n".encode("utf-16-be"), "column 1 of the header: a NUL byte"),
  (b"\xfe\xff\0a", "is UTF-16: save it as UTF-8"),
  (b"\x1f\x8b\x08\0", "is compressed"),
  (b"PK\x03\x04more", "is a zip archive or a spreadsheet"),
  (b"PAR1more", "is a Parquet file"),
  (
    'a,b\n1,2\n"3,x\n4,5\n6",y\n7,8\n',
    r"column 'a', row 2: a quote opens here and closes 2 lines later, and these",
  ),
  ('a,,c\n1,"2\n', r"column 2, row 1: a quote opens"),
]


@pytest.mark.parametrize("content,message", BAD_FILES)
def test_what_is_not_plain_csv_is_named(tmp_path, content, message):
  path = tmp_path / "f.csv"
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(DataError, match=message) as caught:
    read(path)
  assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))


def test_late_faults_are_found_across_blocks(tmp_path, monkeypatch):
  monkeypatch.setattr(csv_scan, "BLOCK", 64)
  path = tmp_path / "f.csv"
  good = b"a,b\n" + b"".join(b"%d,x%d\n" % (i, i) for i in range(500))
  for tail, message in (
    (b"1,caf\xe9\n", "column 'b', row 501: not UTF-8"),
    (b'1,"2\n', "row 501: a quote opens"),
    (b"1\n", "row 501: 1 cells"),
    (b"1,\0\n", "column 'b', row 501: a NUL"),
  ):
    path.write_bytes(good + tail)
    with pytest.raises(DataError, match=message):
      read(path)
  path.write_bytes(good)
  assert len(read(path)) == 500


@pytest.mark.parametrize("tail", [b'9,"x', b'9,"x\n', b'9,y"z\n', b"9\n", b"9,\xe9\n", b"9,\0\n"])
def test_the_walk_to_a_late_fault_is_short(tmp_path, monkeypatch, tail):
  """Rows are looked at one by one in the last block only, however many come before."""
  monkeypatch.setattr(csv_scan, "BLOCK", 256)
  path = tmp_path / "f.csv"
  path.write_bytes(b"a,b\n" + b"".join(b'%d,"x, ""%d"""\n' % (i, i) for i in range(3000)) + tail)
  walked = []
  record = csv_rows._record
  monkeypatch.setattr(csv_rows, "_record", lambda *at: walked.append(at) or record(*at))
  with pytest.raises(DataError, match="row 3001: "):
    read(path)
  assert len(walked) < 60
  walked.clear()
  assert csv_rows.line_of(str(path), 2990) == 2992
  assert len(walked) < 60


def test_lines_are_those_of_a_walk_over_all_rows(tmp_path, monkeypatch):
  path = tmp_path / "f.csv"
  content = b'\xef\xbb\xbf\r\na,b\r\n\r\n1,"x\r\ny"\r\n\n3,4\r5,"\n\r"\n\n\n7,8'
  path.write_bytes(content)
  for block in range(1, len(content) + 2):
    monkeypatch.setattr(csv_scan, "BLOCK", block)
    lines = [csv_rows.line_of(str(path), row) for row in range(-1, 5)]
    assert lines == [2, 4, 7, 8, 13, 0]


def test_rows_that_arrow_does_not_give_are_missed(tmp_path, monkeypatch):
  path = tmp_path / "f.csv"
  path.write_text("a,b\n1,2\n3,4\n")
  found = csv_files._survey(str(path))
  monkeypatch.setattr(
    csv_files, "_survey", lambda path: csv_files.dataclasses.replace(found, rows=3)
  )
  with pytest.raises(DataError, match="f.csv: 3 rows stand in the file, 2 were read"):
    read(path)


def test_a_row_longer_than_any_block_is_read(tmp_path):
  path = tmp_path / "f.csv"
  long = "word, " * 400_000
  path.write_text(f'a,b\n1,"{long}"\n2,x\n')
  assert read(path) == [["1", long], ["2", "x"]]


def test_a_row_beyond_the_limit_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(csv_rows, "LONGEST_ROW", 50)
  path = tmp_path / "f.csv"
  path.write_text("a,b\n1,2\n3," + 49 * "x" + "\n")
  with pytest.raises(DataError, match="row 2: 51 bytes, at most 50 are allowed"):
    read(path)
  path.write_text("a,b\n1,2\n3," + 40 * "x" + "\n")
  assert len(read(path)) == 2


def test_texts_of_several_lines_are_no_rows(tmp_path):
  path = tmp_path / "f.csv"
  path.write_text('a,b,c\n1,"green, red\nblue, grey",x\n2,"one\ntwo\nthree",y\n3,"1,2\n3",z\n')
  assert [row[1] for row in read(path)] == ["green, red\nblue, grey", "one\ntwo\nthree", "1,2\n3"]


PROSE = ["a, b", "b", "", "see, ", "hello, world, again", "7"]


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("first,last", [(0, 1), (0, 3), (1, 2), (2, 5)])
def test_two_stray_quotes_swallow_no_rows(tmp_path, place, first, last):
  """A quote at the beginning of a cell and one at the end of a cell in a later row, of texts
  with commas in them.
  """
  rows = [["u", f"tea{n}", f"17{n}", "x"] for n in range(6)]
  for row, text in list(zip(rows, PROSE, strict=True))[first : last + 1]:
    row[place] = text
  rows[first][place] = '"' + rows[first][place]
  rows[last][place] += '"'
  path = tmp_path / "f.csv"
  path.write_text("\n".join(",".join(row) for row in [["a", "b", "c", "d"], *rows]) + "\n")
  with pytest.raises(
    DataError,
    match=f"column '{'abcd'[place]}', row {first + 1}: a quote opens here and closes "
    f"{last - first} lines later, and these lines have their 4 cells like a row",
  ):
    csv_files.read(str(path), ["c"])


def test_an_ad_whose_text_swallows_the_next(tmp_path):
  path = tmp_path / "ads.csv"
  path.write_text('ad_id,text,account_id\ntea,"a, nice,w\nmug,b",x\nlamp,c,y\n')
  with pytest.raises(
    DataError, match="column 'text', row 1: a quote opens here and closes 1 lines later"
  ):
    read(path)


def test_texts_of_several_lines_are_counted(tmp_path, caplog):
  path = tmp_path / "f.csv"
  path.write_text('a,b,b\n"1\n2",x,"y, z\nw"\n2,x,"one\ntwo"\n3,x,y\n')
  with caplog.at_level("INFO"):
    assert csv_files.read(str(path), ["a"]).to_pydict() == {"a": ["1\n2", "2", "3"]}
  assert "f.csv: texts of several lines: 1 in 'a', 2 in 'b'" in caplog.text


def test_swallowed_rows_are_found_under_a_name_that_stands_there_twice(tmp_path):
  path = tmp_path / "f.csv"
  path.write_text('a,note,note\n1,x,"x\n2,y,y\n3,x,z"\n4,x,w\n')
  with pytest.raises(
    DataError, match="column 'note', row 1: a quote opens here and closes 2 lines later"
  ):
    csv_files.read(str(path), ["a"])


def test_swallowed_rows_are_found_in_columns_that_nobody_wants(tmp_path):
  path = tmp_path / "f.csv"
  path.write_text('a,note\n1,"x\n2,y\n3,z"\n4,w\n')
  with pytest.raises(
    DataError, match="column 'note', row 1: a quote opens here and closes 2 lines later"
  ):
    csv_files.read(str(path), ["a"])


def test_lines_of_rows(tmp_path):
  path = tmp_path / "f.csv"
  path.write_bytes(b'\xef\xbb\xbf\r\na,b\r\n\r\n1,"x\r\ny"\r\n\n3,4\r5,6')
  assert [csv_rows.line_of(str(path), row) for row in (-1, 0, 1, 2, 3)] == [2, 4, 7, 8, 0]
  assert csv_rows.header(str(path)) == ["a", "b"]


def test_files_without_rows(tmp_path):
  path = tmp_path / "f.csv"
  for content, names in (
    ("", []),
    ("\n\r\n", []),
    ("a,b", ["a", "b"]),
    ('"a","x ""y"""\n\n', ["a", 'x "y"']),
  ):
    path.write_text(content)
    assert csv_rows.header(str(path)) == names
    if names:
      assert read(path) == []


def test_names_are_shown_in_a_short_line():
  assert csv_rows.names_shown(["a", "b\x1b\n"]) == r"a, b\x1b\n"
  assert csv_rows.names_shown(["x" * 41]) == "x" * 40 + "…"
  assert csv_rows.names_shown(["x" * 40]) == "x" * 40
  assert csv_rows.names_shown([str(i) for i in range(12)]) == ", ".join(map(str, range(12)))
  assert csv_rows.names_shown([str(i) for i in range(14)]).endswith("10, 11 and 2 more")
