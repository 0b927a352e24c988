"""The examples of a partition, into shards; and which are kept from before."""

import contextlib
import os

import numpy as np

from gr4ad_jax import checksums, files
from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.schema import DAY
from gr4ad_jax.examples import bundles, columns, mapped, spool
from gr4ad_jax.examples.stages import Job, Numbers, moved, path_of, save


def make(job: Job, partition: int) -> None:
  """Writes the shards, then `made/<partition>.npz`, where its examples lie in them, and last
  `made/<partition>.json`, with which it is done. No other partition's files are touched, so that
  machines that share a disk may make some each.
  """
  # Written last, so where it stands the partition is done.
  note = note_of(job, partition)
  if os.path.exists(note):
    return
  shards = _Shards(job, partition)
  part = job.read(partition)
  if part is not None:
    with shards:
      places = _made(job, partition, part, shards)
    save(path_of(job.tables, "made", partition), **places)
  columns.write_note(note, shards.written)


def note_of(job: Job, partition: int) -> str:
  """Where it is said which shards a partition has."""
  return os.path.join(job.tables, "made", f"{partition:05d}.json")


def _made(
  job: Job, partition: int, part: spool.Partition, shards: "_Shards"
) -> dict[str, np.ndarray]:
  """Writes the examples; returns request, shard and row of each, and of those that are kept."""
  tables = mapped.load_tables(job)
  numbers = Numbers.load(job.tables, partition)
  log = part.log
  user_hash_U = spool.user_hashes(log.user_id)
  kept_U = _kept(job, partition, part)
  encoder = mapped.codec(job)
  # What is kept comes first: its places point into shards of earlier calls.
  places = [_carried(job, partition, kept_U, numbers)]
  for _, _, bundle in bundles.bundles(log):
    # The first event of each request says whose it is.
    user_R = bundle.user[np.append(True, bundle.request[1:] != bundle.request[:-1])]
    request_R = moved(user_R, numbers.firsts["requests"])
    # The number of a request among those of its user, from 0.
    rank_R = request_R - numbers.firsts["requests"][user_R]
    named = bundles.renamed(bundle, numbers.user)
    # Only what is not kept is made again.
    for some in bundles.examples_of(named, tables, rank_R >= kept_U[user_R]):
      hashes = user_hash_U[user_R[some.request_B]]
      records = encoder.encode(some.known, some.followed, some.time_B, hashes)
      places.append((request_R[some.request_B], *shards.write(records, some.time_B)))
  names = "request", "shard", "row"
  return dict(zip(names, map(np.concatenate, zip(*places, strict=True)), strict=True))


def _kept(job: Job, partition: int, part: spool.Partition) -> np.ndarray:
  """[U] how many of each user's first requests keep the example that they have: those of which
  later events change neither history nor outcomes.
  """
  users = len(part.log.user_id)
  kept_U = np.zeros(users, np.int64)
  if not job.before or not os.path.exists(path_of(job.before, "numbers", partition)):
    return kept_U
  # Of the first users alone: new ones come last.
  old = Numbers.load(job.before, partition).requests
  # An event may change what followed requests of so long before it, or the visit that it belongs
  # to.
  reach = int(np.ceil(max(job.config.attribution_days * DAY, job.gap_seconds)))
  first = np.flatnonzero(np.append(True, part.log.request[1:] != part.log.request[:-1]))
  user_R = part.log.user[first]
  # Requests that began before anything that a new event can reach.
  early_R = part.log.time[first] < part.new_U[user_R] - reach
  # They are a prefix of a user's requests, so a number says which they are.
  same_U = np.bincount(user_R[early_R], minlength=users)
  kept_U[: len(old)] = np.minimum(same_U[: len(old)], old)
  return kept_U


def _carried(
  job: Job, partition: int, kept_U: np.ndarray, numbers: Numbers
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Request, shard and row of the examples that are kept."""
  none = np.zeros(0, np.int64)
  if not kept_U.any():
    return none, none, none
  old = Numbers.load(job.before, partition)
  user = np.repeat(np.arange(len(kept_U)), kept_U)
  # 0, 1, … within each user.
  rank = np.arange(len(user)) - np.repeat(np.cumsum(kept_U) - kept_U, kept_U)
  then = old.firsts["requests"][user] + rank
  places = (columns.load(job.before, f"places/{name}")[then] for name in ("shard", "row"))
  return numbers.firsts["requests"][user] + rank, *places


class _Shards:
  """The shards of one partition, one a run of days; a context manager, at whose end they take their
  places.

  Attributes:
    written: what is said of each shard, once they stand.
  """

  def __init__(self, job: Job, partition: int):
    self._job = job
    self._partition = partition
    self._open: dict[int, tuple] = {}
    self._stack = contextlib.ExitStack()
    self.written: list[dict] = []

  def write(self, records: list[bytes], time_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Appends records to the shards of their days; returns shard and row of each, [B]."""
    window_B = windows(time_B, self._job.shard_days)
    shard_B = np.empty(len(records), np.int64)
    row_B = np.empty(len(records), np.int64)
    for b, (record, window) in enumerate(zip(records, window_B.tolist(), strict=True)):
      # One writer for each run of days, opened when its first record comes.
      writer, about = self._open.get(window) or self._begin(window)
      writer.write(record)
      shard_B[b] = about["number"]
      row_B[b] = about["records"]
      about["records"] += 1
    return shard_B, row_B

  def _begin(self, window: int) -> tuple:
    name = f"{window:05d}-{self._partition:05d}.array_record"
    part = self._stack.enter_context(
      files.replacing(os.path.join(self._job.shards, name), summed=False)
    )
    # One record a chunk: batches are of single records from anywhere. The lowest level of zstd
    # takes 1 % more bytes than the usual one, and half of its time.
    writer = optional("array_record.python.array_record_module").ArrayRecordWriter(
      part, "group_size:1,zstd:1,max_parallelism:1"
    )
    first = int(columns.load(self._job.tables, "first_window")[0])
    # Numbers leave room for every pair of window and partition, so that machines need not agree.
    number = self._job.first_shard + (window - first) * self._job.partitions + self._partition
    self._open[window] = writer, {"number": number, "file": name, "records": 0}
    return self._open[window]

  def __enter__(self):
    return self

  def __exit__(self, *error):
    # Also after an error: writers hold files open.
    for writer, _ in self._open.values():
      writer.close()
    self._stack.__exit__(*error)
    if error[0] is None:
      for _, about in self._open.values():
        # Only now the files have their names, and are as long as they will be.
        path = os.path.join(self._job.shards, about["file"])
        size = {"bytes": os.path.getsize(path), "sha256": checksums.digest(path)}
        self.written.append(about | size)


def windows(time: np.ndarray, days: int) -> np.ndarray:
  """The run of so many days, counted from 1970, in which each moment lies; 0 days: all are one."""
  return np.asarray(time) // (days * DAY) if days else np.zeros(np.shape(time), np.int64)
