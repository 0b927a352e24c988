"""Points [N, D] that outgrow a device or the memory: their nearest centroids, their sums.

They are read step by step, and each step is computed on all devices of a mesh.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.sid.nearest import (
  BLOCK,
  STEP,
  TILE,
  Shipped,
  Sliceable,
  nearest_of_step,
  opened,
  padded,
)

_NOWHERE = 2**31 - 1  # cluster of a row that only pads: beyond all, so its sum is dropped

ROWS = PartitionSpec(mesh_lib.AXES)
WHOLE = PartitionSpec()


class Rows:
  """Points cut by rows over all devices of a mesh.

  They are read from where they lie, once a pass, and never kept. What several processes share they
  must ask for together: every method but `chunks` and `mine` is a collective operation there.

  A device computes in tiles of `TILE` rows, and each process' rows are tiled from its first. So a
  row's distances do not depend on the number of devices, to the bit. Nor do they depend on the
  number of processes where all but the last bring a multiple of `TILE` rows; else they do by
  rounding.

  Attributes:
    num: N, over all processes.
    width: D.
    begin: number of this process' first row.
  """

  def __init__(self, local_ND: Sliceable, mesh: Mesh | None = None):
    """Takes the rows of this process.

    Args:
      local_ND: [n, D]. Process p of the mesh brings the p-th run of the N rows.
      mesh: devices to compute on, of all processes or of this one alone. None: all of this process.
    """
    self._local = local_ND
    self._mesh = mesh_lib.make_mesh(devices=jax.local_devices()) if mesh is None else mesh
    self._devices = len(self._mesh.local_devices)
    self._shared = self._devices < self._mesh.size  # some devices are of other processes
    size_P = self._each(np.int32(local_ND.shape[0]))
    self.num = int(size_P.sum())
    self.width = int(local_ND.shape[1])
    self.begin = int(size_P[: jax.process_index()].sum()) if self._shared else 0
    self._end = self.begin + int(local_ND.shape[0])

  def _each(self, value: np.ndarray) -> np.ndarray:
    """A value of every process, [P, ...]; int32 or float32, as JAX would cut others down."""
    return (
      np.asarray(multihost_utils.process_allgather(value))
      if self._shared
      else np.asarray(value)[None]
    )

  def most(self, value: np.ndarray) -> np.ndarray:
    """The greatest over all processes, number by number, of int32 or float32."""
    return self._each(value).max(axis=0)

  def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
    """This process' rows, a chunk at a time: number of the first, and the rows as float32."""
    for at in range(0, self._local.shape[0], STEP):
      yield self.begin + at, np.asarray(self._local[at : at + STEP], np.float32)

  def take(self, numbers: np.ndarray) -> np.ndarray:
    """[K, D] float32 rows by number, on every process."""
    # Read in ascending order, as `Sliceable` asks; each row goes to the place it was asked for at.
    order = np.argsort(numbers, kind="stable")
    mine = order[(numbers[order] >= self.begin) & (numbers[order] < self._end)]
    rows_KD = np.zeros((len(numbers), self.width), np.float32)
    if len(mine):
      rows_KD[mine] = self._local[numbers[mine] - self.begin]
    # A row is zeros on all processes but its own, so the sum is exact.
    return self._each(rows_KD).sum(axis=0) if self._shared else rows_KD

  def mine(self, value_N: np.ndarray) -> np.ndarray:
    """This process' part of an array of all rows."""
    return value_N[self.begin : self._end]

  def _gather(self, value_n: np.ndarray) -> np.ndarray:
    """Arrays of every process, one after the other, on every process."""
    if not self._shared:
      return value_n
    # The collective takes equal shapes: all are padded to the longest, then cut.
    size_P = self._each(np.int32(len(value_n)))
    padded = np.zeros((size_P.max(), *value_n.shape[1:]), value_n.dtype)
    padded[: len(value_n)] = value_n
    return np.concatenate(
      [part[:size] for part, size in zip(self._each(padded), size_P, strict=True)]
    )

  def _count(self, among: np.ndarray | None) -> int:
    """How many rows this process has among those numbers. None: all of them."""
    if among is None:
      return int(self._local.shape[0])
    return int(((among >= self.begin) & (among < self._end)).sum())

  def _steps(self, among: np.ndarray | None) -> Iterator[tuple[np.ndarray | slice, int, jax.Array]]:
    """Parts of the rows, each on the devices. Every process takes the same number of steps.

    Args:
      among: numbers of the rows to visit, ascending. None: all.

    Yields:
      The positions of the part in this process' points; how many rows of it count, as the rest only
      pads; and the [devices * rows, D] array of all processes.
    """
    here = (
      None if among is None else among[(among >= self.begin) & (among < self._end)] - self.begin
    )
    count = self._count(among)
    # Of all processes, so that none waits in a step that another does not take.
    most = int(self._each(np.int32(count)).max())
    tiles = -(-most // (TILE * self._devices))
    # A power of two of tiles a device: few shapes, so few compilations.
    rows = min(STEP, TILE << max(tiles - 1, 0).bit_length()) * self._devices
    for at in range(0, most, rows):
      size = max(0, min(rows, count - at))
      where = slice(at, at + size) if here is None else here[at : at + size]
      padded = np.zeros((rows, self.width), np.float32)
      if size:
        padded[:size] = self._local[where]
      yield where, size, self._put(padded)

  def _put(self, value: np.ndarray) -> jax.Array:
    """This process' rows, as its part of one array cut over the whole mesh."""
    size = len(value) // self._devices * self._mesh.size
    sharding = NamedSharding(self._mesh, ROWS)
    return jax.make_array_from_process_local_data(sharding, value, (size, *value.shape[1:]))

  def ship(self, centroids_CD: np.ndarray) -> Shipped:
    """Centroids on every device of the mesh, for any number of calls of `nearest`."""
    centroids_CD, half_C = padded(np.asarray(centroids_CD, np.float32))
    return Shipped(_whole_on(self._mesh, centroids_CD), half_C)

  def nearest(
    self,
    centroids: np.ndarray | Shipped,
    candidates: int,
    open_C: np.ndarray | None = None,
    among: np.ndarray | None = None,
    told: Callable[[int], None] | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroids of each row.

    Args:
      centroids: [C, D] float32 centroids, shipped here, or what `ship` made of them.
      candidates: R, how many. Those beyond the open ones are infinitely far, and name no centroid.
      open_C: which centroids count. None: all.
      among: numbers of the M rows to ask for, ascending. None: all.
      told: called with the number of rows done, of all processes.

    Returns:
      [M, R] int32 centroids, nearest first, and [M, R] float32 squared distances, on every process.
    """
    shipped = centroids if isinstance(centroids, Shipped) else self.ship(centroids)
    arguments = shipped.centroids_CD, _whole_on(self._mesh, opened(shipped.half_C, open_C))
    candidates = min(candidates, len(shipped.half_C))
    run = _nearest_on(self._mesh, candidates)
    shape = (self._count(among), candidates)
    found = np.empty(shape, np.int32), np.empty(shape, np.float32)
    # One step's answer waits: the next rows are read while the devices work.
    waiting = None
    done = 0
    filled = 0
    for _, size, x_BD in self._steps(among):
      if told:
        told(min(done, self.num))
      answer = filled, size, run(x_BD, *arguments)
      if waiting:
        _take(found, *waiting)
      # Dispatched, not read: reading would wait for the devices.
      waiting = answer
      done = done + x_BD.shape[0]
      filled = filled + size
    if waiting:
      _take(found, *waiting)
    return tuple(self._gather(part) for part in found)

  def sums(self, cluster_N: np.ndarray, num_clusters: int, unit_D: np.ndarray) -> np.ndarray:
    """Sum of the rows of each cluster, in whole units.

    Whole numbers are added exactly. So the sums are the same in any order and on any number of
    devices.

    Args:
      cluster_N: cluster of each row, of all processes.
      num_clusters: C.
      unit_D: powers of two. Values are rounded to multiples of them, and no sum may exceed 2^31 - 1
        of them.

    Returns:
      [C, D] int32.
    """
    cluster_n = self.mine(cluster_N)
    run = _sums_on(self._mesh)
    total = _zeros_on(self._mesh, -(-num_clusters // BLOCK) * BLOCK, self.width)
    units_D = _whole_on(self._mesh, (1 / unit_D).astype(np.float32))
    for where, size, x_BD in self._steps(None):
      cluster_B = np.full(x_BD.shape[0] // self._mesh.size * self._devices, _NOWHERE, np.int32)
      # Rows that only pad keep `_NOWHERE`, and add to no sum.
      cluster_B[:size] = cluster_n[where]
      # the step before: else all rows would soon wait in memory for a slow device
      total.block_until_ready()
      total = run(total, x_BD, self._put(cluster_B), units_D)
    return np.asarray(_total_on(self._mesh)(total).addressable_data(0))[:num_clusters]


class Residual:
  """Points less the centroids of their clusters, computed when rows are asked for."""

  def __init__(self, points_ND: Sliceable, centroids_CD: np.ndarray, cluster_N: np.ndarray):
    self.shape = points_ND.shape
    self._points = points_ND
    self._centroids = centroids_CD
    self._cluster = cluster_N

  def __getitem__(self, rows: Any) -> np.ndarray:
    return self._points[rows] - self._centroids[self._cluster[rows]]


def _whole_on(mesh: Mesh, value: np.ndarray) -> jax.Array:
  """The whole of an array on every device of a mesh. Each process must bring the same."""
  return jax.make_array_from_process_local_data(NamedSharding(mesh, WHOLE), value, value.shape)


@functools.lru_cache(maxsize=16)
def _nearest_on(mesh: Mesh, candidates: int):
  def run(x_BD, centroids_CD, half_C):
    return nearest_of_step(x_BD, centroids_CD, half_C, candidates)

  return jax.jit(
    jax.shard_map(run, mesh=mesh, in_specs=(ROWS, WHOLE, WHOLE), out_specs=(ROWS, ROWS))
  )


@functools.lru_cache(maxsize=4)
def _sums_on(mesh: Mesh):
  def run(total_1CD, x_BD, cluster_B, units_D):
    # Times a power of two is exact, so only `round` rounds. "drop" passes over `_NOWHERE`.
    whole_BD = jnp.round(x_BD * units_D).astype(jnp.int32)
    return total_1CD.at[0, cluster_B].add(whole_BD, mode="drop")

  mapped = jax.shard_map(run, mesh=mesh, in_specs=(ROWS, ROWS, ROWS, WHOLE), out_specs=ROWS)
  return jax.jit(mapped, donate_argnums=0)


def _zeros_on(mesh: Mesh, num_clusters: int, width: int) -> jax.Array:
  """Sums of each device, [devices, C, D], cut so that each has its own; added up at the end."""
  shape = (mesh.size, num_clusters, width)
  return jnp.zeros(shape, jnp.int32, device=NamedSharding(mesh, ROWS))


@functools.lru_cache(maxsize=4)
def _total_on(mesh: Mesh):
  return jax.jit(lambda total: total.sum(axis=0), out_shardings=NamedSharding(mesh, WHOLE))


def _take(found: tuple[np.ndarray, ...], at: int, size: int, answer: tuple[jax.Array, ...]) -> None:
  """Writes the first `size` rows that lie on this process' devices into `found`, from row `at`."""
  # Shards come in any order; their place in the whole array is the order of the rows.
  for to, value in zip(found, answer, strict=True):
    shards = sorted(value.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    to[at : at + size] = np.concatenate([np.asarray(shard.data) for shard in shards])[:size]
