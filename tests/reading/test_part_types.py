"""Parts of a folder that store a column in several types: joined where nothing is lost, else
refused; and UUIDs.
"""

import datetime
import decimal
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.reading import checks, column_files

D = decimal.Decimal
NAN = float("nan")
UTC = datetime.UTC
NOON = datetime.datetime(2025, 3, 1, 12)
TEXTS = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()))
BYTES = (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(1))
INTEGERS = (pa.int8(), pa.uint8(), pa.int32(), pa.int64(), pa.uint64())
FLOATS = (pa.float16(), pa.float32(), pa.float64())
DECIMALS = (pa.decimal32(5, 2), pa.decimal64(12, 0), pa.decimal128(38, 4), pa.decimal256(60, 2))


def read(folder, columns, name="x"):
  """One column, of a folder in which every array is the column of a part."""
  for number, column in enumerate(columns):
    pq.write_table(pa.table({name: column}), folder / f"{number:02d}.parquet")
  return column_files.read_file(str(folder), (name,))[name]


@pytest.mark.parametrize("kinds", [
  (*TEXTS, *BYTES), INTEGERS, FLOATS, DECIMALS, (*INTEGERS, *FLOATS, *DECIMALS),
])  # fmt: skip
def test_ids_are_alike_however_the_parts_store_them(tmp_path, kinds):
  is_text = kinds[0] == pa.string()
  columns = []
  for number, kind in enumerate(kinds):
    value = str(number) if is_text else D(number) if pa.types.is_decimal(kind) else number
    columns.append(pa.array([value.encode() if kind in BYTES else value], kind))
  cells = read(tmp_path, columns)
  assert cells.ids()[1].tolist() == [str(number) for number in range(len(kinds))]
  assert cells.numbers().tolist() == list(range(len(kinds)))


@pytest.mark.parametrize("columns,numbers", [
  ([pa.array([1, 2]), pa.array([0.5, NAN, None])], [1, 2, 0.5, 7, 7]),
  ([pa.array([0.5], pa.float32()), pa.array([3], pa.int8())], [0.5, 3]),
  ([pa.array([D("2.10")]), pa.array([0.1])], [2.1, 0.1]),
  ([pa.array([D("2.10")]), pa.array([3]), pa.array([D("1.2345")])], [2.1, 3, 1.2345]),
  ([pa.array([2**63], pa.uint64()), pa.array([1])], None),
  ([pa.nulls(2), pa.array([1], pa.int8()), pa.array([2.0])], [7, 7, 1, 2]),
])  # fmt: skip
def test_numbers_of_several_types(tmp_path, columns, numbers):
  cells = read(tmp_path, columns)
  if numbers is None:
    assert cells.ids()[1].tolist() == [str(2**63), "1"]
  else:
    assert cells.numbers(7).tolist() == pytest.approx(numbers)


def test_moments_of_several_types(tmp_path):
  seconds = int(NOON.replace(tzinfo=UTC).timestamp())
  columns = [
    pa.array([NOON], pa.timestamp(unit, zone))
    for unit in ("s", "ms", "us", "ns")
    for zone in (None, "UTC", "Europe/Berlin")
  ]
  columns += [pa.array([NOON.date()], kind) for kind in (pa.date32(), pa.date64())]
  assert read(tmp_path, columns).times().tolist() == 12 * [seconds] + 2 * [seconds - 12 * 3600]


def test_vectors_of_several_types(tmp_path):
  columns = [
    pa.array([[1, 2]], kind)
    for kind in (
      pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.int64()),
      pa.list_(pa.float32(), 2),
    )
  ]  # fmt: skip
  assert read(tmp_path, columns).vectors().tolist() == 4 * [[1, 2]]


@pytest.mark.parametrize("first,second", [
  (pa.array(["12"]), pa.array([12])),
  (pa.array([b"12"]), pa.array([12.0])),
  (pa.array([True]), pa.array([1])),
  (pa.array([2**53 + 1]), pa.array([0.5])),  # float64 lacks the first
  (pa.array([2**64 - 1], pa.uint64()), pa.array([-1])),
  (pa.array([D("12345678901234567.89")]), pa.array([0.5])),
  (pa.array([D(10) ** 59], pa.decimal256(60, 0)), pa.array([D(10) ** -30], pa.decimal128(38, 37))),
  (pa.array([5]), pa.array([NOON])),
  (pa.array([datetime.datetime(2400, 1, 1)], pa.timestamp("s")),
   pa.array([NOON], pa.timestamp("ns"))),
  (pa.array([[1.0]]), pa.array([1.0])),
  (pa.array([["a"]]), pa.array([[1]])),
])  # fmt: skip
def test_what_no_type_holds_is_refused_by_file_and_column(tmp_path, first, second):
  message = (
    r"column 'x' holds .+ in 01\.parquet, .+ in 02\.parquet, and no type holds the values of all"
  )
  with pytest.raises(DataError, match=message) as caught:
    read(tmp_path, [pa.nulls(1), first, second])
  assert str(caught.value).startswith(f"{tmp_path}: ")


def test_the_part_that_does_not_go_with_the_others_is_named(tmp_path):
  columns = [pa.array([1], pa.int8()), pa.array([2]), pa.nulls(1), pa.array(["x"]), pa.array([0.5])]
  with pytest.raises(
    DataError, match=r"holds int8 in 00\.parquet, large_string in 03\.parquet, and"
  ):
    read(tmp_path, columns)


def test_a_type_that_loses_digits_is_told_though_another_part_keeps_them(tmp_path):
  times = [pa.array([1.7e9], pa.float32()), pa.array([1.7e9])]
  with pytest.raises(DataError, match=r"column 'x' holds float: unix seconds lose their last dig"):
    read(tmp_path, times).times()
  ids = [pa.array([1, 2]), pa.array([2.0**24], pa.float32())]
  with pytest.raises(
    DataError, match=r"01.parquet: column 'x', row 1: 16777216.0 lies beyond .*flo"
  ):
    read(tmp_path, ids).ids()
  ids = [pa.array([1, 2]), pa.array([2.0**53])]
  with pytest.raises(DataError, match=r"01.parquet: column 'x', row 1: 90.* lies beyond .* double"):
    read(tmp_path, ids).ids()


UUIDS = [uuid.UUID(int=2**127 - number) for number in range(3)]


def test_uuids_are_ids_by_their_text(tmp_path):
  raw = [value.bytes for value in UUIDS]
  columns = [
    pa.array([raw[0], None], pa.uuid()),
    pa.array([str(UUIDS[1])]),
    pa.array([raw[2]], pa.uuid()),
  ]
  cells = read(tmp_path, columns)
  assert cells.text(allow_empty=True).tolist() == [
    str(UUIDS[0]), "", str(UUIDS[1]), str(UUIDS[2])
  ]  # fmt: skip
  assert checks.Cells("f", "x", columns[2]).ids()[1].tolist() == [str(UUIDS[2])]


def test_json_columns_are_their_text(tmp_path):
  assert read(tmp_path, [pa.array(["{}"], pa.json_())]).text().tolist() == ["{}"]


def test_bytes_that_may_be_a_uuid_are_refused_by_name(tmp_path):
  raw = pa.array([bytes(range(240, 256))], pa.binary(16))
  with pytest.raises(
    DataError, match=r"00.parquet: column 'x', row 1: b'.*' is not UTF-8; of a UUID"
  ):
    read(tmp_path, [raw]).ids()
