"""Directed counts against a loop, and vectors that put near what stands together."""

import math

import numpy as np

from gr4ad_jax.swing import cooccurrence


def test_directed_counts_equal_a_loop():
  rng = np.random.default_rng(0)
  user, ad = np.sort(rng.integers(0, 6, 60)), rng.integers(0, 9, 60)
  expected = np.zeros((9, 9))
  for i in range(60):
    for d in range(1, 4):
      if i + d < 60 and user[i] == user[i + d] and ad[i] != ad[i + d]:
        expected[ad[i], ad[i + d]] += 0.5 ** (d - 1)
  np.testing.assert_allclose(
    cooccurrence.directed_counts(user, ad, 9, 3, 0.5).toarray(), expected, rtol=1e-6
  )


def test_vectors_put_ads_of_one_group_near_each_other():
  rng = np.random.default_rng(1)
  user = np.repeat(np.arange(80), 6)
  ad = np.repeat(np.arange(80) % 2, 6) * 10 + rng.integers(
    0, 10, 480
  )  # users buy from 0..9 or from 10..19; 20 unsold
  vectors = cooccurrence.ppmi_vectors(user, ad, 21, 8)
  cosine = vectors[:20] @ vectors[:20].T / np.outer(*[np.linalg.norm(vectors[:20], axis=1)] * 2)
  same = np.equal.outer(np.arange(20) // 10, np.arange(20) // 10)
  assert cosine[same].mean() > cosine[~same].mean() + 0.2
  assert (vectors[20] == 0).all() and vectors.dtype == np.float32
  np.testing.assert_allclose(np.square(vectors[:20]).mean(), 1 / 8, rtol=1e-3)
  np.testing.assert_array_equal(vectors, cooccurrence.ppmi_vectors(user, ad, 21, 8))


def test_vectors_of_few_ads_are_padded_with_zeros():
  vectors = cooccurrence.ppmi_vectors(np.zeros(4, int), np.array([0, 1, 2, 0]), 3, 8)
  assert vectors.shape == (3, 8) and (vectors[:, 2:] == 0).all() and np.isfinite(vectors).all()


def test_ridge_finds_a_linear_map_and_shrinks_it():
  rng = np.random.default_rng(2)
  x, w = rng.normal(size=(400, 5)), rng.normal(size=(5, 3))
  np.testing.assert_allclose(cooccurrence.ridge(x, x @ w, 1e-6), w, atol=1e-4)
  assert np.abs(cooccurrence.ridge(x, x @ w, 1e4)).sum() < 0.2 * np.abs(w).sum()


def test_code_means_add_up_to_the_ads_mean_of_a_prefix():
  rng = np.random.default_rng(3)
  vectors = rng.normal(size=(50, 4)).astype(np.float32)
  codes = np.stack([rng.integers(0, 3, 50), rng.integers(0, 6, 50)], axis=1)
  first, second = cooccurrence.code_means(vectors, codes, (4, 6))
  assert first.shape == (4, 4) and (first[3] == 0).all()
  for code in range(3):
    np.testing.assert_allclose(first[code], vectors[codes[:, 0] == code].mean(0), rtol=1e-5)
  rest = vectors - first[codes[:, 0]]
  for code in range(6):
    np.testing.assert_allclose(
      second[code], rest[codes[:, 1] == code].mean(0), rtol=1e-4, atol=1e-6
    )


def test_joined_vectors_keep_both_neighbourhoods():
  rng = np.random.default_rng(4)
  taken, content = rng.normal(size=(40, 3)), 5 + 9 * rng.normal(size=(40, 4))
  whole = cooccurrence.joined(taken, content, 9)
  np.testing.assert_allclose(np.square(whole[:, :7]).mean() * 7, 1, rtol=1e-5)
  assert (whole[:, 7:] == 0).all() and whole.dtype == np.float32
  gram = sum(x @ x.T / np.square(x).sum() for x in (taken, content - content.mean(0)))
  np.testing.assert_allclose(whole @ whole.T / np.square(whole).sum(), gram / 2, atol=1e-6)


def test_a_following_line_counts_in_full_by_itself():
  user, ad = np.repeat([0, 1], 5), np.array([0, 1, 2, 3, 4, 4, 3, 2, 1, 0])
  found = cooccurrence.directed_counts(user, ad, 5, 2).toarray()
  expected = np.zeros((5, 5))
  for i in range(5):
    for j in range(5):
      expected[i, j] = abs(i - j) in (1, 2)
  np.testing.assert_array_equal(found, expected)


def test_vectors_are_those_of_positive_information():
  """Of pairs within 50 lines, .9 a line: log(count / (mass of the ad x smoothed share of the
  other)), above 0.
  """
  rng = np.random.default_rng(5)
  user, ad = (
    np.repeat([0, 1, 2, 3], 70),
    np.minimum(rng.integers(0, 11, 280), rng.integers(0, 14, 280)),
  )
  ad[user == 3] = 11 + ad[user == 3] % 5 % 3  # a part of the table that stands alone
  num_ads, width = 14, 5
  count = np.zeros((num_ads, num_ads))
  for i in range(280):
    for j in range(280):
      if i != j and abs(i - j) <= 50 and user[i] == user[j] and ad[i] != ad[j]:
        count[ad[i], ad[j]] += 0.9 ** (abs(i - j) - 1)
  mass = count.sum(1)
  smoothed = mass**0.75 / (mass**0.75).sum()
  information = np.zeros_like(count)
  for i in range(num_ads):
    for j in range(num_ads):
      if count[i, j] > 0:
        information[i, j] = max(math.log(count[i, j] / (mass[i] * smoothed[j])), 0)
  left, values, _ = np.linalg.svd(information)
  expected = left[:, :width] * np.sqrt(values[:width])
  expected /= np.sqrt(np.square(expected[mass > 0]).mean()) * np.sqrt(width)
  found = cooccurrence.ppmi_vectors(user, ad, num_ads, width)
  assert np.abs(np.diff(values[: width + 1])).min() > 1e-3  # the directions are told apart
  for d in range(width):  # but for their sign
    np.testing.assert_allclose(
      np.outer(found[:, d], found[:, d]), np.outer(expected[:, d], expected[:, d]), atol=2e-4
    )
  some = cooccurrence.ppmi_vectors(user, ad, num_ads, width, window=1, decay=0.5)
  assert np.abs(some - found).max() > 0.01


def test_a_log_without_a_pair_has_vectors_of_nothing():
  none = cooccurrence.ppmi_vectors(np.arange(4), np.arange(4), 4, 3)
  assert none.shape == (4, 3) and none.dtype == np.float32 and not none.any()


def test_ridge_solves_its_normal_equations():
  rng = np.random.default_rng(6)
  x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 3))
  for penalty, found in ((1.0, cooccurrence.ridge(x, y)), (7.5, cooccurrence.ridge(x, y, 7.5))):
    np.testing.assert_allclose(x.T @ (y - x @ found), penalty * found, atol=1e-5)
    assert found.dtype == np.float32


def test_joined_vectors_are_cut_to_their_width():
  rng = np.random.default_rng(7)
  taken, content = rng.normal(size=(20, 3)), 4 + rng.normal(size=(20, 5))
  whole, cut = cooccurrence.joined(taken, content, 8), cooccurrence.joined(taken, content, 2)
  assert cut.shape == (20, 2)
  np.testing.assert_allclose(np.square(cut).sum(1).mean(), 1, rtol=1e-5)
  scale = np.sqrt(np.square(whole[:, :2]).sum(1).mean())
  np.testing.assert_allclose(cut, whole[:, :2] / scale, rtol=1e-4, atol=1e-6)
