"""Files of every kind that people have: each is read, with all of its rows, or refused in one
line.
"""

import csv
import datetime
import decimal
import io
import random
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gr4ad_jax.config import DataConfig
from gr4ad_jax.data.builders.ad_log import AdLog
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
TYPES = [
  pa.string(),
  pa.large_string(),
  pa.binary(),
  pa.int64(),
  pa.float64(),
  pa.float32(),
  pa.decimal128(20, 0),
  pa.timestamp("us"),
  pa.timestamp("ns", tz="UTC"),
  pa.date32(),
  pa.bool_(),
  pa.list_(pa.int64()),
]


def cell(rng, odds, pool, number=""):
  usual, odd = pool
  return rng.choice(odd if rng.random() < odds else usual).format(number)


def tables(rng):
  """(header, rows) of the ad table and of the event log; ids of both have one form."""
  odds = rng.choice([0, 0, 0, 0.01])
  form = rng.choice(IDS[0])
  ads = [
    [form.format(ad), cell(rng, odds, TEXTS), f"shop{ad % 3}", cell(rng, odds, NUMBERS)]
    for ad in range(rng.randint(1, 30))
  ]
  moment = rng.choice(MOMENTS * 3 + AMBIGUOUS)
  events = []
  for _ in range(rng.choice([0, 1, 5, 40, 40, 200, 200])):
    when = datetime.datetime(2025, 3, rng.randint(1, 28), rng.randint(0, 23), tzinfo=datetime.UTC)
    time = str(int(when.timestamp())) if moment == "%s" else when.strftime(moment)
    ad = cell(rng, odds, ([form], IDS[1]), rng.randrange(len(ads)) if rng.random() < 0.999 else 99)
    events.append(
      [
        cell(rng, odds, (["u{}"], IDS[1]), rng.randrange(8)),
        ad,
        rng.choice(ODD_TIMES) if rng.random() < odds else time,
        cell(rng, odds, NUMBERS),
      ]
    )
  return (["ad_id", "text", "account_id", "price"], ads), (
    ["user_id", "ad_id", "time", "value"],
    events,
  )


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
  for _ in range(rng.choice([0] * 8 + [1, 2])):
    letters[rng.randrange(len(letters))] = rng.choice(['"', ",", "\n", "\r", "", "\0", "é"])
  content = "".join(letters)
  encoding = rng.choice(["utf-8"] * 20 + ["utf-8-sig", "utf-16", "cp1252", "utf-16-le"])
  path.write_bytes(content.encode(encoding, errors="replace"))
  try:
    return sum(1 for row in csv.reader(io.StringIO(content, newline=""), strict=True) if row) - 1
  except csv.Error:
    return None


def converted(values, kind):
  """A column of a type; what the type cannot hold is null."""

  def one(value):
    try:
      if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return datetime.datetime.fromisoformat(value.removesuffix(" UTC"))
      if pa.types.is_list(kind):
        return [1]
      if pa.types.is_boolean(kind):
        return True
      if pa.types.is_decimal(kind):
        return decimal.Decimal(int(value))
      if pa.types.is_integer(kind):
        return int(value)
      return (
        float(value)
        if pa.types.is_floating(kind)
        else value.encode()
        if pa.types.is_binary(kind)
        else value
      )
    except (ValueError, ArithmeticError):
      return None

  return pa.array([one(value) for value in values], kind)


def write_parquet(rng, path, header, rows):
  columns = list(zip(*rows, strict=True)) or [()] * len(header)
  made = {}
  for name, values in zip(header, columns, strict=True):
    if rng.random() < 0.01:
      continue
    made[name] = converted(values, rng.choice(TYPES) if rng.random() < 0.08 else pa.string())
    if rng.random() < 0.2:
      made[name] = (
        made[name].dictionary_encode() if pa.types.is_string(made[name].type) else made[name]
      )
  pq.write_table(pa.table(made), path, row_group_size=rng.choice([3, 1000]))
  if rng.random() < 0.05:
    content = bytearray(path.read_bytes())
    for _ in range(3):
      content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content[: rng.choice([len(content), len(content) // 2])]))
    return None
  return len(rows)


def write(rng, folder, name, header, rows):
  """(path, rows that a strict reader finds or None) of a file, or of a folder of parts."""
  ending = rng.choice(["csv", "csv", "parquet"])
  put = write_csv if ending == "csv" else write_parquet
  if rng.random() < 0.8:
    return folder / f"{name}.{ending}", put(rng, folder / f"{name}.{ending}", header, rows)
  parts = folder / name
  parts.mkdir()
  (parts / rng.choice(["_SUCCESS", ".crc", "_SUCCESS", "notes.txt"])).write_text("")
  cuts = sorted(rng.randint(0, len(rows)) for _ in range(rng.randint(0, 3)))
  found = []
  for number, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(rows)], strict=True)):
    found.append(put(rng, parts / f"part-{number:05d}.{ending}", header, rows[begin:end]))
  return parts, None if None in found else sum(found)


def read_case(folder, seed):
  """Reads a random pair of files; what it gave, or None where it was refused."""
  rng = random.Random(seed)
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir()
  ads, events = tables(rng)
  ads_path, ad_rows = write(rng, folder, "ads", *ads)
  events_path, event_rows = write(rng, folder, "events", *events)
  config = DataConfig(
    dataset="ad_log",
    data_dir=str(folder / "data"),
    ads_path=str(ads_path),
    events_path=str(events_path),
    on_unknown_ad=rng.choice(["error", "drop"]),
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
  read_case(tmp_path_factory.getbasetemp() / "fuzz", seed)


@pytest.mark.long
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32))
def test_two_thousand_files(tmp_path_factory, seed):
  read_case(tmp_path_factory.getbasetemp() / "fuzz", seed)


def test_cases_are_of_both_kinds(tmp_path):
  """The fuzz means something only where many files are read and many are refused."""
  read = sum(read_case(tmp_path / "fuzz", seed) is not None for seed in range(60))
  assert 12 <= read <= 48


@pytest.mark.long
def test_what_is_read_trains_and_can_be_asked(tmp_path, compile_cache):
  trained = 0
  for seed in range(40):
    config = read_case(tmp_path / "fuzz", seed)
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
