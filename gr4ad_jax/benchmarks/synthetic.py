"""Made-up catalogues and requests of any size, as speed does not depend on what they mean."""

import itertools

import flax.linen as nn
import jax
import numpy as np

from gr4ad_jax.config import DataConfig, ModelConfig
from gr4ad_jax.features.batches import HISTORY, RequestBatch, zero_batch
from gr4ad_jax.models.gr4ad import GR4AD


def catalogue(ads: int, codebooks: tuple[int, ...], seed: int = 0) -> np.ndarray:
  """[N, T] int32 codes of ads. The first codes follow a power law, as clusters of real ads do."""
  rng = np.random.default_rng(seed)
  levels = []
  for level, size in enumerate(codebooks):
    if level == len(codebooks) - 1:
      levels.append(rng.integers(0, size, ads))  # even, as a hash is
    else:
      weight = (1 + np.arange(size)) ** -0.5
      levels.append(rng.choice(size, ads, p=weight / weight.sum()))
  return np.stack(levels, axis=1).astype(np.int32)


def requests(codes_NT: np.ndarray, slots: int, rows: int, seed: int = 0) -> RequestBatch:
  """A batch of `rows` requests whose `slots` slots are all history, of ads of the catalogue."""
  rng = np.random.default_rng(seed)
  data = DataConfig(history_slots=slots, neighbor_slots=0, rising_slots=0, targets=1)
  batch = zero_batch(data, codes_NT.shape[1], rows)
  return batch._replace(
    slot_kind_BS=np.full_like(batch.slot_kind_BS, HISTORY),
    slot_codes_BST=codes_NT[rng.integers(0, len(codes_NT), batch.slot_kind_BS.shape)],
    slot_features_BSF=rng.normal(size=batch.slot_features_BSF.shape).astype(np.float32),
    user_features_BF=rng.normal(size=batch.user_features_BF.shape).astype(np.float32),
  )


def item_requests(ads: int, slots: int, rows: int, seed: int = 0) -> RequestBatch:
  """A batch of `rows` requests, each with `slots` distinct ads of history and another as target."""
  rng = np.random.default_rng(seed)
  data = DataConfig(history_slots=slots, neighbor_slots=0, rising_slots=0, targets=1)
  batch = zero_batch(data, 1, rows)
  # Without replacement within a request: the target is no ad of its history.
  drawn = np.stack([rng.choice(ads, slots + 1, replace=False) for _ in range(rows)]).astype(
    np.int32
  )
  return batch._replace(
    slot_kind_BS=np.full_like(batch.slot_kind_BS, HISTORY),
    slot_ad_BS=drawn[:, 1:],
    target_ad_BM=drawn[:, :1],
    target_mask_BM=np.ones_like(batch.target_mask_BM),
  )


def model(config: ModelConfig, codebooks: tuple[int, ...], slots: int, kind: type[GR4AD] = GR4AD):
  """A model with random parameters: (module, parameters on the device)."""
  module = kind(config, codebooks)
  batch = requests(np.zeros((1, len(codebooks)), np.int32), slots, 1)
  counter = itertools.count()

  # A kernel's first axis is its fan-in: entries of variance 1 / fan-in keep activations of one
  # size. Every leaf has a seed of its own.
  def draw(x):
    rng = np.random.default_rng(next(counter))
    return rng.normal(0, (x.shape[0] if x.ndim > 1 else 1) ** -0.5, x.shape).astype(np.float32)

  def init():
    return nn.meta.unbox(module.init(jax.random.key(0), batch, batch.target_codes_BMT)["params"])

  return module, jax.device_put(jax.tree.map(draw, jax.eval_shape(init)))
