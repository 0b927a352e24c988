"""Columns of CSV and Parquet files, and each kind of bad input by its message."""

import datetime
import decimal
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr4ad_jax.builders import prepare
from gr4ad_jax.config import ConfigError, DataConfig
from gr4ad_jax.data import forms
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.reading import checks, column_files, tables
from tests.reading.conftest import ADS, EVENTS


def test_cells_of_a_csv_pair(config):
  ads = tables.ad_table(
    column_files.read_file(config.ads_path, tables.AD_COLUMNS, tables.AD_OPTIONAL)
  )
  assert ads.ad_id.tolist() == ["0012", "13"]
  assert ads.text.tolist() == ["a red mug", ""]
  assert ads.category.tolist() == ["", ""]
  np.testing.assert_array_equal(ads.price, np.array([3.5, np.nan], np.float32))
  assert ads.created.tolist() == [1704067200, -1]
  cells = column_files.read_file(config.events_path, tables.EVENT_COLUMNS, tables.EVENT_OPTIONAL)
  log, dropped = tables.event_log(cells, ads, tables.EventRules(("click", "cart", "purchase")))
  assert not dropped
  assert log.time.tolist() == [1704153600, 1704153660, 1704157200]
  assert log.behavior.tolist() == [0, 2, 1]
  assert log.value.tolist() == [0, 2.5, 0]
  assert log.quantity.tolist() == [1, 3, 1]
  assert log.request.tolist() == [0, 0, 1]


def test_parquet_types_give_the_same_columns(tmp_path):
  moment = datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))
  naive = datetime.datetime(2024, 1, 1, 23)
  for name, time in {
    "zone": pa.array([moment, moment], pa.timestamp("us", tz="Europe/Berlin")),
    "naive": pa.array([naive, naive], pa.timestamp("ns")),
    "unix": pa.array([1704150000, 1704150000]),
    "text": pa.array(["2024-01-01T23:00:00.5", "20240101T230000"], pa.large_string()),
    "words": pa.array(["2024-01-01 23:00", "2024-01-02 00:00+01:00"]).dictionary_encode(),
  }.items():
    path = str(tmp_path / f"{name}.parquet")
    user = pa.array([7, 8]) if name == "unix" else pa.array(["7", "8"]).dictionary_encode()
    pq.write_table(
      pa.table({"user_id": user, "ad_id": pa.array(["1", "1"], pa.string_view()), "time": time}),
      path,
    )
    cells = column_files.read_file(path, tables.EVENT_COLUMNS)
    assert cells["time"].times().tolist() == [1704150000, 1704150000], name
    assert cells["user_id"].text().tolist() == ["7", "8"], name
    assert cells["ad_id"].text().tolist() == ["1", "1"], name


def test_vectors_of_a_list_column(tmp_path):
  path = str(tmp_path / "ads.parquet")
  columns = {"ad_id": ["a", "b"], "text": ["", ""], "account_id": ["x", "x"]}
  for kind in (pa.list_(pa.float64()), pa.list_(pa.float32(), 2), pa.large_list(pa.float32())):
    pq.write_table(pa.table(columns | {"vector": pa.array([[1, 2], [3, 4]], kind)}), path)
    ads = tables.ad_table(column_files.read_file(path, tables.AD_COLUMNS, tables.AD_OPTIONAL))
    np.testing.assert_array_equal(ads.vectors, np.array([[1, 2], [3, 4]], np.float32))
  for bad, problem in (
    ([[1.0, 2.0], [3.0]], "another length"),
    ([[1.0], [np.nan]], "finite"),
    ([[], [1.0]], "empty"),
  ):
    pq.write_table(pa.table(columns | {"vector": pa.array(bad, pa.list_(pa.float32()))}), path)
    with pytest.raises(DataError, match=problem):
      tables.ad_table(column_files.read_file(path, tables.AD_COLUMNS, tables.AD_OPTIONAL))


@pytest.mark.parametrize("text,seconds", [
  ("20250301", None), (" 20250301 ", None), ("1999", None), ("2100", None),
  ("2025-03-01", 1740787200), ("1740787200", 1740787200), ("100", 100), ("20251301", 20251301),
  ("21010101", 21010101),
  ("1899", 1899), ("20250301T000000", 1740787200), 
])  # fmt: skip
def test_a_bare_date_is_not_taken_for_seconds(text, seconds):
  cells = checks.Cells("log.csv", "time", pa.array(["1740787200", text]))
  if seconds is not None:
    assert cells.times().tolist() == [1740787200, seconds]
  else:
    message = (
      f"log.csv: column 'time', row 2: '{text}' may be a date or unix seconds: write "
      "2025-03-01 or unix seconds"
    )
    with pytest.raises(DataError, match=message):
      cells.times()


def test_forms_are_those_of_the_template_table(config, tmp_path, monkeypatch):
  header, *rows = ADS.splitlines()
  (tmp_path / "ads.csv").write_text(f"{header},form\n{rows[0]},product\n{rows[1]},podcast\n")
  message = r"ads.csv: column 'form', row 2: 'podcast' is not one of live_stream, .*, nor empty"
  with pytest.raises(DataError, match=message):
    prepare.load_dataset(config)
  assert sorted(os.listdir(tmp_path)) == ["ads.csv", "events.csv"]
  monkeypatch.setitem(forms.TEMPLATES, "podcast", ("{text}", "on {category}"))
  ads = tables.ad_table(
    column_files.read_file(config.ads_path, tables.AD_COLUMNS, tables.AD_OPTIONAL)
  )
  assert ads.form.tolist() == ["product", "podcast"]


def change(config, **fields):
  return DataConfig(**{**vars(config), **fields})


@pytest.mark.parametrize("field", ["ads_path", "events_path"])
def test_bad_paths_are_named(config, tmp_path, field):
  (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
  (tmp_path / "broken.csv").write_bytes(b"user_id,ad_id,time,text,account_id\n\xff\xfe,1,2,3,4\n")
  (tmp_path / "table.xlsx").write_bytes(b"")
  before = sorted(os.listdir(tmp_path))
  for path, message in {
    "": f"{field} is not set",
    str(tmp_path / "none.csv"): f"none.csv: no such file \\({field}\\)",
    str(tmp_path / "table.csv.gz"): f"table.csv.gz: {field} names a compressed file: unpack it",
    str(tmp_path / "table.xlsx"): f"{field} must end in .parquet or .csv",
    str(tmp_path / "broken.parquet"): "broken.parquet: not a readable Parquet file",
    str(tmp_path / "broken.csv"): "broken.csv: column 'user_id', row 1: not UTF-8: '.xff.xfe'",
  }.items():
    with pytest.raises(DataError, match=message) as caught:
      prepare.load_dataset(change(config, **{field: path}))
    assert "\n" not in str(caught.value)
  assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
  "column,values,message",
  [
    ("value", pa.array([True]), "column 'value' holds bool, a number is needed"),
    ("user_id", pa.array([1.5]), "column 'user_id', row 1: 1.5 is no whole number"),
    (
      "user_id",
      pa.array([2.0**53]),
      "column 'user_id', row 1: 9007199254740992.0 lies beyond the whole numbers",
    ),
    (
      "user_id",
      pa.array([2.0**24], pa.float32()),
      "column 'user_id', row 1: 16777216.0 lies beyond .* float can",
    ),
    (
      "user_id",
      pa.array([2048], pa.float16()),
      "column 'user_id', row 1: 2048.0 lies beyond .* halffloat can",
    ),
    (
      "user_id",
      pa.array([decimal.Decimal("1" + "0" * 27 + ".5")], pa.decimal128(38, 1)),
      r"row 1: Decimal\('1000000000000000000000000000.5'\) is no whole number",
    ),
    (
      "time",
      pa.array([316516204800000000], pa.timestamp("us")),
      "row 1: 316516204800000000 is no time from 1970",
    ),
    (
      "time",
      pa.array([-(2**60)], pa.timestamp("us", tz="UTC")),
      "row 1: -1152921504606846976 is no time from",
    ),
    (
      "time",
      pa.array([2**60], pa.timestamp("ms")),
      "row 1: 1152921504606846976 is no time from 1970 to 2099",
    ),
    (
      "time",
      pa.array([2**60], pa.timestamp("us", tz="Mars/Phobos")),
      "row 1: 1152921504606846976 is no time from",
    ),
    ("time", pa.array([2**30], pa.date32()), "row 1: 1073741824 is no time from 1970 to 2099"),
    (
      "user_id",
      pa.array([2.0**53 + 2]),
      "column 'user_id', row 1: 90071.* lies beyond the whole numbers that double",
    ),
    (
      "user_id",
      pa.array([2.0**24 + 2], pa.float32()),
      "column 'user_id', row 1: 16777218.0 lies beyond .* float can",
    ),
    ("user_id", pa.array([float("nan")]), "column 'user_id', row 1: nan is empty"),
    ("user_id", pa.array([None], pa.float64()), "column 'user_id', row 1: None is empty"),
    ("user_id", pa.array([True]), "column 'user_id' holds bool, text or whole numbers is needed"),
    ("user_id", pa.array([b"\xff"]), r"column 'user_id', row 1: b'\\xff' is not UTF-8"),
    (
      "user_id",
      pa.array([decimal.Decimal("1.5")]),
      r"column 'user_id', row 1: Decimal\('1.5'\) is no whole number",
    ),
    (
      "time",
      pa.array([1.7e9], pa.float32()),
      "column 'time' holds float: unix seconds lose their last digits",
    ),
    ("time", pa.array([5], pa.float16()), "column 'time' holds halffloat: unix seconds lose"),
    ("time", pa.array([20250301]), "column 'time', row 1: 20250301 may be a date"),
    ("time", pa.array([float("nan")]), "column 'time', row 1: nan is empty, a time is needed"),
    ("time", pa.array([float("inf")]), "column 'time', row 1: inf is no time from"),
    (
      "time",
      pa.array([-1]),
      r"column 'time', row 1: -1 is no time from 1970 to 2099 \(unix time counts in seconds\)$",
    ),
    ("time", pa.array([-1], pa.timestamp("ms")), "column 'time', row 1: .*1969.* is no time from"),
    (
      "time",
      pa.array([4102444800], pa.timestamp("s")),
      "column 'time', row 1: .*2100.* is no time from",
    ),
    ("value", pa.array([2e12]), r"column 'value', row 1: 2000000000000.0 is more than 1e\+12"),
    ("time", pa.array([True]), "column 'time' holds bool, a time is needed"),
    ("value", pa.array([float("inf")], pa.float16()), "column 'value', row 1: inf is not a finite"),
    ("time", pa.array([None], pa.timestamp("s")), "column 'time', row 1: None is empty"),
  ],
)
def test_wrong_types_are_named(config, tmp_path, column, values, message):
  columns = {"user_id": ["u"], "ad_id": ["13"], "time": [1740787200], "value": [1.0]} | {
    column: values
  }
  path = str(tmp_path / "events.parquet")
  pq.write_table(pa.table(columns), path)
  with pytest.raises(DataError, match=message):
    prepare.load_dataset(change(config, events_path=path))
  assert not os.path.exists(config.data_dir)


def test_nan_of_a_float_column_is_an_empty_cell():
  """pandas writes so what a column lacks."""
  for kind in (pa.float64(), pa.float32(), pa.float16()):
    array = pa.array([2.5, float("nan"), None]).cast(kind, safe=False)
    assert checks.Cells("ads.parquet", "price", array).numbers(7).tolist() == [2.5, 7, 7]
  created = pa.array([1740787200.0, float("nan"), None])
  assert checks.Cells("ads.parquet", "created", created).times(-1).tolist() == [1740787200, -1, -1]


def test_white_space_around_a_behaviour_is_left_away(config, tmp_path):
  (tmp_path / "events.csv").write_text(EVENTS.replace(",cart,", ", cart ,"))
  assert prepare.load_dataset(config).events.behavior.tolist() == [0, 2, 1]


def test_a_row_of_another_part_is_named_by_it(tmp_path):
  for name, ad in (("a", "x"), ("b", "y"), ("c", "x")):
    (tmp_path / f"{name}.csv").write_text(f"ad_id,text,account_id\n{ad},tea,shop\n")
  cells = column_files.read_file(str(tmp_path), tables.AD_COLUMNS)
  with pytest.raises(
    DataError, match=r"/c\.csv: column 'ad_id', row 1: 'x' is already the ad of row 1 of a\.csv$"
  ):
    tables.unique_ids(cells["ad_id"])
  vectors = checks.Cells(
    "ads", "vector", pa.array([[1.0], [1.0, 2.0]]), (("p/a.parquet", 1), ("p/b.parquet", 1))
  )
  with pytest.raises(
    DataError, match=r"b\.parquet: .*row 1: .* than the vector of row 1 of a\.parquet \(1\)"
  ):
    vectors.vectors()


def test_behaviors_must_be_distinct(config):
  for behaviors in ((), ("click", "click")):
    with pytest.raises(ConfigError, match="distinct"):
      prepare.load_dataset(change(config, behaviors=behaviors))
  assert not os.path.exists(config.data_dir)


def test_unknown_ads_are_set_aside_when_asked(config, tmp_path):
  path = tmp_path / "events.csv"
  path.write_text(EVENTS.replace("u1,13", "u1,14"))
  dataset = prepare.load_dataset(change(config, on_unknown_ad="drop"))
  assert dataset.report.dropped == {"ad not in the ad table": 1}
  assert dataset.report.rows == 3 and len(dataset.events) == 2
  path.write_text("user_id,ad_id,time\nu1,14,1740787200\n")
  with pytest.raises(DataError, match="no event is left"):
    prepare.load_dataset(change(config, on_unknown_ad="drop"))
