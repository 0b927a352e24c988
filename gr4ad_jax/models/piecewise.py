"""Piecewise linear encoding of numbers: a number becomes how far it passes each of some pieces.

Gorishniy et al., "On Embeddings for Numerical Features in Tabular Deep Learning", NeurIPS 2022.
"""

import jax
import jax.numpy as jnp
import numpy as np


def feature_edges(x_EF: np.ndarray, bins: int) -> np.ndarray:
  """Edges of a piecewise linear encoding: quantiles of each feature, those of its zeros (mostly
  'never') left out.

  Args:
    x_EF: a sample of pairs.
    bins: pieces of a feature.

  Returns:
    [F, bins + 1] float32, ascending; ties leave pieces of no width.
  """
  out = []
  for x_E in x_EF.T:
    some = x_E[x_E != 0] if (x_E != 0).any() else x_E
    edges = np.quantile(some, np.linspace(0, 1, bins + 1))
    if len(some) < len(x_E) and edges[0] > 0:
      edges[0] = 0.0
    out.append(edges)
  return np.asarray(out, np.float32)


def encode(x: jax.Array, edges_FQ: jax.Array) -> jax.Array:
  """Piecewise linear encoding: how far each piece is passed, 0 to 1; [..., F] -> [..., F *
  bins].
  """
  width = edges_FQ[:, 1:] - edges_FQ[:, :-1]
  slope = jnp.where(width > 1e-6, 1 / jnp.maximum(width, 1e-6), 0.0)
  passed = jnp.clip((x[..., None] - edges_FQ[:, :-1]) * slope, 0.0, 1.0)
  return passed.reshape(*x.shape[:-1], -1)
