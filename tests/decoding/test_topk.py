"""Every way to the k best gives the same as sorting."""

import jax
import numpy as np
import pytest

from gr4ad_jax.decoding import topk


@pytest.mark.parametrize("method", ["off", "blocks", "beams"])
@pytest.mark.parametrize(
  ("W", "C", "k"), [(1, 5, 5), (3, 40, 1), (3, 40, 7), (8, 33, 12), (16, 64, 40), (2, 9, 11)]
)
def test_the_k_best_are_those_of_a_sort(method, W, C, k):
  B, rng, shape = 40, np.random.default_rng(W * C + k), (40, W, C)
  x = np.stack([rng.permutation(W * C) for _ in range(B)]).astype(
    np.float32
  )  # no two of a row are equal
  x[rng.random(x.shape) < rng.choice([0, 0.3, 0.9, 1], (B, 1))] = -np.inf
  value, at = jax.device_get(topk.top_k(x.reshape(shape), k, method))
  np.testing.assert_array_equal(value, -np.sort(-x, axis=1)[:, :k])
  np.testing.assert_array_equal(np.take_along_axis(x, at, axis=1), value)
  for b in range(B):
    real = at[b][np.isfinite(value[b])]
    assert len(set(real.tolist())) == len(real)


def test_merging_in_more_candidates_equals_looking_at_all_at_once():
  rng = np.random.default_rng(0)
  x, more = (
    rng.permutation(80).astype(np.float32).reshape(2, 40),
    80 + rng.normal(-40, 40, (2, 7)).astype(np.float32),
  )
  value, at = topk.merge_top_k(*topk.top_k(x.reshape(2, 4, 10), 12, "off"), more, 40, 15)
  whole = np.concatenate([x, more], axis=1)
  kept = np.concatenate([-np.sort(-x, axis=1)[:, :12], more], axis=1)  # 12 of the first were kept
  np.testing.assert_array_equal(value, -np.sort(-kept, axis=1)[:, :15])
  np.testing.assert_array_equal(np.take_along_axis(whole, np.asarray(at), axis=1), value)


def operands(shape, k, method):
  """Shapes of what each top k of a program looks through."""
  program = jax.make_jaxpr(lambda x: topk.top_k(x, k, method))(np.zeros(shape, np.float32))
  return [tuple(e.invars[0].aval.shape) for e in program.jaxpr.eqns if e.primitive.name == "top_k"]


@pytest.mark.parametrize(
  ("method", "shape", "k", "looked_through"),
  [
    ("off", (2, 3, 40), 5, [(2, 120)]),
    ("beams", (2, 3, 40), 5, [(2, 3, 40), (2, 15)]),
    ("beams", (2, 3, 4), 5, [(2, 3, 4), (2, 12)]),
    ("beams", (2, 3, 4), 12, [(2, 12)]),
    ("blocks", (2, 3, 40), 5, [(2, 8), (2, 80)]),
    ("blocks", (2, 1, 128), 7, [(2, 8), (2, 112)]),
    ("blocks", (2, 3, 40), 8, [(2, 120)]),
  ],
)
def test_a_precut_looks_through_groups_first_where_that_leaves_anything_out(
  method, shape, k, looked_through
):
  assert operands(shape, k, method) == looked_through


@pytest.mark.parametrize("method", ["off", "blocks", "beams"])
def test_rows_of_nothing_have_positions_that_exist(method):
  value, at = jax.device_get(topk.top_k(np.full((2, 3, 13), -np.inf, np.float32), 2, method))
  assert np.isneginf(value).all() and (at >= 0).all() and (at < 39).all()
  one = np.full((1, 3, 13), -np.inf, np.float32)
  one[0, 2, 12] = -5
  value, at = jax.device_get(topk.top_k(one, 2, method))
  assert value[0].tolist() == [-5, -np.inf] and at[0, 0] == 38 and 0 <= at[0, 1] < 39


def test_of_equal_values_those_found_first_stand_before_those_merged_in():
  value, at = topk.merge_top_k(
    np.float32([[5, 3, 3]]), np.int32([[7, 1, 4]]), np.float32([[3, 5, 9]]), 20, 5
  )
  assert value.tolist() == [[9, 5, 5, 3, 3]] and at.tolist() == [[22, 7, 21, 1, 4]]


@pytest.mark.parametrize(("backend", "cut"), [("cpu", "blocks"), ("gpu", "blocks"), ("tpu", "off")])
def test_auto_cuts_long_rows_where_they_would_be_sorted(backend, cut, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  assert topk.choose("auto", 128 * 1024, 256) == cut
  assert topk.choose("auto", 512, 512) == "off"
  assert [topk.choose("auto", 64 * 3 + more, 3) for more in (-1, 0, 1)] == ["off", cut, cut]
  assert topk.choose("beams", 512, 512) == "beams"
