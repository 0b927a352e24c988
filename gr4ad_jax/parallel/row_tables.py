"""Tables with a row an ad, cut by rows over the mesh: their size, start, lookups, best rows, and
the rows of one step.

The compiler cuts most of it rightly by itself (docs/guide/scale.md has what was looked at):
`jnp.take` of a table that is cut by rows looks up on each device the rows it holds and sums over
the devices, and its gradient stays on the shard. What it does not cut is a top k, which is written
here with `shard_map`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gr4ad_jax.parallel.mesh import DATA, LOGICAL_RULES

NAME = "items"
"""Name, among a model's parameters and the optimiser's state of them, of the table of ads."""

SMALL = 1 << 16  # rows: a smaller table is held whole where the mesh does not divide it
MULTIPLE = (
  1 << 10
)  # rows: of larger ones their number is a multiple of it, so every mesh of 2^n <= 1,024 divides it
_CHUNK = 64  # rows of each of MULTIPLE parts that are drawn at once

AXES = dict(LOGICAL_RULES)["vocab"]


def rows(ads: int) -> int:
  """Rows of a table of `ads` ads; of a large one a multiple that meshes divide. Those past the
  ads are never read.
  """
  return ads if ads < SMALL else -(-ads // MULTIPLE) * MULTIPLE


def normal(stddev: float) -> Callable[..., jax.Array]:
  """An initialiser (key, [N, D], dtype) -> normal numbers of a large table, in memory for little
  more than the table.

  A plain one needs three times the table beside it where the generator's bits are not fused, as on
  CPU. This one draws `_CHUNK` rows of each of `MULTIPLE` runs of rows at once. The numbers do not
  depend on the mesh.
  """

  def init(key: jax.Array, shape: tuple[int, int], dtype=jnp.float32) -> jax.Array:
    number, width = shape
    if number < SMALL or number % MULTIPLE:
      return stddev * jax.random.normal(key, shape, dtype)
    run = number // MULTIPLE
    chunk = min(run, _CHUNK)

    def put(i, table):  # a last chunk that would not fit is moved back over the one before it
      drawn = stddev * jax.random.normal(
        jax.random.fold_in(key, i), (MULTIPLE, chunk, width), dtype
      )
      return jax.lax.dynamic_update_slice(table, drawn, (0, i * chunk, 0))

    table = jax.lax.fori_loop(0, -(-run // chunk), put, jnp.zeros((MULTIPLE, run, width), dtype))
    return table.reshape(shape)

  return init


def lookup(table_ND: jax.Array, row: jax.Array) -> jax.Array:
  """Rows [...] of a table, of numbers from 0: [..., D]. A number past the last row reads that
  one.
  """
  return jnp.take(table_ND, row, axis=0, mode="clip")


def mesh_of(params: Any) -> Mesh | None:
  """The mesh over which the table of ads of a model's parameters is cut; None where it is small,
  or on each device.
  """
  table = params.get(NAME)
  sharding = getattr(table, "sharding", None)
  cut = isinstance(sharding, NamedSharding) and not sharding.is_fully_replicated
  return sharding.mesh if cut and len(table) >= SMALL else None


def top_k(x_BN: jax.Array, k: int, mesh: Mesh | None = None) -> tuple[jax.Array, jax.Array]:
  """The k greatest of each row, greatest first, the lower column first where they are equal:
  `jax.lax.top_k`.

  Args:
    x_BN: values; on a mesh, columns cut as the rows of a table. No device gets more than its
      columns and the k best of the others'.
    k: at most N.
    mesh: of the table; None: one device holds all columns.

  Returns:
    Values and columns, each [B, k].
  """
  B, N = x_BN.shape
  shards = math.prod(mesh.shape[axis] for axis in AXES) if mesh else 1
  if shards == 1 or N % shards:
    return jax.lax.top_k(x_BN, k)
  each = N // shards
  batch = DATA if B % mesh.shape[DATA] == 0 else None

  def local(part_BN):
    value, column = jax.lax.top_k(part_BN, min(k, each))
    column += jax.lax.axis_index(AXES) * each
    # [B, shards · k]: shards stand in the order of their columns, so a stable top k keeps ties in
    # order.
    value, column = (jax.lax.all_gather(x, AXES, axis=1, tiled=True) for x in (value, column))
    value, at = jax.lax.top_k(value, k)
    return value, jnp.take_along_axis(column, at, axis=1)

  # Each device of AXES finds the same, which the check of replication does not see through the top
  # k.
  cut = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=PartitionSpec(batch, AXES),
    out_specs=PartitionSpec(batch),
    check_vma=False,
  )
  return cut(x_BN)


def take_rows(state: Any, row_U: jax.Array) -> Any:
  """A train state that has some rows only of the table of ads and of what the optimiser holds for
  each row.

  Args:
    state: pytree; leaves under the name NAME are [N, ...].
    row_U: distinct rows; numbers past the table stand for none.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, x: lookup(x, row_U) if _of_table(path) else x, state
  )


def put_rows(state: Any, some: Any, row_U: jax.Array) -> Any:
  """The inverse of `take_rows`: the rows of `some` put in their places in `state`, all else
  taken from `some`.
  """

  def put(path, whole, part):
    return whole.at[row_U].set(part, mode="drop", unique_indices=True) if _of_table(path) else part

  return jax.tree_util.tree_map_with_path(put, state, some)


def _of_table(path) -> bool:
  return getattr(path[-1], "key", None) == NAME
