"""Plays a log to a server as if it happened now: new ads, visits, and what was taken in them.

For every visit a recommendation is asked for first, then the visit's events are posted. An ad is
put when it is first heard of. Events have the same ids whenever they are posted, so that one which
is posted again counts once.
"""

import dataclasses
import http.client
import json
import logging
import math
import os
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from gr4ad_jax import files
from gr4ad_jax.builders.prepare import first_times
from gr4ad_jax.builders.sales import with_first_sales
from gr4ad_jax.config import ConfigError
from gr4ad_jax.data.schema import DataError, Dataset

_AT_ONCE = 1000  # events that a post may have
_KEEP_SECONDS = 1.0  # between two notes of how far the replay is
_LONGEST_PAUSE = 10.0  # seconds until a server that is not there is asked again
_AD_FIELDS = ("text", "account_id", "category", "conversion_type", "form")
_log = logging.getLogger(__name__)


class Step(NamedTuple):
  """What happens next in a log.

  Attributes:
    time: unix seconds.
    ad: row of the ad that is new; -1: it is a visit.
    rows: rows of the visit's events in the log.
  """

  time: int
  ad: int
  rows: np.ndarray


class Progress(NamedTuple):
  """How far a replay is: steps done and in all, the log's time, and visits a second of this run."""

  done: int
  total: int
  time: int
  rate: float


def steps(dataset: Dataset, begin: int) -> list[Step]:
  """Visits that began at `begin` or later, and ads that were first heard of then, in order of time.

  Of one moment, ads come before visits, and an ad that is first heard of within a visit comes
  before it: the visit's events are posted together.

  Args:
    dataset: the whole log.
    begin: unix seconds.

  Raises:
    DataError: there is no such visit.
  """
  events = dataset.events
  first = np.flatnonzero(np.append(True, np.diff(events.request) > 0))
  # Bounds of each visit's events in the log.
  last = np.append(first[1:], len(events))
  # The least time of each visit's run of events.
  begin_R = np.minimum.reduceat(events.time, first)
  visits = [
    Step(time, -1, np.arange(a, b))
    for time, a, b in zip(begin_R.tolist(), first.tolist(), last.tolist(), strict=True)
    if time >= begin
  ]
  if not visits:
    raise DataError(f"{dataset.name} has no visit from the replay's first day on")
  # Known from before: by the run's ads, or by an event of an earlier visit.
  first_N = first_times(dataset.ads, events)
  known_N = first_N < begin
  # An ad first heard of inside a visit is put when that visit begins.
  np.minimum.at(first_N, events.ad, np.repeat(begin_R, last - first))
  never = np.iinfo(np.int64).max
  new = np.flatnonzero(~known_N & (first_N < never))
  none = np.zeros(0, np.int64)
  ads = [Step(int(first_N[ad]), int(ad), none) for ad in new]
  # Of one moment, False sorts first: ads before visits.
  return sorted(ads + visits, key=lambda step: (step.time, step.ad < 0))


def as_put(dataset: Dataset) -> Dataset:
  """The data set with what is known of each ad when it is put. Prices that were made from sales
  have later sales in them, and become those of each ad's first one.
  """
  if not dataset.priced_by_sales:
    return dataset
  return dataclasses.replace(dataset, ads=with_first_sales(dataset.ads, dataset.events))


def ad_fields(dataset: Dataset, row: int) -> dict[str, Any]:
  """An ad's fields, as a catalogue takes them."""
  ads = dataset.ads
  fields: dict[str, Any] = {name: str(getattr(ads, name)[row]) for name in _AD_FIELDS}
  price = float(ads.price[row])
  if not math.isnan(price):
    fields["price"] = price
  if ads.vectors is not None:
    fields["vector"] = ads.vectors[row].tolist()
  return fields


def visit_events(dataset: Dataset, step: Step) -> list[dict[str, Any]]:
  """A visit's events, as a server takes them."""
  events = dataset.events
  ads = dataset.ads.ad_id
  user = str(events.user_id[events.user[step.rows[0]]])
  # Ids follow from the log, so that a replay that is gone on with repeats none.
  visit = f"{dataset.name}-{int(events.request[step.rows[0]])}"
  return [
    {
      "event_id": f"{visit}-{number}",
      "user_id": user,
      "ad_id": str(ads[events.ad[row]]),
      "time": int(events.time[row]),
      "behavior": dataset.behaviors[events.behavior[row]],
      "value": float(events.value[row]),
      "quantity": float(events.quantity[row]),
      "request_id": visit,
    }
    for number, row in enumerate(step.rows.tolist())
  ]


class Server:
  """Asks a server, and asks again while it is not there or has too much to do.

  Args:
    address: http://host:port.
    token: bearer token; empty: none.
    stopped: whether to give up.
    pause: waits so many seconds.
  """

  def __init__(
    self, address: str, token: str = "", stopped: Callable[[], bool] = lambda: False,
    pause: Callable[[float], None] = time.sleep,
  ):  # fmt: skip
    parts = urllib.parse.urlsplit(address)
    if parts.scheme != "http" or not parts.hostname:
      raise ConfigError(f"--address={address} is not allowed: http://host:port")
    self._host = parts.hostname
    self._port = parts.port or 80
    self._headers = {"content-type": "application/json"}
    if token:
      self._headers["authorization"] = f"Bearer {token}"
    self._stopped = stopped
    self._pause = pause
    self._connection: http.client.HTTPConnection | None = None

  def ask(self, method: str, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """(status, answer) of a request. It is asked again after a connection that broke or a 503.

    Raises:
      InterruptedError: `stopped` became true.
    """
    pause = 0.1
    told = False
    while not self._stopped():
      try:
        status, answer = self._once(method, path, json.dumps(body, allow_nan=False))
        # 503: too much to do, or still starting. It is asked again.
        if status != 503:
          return status, answer
        reason = str(answer.get("error", status))
      except (OSError, http.client.HTTPException, ValueError) as error:
        # A broken connection cannot be used again.
        self.close()
        reason = str(error) or type(error).__name__
      # A server that restarts is away for a moment. Only a longer absence is told, and once.
      if not told and pause >= 1:
        _log.warning("the server does not answer, asking again: %s", reason)
        told = True
      self._pause(pause)
      # Twice as long each time, up to a limit.
      pause = min(2 * pause, _LONGEST_PAUSE)
    raise InterruptedError("the replay was stopped")

  def close(self) -> None:
    """Lets go of the connection."""
    if self._connection is not None:
      self._connection.close()
      self._connection = None

  def _once(self, method: str, path: str, text: str) -> tuple[int, dict[str, Any]]:
    if self._connection is None:
      self._connection = http.client.HTTPConnection(self._host, self._port, timeout=60)
    self._connection.request(method, path, text.encode(), self._headers)
    reply = self._connection.getresponse()
    # Read to the end, else the connection could not be used again.
    content = json.loads(reply.read() or b"{}")
    return reply.status, content if isinstance(content, dict) else {}


class Player:
  """Plays the steps of a log.

  Args:
    dataset: the whole log.
    begin: unix seconds of its first visit that is played.
    server: whom to.
    place: file that keeps how far it is; what it holds is gone on from.
    speed: seconds of the log a second; 0: as fast as the server answers.
    k: ads that are asked for.
    told: hears of the progress after every step.
    clock, pause: of the machine.

  Raises:
    DataError: no visit to play, or the file belongs to another replay.
  """

  def __init__(
    self, dataset: Dataset, begin: int, server: Server, place: str, speed: float = 0.0,
    k: int = 10, told: Callable[[Progress], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic, pause: Callable[[float], None] = time.sleep,
  ):  # fmt: skip
    self._dataset = as_put(dataset)
    self._server = server
    self._steps = steps(dataset, begin)
    self._place = place
    self._speed = speed
    self._k = k
    self._told = told
    self._clock = clock
    self._pause = pause
    self._replay = {"data set": dataset.name, "begin": begin, "steps": len(self._steps)}
    self.done = self._kept()

  def play(self) -> None:
    """Plays what is left.

    Raises:
      InterruptedError: the server's `stopped` became true; the file says how far it came.
      DataError: the server refuses what the log holds.
    """
    begun = self._clock()
    kept = begun
    first = self.done
    origin = self._steps[first].time if first < len(self._steps) else 0
    try:
      for step in self._steps[first:]:
        if self._speed:
          # A replay that is gone on with begins its clock anew at its first step.
          due = begun + (step.time - origin) / self._speed
          self._pause(max(due - self._clock(), 0.0))
        self._take(step)
        self.done += 1
        now = self._clock()
        rate = (self.done - first) / max(now - begun, 1e-9)
        self._told(Progress(self.done, len(self._steps), step.time, rate))
        if now - kept >= _KEEP_SECONDS:
          self._keep()
          kept = now
    finally:
      self._keep()
      self._server.close()

  def _take(self, step: Step) -> None:
    if step.ad >= 0:
      ad_id = str(self._dataset.ads.ad_id[step.ad])
      fields = ad_fields(self._dataset, step.ad)
      self._done("PUT", f"/v1/ads/{urllib.parse.quote(ad_id, safe='')}", fields)
      return
    events = self._dataset.events
    user = str(events.user_id[events.user[step.rows[0]]])
    # Not from the cache: every visit is to be answered by the model, as of its own moment.
    asked = {"k": self._k, "now": step.time, "cache": False}
    status, _ = self._server.ask("POST", "/v1/recommend", asked | {"user": user})
    if status == 404:  # nobody knows the user yet
      status, _ = self._server.ask("POST", "/v1/recommend", asked | {"history": []})
    if status != 200:
      _log.warning("the request of a visit got status %d", status)
    # After the request, since nobody knew of them when it was made.
    for some in _parts(visit_events(self._dataset, step)):
      self._done("POST", "/v1/events", {"events": some})

  def _done(self, method: str, path: str, body: Mapping[str, Any]) -> None:
    status, answer = self._server.ask(method, path, body)
    if not 200 <= status < 300:
      raise DataError(f"{method} {path} got status {status}: {answer.get('error', '')}"[:500])

  def _kept(self) -> int:
    if not os.path.exists(self._place):
      return 0
    kept = files.load_json(self._place)
    done = kept.pop("done", None) if isinstance(kept, dict) else None
    if kept != self._replay or not isinstance(done, int) or not 0 <= done <= len(self._steps):
      raise DataError(f"{self._place} belongs to another replay: remove it to begin anew")
    return done

  def _keep(self) -> None:
    files.write_json(self._place, self._replay | {"done": self.done}, summed=False)


def _parts(events: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
  for begin in range(0, len(events), _AT_ONCE):
    yield events[begin : begin + _AT_ONCE]
