"""What a server asks of histories: batches for them, and the users of a run's log by id."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from gr4ad_jax.builders.prepare import load_dataset
from gr4ad_jax.config import Config, DataConfig
from gr4ad_jax.data.promotions import Promotions
from gr4ad_jax.data.schema import Dataset, EventLog
from gr4ad_jax.features.batches import RequestBatch
from gr4ad_jax.features.contexts import AdColumns, contexts_at
from gr4ad_jax.features.histories import Histories
from gr4ad_jax.features.neighbors import CoVisitNeighbors, NeighborFolds
from gr4ad_jax.features.trends import Trends
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.requests import inputs


class ContextBuilder:
  """Makes batches for histories. Safe to call from several threads.

  Args:
    config: numbers of slots, as in training.
    trends: counts by day of all that is known; ads that it lacks have no line yet.
    neighbors: co-visit neighbours; ads that it lacks have none.
    ads: codes and prices of every ad that a history, the trends or the neighbours may name.
    promotions: with --promotions.
  """

  def __init__(
    self, config: DataConfig, trends: Trends, neighbors: CoVisitNeighbors, ads: AdColumns,
    promotions: Promotions | None = None,
  ):  # fmt: skip
    self._promotions = promotions
    self._config = config
    self._trends = trends
    self._ads = ads
    self._neighbors = NeighborFolds.of(neighbors)  # no user's visits are left out

  @property
  def end(self) -> int:
    """Where the counts end, unix seconds: the moment of a request that names none."""
    return self._trends.end

  def batch(self, histories: EventLog, now_B: np.ndarray) -> RequestBatch:
    """The contexts of B >= 1 requests, see `features.contexts.contexts_at`.

    The first batch of a day, and the first of all, take longer: they pass over all ads once to see
      which ones rise.

    Args:
      histories: events of the users 0 … B−1, who may have none.
      now_B: unix seconds of each request.
    """
    about = self._trends, self._neighbors, self._ads, self._config, self._promotions
    return contexts_at(histories, now_B, *about)


class UserHistories(Histories):
  """What is known of the users of a run's log, by user id."""

  @classmethod
  def of(cls, dataset: Dataset) -> "UserHistories":
    """All events of a data set, whatever their split."""
    return cls(dataset.events)

  @classmethod
  def load(cls, config: Config) -> "UserHistories":
    """The log that a run was trained on. Raises ConfigError where the log has changed since."""
    dataset = load_dataset(config.data)
    inputs.check_same_log(config, dataset)
    return cls.of(dataset)


@dataclasses.dataclass(frozen=True)
class Asked:
  """Users of a log who ask, each at a moment, as a `Ranker` takes them: numbers in, batches out.

  Attributes:
    builder: makes the contexts.
    histories: of the U users.
    now_U: unix seconds at which each asks.
    mesh: over whose devices batches are cut; None: they stay on the host.
  """

  builder: ContextBuilder
  histories: UserHistories
  now_U: np.ndarray
  mesh: Mesh | None = None

  def batch(self, users: np.ndarray) -> RequestBatch:
    """The batch of the users of these numbers."""
    made = self.builder.batch(self.histories.take(users), self.now_U[users])
    # With several devices, each gets its rows here, and none holds them all.
    return made if self.mesh is None else jax.device_put(made, mesh_lib.batch_sharding(self.mesh))


def padded(batch: RequestBatch, buckets: Sequence[int]) -> RequestBatch:
  """A batch filled up, with copies of its last row, to the next bucket; `buckets` ascend."""
  size = len(batch.slot_kind_BS)
  # The first bucket that holds the batch.
  extra = next(bucket for bucket in buckets if bucket >= size) - size
  return (
    jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], extra, axis=0)]), batch)
    if extra
    else batch
  )
