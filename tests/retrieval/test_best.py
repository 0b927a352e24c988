"""The best of rows of scores."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gr4ad_jax.retrieval.best import top_k


@settings(max_examples=40, deadline=None)
@given(
  st.integers(1, 8),
  st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=1, max_size=5),
)
def test_top_k_is_a_stable_sort(k, scores):
  scores = np.array(scores, np.float32)
  expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
  np.testing.assert_array_equal(top_k(scores, k), expected)
