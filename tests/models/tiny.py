"""Models of a few hundred weights, and batches in which everything that can happen to a slot
does.
"""

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import numpy as np

from gr4ad_jax.config import DataConfig, ModelConfig
from gr4ad_jax.features.batches import HISTORY, NEIGHBOR, PADDING, RISING, zero_batch
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.models.history_bias import RATE

CODEBOOKS = (7, 5, 4)
ALL_CODES = np.array(
  list(itertools.product(*map(range, CODEBOOKS))), np.int32
)  # [140, 3], lexicographic
NUM_ADS = 30
DATA = DataConfig(history_slots=6, neighbor_slots=3, rising_slots=2, targets=4)
CONFIG = ModelConfig(
  layers=3, lazy_layers=2, width=16, heads=4, kv_groups=4, ecpm_bins=5, compute_dtype="float32"
)

jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)  # compiles in half the time


def code_id(codes):
  """Row of ALL_CODES of each UA-SID [..., 3]."""
  return np.ravel_multi_index(np.moveaxis(np.asarray(codes), -1, 0), CODEBOOKS)


def make_model(remat="none", **settings):
  return GR4AD(dataclasses.replace(CONFIG, **settings), CODEBOOKS, remat)


def make_params(model, seed=0, bias=0.0):
  """Random parameters, with no gate, bias or scale at a neutral value; `bias` is the history's."""
  # Knobs that move no shape are left aside, so that more models are traced together.
  config = dataclasses.replace(model.config, dropout=0.0, compute_dtype="float32")
  return _drawn(_shapes_of(model.clone(config=config, remat="none")), seed, bias)


def draw_params(module, *inputs, seed=0, bias=0.0, **settings):
  """As `make_params`, for any module; nothing is compiled."""
  return _drawn(_fresh_shapes(module, *inputs, **settings), seed, bias)


def _fresh_shapes(module, *inputs, **settings):
  return jax.eval_shape(
    lambda: nn.meta.unbox(module.init(jax.random.key(0), *inputs, **settings)["params"])
  )


@functools.cache
def _shapes_of(model):
  """Shapes of a model's parameters; equal models are traced once."""
  batch = zero_batch(DATA, len(CODEBOOKS))
  return _fresh_shapes(model, batch, batch.target_codes_BMT)


def _drawn(shapes, seed, bias):
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name, noise = path[-1].key, rng.normal(0, 0.3, leaf.shape).astype(np.float32)
    return {"kernel": noise, "scale": 1 + noise, "history_bias": np.float32(bias / RATE)}.get(
      name, 2 * noise
    )

  return jax.tree_util.tree_map_with_path(draw, shapes)


def make_batch(seed=0):
  """Four requests: a short history, a full one, none but other slots, and nothing at all.

  Some slots repeat a UA-SID, within a kind and across kinds; padding slots hold arbitrary codes and
  features.
  """
  rng = np.random.default_rng(seed)
  batch = zero_batch(DATA, len(CODEBOOKS), rows=4)
  counts = [(3, 3, 2), (6, 1, 0), (0, 2, 2), (0, 0, 0)]
  slots = (DATA.history_slots, DATA.neighbor_slots, DATA.rising_slots)
  kinds = np.repeat([HISTORY, NEIGHBOR, RISING], slots)
  place = np.concatenate([np.arange(most) for most in slots])  # of a slot among those of its kind
  kinds_BS = np.where(place < np.repeat(counts, slots, axis=1), kinds, PADDING).astype(np.int32)
  codes = ALL_CODES[rng.integers(0, len(ALL_CODES), batch.slot_kind_BS.shape)]
  codes[:, 2] = codes[:, 0]  # a UA-SID twice in the history
  codes[:, 6] = codes[:, 1]  # a neighbour that collides with it
  targets = ALL_CODES[rng.integers(0, len(ALL_CODES), batch.target_mask_BM.shape)]
  targets[:, 0] = codes[:, 1]
  ads_BS = np.argsort(rng.random((4, NUM_ADS)))[:, : sum(slots)]  # distinct in a request
  return batch._replace(
    slot_kind_BS=kinds_BS,
    slot_ad_BS=np.where(kinds_BS == PADDING, -1, ads_BS).astype(np.int32),
    slot_codes_BST=codes,
    slot_features_BSF=rng.normal(size=batch.slot_features_BSF.shape).astype(np.float32),
    user_features_BF=rng.normal(size=batch.user_features_BF.shape).astype(np.float32),
    target_ad_BM=rng.integers(0, NUM_ADS, batch.target_mask_BM.shape).astype(np.int32),
    target_codes_BMT=targets,
    target_mask_BM=rng.random(batch.target_mask_BM.shape) < 0.7,
    target_value_BM=rng.exponential(3.0, batch.target_value_BM.shape).astype(np.float32),
    target_depth_BM=rng.integers(0, 3, batch.target_depth_BM.shape).astype(np.int32),
    user_value_B=rng.exponential(3.0, batch.user_value_B.shape).astype(np.float32),
  )


def fresh(text):
  """An equal string that is another object, as one of a command line is: asking by `is` fails."""
  return "".join(list(text))


def every_code(batch):
  """[B, 140, 3]: all UA-SIDs, for each request."""
  return np.broadcast_to(ALL_CODES, (len(batch.slot_kind_BS), *ALL_CODES.shape))
