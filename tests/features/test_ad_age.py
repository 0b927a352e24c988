"""How old an ad is at a moment (--ad_age): the last column, known before the ad's first event."""

import dataclasses
import json
import math

import numpy as np
import pytest

from gr4ad_jax.config import (
  Config,
  ConfigError,
  DataConfig,
  from_json,
  to_json,
  validate,
  with_knobs,
)
from gr4ad_jax.examples import preparing
from gr4ad_jax.features import ages, batches, feature_names
from gr4ad_jax.features.batches import RequestContexts, slot_features, zero_batch
from gr4ad_jax.features.lines import build_lines
from gr4ad_jax.features.neighbors import NeighborFolds
from gr4ad_jax.features.trends import Trends
from tests.features import logs

DAY = 86_400
CONFIG = DataConfig(history_slots=4, neighbor_slots=3, rising_slots=2, targets=3, ad_age=True)
CODES = np.random.default_rng(0).integers(0, 9, (logs.ADS, 3)).astype(np.int32)
PRICE = np.ones(logs.ADS, np.float32)


def contexts_of(events, created_N, config=CONFIG):
  lines = build_lines(events, logs.ADS)
  folds = NeighborFolds.fit(
    lines.request, lines.request_user[lines.request], lines.ad, logs.ADS, config.neighbor_folds
  )
  about = lines, CODES, PRICE, Trends.fit(lines, logs.ADS), folds, config
  return RequestContexts(*about, group_N=np.zeros(logs.ADS, int), created_N=created_N)


def age(created: int, now: int) -> float:
  """By hand: log(1 + days), 0 for an ad of the future, -1 where the date is not known."""
  if created < 0:
    return -1.0
  return math.log(1 + max(now - created, 0) / DAY)


def test_ages_of_slots_and_pairs_equal_a_loop_and_change_no_other_column():
  events = logs.make_log(seed=3, users=8)
  middle = int(np.median(events.time))
  # Before the log, within it, after it, and not known.
  created = np.resize(
    [middle - 400 * DAY, middle, middle + 5, events.time.max() + DAY, -1], logs.ADS
  )
  contexts = contexts_of(events, created)
  requests = np.arange(len(contexts.lines.request_time))
  batch = contexts.batch(requests)
  column = batch.slot_features_BSF[..., slot_features(DataConfig(ad_age=True)).index("ad_age")]
  kinds = set()
  for r in requests:
    now = int(contexts.lines.request_time[r])
    for s, ad in enumerate(batch.slot_ad_BS[r]):
      expected = age(int(created[ad]), now) if ad >= 0 else 0.0
      assert column[r, s] == pytest.approx(expected, abs=1e-6)
      kinds.add((ad >= 0) and (expected < 0, expected == 0))
  assert len(kinds) == 4  # padding, unknown, not yet there, and of some age
  ads = np.broadcast_to(np.append(np.arange(logs.ADS), -1), (len(requests), logs.ADS + 1))
  pairs = contexts.pairs.batch(requests, ads).pair_features_BCF
  for r in requests[::7]:
    now = int(contexts.lines.request_time[r])
    expected = [age(int(created[ad]), now) for ad in range(logs.ADS)] + [0.0]
    np.testing.assert_allclose(pairs[r, :, -1], expected, atol=1e-6)
  plain = contexts_of(events, None, dataclasses.replace(CONFIG, ad_age=False))
  np.testing.assert_array_equal(
    plain.batch(requests).slot_features_BSF, batch.slot_features_BSF[..., :-1]
  )
  np.testing.assert_array_equal(plain.pairs.batch(requests, ads).pair_features_BCF, pairs[..., :-1])


def test_an_ad_has_an_age_before_its_first_event():
  time_B = np.array([10 * DAY, 40 * DAY])
  popularity = Trends.empty(1)
  unsold = popularity.features(time_B, np.zeros((2, 1), int))
  np.testing.assert_array_equal(unsold[0], unsold[1])  # popularity cannot tell the two days apart
  found = ages.log_ages(np.array([9 * DAY]), time_B, np.zeros((2, 1), int))
  np.testing.assert_allclose(found[:, 0], np.log1p([1, 31]), rtol=1e-6)


def test_rows_past_the_table_have_no_date():
  found = ages.log_ages(np.array([0]), np.array([DAY]), np.array([[0, 1, 7]]))
  np.testing.assert_allclose(found, [[math.log(2), -1, -1]], rtol=1e-6)


def test_without_dates_an_age_is_refused():
  contexts = contexts_of(logs.make_log(seed=1, users=2), None)
  with pytest.raises(ValueError, match="created_N"):
    contexts.batch(np.arange(2))


def test_shapes_and_names_follow_the_knob(tmp_path):
  off = dataclasses.replace(CONFIG, ad_age=False)
  width = len(batches.SLOT_FEATURES)
  assert zero_batch(CONFIG, 3).slot_features_BSF.shape[-1] == width + 1
  assert zero_batch(off, 3).slot_features_BSF.shape[-1] == width
  assert (
    slot_features(DataConfig(ad_age=True))[:-1]
    == slot_features(DataConfig())
    == batches.SLOT_FEATURES
  )
  feature_names.save(str(tmp_path), DataConfig(ad_age=True))
  feature_names.check(str(tmp_path), DataConfig(ad_age=True))
  with pytest.raises(ConfigError, match="feature 'ad_age' of slots is not known"):
    feature_names.check(str(tmp_path), DataConfig())
  feature_names.save(str(tmp_path), DataConfig())
  with pytest.raises(ConfigError, match="feature 'ad_age' of slots is missing"):
    feature_names.check(str(tmp_path), DataConfig(ad_age=True))


def test_a_run_of_before_has_it_off_and_a_log_without_a_clock_cannot_have_it():
  saved = json.loads(to_json(Config()))
  del saved["data"]["ad_age"]
  assert from_json(json.dumps(saved)).data.ad_age is False
  with pytest.raises(ConfigError, match="--ad_age=True is not allowed: only false"):
    validate(with_knobs(Config(), {"ad_age": True, "behavior_features": False}))
  examples = {"dataset": "ad_log", "examples_path": "there", "ad_age": True}
  with pytest.raises(ConfigError, match=r"--ad_age=True is not allowed: only false, as --examples"):
    validate(with_knobs(Config(), examples))
  with pytest.raises(ConfigError, match="--ad_age=True is not allowed: examples hold no ages"):
    config = with_knobs(Config(), {"dataset": "ad_log", "ad_age": True})
    preparing.check(config, preparing.Options())
