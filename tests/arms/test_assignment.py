"""Users come to arms in the shares that were meant, and stay; another salt shuffles them."""

import numpy as np
import pytest
from scipy import stats

from gr4ad_jax.arms import assignment
from gr4ad_jax.knobs import ConfigError

USERS = [f"user{number}" for number in range(6_000)]


def test_shares_and_places():
  shares = {"frozen": 0.2, "learning": 0.5, "wide": 0.3}
  arms = [assignment.arm_of(user, shares, "spring") for user in USERS]
  counts = [arms.count(name) for name in shares]
  meant = [share * len(USERS) for share in shares.values()]
  assert stats.chisquare(counts, meant).pvalue > 0.001
  places = np.array([assignment.place(user, "spring") for user in USERS])
  assert stats.kstest(places, "uniform").pvalue > 0.001
  assert (places >= 0).all() and (places < 1).all()


def test_a_user_stays_and_arms_are_a_hash_that_is_written_down():
  # Other values would move users between arms of experiments that run.
  assert assignment.place("17850", "spring") == pytest.approx(0.5690658704033817, abs=1e-15)
  shares = {"a": 0.5, "b": 0.5}
  assert assignment.arm_of("17850", shares, "spring") == assignment.arm_of(
    "17850", dict(shares), "spring"
  )


def test_another_salt_shuffles_anew():
  shares = {"a": 0.5, "b": 0.5}
  one = np.array([assignment.arm_of(user, shares, "one") == "a" for user in USERS])
  two = np.array([assignment.arm_of(user, shares, "two") == "a" for user in USERS])
  assert abs(np.mean(one == two) - 0.5) < 0.03
  assert assignment.place("bc", "a") != assignment.place("c", "ab")


def test_the_first_arm_keeps_its_users_when_a_later_one_is_split():
  before = {"a": 0.5, "b": 0.5}
  after = {"a": 0.5, "b": 0.25, "c": 0.25}
  for user in USERS[:500]:
    if assignment.arm_of(user, before, "s") == "a":
      assert assignment.arm_of(user, after, "s") == "a"


@pytest.mark.parametrize(
  ("shares", "words"),
  [
    ({}, "no arm"),
    ({"a": 0.5, "b": 0.4}, "sum to 0.9"),
    ({"a": 1.5}, "share 1.5 of arm a"),
    ({"a b": 1.0}, "arm 'a b'"),
  ],
)
def test_bad_shares_are_refused(shares, words):
  with pytest.raises(ConfigError, match=words):
    assignment.check_shares(shares, "--arms")
