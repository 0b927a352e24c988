"""Piecewise linear encoding, against a loop; the edges that a run fits stay as they are while it
learns.
"""

import numpy as np
import pytest

from gr4ad_jax.models import piecewise


def test_edges_are_quantiles_of_what_is_not_zero():
  rng = np.random.default_rng(0)
  some = np.exp(rng.normal(size=1000))
  x = np.stack([np.append(some, np.zeros(500)), rng.normal(size=1500), np.zeros(1500)], axis=1)
  edges = piecewise.feature_edges(x, 4)
  assert edges.shape == (3, 5) and edges.dtype == np.float32
  np.testing.assert_allclose(edges[0, 1:], np.quantile(some, [0.25, 0.5, 0.75, 1]), rtol=1e-5)
  assert edges[0, 0] == 0  # where what is positive begins to count
  np.testing.assert_allclose(edges[1], np.quantile(x[:, 1], np.linspace(0, 1, 5)), rtol=1e-5)
  assert not edges[2].any()


def test_the_first_edge_is_moved_to_zero_for_positive_numbers_with_zeros_alone():
  columns = {"positive": [1, 2, 3, 4], "with zeros": [0, 2, 3, 4], "both signs": [0, -2, 3, 4]}
  edges = piecewise.feature_edges(np.array(list(columns.values()), float).T, 1)
  np.testing.assert_array_equal(edges, [[1, 4], [0, 4], [-2, 4]])


def test_encoding_equals_a_loop():
  rng = np.random.default_rng(1)
  edges = np.sort(rng.normal(size=(3, 6)), axis=1).astype(np.float32)
  edges[1, 2:4] = edges[1, 2]  # a piece of no width
  x = rng.normal(size=(4, 2, 3)).astype(np.float32) * 2
  expected = np.zeros((4, 2, 3, 5))
  for place in np.ndindex(4, 2, 3):
    for piece in range(5):
      low, high = edges[place[-1], piece : piece + 2]
      expected[(*place, piece)] = (
        np.clip((x[place] - low) / (high - low), 0, 1) if high > low else 0
      )
  found = piecewise.encode(x, edges)
  assert found.shape == (4, 2, 15)
  np.testing.assert_allclose(found, expected.reshape(4, 2, 15), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("edges", [np.zeros((3, 5)), np.full((3, 5), 2.0)])
def test_edges_without_width_encode_nothing(edges):
  assert not np.asarray(piecewise.encode(np.ones((2, 3)), edges)).any()
