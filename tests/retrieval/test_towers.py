"""Two towers in NumPy against loops, and against the model that they are taken from."""

import functools

import numpy as np
import pytest

from gr4ad_jax.features.batches import HISTORY
from gr4ad_jax.requests import retriever
from gr4ad_jax.retrieval.towers import Retriever
from tests.models import tiny
from tests.zoo import item_reference as reference
from tests.zoo import test_item_forward as forward


@functools.lru_cache
def towers():
  params = forward.params_of("two_tower")
  return retriever.of_model(forward.build("two_tower"), params, tiny.NUM_ADS)


def read():
  """Ads of the histories, -1 elsewhere; features of the slots; features of the users."""
  batch = forward.BATCH
  ads_BS = np.where(batch.slot_kind_BS == HISTORY, batch.slot_ad_BS, -1)
  return ads_BS, batch.slot_features_BSF, batch.user_features_BF


def scores_by_loops():
  ads_BS, features_BSF, users_BF = read()
  p = forward.params_of("two_tower")
  of_ad = [reference.ad_tower(p, ad) for ad in range(tiny.NUM_ADS)]
  found = []
  for b in range(len(ads_BS)):
    about = features_BSF[b], users_BF[b], forward.HEADS, reference.keep
    state = reference.user_tower(p, [int(ad) for ad in ads_BS[b]], *about)
    found.append([state @ vector for vector in of_ad])
  return np.array(found)


def test_states_and_vectors_are_the_towers():
  ads_BS, features_BSF, users_BF = read()
  # Histories of several lengths, one of them empty.
  assert sorted({int((ads_S >= 0).sum()) for ads_S in ads_BS})[0] == 0
  state_BD = towers().states(ads_BS, features_BSF, users_BF)
  np.testing.assert_allclose(state_BD @ towers().ads_ND.T, scores_by_loops(), rtol=1e-4, atol=1e-4)
  # What stands in a slot that holds no ad is not read.
  other = np.where((ads_BS >= 0)[..., None], features_BSF, 7)
  np.testing.assert_array_equal(towers().states(ads_BS, other, users_BF), state_BD)


@pytest.mark.parametrize("slots", [1, 5, tiny.NUM_ADS + 3])
def test_the_best_unseen_ads_stand_first(slots):
  ads_BS, features_BSF, users_BF = read()
  ids, scores = towers().unseen(ads_BS, features_BSF, users_BF, slots)
  assert ids.shape == scores.shape == (len(ads_BS), slots)
  for b, of_ad in enumerate(scores_by_loops()):
    unseen = [ad for ad in range(tiny.NUM_ADS) if ad not in set(ads_BS[b].tolist())]
    best = sorted(unseen, key=lambda ad, of_ad=of_ad: -of_ad[ad])[:slots]
    assert ids[b].tolist() == best + [-1] * (slots - len(best))
    np.testing.assert_allclose(scores[b, : len(best)], of_ad[best], rtol=1e-4, atol=1e-4)
    assert not scores[b, len(best) :].any()


def test_ads_that_came_later_are_read_as_none_and_never_found():
  ads_BS, features_BSF, users_BF = read()
  later_BS = ads_BS.copy()
  later_BS[0, 0] = tiny.NUM_ADS + 4
  without_BS = ads_BS.copy()
  without_BS[0, 0] = -1
  found, expected = (
    towers().unseen(ads, features_BSF, users_BF, 4) for ads in (later_BS, without_BS)
  )
  np.testing.assert_array_equal(found[0], expected[0])
  np.testing.assert_array_equal(found[1], expected[1])
  assert (found[0] < tiny.NUM_ADS).all()


def test_many_requests_are_worked_on_in_pieces():
  ads_BS, features_BSF, users_BF = (np.concatenate([x] * 75) for x in read())
  assert len(ads_BS) > 256
  ids, _ = towers().unseen(ads_BS, features_BSF, users_BF, 3)
  few, _ = towers().unseen(*read(), 3)
  np.testing.assert_array_equal(ids, np.concatenate([few] * 75))


def test_equal_scores_stand_in_order_of_rows():
  same = towers()
  vectors = np.tile(same.ads_ND[:1], (tiny.NUM_ADS, 1))
  ids, _ = Retriever(vectors, same.read_ND, same.weights, same.heads).unseen(*read(), 4)
  assert (np.diff(ids, axis=1) > 0).all()


def test_they_are_kept_with_a_run(tmp_path):
  assert Retriever.load(str(tmp_path)) is None
  towers().save(str(tmp_path))
  kept = Retriever.load(str(tmp_path))
  np.testing.assert_array_equal(kept.ads_ND, towers().ads_ND)
  found, expected = (x.unseen(*read(), 5) for x in (kept, towers()))
  np.testing.assert_array_equal(found[0], expected[0])
  np.testing.assert_array_equal(found[1], expected[1])


def test_a_batch_without_any_history_has_states():
  ads_BS, features_BSF, users_BF = read()
  none_BS = np.full_like(ads_BS, -1)
  empty = int(np.flatnonzero((ads_BS < 0).all(axis=1))[0])
  found = towers().states(none_BS, features_BSF, users_BF)
  beside = towers().states(ads_BS, features_BSF, users_BF)
  np.testing.assert_allclose(found[empty], beside[empty], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose((found**2).sum(axis=1), 1, rtol=1e-5)
