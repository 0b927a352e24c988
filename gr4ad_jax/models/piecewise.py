"""Piecewise linear encoding of numbers (docs/design/method.md §2.1).

The range of a feature is cut into pieces. A number becomes one value a piece: how far it has gone
through that piece, 0 to 1. A linear map of these can bend at every edge, where one of the number
alone is a straight line.

Source: Gorishniy et al., "On Embeddings for Numerical Features in Tabular Deep Learning", NeurIPS
2022.
"""

import jax
import jax.numpy as jnp
import numpy as np


def feature_edges(x_EF: np.ndarray, bins: int) -> np.ndarray:
  """Edges of a piecewise linear encoding: the quantiles of each feature, so pieces of equal counts.

  Zeros, which mostly mean 'never', are left out of the quantiles of a feature with other values.

  Args:
    x_EF: a sample, one row for each thing (a slot, a user, a pair) that has the F features.
    bins: pieces of a feature.

  Returns:
    [F, bins + 1] float32, ascending. Values that are often the same leave pieces of no width.
  """
  out = []
  for x_E in x_EF.T:
    some = x_E[x_E != 0] if (x_E != 0).any() else x_E
    edges = np.quantile(some, np.linspace(0, 1, bins + 1))
    # Where zeros were left out below all others, the first piece begins at 0. So 'never' is 0 in
    # every piece, and the least real value is not the same as 'never'.
    if len(some) < len(x_E) and edges[0] > 0:
      edges[0] = 0.0
    out.append(edges)
  return np.asarray(out, np.float32)


def encode(x: jax.Array, edges_FQ: jax.Array) -> jax.Array:
  """How far each number has gone through each piece, 0 to 1: [..., F] -> [..., F · bins].

  Args:
    x: numbers.
    edges_FQ: ascending edges of each feature; Q is bins + 1.
  """
  width = edges_FQ[:, 1:] - edges_FQ[:, :-1]
  # A piece of no width stays 0. The maximum keeps 1 / 0 out of the branch that is not taken.
  slope = jnp.where(width > 1e-6, 1 / jnp.maximum(width, 1e-6), 0.0)
  # (..., F, 1) - (F, bins) -> (..., F, bins), and the pieces of a feature stay together.
  passed = jnp.clip((x[..., None] - edges_FQ[:, :-1]) * slope, 0.0, 1.0)
  return passed.reshape(*x.shape[:-1], -1)
