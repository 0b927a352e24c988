"""Examples as bytes."""

import dataclasses

import numpy as np
import pytest

from gr4ad_jax.config import DataConfig
from gr4ad_jax.examples import records
from gr4ad_jax.examples.records import KEPT, LEVELS, Codec
from gr4ad_jax.features.batches import SLOT_FEATURES, USER_FEATURES, Known
from gr4ad_jax.features.pair_features import CODE_FEATURES
from gr4ad_jax.features.targets import Followed

CONFIG = DataConfig(history_slots=4, neighbor_slots=2, rising_slots=1)


def some(requests=5, seed=0):
  """What is known of requests, a slot of each empty, and what followed; one without an outcome."""
  rng = np.random.default_rng(seed)
  ads = rng.integers(0, 99, (requests, 7)).astype(np.int32)
  ads[:, 3] = -1
  features = rng.normal(size=(requests, 7, len(SLOT_FEATURES))).astype(np.float32)
  features[ads < 0] = 0
  for name in CODE_FEATURES:
    features[..., SLOT_FEATURES.index(name)] = 0
  decay = rng.uniform(0.1, 9, (requests, 4))
  decay[:, 3] = 0
  features[:, :4, SLOT_FEATURES.index("decayed_count")] = np.log1p(decay)
  users = rng.normal(size=(requests, len(USER_FEATURES))).astype(np.float32)
  known = Known(ads, features, users, rng.uniform(0, 9, requests).astype(np.float32), decay)
  size = np.arange(requests)[::-1].astype(np.int64)
  total = int(size.sum())
  columns = (
    rng.integers(0, 99, total).astype(np.int32),
    rng.integers(0, 3, total).astype(np.int8),
    rng.uniform(0, 1e6, total).astype(np.float32),
  )
  hashes = rng.integers(0, 1 << 63, requests).astype(np.uint64)
  return known, Followed(np.zeros_like(size), size, *columns), 1_700_000_000 + size, hashes


def test_the_exact_form_gives_every_bit_back():
  written = some()
  found = Codec(CONFIG).decode(Codec(CONFIG).encode(*written))
  for wanted, back in zip(written[:2], found[:2], strict=True):
    for name, one, two in zip(wanted._fields, wanted, back, strict=True):
      np.testing.assert_array_equal(one, two, err_msg=name)
      assert one.dtype == two.dtype, name
  np.testing.assert_array_equal(written[2], found[2])
  np.testing.assert_array_equal(written[3], found[3])


@pytest.mark.parametrize(("form", "error"), [("float16", 0.002), ("bytes", 0.05)])
def test_smaller_forms_round_features_and_keep_all_else(form, error):
  known, followed, time, hashes = some(requests=300)
  levels = records.fit_levels(known) if form == "bytes" else None
  codec = Codec(CONFIG, form, levels)
  back, after, _, _ = codec.decode(codec.encode(known, followed, time, hashes))
  assert codec.bytes_of(7, 2) < Codec(CONFIG).bytes_of(7, 2) / (2.9 if form == "bytes" else 1.5)
  for name in ("slot_ad_BS", "user_features_BF", "user_value_B"):
    np.testing.assert_array_equal(getattr(known, name), getattr(back, name))
  for name in ("size_B", "ad_P", "depth_P", "value_P"):
    np.testing.assert_array_equal(getattr(followed, name), getattr(after, name))
  wrong = np.abs(known.slot_features_BSF - back.slot_features_BSF)
  assert 0 < wrong.mean() < error
  assert (back.slot_features_BSF[known.slot_ad_BS < 0] == 0).all()
  real = known.decay_BH > 0
  assert (back.decay_BH[~real] == 0).all()
  np.testing.assert_allclose(back.decay_BH[real], known.decay_BH[real], rtol=40 * error)


def test_a_byte_holds_each_of_few_values_and_the_nearest_of_many():
  known = some(requests=400)[0]
  few, many = KEPT.index("depth"), KEPT.index("price")
  features = known.slot_features_BSF.copy()
  slots = known.slot_ad_BS >= 0
  features[..., SLOT_FEATURES.index("depth")] = np.where(slots, known.slot_ad_BS % 3, 0)
  levels = records.fit_levels(known._replace(slot_features_BSF=features))
  assert levels.shape == (len(KEPT), LEVELS) and (np.diff(levels, axis=1) >= 0).all()
  assert (levels == 0).any(axis=1).all()
  assert sorted(set(levels[few].tolist())) == [0, 1, 2]
  codec = Codec(CONFIG, "bytes", levels)
  column = features[..., SLOT_FEATURES.index("price")]
  places = [SLOT_FEATURES.index(name) for name in KEPT]
  code = codec._nearest(features.reshape(-1, len(SLOT_FEATURES)).T[places])[many]
  code = code.reshape(column.shape)
  nearest = np.abs(column[..., None] - levels[many]).min(axis=-1)
  np.testing.assert_allclose(np.abs(levels[many][code] - column), nearest, atol=1e-6)


def test_no_feature_by_codes_is_kept():
  assert not set(KEPT) & set(CODE_FEATURES)
  assert set(KEPT) | set(CODE_FEATURES) == set(SLOT_FEATURES)
  assert dataclasses.astuple(Codec(CONFIG))[1] == "exact"


def test_the_nearest_level_is_that_of_a_search():
  """Levels that crowd, levels that are one, values on the halves and far from all."""
  rng = np.random.default_rng(3)
  levels_FV = np.zeros((5, LEVELS), np.float32)
  levels_FV[0] = np.sort(rng.normal(size=LEVELS))
  levels_FV[1] = np.sort(rng.pareto(0.3, LEVELS))  # nearly all in one of the table's bins
  levels_FV[2, 100:] = 1
  levels_FV[3] = np.sort(rng.integers(-3, 3, LEVELS))
  # The last feature has one value, 0, alone.
  middle_FV = (levels_FV[:, 1:] + levels_FV[:, :-1]) / 2
  value_Fn = np.concatenate(
    [middle_FV, np.nextafter(middle_FV, np.float32(9)), levels_FV, np.full((5, 2), (-1e30, 1e30))],
    axis=1, dtype=np.float32,
  )  # fmt: skip
  found = records._Nearest(levels_FV)(value_Fn)
  for middle_V, value_n, code_n in zip(middle_FV, value_Fn, found, strict=True):
    np.testing.assert_array_equal(code_n, np.searchsorted(middle_V, value_n))


def test_a_slot_without_an_ad_takes_a_bit():
  known, followed, time, hashes = some(requests=4)
  codec = Codec(CONFIG)
  written = codec.encode(known, followed, time, hashes)
  for record, ads, outcomes in zip(written, known.slot_ad_BS, followed.size_B, strict=True):
    assert len(record) == codec.bytes_of(int((ads >= 0).sum()), int(outcomes))
