"""Files of every kind that people have: each is read, with all of its rows, or refused in one
line.
"""

import csv
import datetime
import decimal
import io
import random
import shutil
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gr4ad_jax.builders.ad_log import AdLog
from gr4ad_jax.config import DataConfig
from gr4ad_jax.data.schema import DataError
from tests import tiny

# What stands in a cell: (usual, now and then). A file of a case takes the usual form of a column,
# and a few odd cells.
IDS = (["{}", "ad{}", "00{}", "é{}", "id {}"],
       [" {} ", "", "{}.0", "a\x1b{}", "x" * 2000, "1.5E+12", "NULL", "'{}", '5"{}'])  # fmt: skip
TEXTS = (["", "green tea", "thé vert", "a, b", 'said "so"', "two\nlines", "日本"],
         ["\x1b[31m", "x" * 5000, "\0", "\r", "'", ";"])  # fmt: skip
NUMBERS = (
  ["1", "2.5", "", "0", "1e3"],
  ["-1", "nan", "3e38", "1,5", "€3", "inf", "-0", "1e-300", "x"],
)
MOMENTS = ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S UTC", "%Y-%m-%d", "%Y-%m-%dT%H:%M:%S.000Z", "%s"]
AMBIGUOUS = ["%Y%m%d%H", "%d.%m.%Y"]
ODD_TIMES = [
  "",
  "now",
  "9999-12-31",
  "1740823200000",
  "20250301",
  "nan",
  "-1",
  "1.7E+09",
  "1960-01-01",
]
WORDS = (["", "home", "garten & co", "日本"], ["x" * 300, "\x1b[2J", "\ufeffhome", " home "])
BEHAVIORS = (["view", "click", "buy"], ["", "Click", "view ", "hover", "0"])
VISITS = (["v{}", "{}"], ["", " v{}", "{}.0", "\x00", "x" * 1025])
FORMS = (["", ""], ["no such form", " "])
VECTORS = (["1 2", "0.5 -1"], ["", "1", "nan 1", "1 inf"])
TYPES = [
  pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()),
  pa.json_(), pa.binary(), pa.binary_view(), pa.binary(16), pa.uuid(), pa.int8(), pa.int32(),
  pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.decimal32(9, 0),
  pa.decimal128(20, 0), pa.decimal128(20, 4), pa.decimal256(60, 2), pa.timestamp("s"),
  pa.timestamp("us"), pa.timestamp("ns", tz="UTC"), pa.date32(), pa.bool_(), pa.null(),
  pa.list_(pa.int64()),
]  # fmt: skip
# Types that a column's usual cells fit into, so that many typed files are read.
FITTING = {
  "price": (pa.float64(), pa.float32(), pa.int32(), pa.decimal128(20, 4), pa.null()),
  "value": (pa.float64(), pa.float32(), pa.int64(), pa.decimal32(9, 2), pa.null()),
  "quantity": (pa.int8(), pa.uint64(), pa.float16(), pa.float64()),
  "time": (pa.timestamp("s"), pa.timestamp("us"), pa.timestamp("ns", tz="UTC"), pa.int64()),
  "created": (pa.date32(), pa.timestamp("ms"), pa.timestamp("us", tz="Europe/Berlin"), pa.null()),
}
ID_TYPES = (pa.uuid(), pa.binary(), pa.large_string(), pa.dictionary(pa.int16(), pa.string()))


def cell(rng, odds, pool, number=""):
  usual, odd = pool
  return rng.choice(odd if rng.random() < odds else usual).format(number)


def moment(rng, odds, form):
  """A time in a form of `strftime`, now and then an odd one."""
  when = datetime.datetime(2025, 3, rng.randint(1, 28), rng.randint(0, 23), tzinfo=datetime.UTC)
  time = str(int(when.timestamp())) if form == "%s" else when.strftime(form)
  return rng.choice(ODD_TIMES) if rng.random() < odds else time


def with_some(rng, required, more):
  """(header, makers of cells) of the columns that must be there and of some others, shuffled."""
  makers = required | {name: make for name, make in more.items() if rng.random() < 0.3}
  names = sorted(makers, key=lambda name: rng.random())
  return names, [makers[name] for name in names]


def tables(rng):
  """(header, rows) of the ad table and of the event log; ids of both have one form."""
  odds = rng.choice([0, 0, 0, 0.01])
  form = rng.choice(IDS[0])
  of = lambda pool: lambda number: cell(rng, odds, pool, number)  # noqa: E731
  form_of_time = rng.choice(MOMENTS * 3 + AMBIGUOUS)
  names, makers = with_some(
    rng,
    {"ad_id": form.format, "text": of(TEXTS), "account_id": lambda ad: f"shop{ad % 3}"},
    {
      "category": of(WORDS), "conversion_type": of(WORDS), "form": of(FORMS), "price": of(NUMBERS),
      "created": lambda _: rng.choice(["", moment(rng, odds, form_of_time)]), "vector": of(VECTORS),
      "note": of(TEXTS),
    },
  )  # fmt: skip
  number_of_ads = rng.randint(1, 30)
  ads = [[make(ad) for make in makers] for ad in range(number_of_ads)]
  columns, makers = with_some(
    rng,
    {
      "user_id": lambda _: cell(rng, odds, (["u{}"], IDS[1]), rng.randrange(8)),
      "ad_id": lambda _: cell(
        rng, odds, ([form], IDS[1]), rng.randrange(number_of_ads) if rng.random() < 0.999 else 99
      ),
      "time": lambda _: moment(rng, odds, form_of_time),
    },
    {
      "value": of(NUMBERS), "quantity": of((["1", "2", "3"], NUMBERS[1])),
      "behavior": of(BEHAVIORS), "request_id": lambda _: of(VISITS)(rng.randrange(20)),
      "note": of(TEXTS),
    },
  )  # fmt: skip
  size = rng.choice([0, 1, 5, *[40] * 5, *[200] * 5])
  return (names, ads), (columns, [[make(event) for make in makers] for event in range(size)])


def write_csv(rng, path, header, rows):
  """Writes a file, and returns how many rows a strict reader finds in it, None where there is
  none.
  """
  text = io.StringIO()
  delimiter = "," if rng.random() < 0.95 else rng.choice(";\t|")
  writer = csv.writer(text, delimiter=delimiter, lineterminator=rng.choice(["\n", "\r\n", "\r"]),
                      quoting=rng.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]))  # fmt: skip
  header = [
    rng.choice([name, " " + name, name.upper()]) if rng.random() < 0.01 else name for name in header
  ]
  writer.writerows([header, *rows])
  letters = list(text.getvalue())
  for _ in range(rng.choice([0] * 12 + [1, 2])):
    letters[rng.randrange(len(letters))] = rng.choice(['"', ",", "\n", "\r", "", "\0", "é"])
  content = "".join(letters)
  encoding = rng.choice(["utf-8"] * 20 + ["utf-8-sig", "utf-16", "cp1252", "utf-16-le"])
  path.write_bytes(content.encode(encoding, errors="replace"))
  try:
    return sum(1 for row in csv.reader(io.StringIO(content, newline=""), strict=True) if row) - 1
  except csv.Error:
    return None


def one(value, kind):
  """A text as a value of a type. Raises ValueError or ArithmeticError where it is none."""
  types = pa.types
  if types.is_timestamp(kind) or types.is_date(kind):
    when = datetime.datetime.fromtimestamp(int(value)) if value.isdigit() else None  # noqa: DTZ006
    when = when or datetime.datetime.fromisoformat(value.removesuffix(" UTC"))
    return when.date() if types.is_date(kind) else when
  if types.is_list(kind):
    return [float(number) for number in value.split()]
  if types.is_boolean(kind):
    return True
  if types.is_decimal(kind):
    return decimal.Decimal(value)
  if types.is_integer(kind):
    return int(value)
  if types.is_floating(kind):
    return float(value)
  if kind in (pa.uuid(), pa.binary(16)):
    return uuid.uuid5(uuid.NAMESPACE_DNS, value).bytes
  return value.encode() if kind in (pa.binary(), pa.binary_view()) else value


def converted(values, kind):
  """A column of a type; what the type cannot hold is null."""
  if pa.types.is_null(kind):
    return pa.nulls(len(values))
  cells = []
  for value in values:
    try:
      # Arrow is asked cell by cell: a number may be out of the type's range.
      cells.append(pa.array([one(value, kind)], kind)[0].as_py())
    except (ValueError, ArithmeticError, TypeError, pa.ArrowException):
      cells.append(None)
  if kind == pa.uuid():
    cells = [None if value is None else value.bytes for value in cells]
  return pa.array(cells, kind)


def kind_of(rng, name, is_typed, ids):
  """The type that a column is stored in: any one now and then, of a typed file one that fits."""
  if rng.random() < 0.03:
    return rng.choice(TYPES)
  if name == "vector":
    return rng.choice([pa.list_(pa.float32()), pa.list_(pa.float64())])
  if not is_typed or rng.random() < 0.3:
    return pa.string()
  return rng.choice(FITTING.get(name, [ids if name == "ad_id" else pa.string()]))


def write_parquet(rng, path, header, rows, is_typed, ids):
  columns = list(zip(*rows, strict=True)) or [()] * len(header)
  made = {}
  for name, values in zip(header, columns, strict=True):
    if rng.random() < 0.01:
      continue
    kind = kind_of(rng, name, is_typed, ids)
    made[name] = converted(values, kind)
    if rng.random() < 0.2 and pa.types.is_string(kind):
      made[name] = made[name].dictionary_encode()
  pq.write_table(pa.table(made), path, row_group_size=rng.choice([3, 1000]))
  if rng.random() < 0.05:
    content = bytearray(path.read_bytes())
    for _ in range(3):
      content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content[: rng.choice([len(content), len(content) // 2])]))
    return None
  return len(rows)


def write(rng, folder, name, header, rows, ids):
  """(path, rows that a strict reader finds or None) of a file, or of a folder of parts.

  Args:
    ids: the type of ad ids in a typed Parquet file, as both tables have them.
  """
  ending = rng.choice(["csv", "parquet"])
  is_typed = rng.random() < 0.5
  if ending == "csv" and "vector" in header and rng.random() < 0.95:  # it has no lists
    at = header.index("vector")
    header = header[:at] + header[at + 1 :]
    rows = [row[:at] + row[at + 1 :] for row in rows]

  def put(path, rows):
    if ending == "csv":
      return write_csv(rng, path, header, rows)
    return write_parquet(rng, path, header, rows, is_typed, ids)

  if rng.random() < 0.8:
    return folder / f"{name}.{ending}", put(folder / f"{name}.{ending}", rows)
  parts = folder / name
  parts.mkdir()
  (parts / rng.choice(["_SUCCESS", ".crc"] * 4 + ["notes.txt"])).write_text("")
  cuts = sorted(rng.randint(0, len(rows)) for _ in range(rng.randint(0, 3)))
  found = []
  for number, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(rows)], strict=True)):
    path = parts / f"part-{number:05d}.{ending}"
    if begin == end and ending == "csv" and rng.random() < 0.5:
      path.write_text(rng.choice(["", "\n", "\ufeff", "\ufeff\r\n"]))
      found.append(0)
    else:
      found.append(put(path, rows[begin:end]))
  return parts, None if None in found else sum(found)


def assert_read_or_refused(folder, seed):
  """Reads a random pair of files; what it gave, or None where it was refused."""
  rng = random.Random(seed)
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir()
  ads, events = tables(rng)
  ids = rng.choice(ID_TYPES)
  ads_path, ad_rows = write(rng, folder, "ads", *ads, ids)
  events_path, event_rows = write(rng, folder, "events", *events, ids)
  config = DataConfig(
    dataset="ad_log",
    data_dir=str(folder / "data"),
    ads_path=str(ads_path),
    events_path=str(events_path),
    on_unknown_ad=rng.choice(["error", "drop"]),
    behaviors=("view", "click", "buy"),
  )
  try:
    AdLog.fingerprint(config)
    dataset = AdLog.read(config)
  except DataError as error:
    assert "\n" not in str(error) and str(folder) in str(error) and len(str(error)) < 600
    return None
  report = dataset.report
  assert report.ads == len(dataset.ads)
  if ad_rows is not None:
    assert report.ads == ad_rows
  if event_rows is not None:
    assert report.rows == event_rows
  assert report.rows == sum(report.events.values()) + report.merged + sum(report.dropped.values())
  return config


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32))
def test_every_file_is_read_whole_or_refused_in_one_line(tmp_path_factory, seed):
  assert_read_or_refused(tmp_path_factory.getbasetemp() / "fuzz", seed)


@pytest.mark.long
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32))
def test_two_thousand_files(tmp_path_factory, seed):
  assert_read_or_refused(tmp_path_factory.getbasetemp() / "fuzz", seed)


def test_cases_are_of_both_kinds(tmp_path):
  """The fuzz means something only where many files are read and many are refused."""
  read = sum(assert_read_or_refused(tmp_path / "fuzz", seed) is not None for seed in range(60))
  assert 12 <= read <= 48


@pytest.mark.long
def test_what_is_read_trains_and_can_be_asked(tmp_path, compile_cache):
  trained = 0
  for seed in range(40):
    config = assert_read_or_refused(tmp_path / "fuzz", seed)
    if config is None:
      continue
    run = f"--workdir={tmp_path}/run{seed}"
    done = tiny.run(
      "train",
      "--dataset=ad_log",
      f"--ads_path={config.ads_path}",
      f"--events_path={config.events_path}",
      f"--on_unknown_ad={config.on_unknown_ad}",
      f"--data_dir={config.data_dir}",
      f"--behaviors={','.join(config.behaviors)}",
      "--max_steps=2",
      run,
      *tiny.SETTINGS,
      "--codebooks=8,8,16",
    )
    assert done.status == 0 or (
      done.status == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1
    )
    if done.status:
      continue
    user = AdLog.read(config).events.user_id[0]
    asked = tiny.run("recommend", run, f"--user={user}", "--k=3")
    assert (asked.status, asked.err) == (0, "")
    trained += 1
    if trained == 4:
      return
  raise AssertionError("too few files were read")
