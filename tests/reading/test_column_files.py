"""Files and folders of part files: columns of every type, parts that agree, and what is no such
folder.
"""

import decimal
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr4ad_jax.builders import base, prepare
from gr4ad_jax.config import DataConfig
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.reading import checks, column_files
from tests.features import logs

EVENTS = ("user_id", "ad_id", "time")


def events(users, ads="t", **more):
  return pa.table(
    {"user_id": users, "ad_id": list(ads) * len(users), "time": [5] * len(users)} | more
  )


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "events").mkdir()
  return tmp_path / "events"


def read(path, optional=("value",)):
  return column_files.read_file(str(path), EVENTS, optional)


def test_parts_are_read_in_order_of_their_names(folder):
  pq.write_table(events(["b", "c"]), folder / "part-00001.snappy.parquet")
  pq.write_table(events(["a"]), folder / "part-00000.snappy.parquet")
  pq.write_table(events(["a"]).slice(1), folder / "part-00002.snappy.parquet")
  for name in (
    "_SUCCESS",
    "_metadata.parquet",
    ".part-00000.snappy.parquet.crc",
    ".hidden.parquet",
  ):
    (folder / name).write_bytes(b"")
  cells = read(folder)
  assert cells["user_id"].text().tolist() == ["a", "b", "c"]
  assert read(f"{folder}/")["user_id"].text().tolist() == ["a", "b", "c"]
  column_files.check_file("events_path", str(folder))


def test_a_bad_row_is_named_by_its_part(folder):
  for name, rows in (("a", "u,t,5\n" * 3), ("b", "u,t,5\nu,t,now\n"), ("c", "u,t,later\n")):
    (folder / f"{name}.csv").write_text("user_id,ad_id,time\n" + rows)
  (folder / "0.csv").write_text("")
  with pytest.raises(DataError, match=r"events/b\.csv: column 'time', row 2: 'now' is no time"):
    read(folder)["time"].times()
  (folder / "a.csv").write_text("user_id,ad_id,time\n\nu,t,now\n")
  with pytest.raises(
    DataError, match=r"events/a\.csv: column 'time', row 1 \(line 3\): 'now' is no time"
  ):
    read(folder)["time"].times()
  (folder / "b.csv").write_text("user_id,ad_id,time\nu,t\n")
  with pytest.raises(DataError, match=r"events/b\.csv: row 1: 2 cells, the header has 3"):
    read(folder)


def test_parts_that_differ_are_refused_by_name(folder):
  pq.write_table(events(["a"], value=[1.0]), folder / "a.parquet")
  pq.write_table(events(["b"]), folder / "b.parquet")
  with pytest.raises(
    DataError, match="events: column 'value' stands in a.parquet, not in b.parquet"
  ):
    read(folder)
  pq.write_table(events(["b"], value=pa.nulls(1)), folder / "b.parquet")
  assert read(folder)["value"].numbers(0).tolist() == [1, 0]
  pq.write_table(events(["a"]), folder / "a.parquet")
  with pytest.raises(
    DataError, match="events: column 'value' stands in b.parquet, not in a.parquet"
  ):
    read(folder)


@pytest.mark.parametrize("name,message", [
  (None, "is a folder without a .parquet or .csv file"), ("_SUCCESS", "is a folder without"),
  ("part.csv.gz", "part.csv.gz is compressed: unpack it"),
  ("notes.txt", "notes.txt in this folder ends neither in"),
  ("part.parquet", "holds parts of two formats, a.csv and part.parquet"),
  ("day=2025-03-01/",
   "day=2025-03-01 is a partition: its column stands in its name alone; write one folder"),
  ("more/", "more is a folder: give one folder of part files"),
  ("_delta_log/", "is a table with a log .* export it"),
])  # fmt: skip
def test_what_is_no_folder_of_parts(folder, name, message):
  if name and not name.startswith("_S"):
    (folder / "a.csv").write_text("user_id,ad_id,time\nu,t,5\n")
  if name and name.endswith("/"):
    (folder / name).mkdir()
  elif name:
    (folder / name).write_text("")
  for path in (str(folder), f"{folder}/"):
    with pytest.raises(DataError, match=message) as caught:
      column_files.check_file("events_path", path)
    assert str(caught.value).startswith(str(folder))


@pytest.mark.parametrize("make", [
  os.mkfifo, lambda path: os.symlink("/nowhere", path), lambda path: os.symlink(path, path),
])  # fmt: skip
def test_a_part_that_is_no_file_is_refused_by_name(folder, make):
  (folder / "a.csv").write_text("user_id,ad_id,time\nu,t,5\n")
  make(folder / "b.csv")
  with pytest.raises(DataError, match="events: b.csv is no file, or a link that leads to none"):
    read(folder)


def test_no_rows_in_any_part(folder):
  for name in "ab":
    pq.write_table(events(["a"]).slice(1), folder / f"{name}.parquet")
  with pytest.raises(DataError, match="events: no rows"):
    read(folder)


@pytest.mark.parametrize("nothing", ["", "\n", "\r\n\r\n", "\ufeff", "\ufeff\n"])
def test_parts_without_a_header_are_of_partitions_without_rows(folder, nothing):
  (folder / "a.csv").write_text(nothing)
  with pytest.raises(DataError, match="events/a.csv: column 'user_id' is missing; .* no columns"):
    read(folder)
  (folder / "b.csv").write_text("user_id,ad_id,time\nu,t,5\n")
  (folder / "c.csv").write_text(nothing)
  assert read(folder)["user_id"].text().tolist() == ["u"]


def test_a_folder_is_prepared_and_again_when_a_part_changes(tmp_path, folder):
  (tmp_path / "ads.csv").write_text("ad_id,text,account_id\nt,tea,x\nm,mug,x\n")
  for name in "ab":
    (folder / f"{name}.csv").write_text("user_id,ad_id,time\nu,t,1740787200\n")
  config = DataConfig(
    dataset="ad_log",
    data_dir=str(tmp_path / "data"),
    ads_path=str(tmp_path / "ads.csv"),
    events_path=str(folder),
  )
  dataset = prepare.load_dataset(config)
  assert dataset.report.rows == len(dataset.events) == 2
  (folder / "b.csv").write_text("user_id,ad_id,time\nu,m,1740787200\n")
  assert prepare.load_dataset(config).ads.ad_id[
    prepare.load_dataset(config).events.ad
  ].tolist() == ["t", "m"]
  (folder / "_SUCCESS").write_text("")
  prepare.load_dataset(config)
  assert len(os.listdir(config.data_dir)) == 2


def test_rows_must_add_up():
  log = logs.make_log()
  ads = range(logs.ADS)  # only counted
  made = base.report(ads, log, rows=len(log) + 5, merged=3, dropped={"a": 1, "b": 1})
  assert (made.ads, made.rows, made.merged, made.dropped) == (
    logs.ADS,
    len(log) + 5,
    3,
    {"a": 1, "b": 1},
  )
  for rows, merged, dropped in (
    (len(log) + 1, 0, None),
    (len(log), 1, None),
    (len(log) + 3, 1, {"a": 1}),
  ):
    with pytest.raises(DataError, match=f"{rows} rows were read, but {len(log)} became events and"):
      base.report(ads, log, rows=rows, merged=merged, dropped=dropped)


WHOLE = [
  pa.array([12, 7, 12]), pa.array([12, 7, 12], pa.uint8()), pa.array(["12", "7", "12"]),
  pa.array([12.0, 7.0, 12.0]), pa.array([12.0, 7.0, 12.0], pa.float32()),
  pa.array(["12", " 7 ", "12"]).dictionary_encode(),
  pa.array([decimal.Decimal(12), decimal.Decimal(7), decimal.Decimal(12)], pa.decimal128(20, 0)),
  pa.array([decimal.Decimal(12), decimal.Decimal(7), decimal.Decimal(12)], pa.decimal128(38, 9)),
  pa.array([decimal.Decimal(12), decimal.Decimal(7), decimal.Decimal(12)], pa.decimal256(60, 2)),
  pa.array([decimal.Decimal(12), decimal.Decimal(7), decimal.Decimal(12)], pa.decimal32(5, 0)),
  pa.array([decimal.Decimal(12), decimal.Decimal(7), decimal.Decimal(12)], pa.decimal64(12, 2)),
  pa.array([b"12", b"7", b"12 "]), pa.array([b"12", b"7", b"12"], pa.large_binary()),
  pa.array(["12", "7", "12"], pa.large_string()),
  pa.array(["12", "\u00a07", "12"], pa.string_view()),
  pa.array([b"12", b"7 ", b"12"], pa.binary_view()), pa.array([b"12", b"07", b"12"], pa.binary(2)),
]  # fmt: skip


@pytest.mark.parametrize("array", WHOLE, ids=lambda array: str(array.type))
def test_ids_of_every_type(array):
  codes, values = checks.Cells("f.parquet", "ad_id", array).ids()
  assert codes.tolist() == [0, 1, 0] and codes.dtype == np.int32
  assert values.tolist() == ["12", "07" if array.type == pa.binary(2) else "7"]


def test_large_ids_keep_their_digits():
  big = 2**63 - 1
  for array in (
    pa.array([big, 0, -5]),
    pa.array([decimal.Decimal(big), 0, -5], pa.decimal128(20, 0)),
  ):
    assert checks.Cells("f", "user_id", array).ids()[1].tolist() == [str(big), "0", "-5"]
  most = 2**53 - 1
  floats = checks.Cells("f", "user_id", pa.array([most, -most], pa.float64()))
  assert floats.ids()[1].tolist() == [str(most), str(-most)]
  assert checks.Cells("f", "user_id", pa.array([2.0**24 - 1], pa.float32())).ids()[1].tolist() == [
    str(2**24 - 1)
  ]
  assert checks.Cells("f", "user_id", pa.array([2047], pa.float16())).ids()[1].tolist() == ["2047"]
  huge = decimal.Decimal(10**30 + 1)
  assert checks.Cells("f", "user_id", pa.array([huge], pa.decimal128(38, 0))).ids()[1].tolist() == [
    str(10**30 + 1)
  ]
  with pytest.raises(DataError, match="row 2: -9007199254740994.0 lies beyond"):
    checks.Cells("f", "user_id", pa.array([1, -(2.0**53) - 2])).ids()
  with pytest.raises(DataError, match="row 2: inf is no whole number"):
    checks.Cells("f", "user_id", pa.array([1, np.inf])).ids()
  with pytest.raises(DataError, match="row 3: None is empty"):
    checks.Cells("f", "user_id", pa.array([1.0, 2.0, None])).ids()
  with pytest.raises(DataError, match=r"row 2: '\\u2003' is empty"):
    checks.Cells("f", "user_id", pa.array(["a", "\u2003"])).ids()


def test_ids_at_the_edges():
  good = ["x" * 1024, "1E10", "1.5", "E+5", "12E+3", "ünï", "a b"]
  assert checks.Cells("f", "user_id", pa.array(good)).ids()[1].tolist() == good


def test_texts_must_be_utf8():
  broken = pa.StringArray.from_buffers(
    2, pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff")
  )
  with pytest.raises(DataError, match=r"f: column 'text', row 2: b'\\xff' is not UTF-8"):
    checks.Cells("f", "text", broken)


def test_numbers_of_every_type():
  for array in (
    pa.array([decimal.Decimal("2.5"), None]),
    pa.array([2.5, None], pa.float32()),
    pa.array(["2.5", " "]),
    pa.array([b"2.5", b""]),
  ):
    assert checks.Cells("f", "value", array).numbers(7).tolist() == [2.5, 7]
  assert checks.Cells("f", "value", pa.nulls(2)).numbers(7).tolist() == [7, 7]
  for zero in (pa.array([-0.0]), pa.array(["-0"])):
    assert not np.signbit(checks.Cells("f", "value", zero).numbers()).any()
  most = checks.Cells("f", "value", pa.array([1e12])).numbers()
  assert most.tolist() == [np.float32(1e12)] and np.isfinite(np.square(most).sum())
  assert checks.Cells("f", "margin", pa.array([-2.5, None])).numbers(np.nan, signed=True)[0] == -2.5
  with pytest.raises(
    DataError, match=r"column 'margin', row 1: -2000000000000.0 is more than 1e\+12"
  ):
    checks.Cells("f", "margin", pa.array([-2e12])).numbers(np.nan, signed=True)
  with pytest.raises(DataError, match="column 'value', row 2: None is empty, a number is needed"):
    checks.Cells("f", "value", pa.array([1.0, None])).numbers()


def test_int96_moments_do_not_wrap_around(tmp_path):
  path = tmp_path / "e.parquet"
  far = pa.array([253402214400], pa.timestamp("s")).cast(pa.timestamp("us"))
  pq.write_table(
    events(["a"]).set_column(2, "time", far), path, use_deprecated_int96_timestamps=True
  )
  with pytest.raises(DataError, match="row 1: .*9999.* is no time from 1970 to 2099"):
    read(path)["time"].times()


def test_a_file_of_another_delimiter_is_told(tmp_path):
  for delimiter, words in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
    (tmp_path / "e.csv").write_text(delimiter.join(EVENTS) + "\n")
    with pytest.raises(
      DataError, match=f"'user_id' is missing; .*; its delimiter seems to be {words}: write commas"
    ):
      read(tmp_path / "e.csv")
    (tmp_path / "e.csv").write_text(delimiter.join(f'"{name}"' for name in EVENTS) + "\n")
    with pytest.raises(
      DataError, match=f"e.csv: the delimiter of the header seems to be {words}: write commas"
    ):
      read(tmp_path / "e.csv")
  (tmp_path / "e.csv").write_text("user;ad,ad_id,time\n")
  with pytest.raises(DataError, match="'user_id' is missing; the file has user;ad, ad_id, time$"):
    read(tmp_path / "e.csv")
