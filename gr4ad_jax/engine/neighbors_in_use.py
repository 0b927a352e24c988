"""The co-visit neighbours that belong to the checkpoint in use: a learner may have fitted others
than the run's.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gr4ad_jax.engine.reload import CheckpointSource
from gr4ad_jax.features.neighbors import CoVisitNeighbors
from gr4ad_jax.people import neighbors


class Version(NamedTuple):
  """Neighbours, and how many visits of the stream they know; 0: the run's own."""

  neighbors: CoVisitNeighbors
  visits: int


class NeighborsInUse:
  """Reads a checkpoint's neighbours, and gives them to those who read contexts.

  Args:
    own: of the run.
    source: knows which belong to a checkpoint.
    row_of: the row of an ad here; None: it is not known.
    takers: hear of other neighbours.

  Attributes:
    visits: of the version in use.
  """

  def __init__(
    self, own: CoVisitNeighbors, source: CheckpointSource, row_of: Callable[[str], int | None],
    takers: Sequence[Callable[[CoVisitNeighbors], None]],
  ):  # fmt: skip
    self._own = Version(own, 0)
    self._source = source
    self._row_of = row_of
    self._takers = tuple(takers)
    self.visits = 0

  def read(self, step: int) -> Version:
    """Those of a checkpoint. Raises FileNotFoundError, DamagedError where they cannot be read."""
    folder = self._source.neighbors(step)
    if not folder:
      return self._own
    fitted, visits = neighbors.load(folder, self._row_of)
    # What follows the visits are the counts. The run's towers, if it has some, stay.
    kept = dataclasses.replace(fitted, retriever=self._own.neighbors.retriever)
    return Version(kept, visits)

  def use(self, version: Version) -> None:
    """Gives them to all who read contexts. Call it between two batches."""
    # The run's own ones are in use from the start, and come back only after others.
    if self.visits or version.visits:
      for taker in self._takers:
        taker(version.neighbors)
    self.visits = version.visits
