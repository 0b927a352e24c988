"""A data set as it stood at a moment: what a run knows that is to go on with what came later."""

import dataclasses
import datetime

import numpy as np

from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import SPLITS, AdTable, DataError, Dataset, EventLog


def moment(date: str) -> int:
  """Unix seconds of the beginning of a day, in UTC. Raises ValueError for what is no YYYY-MM-DD."""
  day = datetime.date.fromisoformat(date)
  return int(datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp())


def first_times(ads: AdTable, events: EventLog) -> np.ndarray:
  """[N] int64 unix seconds at which each ad was first heard of: its first event, or `created`
  where that is earlier. The latest moment there is where neither is known.
  """
  never = np.iinfo(np.int64).max
  first_N = np.where(ads.created >= 0, ads.created, never)
  np.minimum.at(first_N, events.ad, events.time)
  return first_N


def until(dataset: Dataset, date: str) -> Dataset:
  """The data set without what is of a day or later: events, users whose first event that is, and
  ads that were first heard of then.

  The ads that stay keep their order. The splits are those of the log that is left: a user's last
  visit is test.

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
  kept_N = (first_N < end) | (first_N == never)  # an ad without a date may always have been there
  before = events.time < end
  if not before.any():
    raise DataError(f"--until={date} is not allowed: {dataset.name} has no event before it")
  row_N = np.cumsum(kept_N) - 1
  columns = {
    name: getattr(events, name)[before]
    for name in ("user", "request", "time", "behavior", "value", "quantity")
  }
  log = visits.ordered_log(events.user_id, ad=row_N[events.ad[before]], **columns)
  rows = {
    field.name: None if (column := getattr(ads, field.name)) is None else column[kept_N]
    for field in dataclasses.fields(ads)
  }
  report = dataset.report and _reported(dataset, log, int(kept_N.sum()), date)
  return dataclasses.replace(dataset, ads=AdTable(**rows), events=log, report=report)


def _reported(dataset: Dataset, log: EventLog, ads: int, date: str):
  """The report of what is left."""
  of_request = visits.split_of_requests(log)
  opening = np.append(True, np.diff(log.request) > 0)
  return dataclasses.replace(
    dataset.report,
    ads=ads,
    users=len(log.user_id),
    events={name: int((of_request == number).sum()) for number, name in enumerate(SPLITS)},
    requests={
      name: int((of_request[opening] == number).sum()) for number, name in enumerate(SPLITS)
    },
    dropped=dataset.report.dropped | {f"of {date} or later": len(dataset.events) - len(log)},
  )
