"""Batches of a folder of examples: records from the shards, UA-SIDs looked up."""

import collections
import threading
from typing import Any

import numpy as np

from gr4ad_jax.config import ConfigError, DataConfig
from gr4ad_jax.data.extras import optional
from gr4ad_jax.examples.folder import ExampleFolder
from gr4ad_jax.examples.records import Codec
from gr4ad_jax.features.batches import RequestBatch, assembled

_OPEN = 256  # shards held open by a process


class ShardReader:
  """Records of shards, by shard and row. It may be sent to another process; safe for threads.

  Args:
    paths: of the shards, by number.
  """

  def __init__(self, paths: dict[int, str]):
    self._paths = paths
    self._open: collections.OrderedDict[int, Any] = collections.OrderedDict()
    self._lock = threading.Lock()

  def __reduce__(self):
    # Another process gets the paths, and opens files of its own.
    return ShardReader, (self._paths,)

  def read(self, shard_B: np.ndarray, row_B: np.ndarray) -> list[bytes]:
    """The records [B] of these places."""
    records: list[bytes] = [b""] * len(shard_B)
    order = np.argsort(shard_B, kind="stable")
    # Runs of one shard, so that each is asked once for all its rows.
    for some in np.split(order, np.flatnonzero(np.diff(shard_B[order])) + 1):
      # A reader has a position in its file, so one thread uses it at a time.
      with self._lock:
        found = self._reader(int(shard_B[some[0]])).read(row_B[some].tolist())
      for b, record in zip(some.tolist(), found, strict=True):
        records[b] = record
    return records

  def _reader(self, shard: int) -> Any:
    reader = self._open.get(shard)
    if reader is None:
      module = optional("array_record.python.array_record_module")
      # As its documentation says of random access: nothing is read ahead.
      reader = module.ArrayRecordReader(
        self._paths[shard], "readahead_buffer_size:0,max_parallelism:0"
      )
      self._open[shard] = reader
      # The one that was used longest ago stands first.
      if len(self._open) > _OPEN:
        self._open.popitem(last=False)[1].close()
    self._open.move_to_end(shard)
    return reader


class ExampleContexts:
  """Turns numbers of requests into batches, as `features.batches.RequestContexts` does, from
  examples on disk. It may be sent to another process.

  Args:
    folder: the examples.
    codes_NT: UA-SID of each ad.
    config: numbers of slots and targets.
    min_depth: shallowest behaviour that is a target.
  """

  def __init__(
    self, folder: ExampleFolder, codes_NT: np.ndarray, config: DataConfig, min_depth: int = 0
  ):
    self.codes_NT = codes_NT
    self.config = config
    self.min_depth = min_depth
    self._folder = folder
    self._codec: Codec = folder.codec(config)
    shards = folder.manifest["shards"]
    self._reader = ShardReader({shard["number"]: folder.shard_path(shard) for shard in shards})
    self._map()

  def _map(self) -> None:
    self._shard_R = self._folder.column("places/shard")
    self._row_R = self._folder.column("places/row")
    self._first_R = self._folder.column("requests/outcome_first")

  def __getstate__(self):
    # A mapped column would be sent as its content.
    return {name: value for name, value in vars(self).items() if not name.endswith("_R")}

  def __setstate__(self, state):
    vars(self).update(state)
    self._map()

  def batch(self, requests: np.ndarray, draw: np.ndarray | int = 0) -> RequestBatch:
    """The batch of `requests` [B]; `draw` picks their targets."""
    requests = np.asarray(requests)
    records = self._reader.read(self._shard_R[requests], self._row_R[requests])
    known, followed, _, _ = self._codec.decode(records)
    # Numbers of outcomes in the whole log; the shards do not have them.
    followed = followed._replace(first_B=self._first_R[requests])
    return assembled(known, followed, self.codes_NT, self.config, draw, self.min_depth)

  @property
  def pairs(self) -> Any:
    """Raises ConfigError: examples hold features of their slots alone."""
    raise ConfigError(
      "--examples_path is not allowed here: examples hold no features of other ads; name the log"
    )

  def slots(self, requests: np.ndarray) -> Any:
    """Raises ConfigError, as `pairs`."""
    del requests
    return self.pairs
