"""The context's slots: what training hides of them."""

import dataclasses

import jax
import numpy as np

from gr4ad_jax.config import ModelConfig
from gr4ad_jax.models.context import ContextProcessor

KINDS = 4
CONFIG = ModelConfig(width=8, heads=2, feature_bins=2, dropout=0.0, compute_dtype="float32")


def test_a_slot_keeps_all_of_its_features_or_none():
  rng = np.random.default_rng(5)
  codes_BSD = rng.normal(size=(3, 200, 8)).astype(np.float32)
  features_BSF = rng.normal(size=(3, 200, 5)).astype(np.float32)
  user_BF = rng.normal(size=(3, 2)).astype(np.float32)
  kind_BS = rng.integers(0, KINDS, (3, 200)).astype(np.int32)
  hiding = ContextProcessor(dataclasses.replace(CONFIG, feature_dropout=0.3), KINDS)
  params = hiding.init(jax.random.key(0), codes_BSD, kind_BS, features_BSF, user_BF, False)
  # Zero at the start: nothing would be encoded.
  edges = np.sort(rng.normal(size=(5, 3)), axis=1).ravel().astype(np.float32)
  params["params"]["slot_edges"] = params["params"]["slot_edges"].replace_boxed(edges)

  @jax.jit
  def slots(features_BSF, key):
    train = {"train": True, "rngs": {"dropout": key}}
    return hiding.apply(params, codes_BSD, kind_BS, features_BSF, user_BF, **train).slots_BSD

  shown_BSD = hiding.apply(params, codes_BSD, kind_BS, features_BSF, user_BF, False).slots_BSD
  none = np.zeros_like(features_BSF)
  hidden_BSD = hiding.apply(params, codes_BSD, kind_BS, none, user_BF, False).slots_BSD
  assert np.abs(shown_BSD - hidden_BSD).max(axis=2).min() > 1e-3  # each slot tells which it is
  found_BSD = slots(features_BSF, jax.random.key(1))
  is_shown_BS = np.abs(found_BSD - shown_BSD).max(axis=2) < 1e-5
  is_hidden_BS = np.abs(found_BSD - hidden_BSD).max(axis=2) < 1e-5
  assert (is_shown_BS ^ is_hidden_BS).all()
  # 600 slots: three tenths, and three standard deviations. Every request has both kinds.
  assert abs(is_hidden_BS.mean() - 0.3) < 0.06
  assert is_hidden_BS.any(axis=1).all() and is_shown_BS.any(axis=1).all()
  other_BSD = slots(features_BSF, jax.random.key(2))
  assert (np.abs(other_BSD - found_BSD).max(axis=2) > 1e-3).any()  # of each step its own draw
