"""Examples on disk against batches from memory: the same bits, however they came about."""

import dataclasses
import os
import pathlib
import signal
import types

import numpy as np
import pytest

from gr4ad_jax.builders.prepare import load_dataset
from gr4ad_jax.config import Config, ConfigError, DataConfig
from gr4ad_jax.data.schema import SPLITS, DataError, EventLog
from gr4ad_jax.examples import beam, making, mapped, preparing, stages
from gr4ad_jax.examples.folder import ExampleFolder
from gr4ad_jax.examples.preparing import Options
from gr4ad_jax.examples.reading import ExampleContexts
from tests import tiny
from tests.examples import made

EXACT = Options(form="exact", partitions=3)
CUTS = made.START + 5 * made.DAY, made.START + 9 * made.DAY


@pytest.fixture(scope="module")
def log(tmp_path_factory):
  """A log in three files, its settings, and what memory makes of it."""
  folder = tmp_path_factory.mktemp("log")
  made.write_ads(folder / "ads.csv")
  made.write_files(folder / "log", made.rows(), CUTS)
  config = made.config_of(folder)
  return config, made.in_memory(config)


@pytest.fixture(scope="module")
def examples(log, tmp_path_factory):
  """The examples of that log, exact."""
  out = tmp_path_factory.mktemp("out") / "examples"
  return preparing.prepare(str(out), log[0], EXACT)


def assert_same_batches(folder, config, inputs):
  """Every request of every split, with its targets drawn."""
  contexts = ExampleContexts(folder, made.CODES, config.data)
  for split in SPLITS:
    requests = inputs.requests(split)
    assert len(requests) > 5
    requests = np.random.default_rng(1).permutation(requests)
    wanted = inputs.contexts(config, split).batch(requests, np.arange(len(requests)))
    found = contexts.batch(requests, np.arange(len(requests)))
    for name, one, two in zip(wanted._fields, wanted, found, strict=True):
      np.testing.assert_array_equal(one, two, err_msg=f"{split} {name}")
      assert one.dtype == two.dtype, name


def test_examples_are_the_batches_of_memory_to_the_bit(log, examples):
  assert_same_batches(examples, *log)


@pytest.mark.parametrize("fitted", ["train+valid", "train+valid+test"])
def test_splits_that_are_learned_from_see_one_another(tmp_path, monkeypatch, fitted):
  """Also where all are learned from. What rises on a day is looked up once, for all partitions."""
  made.write_ads(tmp_path / "ads.csv")
  made.write_files(tmp_path / "log", made.rows(), CUTS)
  config = made.config_of(tmp_path)
  training = dataclasses.replace(config.training, fit_splits=fitted)
  config = dataclasses.replace(config, training=training)
  inputs = made.in_memory(config)
  asked = []
  look_up = mapped.Trends._rising

  def counted(trends, bucket, *given):
    asked.append((len(trends.ad), bucket))
    return look_up(trends, bucket, *given)

  monkeypatch.setattr(mapped.Trends, "_rising", counted)
  folder = preparing.prepare(str(tmp_path / "out"), config, EXACT)
  # Of as many counts, each day once.
  assert len(asked) == len(set(asked)) > 10
  monkeypatch.undo()
  assert_same_batches(folder, config, inputs)


def test_the_columns_of_the_log_are_those_of_memory(log, examples):
  wanted, found = log[1].dataset, examples.dataset()
  for field in dataclasses.fields(EventLog):
    one, two = getattr(wanted.events, field.name), getattr(found.events, field.name)
    assert one.tolist() == two.tolist() and one.dtype == two.dtype, field.name
  assert (wanted.behaviors, wanted.report) == (found.behaviors, found.report)
  lines = log[1].lines
  for name in ("user", "time", "split"):
    column = examples.column(f"requests/{name}")
    assert column.tolist() == getattr(lines, f"request_{name}").tolist()
  for name in ("request", "ad", "depth", "value"):
    assert examples.column(f"outcomes/{name}").tolist() == getattr(lines.outcomes, name).tolist()
  assert examples.column("requests/outcome_first").tolist() == lines.outcomes.first.tolist()


def test_what_is_added_makes_the_new_requests_and_those_that_it_reaches(log, tmp_path):
  """A second call reads the new file alone. Requests from before it, to whose outcomes nothing is
  added, keep their example.
  """
  folder = tmp_path / "grown"
  folder.mkdir()
  made.write_ads(folder / "ads.csv")
  events = made.rows()
  known = [row for row in events if row[2] < CUTS[1]]
  made.write_files(folder / "log", known, CUTS[:1])
  config = made.config_of(folder)
  out = str(folder / "out")
  first = preparing.prepare(out, config, dataclasses.replace(EXACT, shard_days=4))
  small = made.in_memory(config)
  before = ExampleContexts(first, made.CODES, config.data)
  before = before.batch(np.arange(len(small.lines.request_time)))
  made.write_files(folder / "log", [row for row in events if row[2] >= CUTS[1]], (), first=2)
  second = preparing.prepare(out, config, dataclasses.replace(EXACT, shard_days=4))
  whole = log[1]
  for field in dataclasses.fields(EventLog):
    one = getattr(whole.dataset.events, field.name)
    assert one.tolist() == getattr(second.dataset().events, field.name).tolist(), field.name
  kept = len(whole.lines.request_time) - second.manifest["made"]
  assert 5 < kept < len(small.lines.request_time) < len(whole.lines.request_time)
  old = {shard["number"] for shard in first.manifest["shards"]}
  assert old and old < {shard["number"] for shard in second.manifest["shards"]}
  shard_R = second.column("places/shard")
  is_kept = np.isin(shard_R, list(old))
  assert is_kept.sum() == kept
  # What is kept stands as it stood; what follows a request is that of the whole log in all of them.
  contexts = ExampleContexts(second, made.CODES, config.data)
  wanted = whole.contexts(config, "train")
  number = {  # the small log's number of each (user, moment)
    (user, time): request
    for request, (user, time) in enumerate(
      zip(small.lines.request_user.tolist(), small.lines.request_time.tolist(), strict=True)
    )
  }
  for request in range(len(is_kept)):
    some = np.array([request])
    found = contexts.batch(some, 3)
    for name in ("target_ad_BM", "target_value_BM", "target_depth_BM"):
      one, two = getattr(found, name), getattr(wanted.batch(some, 3), name)
      np.testing.assert_array_equal(one, two, err_msg=name)
    if is_kept[request]:
      place = whole.lines.request_user[request], whole.lines.request_time[request]
      same = before.slot_features_BSF[number[place]]
      np.testing.assert_array_equal(found.slot_features_BSF[0], same)
  # New ones see neighbours and popularity of the whole log.
  fresh = np.flatnonzero(~is_kept & (whole.lines.request_split == 2))
  assert len(fresh) > 3
  one, two = whole.contexts(config, "test").batch(fresh), contexts.batch(fresh)
  np.testing.assert_array_equal(one.slot_features_BSF, two.slot_features_BSF)
  again = preparing.prepare(out, config, dataclasses.replace(EXACT, shard_days=4))
  assert again.manifest == second.manifest  # nothing is new


def test_a_killed_call_goes_on_and_leaves_no_half_shard(log, examples, tmp_path, monkeypatch):
  """Killed at each stage in turn; what was made is not made again, and the end is the same."""
  config, inputs = log
  out = tmp_path / "out"
  begun = []
  for stage in ("count", "place", "make"):
    real = getattr(preparing, stage)

    def dies(job, partition, real=real, stage=stage):
      if partition == 1:
        begun.append(stage)
        raise KeyboardInterrupt
      real(job, partition)

    with monkeypatch.context() as patch:
      patch.setattr(preparing, stage, dies)
      with pytest.raises(KeyboardInterrupt):
        preparing.prepare(str(out), config, EXACT)
    assert not (out / "manifest.json").exists()
    with pytest.raises(DataError, match="not whole"):
      ExampleFolder.open(str(out))
  assert begun == ["count", "place", "make"]
  shard = next((out / "shards-0000.part").glob("*00000.array_record"))
  written = shard.stat().st_mtime_ns

  def torn(self, records, time):
    raise OSError("disk full")

  with monkeypatch.context() as patch:
    patch.setattr(making._Shards, "write", torn)
    with pytest.raises(OSError, match="disk full"):
      preparing.prepare(str(out), config, EXACT)
  names = {path.name for path in (out / "shards-0000.part").iterdir()}
  assert names == {shard.name}  # no half of one
  folder = preparing.prepare(str(out), config, EXACT)
  assert (out / "shards-0000" / shard.name).stat().st_mtime_ns == written
  assert not list(out.glob("*.part"))
  assert_same_batches(folder, config, inputs)
  assert folder.manifest == examples.manifest


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"history_slots": 6}, "--history_slots=6 is not allowed: the examples in"),
    ({"until": "2024-01-05"}, "--until=2024-01-05 is not allowed"),
    ({"dataset": "online_retail"}, "--dataset=online_retail is not allowed"),
    ({"events_path": "/nowhere.csv"}, "/nowhere.csv: no such file"),
  ],
)
def test_what_is_not_allowed_is_said_in_one_line(log, examples, change, words):
  config = dataclasses.replace(log[0], data=dataclasses.replace(log[0].data, **change))
  with pytest.raises((ConfigError, DataError), match=words):
    preparing.prepare(examples.path, config, EXACT)


def test_a_file_that_was_read_may_not_change(tmp_path):
  made.write_ads(tmp_path / "ads.csv")
  made.write_files(tmp_path / "log", made.rows(users=6), ())
  config = made.config_of(tmp_path)
  out = str(tmp_path / "out")
  preparing.prepare(out, config, EXACT)
  made.write_files(tmp_path / "log", made.rows(users=6, seed=1), ())
  with pytest.raises(DataError, match="is not the file that examples"):
    preparing.prepare(out, config, EXACT)
  with pytest.raises(ConfigError, match="--form=bytes is not allowed: .* with exact"):
    preparing.prepare(out, config, dataclasses.replace(EXACT, form="bytes"))


def test_beam_makes_what_the_pool_makes(log, tmp_path):
  """By the direct runner, in this process."""
  pytest.importorskip("apache_beam")
  options = dataclasses.replace(EXACT, beam=("--runner=DirectRunner",))
  folder = preparing.prepare(str(tmp_path / "out"), log[0], options)
  assert_same_batches(folder, *log)
  with pytest.raises(ConfigError, match="--beam_options=--runner=Nobody is not allowed"):
    next(beam.run(print, [], ["--runner=Nobody"]))


def killed_once(job, partition):
  """As `making.make`, but the process of partition 1 is killed once, when it has made examples."""
  mark = pathlib.Path(job.log).parent / "killed"
  if partition == 1 and not mark.exists():
    mark.touch()
    write = making._Shards.write

    def dies(self, *about):
      write(self, *about)
      os.kill(os.getpid(), signal.SIGKILL)

    making._Shards.write = dies
  making.make(job, partition)


@pytest.mark.long  # processes are started, which takes seconds
def test_a_worker_that_is_killed_in_the_middle_changes_nothing(
  log, examples, tmp_path, monkeypatch
):
  monkeypatch.setattr(preparing, "make", killed_once)
  out = tmp_path / "out"
  folder = preparing.prepare(str(out), log[0], dataclasses.replace(EXACT, workers=2))
  assert (out / "killed").exists()
  assert folder.manifest == examples.manifest  # digests of all shards, too
  assert_same_batches(folder, *log)
  assert not [path for path in out.rglob("*.part*")]


@pytest.mark.long
def test_the_shipped_data_as_a_log(tmp_path):
  """Every third request of Online Retail II, by four partitions: the very batches of memory."""
  arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
  shipped = load_dataset(DataConfig())
  ads, events = shipped.ads, shipped.events
  table = {"ad_id": ads.ad_id, "text": ads.text, "account_id": ads.account_id, "price": ads.price}
  parquet.write_table(arrow.table({k: list(v) for k, v in table.items()}), tmp_path / "ads.parquet")
  order = np.argsort(events.time, kind="stable")
  log = tmp_path / "log"
  log.mkdir()
  for number, part in enumerate(np.array_split(order, 5)):
    columns = {
      "user_id": events.user_id[events.user[part]].astype(str),
      "ad_id": ads.ad_id[events.ad[part]].astype(str),
      "time": events.time[part],
      "value": np.maximum(events.value[part], 0),
      "request_id": events.request[part],
    }
    parquet.write_table(arrow.table(columns), log / f"{number}.parquet")
  data = DataConfig(
    dataset="ad_log", ads_path=str(tmp_path / "ads.parquet"), events_path=str(log),
    behaviors=("purchase",),
  )  # fmt: skip
  config = Config(data=data)
  codes = np.random.default_rng(0).integers(0, 64, (len(ads), 3)).astype(np.int32)
  inputs = made.in_memory(config, codes)
  folder = preparing.prepare(
    str(tmp_path / "out"), config, dataclasses.replace(EXACT, partitions=4)
  )
  contexts = ExampleContexts(folder, codes, config.data)
  number = 0
  for split in SPLITS:
    wanted = inputs.contexts(config, split)
    for some in np.array_split(inputs.requests(split)[::3], 12):
      batches = wanted.batch(some, some), contexts.batch(some, some)
      for name, one, two in zip(batches[0]._fields, *batches, strict=True):
        np.testing.assert_array_equal(one, two, err_msg=f"{split} {name}")
      number += len(some)
  assert number > 8_000


def test_money_that_float32_cannot_be_computed_with_is_refused(log):
  job = types.SimpleNamespace(config=log[0].data)
  lines = log[1].lines
  value = lines.value.copy()
  stages._check_money(job, lines)
  for bad in (2e18, np.nan, -np.inf):
    value[3] = bad
    words = rf"column 'value': {bad:g}, of the ad in row {lines.ad[3] + 1} of .*ads.csv".replace(
      "+", r"\+"
    )
    with pytest.raises(DataError, match=words):
      stages._check_money(job, dataclasses.replace(lines, value=value))


def test_the_binary_says_in_one_line_what_is_wrong(log):
  data = log[0].data
  about = (f"--ads_path={data.ads_path}", f"--events_path={data.events_path}")
  for flags, words in (
    (("--dataset=ad_log", *about), "error: --out= is not allowed: name a folder for the examples"),
    (
      ("--dataset=ad_log", *about, "--out=nowhere", "--memory_mb=1"),
      "error: --memory_mb=1 is not allowed: a whole number, at least 64",
    ),
    (("--out=nowhere",), "error: --dataset=online_retail is not allowed: examples are made of"),
  ):
    done = tiny.run("prepare", *flags)
    assert done.status == 2 and done.err.startswith(words) and done.err.count("\n") == 1
  assert not os.path.exists("nowhere")
