"""The nearest centroids of points: the product that finds them, tile by tile, on one device.

`rows` asks the same of points on many devices, with the same bits.
"""

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

# Points whose distances to all centroids are held at once, [C, TILE]. Results depend on it by
# rounding, so it is the same for all devices and catalogues.
TILE = 512
STEP = 16 * TILE  # points a device is given at once, at most
BLOCK = 16  # centroids whose least distance is found first; C is padded to a multiple


class Sliceable(Protocol):
  """What is needed of points: an array, in memory or mapped, or a view that computes its rows."""

  shape: tuple[int, ...]

  def __getitem__(self, rows: Any) -> np.ndarray:
    """The rows of a slice, or of an ascending array of numbers."""


class Shipped(NamedTuple):
  """Centroids where they are computed with, padded to a multiple of `BLOCK`.

  Attributes:
    centroids_CD: on the devices.
    half_C: half their squared lengths, infinite for what only pads. They stay on the host, where
      clusters are closed (`opened`).
  """

  centroids_CD: jax.Array
  half_C: np.ndarray


def ship(centroids_CD: np.ndarray) -> Shipped:
  """Centroids on one device of this process, for any number of calls of `nearest`."""
  centroids_CD, half_C = padded(np.asarray(centroids_CD, np.float32))
  return Shipped(jax.device_put(centroids_CD), half_C)


def nearest(
  points_ND: Sliceable, centroids: np.ndarray | Shipped, candidates: int
) -> tuple[np.ndarray, np.ndarray]:
  """The nearest centroids of each point, on one device of this process, `STEP` points at a time.

  Args:
    points_ND: points. Few cost little, as they are only padded to a power of two.
    centroids: [C, D] centroids, or what `ship` made of them, which pays where there are many calls.
    candidates: R, how many, at most C.

  Returns:
    [N, R] int32 clusters, nearest first, and [N, R] float32 squared distances. Where R is 1, the
    lowest of equally near clusters is taken.
  """
  shipped = centroids if isinstance(centroids, Shipped) else ship(centroids)
  arguments = shipped.centroids_CD, jax.device_put(shipped.half_C)
  # Arrays of no rows, so that no point at all is answered with the right shapes.
  clusters = [np.zeros((0, candidates), np.int32)]
  distances = [np.zeros((0, candidates), np.float32)]
  for at in range(0, points_ND.shape[0], STEP):
    chunk = np.asarray(points_ND[at : at + STEP], np.float32)
    padded = np.zeros((1 << max(len(chunk) - 1, 0).bit_length(), chunk.shape[1]), np.float32)
    padded[: len(chunk)] = chunk
    cluster_BR, squared_BR = _nearest_alone(padded, *arguments, candidates)
    clusters.append(np.asarray(cluster_BR)[: len(chunk)])
    distances.append(np.asarray(squared_BR)[: len(chunk)])
  return np.concatenate(clusters), np.concatenate(distances)


def padded(centroids_CD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Centroids and half their squared lengths, padded to a multiple of `BLOCK`.

  What only pads counts as infinitely long, so it is nearest to nothing.
  """
  num = len(centroids_CD)
  half_C = np.full(-(-num // BLOCK) * BLOCK, np.inf, np.float32)
  half_C[:num] = 0.5 * (centroids_CD * centroids_CD).sum(axis=1)
  return np.pad(centroids_CD, ((0, len(half_C) - num), (0, 0))), half_C


def opened(half_C: np.ndarray, open_C: np.ndarray | None) -> np.ndarray:
  """Half squared lengths, infinite for centroids that are not open."""
  if open_C is None:
    return half_C
  return np.where(np.pad(open_C, (0, len(half_C) - len(open_C))), half_C, np.float32(np.inf))


def nearest_of_step(x_BD: jax.Array, centroids_CD: jax.Array, half_C: jax.Array, candidates: int):
  """([B, R] centroids, [B, R] squared distances), tile by tile."""
  tile = functools.partial(_nearest_of_tile, centroids_CD, half_C, candidates)
  if x_BD.shape[0] <= TILE:
    return tile(x_BD)
  parts = jax.lax.map(tile, x_BD.reshape(-1, TILE, x_BD.shape[1]))
  return jax.tree.map(lambda part: part.reshape(-1, candidates), parts)


def _nearest_of_tile(centroids_CD: jax.Array, half_C: jax.Array, candidates: int, x_TD: jax.Array):
  """The R nearest centroids of T points, with squared distances, both [T, R].

  Where C is large, the search is by blocks of centroids. No block but those of the R least minima
  can hold one of the R nearest.
  """
  C = len(half_C)
  T = len(x_TD)
  # In full float32: TF32, the default of some accelerators, would not tell near centroids apart.
  product_CT = jnp.matmul(centroids_CD, x_TD.T, precision=jax.lax.Precision.HIGHEST)
  # (C, 1) - (C, T) -> (C, T): (|x - c|² - |x|²) / 2, as |x|² is the same for all c.
  score_CT = half_C[:, None] - product_CT
  if C < 4 * BLOCK * candidates:
    least, at_TR = jax.lax.top_k(-score_CT.T, candidates)
  else:
    # (P, BLOCK, T) -> (P, T). Points last: on a CPU that is a minimum of whole vectors.
    minimum_PT = score_CT.reshape(C // BLOCK, BLOCK, T).min(axis=1)
    _, block_TR = jax.lax.top_k(-minimum_PT.T, candidates)
    # (T, R, 1) + (BLOCK,) -> (T, R·BLOCK): the centroids of the blocks that are kept.
    kept_TK = (block_TR[:, :, None] * BLOCK + jnp.arange(BLOCK)).reshape(T, candidates * BLOCK)
    score_TK = score_CT.at[kept_TK, jnp.arange(T)[:, None]].get(mode="promise_in_bounds")
    least, slot = jax.lax.top_k(-score_TK, candidates)
    at_TR = jnp.take_along_axis(kept_TK, slot, axis=1, mode="promise_in_bounds")
  # `least` is the negated score. Of a point upon its centroid rounding may leave less than 0.
  squared = (x_TD * x_TD).sum(axis=1, keepdims=True) - 2 * least
  return at_TR.astype(jnp.int32), jnp.maximum(squared, 0)


_nearest_alone = jax.jit(nearest_of_step, static_argnums=3)
