"""Tables with one row an ad, cut by rows over the mesh.

Here are their size, their start, lookups, the best rows (top k), and the rows of a single step.

The compiler cuts most of it rightly by itself (docs/guide/scale.md has what was looked at). Of a
table that is cut by rows, `jnp.take` looks up on each device the rows that it holds and sums over
the devices, and the gradient stays where the rows are. What the compiler does not cut is a top k,
which is written here with `shard_map`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gr4ad_jax.parallel.mesh import DATA, LOGICAL_RULES

NAME = "items"
"""Name of the table of ads, among a model's parameters and in the optimiser's state of them."""

SMALL = 1 << 16  # rows: a smaller table is held whole where the mesh does not divide it
# Rows: the number of rows of a larger table is a multiple of this, so every mesh of 2^n <= 1,024
# devices divides it.
MULTIPLE = 1 << 10
_CHUNK = 64  # rows of each of MULTIPLE parts that are drawn at once

AXES = dict(LOGICAL_RULES)["vocab"]


def rows(ads: int) -> int:
  """Number of rows of a table of `ads` ads: for a large one the next multiple of `MULTIPLE`.

  Rows past the ads are never read.
  """
  return ads if ads < SMALL else -(-ads // MULTIPLE) * MULTIPLE


def normal(stddev: float) -> Callable[..., jax.Array]:
  """An initialiser (key, [N, D], dtype) -> normal numbers, for large tables.

  It needs memory for little more than the table. A plain one needs three times the table beside it
  where the generator's bits are not fused, as on CPU. This one sees the table as `MULTIPLE` runs of
  rows, and draws `_CHUNK` rows of each run at once. The numbers do not depend on the mesh.

  Args:
    stddev: standard deviation.
  """

  def init(key: jax.Array, shape: tuple[int, int], dtype=jnp.float32) -> jax.Array:
    number, width = shape
    if number < SMALL or number % MULTIPLE:
      return stddev * jax.random.normal(key, shape, dtype)
    run = number // MULTIPLE
    chunk = min(run, _CHUNK)

    # A last chunk that would not fit is moved back over the one before it: `dynamic_update_slice`
    # clamps the place where it writes.
    def put(i, table):
      drawn = stddev * jax.random.normal(
        jax.random.fold_in(key, i), (MULTIPLE, chunk, width), dtype
      )
      return jax.lax.dynamic_update_slice(table, drawn, (0, i * chunk, 0))

    # (MULTIPLE, run, D) -> (MULTIPLE · run, D). A mesh that divides MULTIPLE has whole runs on each
    # device, so a chunk is cut over the devices as the table is.
    table = jax.lax.fori_loop(0, -(-run // chunk), put, jnp.zeros((MULTIPLE, run, width), dtype))
    return table.reshape(shape)

  return init


def lookup(table_ND: jax.Array, row: jax.Array) -> jax.Array:
  """Rows of a table by their numbers [...], from 0: [..., D]. A number past the end reads the last.

  Args:
    table_ND: the table.
    row: integers of any shape.
  """
  # The default mode would answer NaN for such a number, at the cost of a mask.
  return jnp.take(table_ND, row, axis=0, mode="clip")


def mesh_of(params: Any) -> Mesh | None:
  """The mesh over which a model's table of ads is cut.

  None where the model has no table, where it is small, or where each device has all of it.
  """
  table = params.get(NAME)
  sharding = getattr(table, "sharding", None)
  cut = isinstance(sharding, NamedSharding) and not sharding.is_fully_replicated
  return sharding.mesh if cut and len(table) >= SMALL else None


def top_k(x_BN: jax.Array, k: int, mesh: Mesh | None = None) -> tuple[jax.Array, jax.Array]:
  """The k greatest values of each row, as `jax.lax.top_k` gives them.

  The greatest is first, and of equal ones that in the lower column.

  Args:
    x_BN: values. On a mesh their columns are cut as the rows of a table. No device gets more than
      its own columns and the k best of each other's.
    k: at most N.
    mesh: of the table; None: one device holds all columns.

  Returns:
    Values and columns, each [B, k].
  """
  B, N = x_BN.shape
  shards = math.prod(mesh.shape[axis] for axis in AXES) if mesh else 1
  if shards == 1 or N % shards:
    return jax.lax.top_k(x_BN, k)
  # Columns of each shard: all have as many.
  each = N // shards
  batch = DATA if B % mesh.shape[DATA] == 0 else None

  # The k best of all are among the k best of each part. Every device finds those of its columns,
  # and chooses from what all have found.
  def local(part_BN):
    value, column = jax.lax.top_k(part_BN, min(k, each))
    # From a column of the part to a column of the whole.
    column += jax.lax.axis_index(AXES) * each
    # [B, shards · k]. The shards stand in the order of their columns, and top k puts the earlier
    # of equal values first: so ties are in the order of the columns.
    value, column = (jax.lax.all_gather(x, AXES, axis=1, tiled=True) for x in (value, column))
    value, at = jax.lax.top_k(value, k)
    return value, jnp.take_along_axis(column, at, axis=1)

  # Each device of AXES finds the same. The check of replication (`check_vma`) cannot see that
  # through the top k, so it is off.
  cut = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=PartitionSpec(batch, AXES),
    out_specs=PartitionSpec(batch),
    check_vma=False,
  )
  return cut(x_BN)


def take_rows(state: Any, row_U: jax.Array) -> Any:
  """A train state with some rows only of the table of ads, and of what the optimiser holds by row.

  Args:
    state: pytree; leaves under the name NAME are [N, ...].
    row_U: distinct rows; numbers past the table stand for none.

  Returns:
    The same pytree; leaves under the name NAME are [U, ...].
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, x: lookup(x, row_U) if _of_table(path) else x, state
  )


def put_rows(state: Any, some: Any, row_U: jax.Array) -> Any:
  """The inverse of `take_rows`: `some`, with its rows put in their places in the tables of `state`.

  Args:
    state: pytree with the whole tables.
    some: pytree of the same structure, with the rows `row_U` of them.
    row_U: as of `take_rows`.
  """

  # "drop": numbers past the table, which stand for no row, write nothing.
  def put(path, whole, part):
    return whole.at[row_U].set(part, mode="drop", unique_indices=True) if _of_table(path) else part

  return jax.tree_util.tree_map_with_path(put, state, some)


def _of_table(path) -> bool:
  """Whether a path in a pytree ends with the name of the table of ads."""
  return getattr(path[-1], "key", None) == NAME
