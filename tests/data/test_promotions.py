"""What was displayed and mailed, looked up by ad, store and week."""

import dataclasses

import numpy as np
import pytest

from gr4ad_jax.data.promotions import DISPLAYED, FEATURES, MAILED, Promotions
from gr4ad_jax.files import DamagedError

WEEK = 7 * 86_400
START = 1_483_228_800
ADS, STORES, WEEKS = 5, 3, 4


@pytest.fixture(scope="module")
def drawn() -> tuple[Promotions, dict[tuple[int, int, int], int]]:
  """Forty entries, some twice with another kind, and what is true of each (ad, store, week)."""
  rng = np.random.default_rng(0)
  entries = rng.integers([0, 0, 0], [ADS, STORES, WEEKS], (40, 3))
  kind = rng.integers(1, 4, 40)
  true: dict[tuple[int, int, int], int] = {}
  for row, what in zip(map(tuple, entries.tolist()), kind.tolist(), strict=True):
    true[row] = true.get(row, 0) | what
  week_start = START + WEEK * np.arange(WEEKS)
  users = np.array(["a", "b", "c"], object)
  return Promotions.of(week_start, STORES, entries.T, kind, users, np.array([2, -1, 0])), true


def test_features_are_those_of_every_entry(drawn):
  promotions, true = drawn
  ad_BS = np.tile(np.arange(ADS), (STORES * WEEKS, 1))
  store_B, week_B = map(np.ravel, np.divmod(np.arange(STORES * WEEKS), WEEKS))
  # A moment in the middle of each week, and its first and last seconds.
  for second in (0, WEEK // 2, WEEK - 1):
    found = promotions.features(store_B, START + WEEK * week_B + second, ad_BS)
    assert found.shape == (STORES * WEEKS, ADS, len(FEATURES)) and found.dtype == np.float32
    for b in range(STORES * WEEKS):
      for ad in range(ADS):
        kind = true.get((ad, int(store_B[b]), int(week_B[b])), 0)
        assert found[b, ad].tolist() == [float(kind in (1, 3)), float(kind in (2, 3))]
  # The bits as files hold them.
  assert (DISPLAYED, MAILED) == (1, 2) and set(true.values()) == {1, 2, 3}
  assert 0 < len(true) < ADS * STORES * WEEKS


def test_what_is_not_known_is_0(drawn):
  promotions, true = drawn
  ad, store, week = next(iter(true))
  now = START + WEEK * week
  for at, moment, row in (
    (-1, now, ad),  # no store
    (store, START - 1, ad),  # before the first week
    (store, START + WEEK * WEEKS, ad),  # after the last
    (store, now, -1),  # padding
    (store, now, ADS + 7),  # an ad that came later
  ):
    assert not promotions.features(np.array([at]), np.array([moment]), np.array([[row]])).any()
  assert promotions.features(np.array([store]), np.array([now]), np.array([[ad]])).any()
  assert promotions.stores_of(["c", "b", "nobody", "a"]).tolist() == [0, -1, -1, 2]


def test_it_is_read_as_it_was_written(drawn, tmp_path):
  promotions, _ = drawn
  promotions.save(str(tmp_path))
  found = Promotions.load(str(tmp_path))
  for field in dataclasses.fields(Promotions):
    np.testing.assert_array_equal(getattr(found, field.name), getattr(promotions, field.name))
  path = tmp_path / "promotions.npz"
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(DamagedError, match="promotions.npz is damaged"):
    Promotions.load(str(tmp_path))
