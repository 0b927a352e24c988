"""Events: appends to a stream, following it, and what a million histories take.

All of it is without HTTP. Each figure is of this process and the machine as it is: the load beside
it is told, the mean number of processes that ran or waited for a processor in the last minute.
"""

import contextlib
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gr4ad_jax.config import ConfigError, DataConfig
from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import DAY
from gr4ad_jax.features.contexts import FixedAds
from gr4ad_jax.features.histories import Events
from gr4ad_jax.features.neighbors import CoVisitNeighbors
from gr4ad_jax.features.state import State
from gr4ad_jax.features.trends import Trends
from gr4ad_jax.people.follower import Follower, popularity_of
from gr4ad_jax.people.histories import StoredHistories
from gr4ad_jax.people.store import PeopleStore
from gr4ad_jax.streams.opening import open_stream

ADS = 5_000  # of the made-up catalogue
PER_USER = 50
BATCHES = (50, 1_000)
_BEGIN = 19_000 * DAY
_BUNDLE = 2_000  # users that are made at once
_HOT = 10_000
_LOOKS = 1_000


def measure(
  url: str, repetitions: int, users: int, told: Callable[[str, int, int], None] = lambda *_: None
) -> dict[str, Any]:
  """Measures.

  Args:
    url: of the stream, an empty one; "": a file that is removed afterwards.
    repetitions: batches of each size.
    users: made-up ones, of `PER_USER` events each.
    told: hears how many users of how many are made.

  Raises:
    ConfigError: the stream has events already.
  """
  with tempfile.TemporaryDirectory() as folder:
    figures: dict[str, Any] = {"stream": url.split(":")[0] or "sqlite", "load": os.getloadavg()[0]}
    figures |= _appends(url or f"sqlite:{folder}/stream.sqlite", repetitions, folder)
    figures |= _people(os.path.join(folder, "people.sqlite"), users, told)
  return figures


def summary(figures: dict[str, Any]) -> str:
  """The figures in words."""
  lines = [f"stream: {figures['stream']}; load of the machine: {figures['load']:.1f}"]
  for size in BATCHES:
    one = figures[f"append_{size}"]
    lines.append(
      f"append in batches of {size}: {one['events_per_second']:,.0f} events/s, "
      f"{1e6 * one['cpu_per_event']:.0f} us of this process' CPU an event; a batch takes "
      f"{1e3 * one['median']:.1f} ms, at most {1e3 * one['worst']:.1f} ms"
    )
  lines += [
    f"following them: {figures['followed_per_second']:,.0f} events/s, "
    f"{1e6 * figures['follow_cpu_per_event']:.0f} us of CPU an event",
    f"{figures['users']:,} users of {PER_USER} events: {figures['bytes_per_user']:,.0f} bytes a "
    f"user on disk; written at {figures['written_per_second']:,.0f} users/s",
    f"start from the snapshot: {figures['start_seconds']:.2f} s; "
    f"{figures['start_bytes'] / 2**20:.0f} MiB; a user from disk {1e6 * figures['look']:.0f} us; "
    f"{figures['bytes_per_hot_user']:,.0f} bytes a user in memory",
  ]
  return "\n".join(lines)


def _event(number: int) -> dict[str, Any]:
  return {
    "user_id": f"user{number * 7919 % 100_003}",
    "ad_id": f"ad{number * 31 % ADS}",
    "time": _BEGIN + number,
    "behavior": "purchase",
    "value": 12.5,
    "quantity": 1.0,
    "request_id": None,
  }


def _appends(url: str, repetitions: int, folder: str) -> dict[str, Any]:
  """Appends batches of each size in turn, then follows all of them."""
  figures: dict[str, Any] = {}
  seconds: dict[int, list[float]] = {size: [] for size in BATCHES}
  cpu = dict.fromkeys(BATCHES, 0.0)
  number = 0
  with contextlib.closing(open_stream(url)) as stream:
    if stream.end("events"):
      raise ConfigError(f"--stream={url} is not allowed: it has events; an empty one is measured")
    for _ in range(repetitions):
      for size in BATCHES:
        values = [_event(number + at) for at in range(size)]
        keys = [f"event-{number + at:012d}" for at in range(size)]
        number += size
        begin = time.perf_counter()
        used = time.process_time()
        stream.append("events", values, keys)
        seconds[size].append(time.perf_counter() - begin)
        cpu[size] += time.process_time() - used
    for size in BATCHES:
      figures[f"append_{size}"] = {
        "events_per_second": size * repetitions / sum(seconds[size]),
        "cpu_per_event": cpu[size] / (size * repetitions),
        "median": float(np.median(seconds[size])),
        "worst": max(seconds[size]),
      }
    with _state(os.path.join(folder, "followed.sqlite")) as (state, store):
      rows = {f"ad{row}": row for row in range(ADS)}
      follower = Follower(stream, state, store, rows.get, ("click", "purchase"))
      begin = time.perf_counter()
      used = time.process_time()
      follower.catch_up()
      figures["followed_per_second"] = number / (time.perf_counter() - begin)
      figures["follow_cpu_per_event"] = (time.process_time() - used) / number
  return figures


@contextlib.contextmanager
def _state(path: str) -> Iterator[tuple[State, PeopleStore]]:
  """A state over a store, as a server has it."""
  store = PeopleStore(path, "made up")
  try:
    histories = StoredHistories(visits.no_events(0), store, _HOT)
    columns = np.zeros((ADS, 3), np.int32), np.ones(ADS, np.float32), np.full(ADS, -1)
    ads = FixedAds(*columns)
    near = CoVisitNeighbors(np.full((ADS, 1), -1, np.int32), np.zeros((ADS, 1), np.float32))
    counts = popularity_of(store, Trends.empty(ADS))
    yield State(DataConfig(), ads, near, histories, counts), store
  finally:
    store.close()


class _Nothing:
  """A stream without a record: what is measured is not read from one."""

  def read(self, topic: str, after: int, limit: int = 0) -> list[Any]:
    del topic, after, limit
    return []


def _people(path: str, users: int, told: Callable[[str, int, int], None]) -> dict[str, Any]:
  """Writes made-up users in snapshots, and starts from the last one."""
  rng = np.random.default_rng(0)
  begin = time.perf_counter()
  with _state(path) as (state, store):
    follower = Follower(_Nothing(), state, store, {}.get, ("click", "purchase"))
    for first in range(0, users, _BUNDLE):
      state.observe(_bundle(rng, range(first, min(first + _BUNDLE, users))))
      follower.offset = first + _BUNDLE
      follower.snapshot()
      told("users", min(first + _BUNDLE, users), users)
    written = users / (time.perf_counter() - begin)
  size = os.path.getsize(path)
  before = _resident()
  begin = time.perf_counter()
  with _state(path) as (state, _):
    state.popularity(_BEGIN + 400 * DAY)
    started = time.perf_counter() - begin
    resident = _resident() - before
    some = rng.choice(users, min(_LOOKS, users), replace=False)
    begin = time.perf_counter()
    for number in some.tolist():
      state.find(f"user{number:08d}")
    look = (time.perf_counter() - begin) / len(some)
    before = _resident()
    for number in rng.choice(users, min(_HOT, users), replace=False).tolist():
      state.find(f"user{number:08d}")
    hot = (_resident() - before) / max(state.histories.in_memory - len(some), 1)
  return {
    "users": users,
    "bytes_per_user": size / users,
    "written_per_second": written,
    "start_seconds": started,
    "start_bytes": resident,
    "look": look,
    "bytes_per_hot_user": hot,
  }


def _bundle(rng: np.random.Generator, numbers: range) -> Events:
  """`PER_USER` events of each user, in ten visits with names, within two months."""
  count = len(numbers) * PER_USER
  visit = np.tile(np.repeat(np.arange(10), PER_USER // 10), len(numbers))
  day = rng.integers(0, 60, (len(numbers), 10)).repeat(PER_USER // 10, axis=1).ravel()
  user = np.repeat(np.array(numbers), PER_USER)
  return Events(
    [f"user{number:08d}" for number in user.tolist()],
    (ADS * rng.random(count) ** 2).astype(np.int32),
    _BEGIN + day * DAY + rng.integers(0, 3600, count),
    np.ones(count, np.int8),
    rng.integers(1, 80, count).astype(np.float32) / 4,
    np.ones(count, np.float32),
    [f"order-{user}-{visit}" for user, visit in zip(user.tolist(), visit.tolist(), strict=True)],
  )


def _resident() -> int:
  """Bytes of memory that this process has now."""
  with open("/proc/self/statm") as file:
    return int(file.read().split()[1]) * resource.getpagesize()
