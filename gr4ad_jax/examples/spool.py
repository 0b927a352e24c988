"""A log of any size on disk, partitioned by user: a piece for each of its files, a run of each
piece for each partition.

A partition holds all events of its users. It is read without the others, so memory is that of one
partition. A piece is an Arrow file whose p-th batch is what partition p has of it.
"""

import dataclasses
import hashlib
import os
import zlib
from collections.abc import Sequence

import numpy as np

from gr4ad_jax import checksums, files
from gr4ad_jax.data import visits
from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.schema import AdTable, EventLog
from gr4ad_jax.examples import columns
from gr4ad_jax.reading import tables
from gr4ad_jax.reading.checks import Cells
from gr4ad_jax.reading.tables import EventRules

_KINDS = {
  "ad": np.int32,
  "time": np.int64,
  "behavior": np.int8,
  "value": np.float32,
  "quantity": np.float32,
}


@dataclasses.dataclass(frozen=True)
class Piece:
  """One file of the log, as it lies in the spool.

  Attributes:
    name: of the source file, without its folder.
    digest: SHA-256 of the source file.
    rows: of the source file.
    events: rows that were kept; the others name an ad that the table lacks.
    ads: rows of the ad table then.
    ads_digest: of their ids: a piece names ads by their rows.
  """

  name: str
  digest: str
  rows: int
  events: int
  ads: int
  ads_digest: str


def digest_of_ids(ad_id: np.ndarray) -> str:
  """SHA-256 of the ids of ads, in their order."""
  return hashlib.sha256("\0".join(map(str, ad_id)).encode()).hexdigest()


def path_of(folder: str, number: int) -> str:
  """Where a piece lies."""
  return os.path.join(folder, f"{number:05d}.arrow")


def found(folder: str, number: int) -> Piece | None:
  """What is said of a piece that lies whole in the spool; None: there is none."""
  path = os.path.join(folder, f"{number:05d}.json")
  return Piece(**columns.read_note(path)) if os.path.exists(path) else None


def add(
  folder: str, number: int, source: str, cells: dict[str, Cells], ads: AdTable, rules: EventRules,
  partitions: int, rows_before: int,
) -> Piece:  # fmt: skip
  """Writes a piece, and then what is said of it: where that stands, the piece is whole.

  Args:
    folder: of the spool.
    number: of the piece; pieces are read in this order.
    source: file of the log that was read.
    cells: its checked columns.
    ads: the ad table.
    rules: how a log is read.
    partitions: P.
    rows_before: rows of the source files before this one.

  Raises:
    DataError: a bad cell, or an ad that the table lacks.
  """
  user_id, column, known_E = tables.event_columns(cells, ads, rules)
  user_E = column["user"]
  # A user's first row counts even where its ad is unknown: users are numbered by it.
  every_E = cells["user_id"].ids()[0]
  # Past the end where a user has no row, so that the minimum below replaces it.
  first_U = np.full(len(user_id), len(every_E), np.int64)
  np.minimum.at(first_U, every_E, np.arange(len(every_E)))
  made = {name: column[name].astype(kind) for name, kind in _KINDS.items()}
  # Rows count on over the files, so that users are numbered as in the whole log.
  made["first"] = first_U[user_E] + rows_before
  if "request" in column:
    # By a hash of its name: a visit may go on in the next file, where it has another number.
    code_E, names = cells["request_id"].ids()
    made["request"] = _hashes(names)[code_E][known_E]
  # CRC-32 is the same on every machine; `hash` is not.
  partition_U = np.array([zlib.crc32(user.encode()) % partitions for user in user_id.tolist()])
  partition_E = partition_U[user_E]
  # Stable, so that a partition keeps the order of the file.
  order = np.argsort(partition_E, kind="stable")
  # Where the run of each partition begins.
  bounds = np.searchsorted(partition_E[order], np.arange(partitions + 1))
  _write(path_of(folder, number), user_id[user_E[order]], made, order, bounds)
  piece = Piece(
    name=os.path.basename(source),
    digest=checksums.digest(source),
    rows=len(every_E),
    events=len(user_E),
    ads=len(ads),
    ads_digest=digest_of_ids(ads.ad_id),
  )
  columns.write_note(os.path.join(folder, f"{number:05d}.json"), dataclasses.asdict(piece))
  return piece


def _write(
  path: str, user_E: np.ndarray, made: dict[str, np.ndarray], order: np.ndarray,
  bounds: np.ndarray,
) -> None:  # fmt: skip
  """One batch a partition; `user_E` stands in `order` already."""
  arrow = optional("pyarrow")
  arrays = [arrow.array(user_E, arrow.large_string())]
  arrays += [arrow.array(column[order]) for column in made.values()]
  batch = arrow.record_batch(arrays, ["user", *made])
  options = arrow.ipc.IpcWriteOptions(compression="zstd")
  with files.replacing(path, summed=False) as part, arrow.OSFile(part, "wb") as sink:
    with arrow.ipc.new_file(sink, batch.schema, options=options) as writer:
      for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        writer.write_batch(batch.slice(begin, end - begin))


def _hashes(names: np.ndarray) -> np.ndarray:
  """[V] int64, a hash of each text."""
  # Hashes need not be distinct for ever, but for the visits of one user.
  made = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names.tolist())
  return np.frombuffer(b"".join(made), np.int64)


def user_hashes(user_id: np.ndarray) -> np.ndarray:
  """[U] uint64, a hash of each user's id."""
  return _hashes(user_id).view(np.uint64)


@dataclasses.dataclass(frozen=True)
class Partition:
  """The events of some users, all that they have.

  Attributes:
    log: in order; its users are those of the partition, in the order of `first_U`.
    first_U: [U] int64, the row in which the whole log first names each user.
    new_U: [U] int64, unix seconds of each user's first event of the later pieces; the latest
      moment there is where he has none.
  """

  log: EventLog
  first_U: np.ndarray
  new_U: np.ndarray


def read(
  folder: str, pieces: Sequence[int], partition: int, gap_seconds: float, later: int = 0
) -> Partition | None:
  """A partition of the pieces of these numbers; None: it has no event.

  Args:
    folder: of the spool.
    pieces: numbers of its pieces, ascending.
    partition: its number.
    gap_seconds: a pause that starts a new visit, in a log without names of visits.
    later: the number of the first piece whose events are new.
  """
  arrow = optional("pyarrow")
  batches = []
  for number in pieces:
    with arrow.OSFile(path_of(folder, number)) as source:
      # Only this partition's batch is read: the file knows where each of them lies.
      batches.append(arrow.ipc.open_file(source).get_batch(partition))
  is_new = np.repeat([number >= later for number in pieces], [batch.num_rows for batch in batches])
  # One chunk, so that columns come out as plain arrays.
  table = arrow.Table.from_batches(batches).combine_chunks()
  if not table.num_rows:
    return None
  column = {
    name: table[name].to_numpy() for name in table.column_names if name not in ("user", "first")
  }
  encoded = table["user"].combine_chunks().dictionary_encode()
  users = encoded.dictionary.to_numpy(zero_copy_only=False)
  code_E = encoded.indices.to_numpy()
  first_U = np.full(len(users), np.iinfo(np.int64).max)
  np.minimum.at(first_U, code_E, table["first"].to_numpy())
  # Users by their first row in the log, whatever piece it stands in.
  # No two users share a first row, so any sort will do.
  order = np.argsort(first_U)
  number_U = np.empty(len(users), np.int64)
  number_U[order] = np.arange(len(users))
  user_E = number_U[code_E]
  # Of a user without a new event no moment is early enough.
  new_U = np.full(len(users), np.iinfo(np.int64).max)
  np.minimum.at(new_U, user_E[is_new], column["time"][is_new])
  if "request" in column:
    # Hashes of visits become small numbers; their order is made by time below.
    column["request"] = np.unique(column["request"], return_inverse=True)[1]
  log = visits.ordered_log(users[order], user=user_E, gap_seconds=gap_seconds, **column)
  return Partition(log, first_U[order], new_U)
