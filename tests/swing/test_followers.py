"""What followed the ads of a history, against a loop."""

import numpy as np
import pytest

from gr4ad_jax.swing.followers import Followers

USERS, ADS = 12, 9


@pytest.fixture(scope="module")
def lines():
  rng = np.random.default_rng(0)
  return np.sort(rng.integers(0, USERS, 260)), rng.integers(0, ADS, 260)


# Ten lines after an ad count, .8 of each distance, .7 of each ad of the history, the root of a
# count.
def share_by_hand(user_L, ad_L, history, repeats):
  after = np.zeros((ADS, ADS))
  for i, first in enumerate(ad_L):
    for d in range(1, 11):
      if i + d < len(ad_L) and user_L[i + d] == user_L[i] and ad_L[i + d] != first:
        after[first, ad_L[i + d]] += 0.8 ** (d - 1)
  mass = np.zeros(ADS)
  for age, ad in enumerate(reversed(history)):
    if after[ad].any():
      mass += 0.7**age * after[ad] / after[ad].sum() ** 0.5
  if not repeats:
    mass[history] = 0
  return mass / max(mass.sum(), 1e-9)


@pytest.mark.parametrize("repeats", [True, False])
def test_share_equals_a_loop(lines, repeats):
  memory, histories = Followers(*lines, ADS), [[3, 1, 7], [], [2], [8, 0, 4, 5]]
  history_BS = np.array([row + [-1] * (4 - len(row)) for row in histories])
  every_BN = np.broadcast_to(np.arange(ADS), (4, ADS))
  found_BN = memory.share(history_BS, every_BN, repeats)
  expected_BN = [share_by_hand(*lines, history, repeats) for history in histories]
  np.testing.assert_allclose(found_BN, expected_BN, atol=1e-6)
  np.testing.assert_allclose(found_BN.sum(axis=1), [1, 0, 1, 1], atol=1e-5)
  some_BK = np.array([[5, -1, 2], [0, 1, -1], [-1, -1, 2], [1, 1, 1]])
  some = np.where(some_BK >= 0, np.take_along_axis(found_BN, np.maximum(some_BK, 0), axis=1), 0)
  np.testing.assert_array_equal(memory.share(history_BS, some_BK, repeats), some)


@pytest.mark.parametrize("repeats", [True, False])
def test_best_are_those_of_the_largest_share(lines, repeats):
  memory, history_BS = Followers(*lines, ADS), np.array([[3, 1, 7], [-1, -1, -1], [2, -1, -1]])
  share_BN = memory.share(history_BS, np.broadcast_to(np.arange(ADS), (3, ADS)), repeats)
  for share_N, some, every in zip(
    share_BN,
    memory.best(history_BS, 2, repeats),
    memory.best(history_BS, ADS, repeats),
    strict=True,
  ):
    followed = np.flatnonzero(share_N)
    expected = followed[np.argsort(-share_N[followed], kind="stable")].tolist()
    assert every.tolist() == expected + [-1] * (ADS - len(expected))
    assert some.tolist() == every[:2].tolist()


def test_an_ad_that_nothing_followed_says_nothing():
  with np.errstate(all="raise"):  # nor is anything divided by the nothing that followed
    memory = Followers(np.array([0, 0, 1]), np.array([0, 1, 2]), 4)
  np.testing.assert_array_equal(
    memory.share(np.array([[2], [3]]), np.array([[0, 1], [0, 1]])), np.zeros((2, 2))
  )


def test_what_followed_the_oldest_ad_alone_is_shared_out():
  """Small masses are divided by their sum, not by more."""
  memory = Followers(np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 2]), 9)
  found = memory.share(np.array([[0, 4, 5, 6, 7, 8]]), np.array([[1, 2, 3]]))
  np.testing.assert_allclose(found, [[1 / 2.8, 1.8 / 2.8, 0]], rtol=1e-6)
  assert memory.best(np.array([[0, 4, 5, 6, 7, 8]]), 4).tolist() == [[2, 1, -1, -1]]
  np.testing.assert_allclose(
    memory.share(np.array([[1, 0]]), np.array([[2, 1]]), False), [[1, 0]], rtol=1e-6
  )


def test_of_equal_shares_the_lower_row_comes_first():
  memory = Followers(np.array([0, 0, 1, 1, 2, 2]), np.array([0, 3, 0, 1, 0, 2]), 5)
  assert memory.best(np.array([[0]]), 2).tolist() == [[1, 2]]
