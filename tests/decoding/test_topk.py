"""Every way to the k best gives the same as sorting."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr4ad_jax.decoding import topk


@pytest.mark.parametrize("method", ["off", "blocks", "beams"])
@settings(max_examples=25, deadline=None)
@given(
  shape=st.sampled_from([(2, 1, 5), (1, 3, 40), (2, 8, 33), (1, 16, 64)]),
  k=st.integers(1, 40),
  empty=st.floats(0, 1),
  seed=st.integers(0, 999),
)
def test_the_k_best_are_those_of_a_sort(method, shape, k, empty, seed):
  B, W, C = shape
  k = min(k, W * C)
  rng = np.random.default_rng(seed)
  x = rng.permutation(B * W * C).reshape(B, W * C).astype(np.float32)  # no two are equal
  x[rng.random(x.shape) < empty] = -np.inf
  value, at = jax.device_get(topk.top_k(x.reshape(shape), k, method))
  np.testing.assert_array_equal(value, -np.sort(-x, axis=1)[:, :k])
  np.testing.assert_array_equal(np.take_along_axis(x, at, axis=1), value)
  for b in range(B):
    real = at[b][np.isfinite(value[b])]
    assert len(set(real.tolist())) == len(real)


def test_merging_in_more_candidates_equals_looking_at_all_at_once():
  rng = np.random.default_rng(0)
  x, more = rng.permutation(80).astype(np.float32).reshape(2, 40), 80 + rng.normal(-40, 40, (2, 7)).astype(np.float32)
  value, at = topk.merge_top_k(*topk.top_k(x.reshape(2, 4, 10), 12, "off"), more, 40, 15)
  whole = np.concatenate([x, more], axis=1)
  kept = np.concatenate([-np.sort(-x, axis=1)[:, :12], more], axis=1)  # 12 of the first were kept
  np.testing.assert_array_equal(value, -np.sort(-kept, axis=1)[:, :15])
  np.testing.assert_array_equal(np.take_along_axis(whole, np.asarray(at), axis=1), value)


def test_auto_cuts_long_rows_on_a_cpu_and_leaves_short_ones():
  assert jax.default_backend() != "cpu" or topk.choose("auto", 128 * 1024, 256) == "blocks"
  assert topk.choose("auto", 512, 512) == "off"
  assert topk.choose("beams", 512, 512) == "beams"
