"""`load_dataset`: a data set by its config, prepared on first use and read back whole or not at
all.
"""

import contextlib
import dataclasses
import datetime
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator

import numpy as np

from gr4ad_jax import files
from gr4ad_jax.builders import held_out, reports, sales
from gr4ad_jax.checksums import DamagedError
from gr4ad_jax.config import DataConfig
from gr4ad_jax.data import visits
from gr4ad_jax.data.promotions import Promotions
from gr4ad_jax.data.schema import AdTable, DataError, Dataset, EventLog, Report
from gr4ad_jax.locks import Lock
from gr4ad_jax.remote import inputs as remote_inputs

_log = logging.getLogger(__name__)


def default_data_dir() -> str:
  """The folder of prepared data sets in the user's cache."""
  return files.user_cache("data")


def load_dataset(config: DataConfig) -> Dataset:
  """The data set of a config, with its report; prepares it where that was not done yet.

  Prepared data lie in `<data_dir>/<fingerprint>`, and the fingerprint changes with the source's
  bytes and with the options, so nothing stale is served. What is read back is compared with a
  digest of what was written; a part that is missing or damaged is prepared again. Processes that
  start together prepare once.

  Raises:
    DataError: bad input, in one line, before anything is written.
    ImportError: the `data` extra is missing.
  """
  # Imported here: TFDS takes seconds, and is needed by data sets alone.
  from gr4ad_jax.builders.base import PARTS
  from gr4ad_jax.builders.registry import BUILDERS

  config = remote_inputs.local_sources(config)
  make = BUILDERS[config.dataset]
  root = os.path.join(config.data_dir or default_data_dir(), make.fingerprint(config))
  parts = _stored(make, config, root)
  if len(parts) < len(PARTS):
    # Read before the lock is taken, since it may take minutes and writes nothing.
    tables = make.read(config)
    with _alone(root):
      # Another process may have been first.
      parts = _stored(make, config, root)
      for part in PARTS:
        if part not in parts:
          _prepare(make, config, part, root, tables)
    # Read back even by who wrote it: what cannot be read is no data set.
    parts = _stored(make, config, root)
    if len(parts) < len(PARTS):
      raise DataError(f"{root}: the prepared data cannot be read back; is the disk sound?")
  (ads, _) = parts["ads"]
  (events, notes) = parts["events"]
  report = Report(**notes["report"])
  _log.info("%s: %s", config.dataset, report)
  behaviors = tuple(notes["behaviors"])
  found = Dataset(
    config.dataset, ads, events, behaviors, report, config.attribution_days,
    priced_by_sales=make.PRICED_BY_SALES,
  )  # fmt: skip
  if config.promotions:
    found = dataclasses.replace(found, promotions=_promotions(make, config, root, found))
  if config.until:
    found = until(found, config.until)
  return held_out.without(found, config.held_out_ads) if config.held_out_ads else found


def _promotions(make: type, config: DataConfig, root: str, dataset: Dataset) -> Promotions:
  """The promotions of a data set, which are kept beside it once they were read."""
  with _alone(root):
    try:
      return Promotions.load(root)
    # Damaged promotions are made again from their source.
    except (FileNotFoundError, DamagedError):
      make.promotions(config, dataset).save(root)
  return Promotions.load(root)


def moment(date: str) -> int:
  """Unix seconds of the beginning of a day, in UTC. Raises ValueError for what is no YYYY-MM-DD."""
  day = datetime.date.fromisoformat(date)
  return int(datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp())


def first_times(ads: AdTable, events: EventLog) -> np.ndarray:
  """[N] int64 unix seconds at which each ad was first heard of: its first event, or `created`
  where that is earlier. The latest moment there is where neither is known.
  """
  never = np.iinfo(np.int64).max
  # -1 stands for unknown, and must not count as the earliest moment.
  first_N = np.where(ads.created >= 0, ads.created, never)
  np.minimum.at(first_N, events.ad, events.time)
  return first_N


def until(dataset: Dataset, date: str) -> Dataset:
  """The data set without what is of a day or later: events, users whose first event that is, and
  ads that were first heard of then.

  The ads that stay keep their order. The splits are those of the log that is left: a user's last
  visit is test. Prices and dates that were made from sales are made anew from that log's train
  events. What the source itself says of an ad stays as it is.

  Args:
    dataset: as it was read.
    date: YYYY-MM-DD, in UTC.

  Raises:
    DataError: nothing had happened by then.
  """
  end = moment(date)
  ads = dataset.ads
  events = dataset.events
  first_N = first_times(ads, events)
  never = np.iinfo(np.int64).max
  # An ad without a date may always have been there.
  kept_N = (first_N < end) | (first_N == never)
  before = events.time < end
  if not before.any():
    raise DataError(f"--until={date} is not allowed: {dataset.name} has no event before it")
  # The new row of each ad that is kept: how many are kept before it.
  row_N = np.cumsum(kept_N) - 1
  columns = {
    name: getattr(events, name)[before]
    for name in ("user", "request", "time", "behavior", "value", "quantity")
  }
  log = visits.ordered_log(events.user_id, ad=row_N[events.ad[before]], **columns)
  known = ads.take(kept_N)
  if dataset.priced_by_sales:
    known = sales.with_sales(known, log)
  report = reports.of_rest(dataset, log, len(known), f"of {date} or later")
  return dataclasses.replace(dataset, ads=known, events=log, report=report)


def prepared_folders(config: DataConfig) -> dict[str, str]:
  """Where the parts of a data set lie, `ads` and `events`, prepared on first use; they are not
  read, nor compared.

  Raises:
    As `load_dataset`.
  """
  from gr4ad_jax.builders.base import PARTS
  from gr4ad_jax.builders.registry import BUILDERS

  config = remote_inputs.local_sources(config)
  make = BUILDERS[config.dataset]
  root = os.path.join(config.data_dir or default_data_dir(), make.fingerprint(config))
  folders = {part: make(data=config, config=part, data_dir=root).data_dir for part in PARTS}
  if not all(map(os.path.isdir, folders.values())):
    load_dataset(config)
  return folders


def _stored(make: type, config: DataConfig, root: str) -> dict[str, tuple]:
  """(columns, metadata) of each part that lies whole in `root`."""
  from gr4ad_jax.builders.base import PARTS

  parts = {}
  for part in PARTS:
    try:
      builder = make(data=config, config=part, data_dir=root)
      if os.path.isdir(builder.data_dir):
        parts[part] = builder.stored(), dict(builder.info.metadata)
    except (
      Exception
    ) as error:  # a damaged file can raise almost anything, and all of it means: prepare again
      reason = repr(error).splitlines()[0]
      _log.warning("%s: '%s' is damaged and is prepared again (%s)", root, part, reason)
  return parts


def _prepare(make: type, config: DataConfig, part: str, root: str, tables: Dataset) -> None:
  """Writes one part, in place of what an interrupted run left; TFDS gives it its name only when
  it is whole.
  """
  import tensorflow_datasets as tfds

  folder = os.path.join(root, make.name, part)
  # An interrupted run may have left half of it.
  if os.path.isdir(folder):
    shutil.rmtree(folder)
  tfds.disable_progress_bar()
  builder = make(data=config, tables=tables, config=part, data_dir=root)
  # TFDS prints as it goes; the library prints nothing.
  with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare(download_dir=downloads)


@contextlib.contextmanager
def _alone(root: str) -> Iterator[None]:
  """One process at a time in `root`; the lock goes with the process that holds it."""
  os.makedirs(root, exist_ok=True)
  with Lock(os.path.join(root, ".lock"), wait=True):
    yield
