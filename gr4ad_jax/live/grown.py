"""A run's log with what a stream has added since: the same columns, so that all that reads a log
reads it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from gr4ad_jax.config import Config
from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import Dataset
from gr4ad_jax.features.lines import build_lines
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.streams.stream import Record, Stream, read_kept

_EVENTS = "events"
_AT_ONCE = 1000  # records of a read


class GrownLog:
  """Reads the topic `events` behind a run's log.

  Events of ads that the run does not know are left out: it has no UA-SIDs for them. So are those of
  users who were erased.

  Args:
    inputs: of the run.
    gap_seconds: a pause this long starts a new visit, of events that name none.

  Attributes:
    offset: of the last record that was read.
    passed_over: records that could not be used.
  """

  def __init__(self, inputs: Inputs, gap_seconds: float):
    self._inputs = inputs
    self._gap = gap_seconds
    ads = inputs.dataset.ads
    self._row = ads.row_of
    self._depth = {name: depth for depth, name in enumerate(inputs.dataset.behaviors)}
    self._events: list[Mapping[str, Any]] = []
    self.offset = 0
    self.passed_over = 0

  def __len__(self) -> int:
    return len(self._events)

  @property
  def end(self) -> float:
    """The latest moment that is known, unix seconds."""
    known = float(self._inputs.dataset.events.time.max(initial=0))
    # The run's own log may end later than the stream.
    return max(known, max((event["time"] for event in self._events), default=0.0))

  def read(self, stream: Stream) -> int:
    """Reads what is new. Returns how many records that were. Raises OSError as the stream."""
    before = self.offset
    while True:
      records, gone = read_kept(stream, _EVENTS, self.offset, _AT_ONCE)
      self.passed_over += gone
      # Retention took these away. They are counted, so that the gap shows.
      self.offset += gone
      for record in records:
        self._take(record)
        self.offset = record.offset
      if len(records) < _AT_ONCE:
        return self.offset - before

  def _take(self, record: Record) -> None:
    value = record.value
    known = value.get("ad_id") in self._row and value.get("behavior") in self._depth
    if known and "user_id" in value and "time" in value:
      self._events.append(value)
    else:
      self.passed_over += 1

  def inputs(self) -> Inputs:
    """The run's inputs with the grown log; UA-SIDs, neighbours and eCPM bins stay the run's."""
    inputs = self._inputs
    if not self._events:
      return inputs
    dataset = _joined(inputs.dataset, self._events, self._row, self._depth, self._gap)
    lines = build_lines(dataset.events, len(dataset.ads), dataset.attribution_days)
    return dataclasses.replace(inputs, dataset=dataset, lines=lines)


def all_known(config: Config) -> Config:
  """The config with which all of a grown log counts as learned from, whatever its visits' split."""
  # Splits are of the run's log; what came later has none, and all of it may be learned from.
  training = dataclasses.replace(
    config.training, fit_splits="train+valid+test", data_order="shuffled", period=(0.0, 1.0)
  )
  return dataclasses.replace(config, training=training)


def _joined(
  dataset: Dataset, events: list[Mapping[str, Any]], row: Mapping[str, int],
  depth: Mapping[str, int], gap: float,
) -> Dataset:  # fmt: skip
  """The log with events behind it; visits of both keep apart."""
  old = dataset.events
  number = {str(user): at for at, user in enumerate(old.user_id)}
  for event in events:
    # New users get numbers behind those of the log.
    number.setdefault(event["user_id"], len(number))
  visit: dict[Any, int] = {}
  last: dict[str, tuple[float, int]] = {}  # of users: time and visit of the latest nameless event
  request = np.empty(len(events), np.int64)
  first = int(old.request.max(initial=-1)) + 1
  # By time, since pauses between events make visits where none is named.
  order = sorted(range(len(events)), key=lambda at: events[at]["time"])
  for at in order:
    event = events[at]
    user = event["user_id"]
    name = event.get("request_id")
    if name is not None:
      request[at] = visit.setdefault((user, name), first + len(visit))
      continue
    time, running = last.get(user, (-np.inf, -1))
    # A pause: a visit of its own, under a key that no name can have.
    if event["time"] - time >= gap:
      running = visit.setdefault((user, None, at), first + len(visit))
    last[user] = event["time"], running
    request[at] = running

  def column(name: str, of: Any) -> np.ndarray:
    return np.concatenate([getattr(old, name), np.array([of(event) for event in events])])

  log = visits.ordered_log(
    np.array(list(number)),
    user=column("user", lambda e: number[e["user_id"]]),
    request=np.concatenate([old.request, request]),
    ad=column("ad", lambda e: row[e["ad_id"]]),
    time=column("time", lambda e: int(e["time"])),
    behavior=column("behavior", lambda e: depth[e["behavior"]]),
    value=column("value", lambda e: float(e.get("value") or 0.0)),
    quantity=column(
      "quantity", lambda e: float(1.0 if e.get("quantity") is None else e["quantity"])
    ),
  )
  return dataclasses.replace(dataset, events=log, report=None)
