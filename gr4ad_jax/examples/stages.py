"""What is done with each partition of a log, in a process of a pool. Each may be done again: a file
takes its place whole, and a column is written at the same places.

`count` says how much every user has. With that the users of all partitions are numbered, in the
order in which the log names them, and `place` writes the columns of the whole log. `make` makes the
examples.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator

import numpy as np

from gr4ad_jax import files
from gr4ad_jax.config import DataConfig
from gr4ad_jax.data.schema import LARGEST, SPLITS, DataError, EventLog
from gr4ad_jax.examples import bundles, columns, spool
from gr4ad_jax.features.lines import Lines, build_lines

EVENTS = {
  "user": "i4", "request": "i4", "ad": "i4", "time": "i8", "behavior": "i1", "value": "f4",
  "quantity": "f4", "split": "i1",
}  # fmt: skip
REQUESTS = {"user": "i4", "time": "i8", "split": "i1", "outcome_first": "i8"}
OUTCOMES = {"request": "i4", "ad": "i4", "depth": "i1", "value": "f4"}
LINES = {"request": "i4", "ad": "i4"}  # of what is learned from
PLACES = {"shard": "i4", "row": "i4"}  # of each request's example
SIZES = ("events", "requests", "outcomes", "lines", "id_bytes")  # of a user


@dataclasses.dataclass(frozen=True)
class Job:
  """What every stage knows.

  Attributes:
    log: folder of the spool.
    tables: folder of what is made of the whole log.
    shards: folder of the shards that are made.
    pieces: of the spool, all that count.
    later: number of the first piece that is new.
    partitions: P.
    num_ads: N.
    config: numbers of slots; how visits and outcomes are told.
    fitted: splits that are learned from, from the first on.
    form: of the examples, one of `records.FORMS`.
    shard_days: days of a shard; 0: all.
    first_shard: number of the first shard that is made.
    before: tables of the generation before; empty: there is none.
    token: digest of the pieces and the ads: tables of another one are other tables.
  """

  log: str
  tables: str
  shards: str
  pieces: int
  later: int
  partitions: int
  num_ads: int
  config: DataConfig
  fitted: int
  form: str
  shard_days: int
  first_shard: int = 0
  before: str = ""
  token: str = ""

  @property
  def gap_seconds(self) -> float:
    """A pause that starts a new visit."""
    return 60 * self.config.session_gap_minutes

  def read(self, partition: int) -> spool.Partition | None:
    """The events of a partition."""
    numbers = range(self.pieces)
    return spool.read(self.log, numbers, partition, self.gap_seconds, self.later)

  def lines(self, log: EventLog) -> Lines:
    """Of a bundle."""
    return build_lines(log, self.num_ads, self.config.attribution_days)


def count(job: Job, partition: int) -> None:
  """Writes `counted/<partition>.npz`: what each of its users has, and what they add to the counts
  of ads. Raises DataError for money that is too large to compute with.
  """
  path = path_of(job.tables, "counted", partition)
  if os.path.exists(path):
    # A task that was done before a stop is not done again.
    return
  part = job.read(partition)
  if part is None:
    save(path, first=np.zeros(0, np.int64))
    return
  users = len(part.log.user_id)
  sizes = {name: np.zeros(users, np.int64) for name in SIZES}
  sizes["id_bytes"][:] = [len(str(user).encode()) for user in part.log.user_id]
  sizes["events"] += np.bincount(part.log.user, minlength=users)
  counts = []
  by_split = np.zeros((2, len(SPLITS)), np.int64)
  by_split[0] = np.bincount(part.log.split, minlength=len(SPLITS))
  for _, _, log in bundles.bundles(part.log):
    lines = job.lines(log)
    _check_money(job, lines)
    # Neighbours are fitted on these lines alone.
    learned = lines.request_split[lines.request] < job.fitted
    # An outcome's user is that of its request.
    followed = np.repeat(lines.request_user, np.diff(lines.outcomes.first))
    for name, user in (
      ("requests", lines.request_user),
      ("outcomes", followed),
      ("lines", lines.request_user[lines.request[learned]]),
    ):
      sizes[name] += np.bincount(user, minlength=users)
    by_split[1] += np.bincount(lines.request_split, minlength=len(SPLITS))
    split, added = bundles.daily_counts(lines)
    counts.append((split, *added))
  merged = _merged(*(np.concatenate(some) for some in zip(*counts, strict=True)))
  names = ("split", "ad", "time", "seen", "repeats", "value")
  span = np.array([part.log.time.min(), part.log.time.max()])
  save(
    path, first=part.first_U, by_split=by_split, span=span, **sizes,
    **dict(zip(names, merged, strict=True)),
  )  # fmt: skip


def _check_money(job: Job, lines: Lines) -> None:
  """Raises DataError for sums of money that are too large to compute with in float32."""
  bad = np.flatnonzero(~(np.abs(lines.value) <= LARGEST))  # NaN is in no order
  if len(bad):
    raise DataError(
      f"column 'value': {lines.value[bad[0]]:g}, of the ad in row {lines.ad[bad[0]] + 1} of "
      f"{job.config.ads_path}, is not allowed: at most {LARGEST:g}"
    )


def _merged(split, ad, time, *sums: np.ndarray) -> list[np.ndarray]:
  """Counts of bundles with equal cells added up."""
  cell, inverse = np.unique(np.stack([split, ad, time]), axis=1, return_inverse=True)
  out = []
  for column in sums:
    total = np.zeros(cell.shape[1], np.int64)
    np.add.at(total, inverse, column)
    out.append(total)
  return [*cell, *out]


@dataclasses.dataclass(frozen=True)
class Numbers:
  """Where a partition's users stand in the columns of the whole log; [U] int64 each.

  Attributes:
    user: their numbers.
    requests: how many each has.
    firsts: the first row of each, by what is counted (SIZES).
  """

  user: np.ndarray
  requests: np.ndarray
  firsts: dict[str, np.ndarray]

  @classmethod
  def load(cls, tables: str, partition: int) -> "Numbers":
    """What `save` wrote."""
    with np.load(path_of(tables, "numbers", partition), allow_pickle=False) as saved:
      return cls(saved["user"], saved["requests"], {name: saved[f"{name}_first"] for name in SIZES})

  def save(self, tables: str, partition: int) -> None:
    """Writes `numbers/<partition>.npz`."""
    firsts = {f"{name}_first": first for name, first in self.firsts.items()}
    path = path_of(tables, "numbers", partition)
    save(path, user=self.user, requests=self.requests, **firsts)


def place(job: Job, partition: int) -> None:
  """Writes the partition's rows of the columns of the whole log."""
  part = job.read(partition)
  if part is None:
    return
  numbers = Numbers.load(job.tables, partition)
  log = part.log
  # Mapped for writing. Partitions write to places of their own, so no lock is needed.
  out = functools.partial(columns.load, job.tables, write=True)
  event_E = moved(log.user, numbers.firsts["events"])
  # Where a request begins, in the partition's own log.
  opens = np.append(True, log.request[1:] != log.request[:-1])
  request_R = moved(log.user[opens], numbers.firsts["requests"])
  found = {name: getattr(log, name) for name in EVENTS}
  found["user"] = numbers.user[log.user]
  found["request"] = request_R[log.request]
  for name, column in found.items():
    out(f"log/{name}")[event_E] = column
  text = b"".join(str(user).encode() for user in log.user_id)
  size_U = np.array([len(str(user).encode()) for user in log.user_id])
  # Each byte of the ids, by the user to whom it belongs.
  user_of = np.repeat(np.arange(len(size_U)), size_U)
  out("users/text")[moved(user_of, numbers.firsts["id_bytes"])] = np.frombuffer(text, np.uint8)
  out("users/end")[numbers.user] = numbers.firsts["id_bytes"] + size_U
  done = 0
  for _, _, bundle in bundles.bundles(log):
    lines = job.lines(bundle)
    here_R = request_R[done : done + len(lines.request_time)]
    done += len(here_R)
    _place_requests(out, job, numbers, lines, here_R)


def _place_requests(out, job: Job, numbers: Numbers, lines: Lines, request_R: np.ndarray) -> None:
  """Writes what the whole log has of a bundle's requests, of their outcomes, and of its lines."""
  followed = lines.outcomes
  size_R = np.diff(followed.first)
  row_P = moved(np.repeat(lines.request_user, size_R), numbers.firsts["outcomes"])
  # The first outcome of a request without one is where the user's next one stands.
  before_R = _within(lines.request_user, size_R)
  first_R = numbers.firsts["outcomes"][lines.request_user] + before_R
  for name, column in (
    ("user", numbers.user[lines.request_user]),
    ("time", lines.request_time),
    ("split", lines.request_split),
    ("outcome_first", first_R),
  ):
    out(f"requests/{name}")[request_R] = column
  for name in ("ad", "depth", "value"):
    out(f"outcomes/{name}")[row_P] = getattr(followed, name)
  out("outcomes/request")[row_P] = request_R[followed.request]
  kept = np.flatnonzero(lines.request_split[lines.request] < job.fitted)
  row_L = moved(lines.request_user[lines.request[kept]], numbers.firsts["lines"])
  out("lines/request")[row_L] = request_R[lines.request[kept]]
  out("lines/ad")[row_L] = lines.ad[kept]


def moved(user_n: np.ndarray, first_U: np.ndarray) -> np.ndarray:
  """[n] rows of what users have, each user's from `first_U` [U] on; a user's stand together."""
  opens = np.append(True, user_n[1:] != user_n[:-1])[: len(user_n)]
  # Where each user's run begins; the running number less it is the place in the run.
  start = np.flatnonzero(opens)
  return first_U[user_n] + np.arange(len(user_n)) - start[np.cumsum(opens) - 1]


def _within(user_n: np.ndarray, size_n: np.ndarray) -> np.ndarray:
  """[n] sums of the sizes of the same user's things before each; a user's stand together."""
  before = np.cumsum(size_n) - size_n
  opens = np.append(True, user_n[1:] != user_n[:-1])[: len(user_n)]
  start = np.flatnonzero(opens)
  return before - before[start[np.cumsum(opens) - 1]]


def counted(job: Job, *names: str) -> Iterator[tuple[int, list[np.ndarray]]]:
  """Some of what `count` wrote of each partition that has users: (partition, arrays)."""
  for partition in range(job.partitions):
    with np.load(path_of(job.tables, "counted", partition), allow_pickle=False) as saved:
      if len(saved["first"]):
        yield partition, [saved[name] for name in names]


def summed(job: Job) -> np.ndarray:
  """[2, splits] events and requests by split, of the whole log."""
  return sum(by_split for _, (by_split,) in counted(job, "by_split"))


def path_of(folder: str, name: str, partition: int) -> str:
  """Where the arrays of a partition lie."""
  return os.path.join(folder, name, f"{partition:05d}.npz")


def save(path: str, **arrays: np.ndarray) -> None:
  """Writes arrays, whole or not at all; without a checksum, as nobody else reads them."""
  with files.replacing(path, summed=False) as part:
    np.savez(part, **arrays)
