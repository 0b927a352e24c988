"""Drift: shares and moves, against loops; and what is told."""

import math

import numpy as np
import pytest

from gr4ad_jax.config import DataConfig
from gr4ad_jax.features.batches import HISTORY, SLOT_FEATURES, zero_batch
from gr4ad_jax.learning import drift
from tests.learning.test_guard import requests_of


def batch_of(seed, move=0.0):
  rng = np.random.default_rng(seed)
  config = DataConfig(history_slots=6, neighbor_slots=2, rising_slots=2)
  batch = zero_batch(config, levels=3, rows=50)
  slots = rng.normal(size=batch.slot_features_BSF.shape).astype(np.float32)
  slots[..., SLOT_FEATURES.index("price")] += move
  kind = np.where(rng.random(batch.slot_kind_BS.shape) < 0.7, HISTORY, 0).astype(np.int32)
  slots[kind == 0] = 1e6  # of padding: nobody looks
  users = rng.normal(size=batch.user_features_BF.shape).astype(np.float32)
  return batch._replace(slot_features_BSF=slots, slot_kind_BS=kind, user_features_BF=users)


def test_shares_are_those_of_a_loop():
  rng = np.random.default_rng(1)
  logp = np.sort(np.log(rng.random((20, 12)) / 12), axis=1)[:, ::-1]
  logp[3, 4:] = -np.inf
  ads = np.stack([rng.permutation(30)[:12] for _ in range(20)])
  targets = [rng.choice(30, rng.integers(1, 9), replace=False) for _ in range(20)]
  predicted = sum(sum(math.exp(p) for p in row[:10]) for row in logp.tolist()) / 20
  found = sum(
    len(set(row[:10]) & set(some.tolist())) / len(some)
    for row, some in zip(ads.tolist(), targets, strict=True)
  )
  assert drift.predicted_share(logp) == pytest.approx(predicted)
  assert drift.found_share(ads, requests_of(targets)) == pytest.approx(found / 20)


def test_a_feature_that_moves_is_named_and_measured(caplog):
  watch = drift.Drift(batch_of(0), SLOT_FEATURES)
  logp = np.log(np.full((1, 10), 0.05))
  asked = np.arange(10)[None], requests_of([np.array([0, 20])]), 0.5
  still = watch.measure(batch_of(1), logp, *asked)
  assert still["features"] < drift.SHIFT and not caplog.records
  assert still["calibration"] == pytest.approx(1.0) and still["recall"] == 1.0
  moved = watch.measure(batch_of(1, move=3.0), logp, *asked)
  assert moved["features"] == pytest.approx(3.0, abs=0.3)
  assert "feature 'price'" in caplog.text


def test_what_is_too_sure_and_what_falls_is_told(caplog):
  watch = drift.Drift(batch_of(0), SLOT_FEATURES)
  about = batch_of(0), np.log(np.full((1, 10), 0.1)), np.arange(10)[None]
  seldom = requests_of([np.array([0, 20, 21, 22])])
  for _ in range(5):
    found = watch.measure(*about, seldom, 0.5)
  assert found["calibration"] == pytest.approx(0.25)
  assert "ten ads should have 1.000 of what is taken, and have 0.25 times that" in caplog.text
  assert "recall@10" not in caplog.text
  assert watch.measure(*about, seldom, 0.3)["recall"] == pytest.approx(0.6)
  assert "recall@10 is 0.3000, and was 0.5000" in caplog.text
