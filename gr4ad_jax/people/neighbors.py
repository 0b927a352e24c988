"""Co-visit neighbours that follow the visits: fitted again whenever so many have come.

A *version* is how many visits of the stream a fit knows, beside the run's own. So the same visits
give the same versions, whenever they come to be read.
"""

import dataclasses
import os
import threading
from collections.abc import Callable, Sequence

import numpy as np

from gr4ad_jax import files
from gr4ad_jax.features.neighbors import CoVisitNeighbors, NeighborFolds

_FILE = "neighbors.npz"


class GrowingNeighbors:
  """Neighbours of a run's visits and of those that came since. Safe to use from several threads.

  Visits come in groups. What a group knows is the newest version before it: none of its own visits
  is in it.

  Args:
    start: those of the run, version 0.
    request_L: [L] visit of each line that they were fitted on.
    ad_L: [L] ad row of each line.
    every: after how many visits they are fitted again; 0: never.

  Attributes:
    version: the newest.
  """

  def __init__(self, start: NeighborFolds, request_L: np.ndarray, ad_L: np.ndarray, every: int):
    self._request_L = request_L
    self._ad_L = ad_L
    self._every = every
    self._visits: list[np.ndarray] = []  # distinct ads of each visit of the stream
    self._known: dict[int, int] = {}  # version that a group knows
    self._fits = {0: start}
    self._lock = threading.Lock()  # of the fits
    self.version = 0

  def add(self, group: int, visits: Sequence[Sequence[int]]) -> None:
    """Adds a group's visits, each by the rows of its ads in the order in which they were taken."""
    if not self._every:
      return
    self._known[group] = self.version
    # Distinct, in order of first mention: an ad stands in a visit once.
    self._visits += [np.array(list(dict.fromkeys(ads)), np.int32) for ads in visits]
    if len(self._visits) - self.version >= self._every:
      self.version = len(self._visits)

  def version_of(self, group: int) -> int:
    """The version that a group knows."""
    return self._known.get(group, 0)

  def at(self, version: int) -> NeighborFolds:
    """The neighbours of a version, which are fitted when they are first asked for."""
    with self._lock:
      if version not in self._fits:
        self._fits[version] = NeighborFolds.of(self._fitted(version))
      return self._fits[version]

  def forget(self, before: int) -> None:
    """Lets go of what only groups before this one know."""
    self._known = {group: known for group, known in self._known.items() if group >= before}
    kept = {0, self.version, *self._known.values()}
    with self._lock:
      self._fits = {version: fit for version, fit in self._fits.items() if version in kept}

  def _fitted(self, version: int) -> CoVisitNeighbors:
    visits = self._visits[:version]
    # Behind the numbers of the run's visits.
    first = int(self._request_L.max(initial=-1)) + 1
    request = np.repeat(np.arange(first, first + version), [len(ads) for ads in visits])
    ad = np.concatenate([self._ad_L, *visits])
    # Rows of ads that came since the run are behind its own.
    start = self._fits[0].part(-1)
    num_ads = max(len(start.ids), int(ad.max(initial=-1)) + 1)
    request = np.concatenate([self._request_L, request])
    made = CoVisitNeighbors.fit(request, ad, num_ads, start.ids.shape[1])
    # Towers are the run's: they are trained, not counted, so they stay.
    return dataclasses.replace(made, retriever=start.retriever)


def save(folder: str, neighbors: CoVisitNeighbors, version: int, later: Sequence[str]) -> None:
  """Writes a version into a new folder.

  Args:
    folder: it must not exist.
    neighbors: of N ads.
    version: of them.
    later: ids of the last of these ads, those that the run does not know: other processes have them
      in other rows.
  """
  with files.new_folder(folder) as part:
    columns = {"ids": neighbors.ids, "cosine": neighbors.cosine}
    later_ids = np.array(later, str) if later else np.zeros(0, "U1")
    files.save_arrays(os.path.join(part, _FILE), version=version, later=later_ids, **columns)


def load(folder: str, row_of: Callable[[str], int | None]) -> tuple[CoVisitNeighbors, int]:
  """Reads what `save` wrote.

  Args:
    folder: where.
    row_of: the row of an ad here; None: it is not known here, and nobody's neighbour.

  Returns:
    The neighbours by the rows of this process, without the run's towers, and their version.

  Raises:
    FileNotFoundError, DamagedError: as `files.load_arrays`.
  """
  path = os.path.join(folder, _FILE)
  ids, cosine, later, version = files.load_arrays(path, "ids", "cosine", "later", "version")
  known = len(ids) - len(later)
  found = [row_of(str(ad_id)) for ad_id in later]
  own = np.array([-1 if row is None else row for row in found], np.int64)
  row_N = np.concatenate([np.arange(known), own])
  # -1 of the file, where there are fewer neighbours, takes the -1 behind the last row.
  moved = np.append(row_N, -1)[ids].astype(np.int32)
  size = max(known, int(row_N.max(initial=-1)) + 1)
  made = np.full((size, ids.shape[1]), -1, np.int32)
  score = np.zeros(made.shape, np.float32)
  here = row_N >= 0
  made[row_N[here]] = moved[here]
  score[row_N[here]] = np.where(moved[here] >= 0, cosine[here], 0)
  return CoVisitNeighbors(made, score), int(version)
