"""Models of single ads against NumPy: states, scores and what is dropped in training."""

import collections
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.config import Config, ItemConfig, SidConfig, TrainConfig
from gr4ad_jax.features.batches import HISTORY, SLOT_FEATURES
from gr4ad_jax.models import layers
from gr4ad_jax.zoo import registry
from tests.models import tiny
from tests.zoo import item_reference as reference

LAYERS, HEADS, BIAS, DROPOUT, ENCODER_DROPOUT = 2, 4, -0.7, 0.25, 0.125
ASKED = np.random.default_rng(9).integers(
  0, tiny.NUM_ADS, (4, 5)
)  # ads that each request is asked for
ASKED[:, 0] = 0, tiny.NUM_ADS - 1, 0, 3
NAMES = ("sasrec", "hstu", "two_tower", "gr4ad_items", "gr4ad_items_both_ways")


def make_batch():
  """The tiny batch with histories of three ads, six, one and none; the first ad of the table is in
  two of them.

  Gaps are as a log has them, in days: hours to decades, falling but for one.
  """
  batch = tiny.make_batch()
  features, ads, kinds = (
    np.abs(batch.slot_features_BSF),
    batch.slot_ad_BS.copy(),
    batch.slot_kind_BS.copy(),
  )
  ads[2, 0], kinds[2, 0] = 11, HISTORY
  for b, slot in ((0, 2), (1, 1)):
    ads[b] = np.where(ads[b] == 0, ads[b, slot], ads[b])
    ads[b, slot] = 0
  days_BS = np.expm1(2 * features[..., SLOT_FEATURES.index("gap_days")])
  days_BS[0, :3] = 50, 7.3, 7.3
  days_BS[1, :6] = 30_000, 14_321, 900.5, 2.2, 3.7, 0.05
  features[..., SLOT_FEATURES.index("gap_days")] = np.log1p(days_BS) / 2
  return batch._replace(slot_features_BSF=features, slot_ad_BS=ads, slot_kind_BS=kinds), days_BS


BATCH, DAYS = make_batch()


def strange(batch):
  """`batch` with ads of the history that came after the training: the first number past the
  table, and a later one.
  """
  ads = batch.slot_ad_BS.copy()
  ads[1, 4], ads[1, 2], ads[0, 4] = tiny.NUM_ADS, tiny.NUM_ADS + 7, tiny.NUM_ADS
  return batch._replace(slot_ad_BS=ads)


def build(name, remat="none", **settings):
  causal = not name.endswith("_both_ways")
  settings = {
    "layers": LAYERS,
    "lazy_layers": 1,
    "heads": HEADS,
    "dropout": DROPOUT,
    "history_bias": True,
  } | settings
  model = dataclasses.replace(
    tiny.CONFIG, model=name.removesuffix("_both_ways"), encoder_layers=LAYERS,
    encoder_dropout=ENCODER_DROPOUT, encoder_causal=causal, **settings,
  )  # fmt: skip
  config = Config(
    model=model,
    items=ItemConfig(),
    sid=SidConfig(codebooks=tiny.CODEBOOKS),
    training=TrainConfig(remat=remat),
  )
  return registry.build(config, tiny.NUM_ADS)


@functools.lru_cache
def params_of(name):
  codes = (BATCH.target_codes_BMT,) if name.startswith("gr4ad_items") else ()
  return tiny.draw_params(build(name), BATCH, *codes, bias=BIAS)


def batch_of(name):
  return strange(BATCH) if name.startswith("gr4ad_items") else BATCH


def history_of(batch, b):
  """Ads of the history, oldest first, -1 in all other slots."""
  slots = zip(batch.slot_ad_BS[b], batch.slot_kind_BS[b], strict=True)
  return [int(ad) if kind == HISTORY else -1 for ad, kind in slots]


def states_by_hand(name, drop_of=lambda b: reference.keep):
  """[B, S + 1, D]."""
  p, batch, found = params_of(name), batch_of(name), []
  for b in range(len(batch.slot_ad_BS)):
    ads, drop = history_of(batch, b), drop_of(b)
    if name == "sasrec":
      states = reference.sasrec(p, ads, HEADS, LAYERS, drop)
    elif name == "hstu":
      states = reference.hstu(p, ads, DAYS[b], HEADS, LAYERS, drop)
    elif name == "two_tower":
      features = batch.slot_features_BSF[b], batch.user_features_BF[b]
      states = np.stack([reference.user_tower(p, ads, *features, HEADS, drop)] * (len(ads) + 1))
    else:
      states = reference.encoder(p, ads, HEADS, LAYERS, name == "gr4ad_items", tiny.NUM_ADS, drop)
    found.append(states)
  return np.stack(found)


def vector_by_hand(name, ad):
  p = params_of(name)
  return reference.ad_tower(p, ad) if name == "two_tower" else np.float64(p["items"][ad])


def last_by_hand(name, states):
  """States of the places that have seen the whole history."""
  batch = batch_of(name)
  return np.stack(
    [states[b, sum(ad >= 0 for ad in history_of(batch, b))] for b in range(len(states))]
  )


@functools.lru_cache
def outputs(name):
  """Everything that a model says of the batch, by one compiled program."""
  model, batch, found_BK = build(name), batch_of(name), asked_of(name)

  def everything(module, batch):
    states = module.states(batch)
    last = module.last_state(batch)
    said = {
      "states": states,
      "last": last,
      "every": module.scores(last),
      "some": module.scores_of(last, ASKED),
    }
    said |= {"vectors": module.vectors(ASKED), "bias": module.head_bias()}
    if name.startswith("gr4ad_items"):
      return said | {"read": module.read(batch), "found": module.item_scores(batch, found_BK)}
    return said | {"biased": module(batch)}

  return jax.device_get(
    tiny.jit(lambda p, b: model.apply({"params": p}, b, method=everything))(params_of(name), batch)
  )


def asked_of(name):
  """Ads that an item-level head may be asked for: any, those of the slots, the first past the
  table, padding.
  """
  slots = batch_of(name).slot_ad_BS[:, :8]
  return jnp.asarray(
    np.concatenate([ASKED, slots, np.full((4, 1), tiny.NUM_ADS), np.full((4, 1), -1)], axis=1)
  )


@pytest.mark.parametrize("name", NAMES)
def test_states_and_scores(name):
  found, expected = outputs(name), states_by_hand(name)
  np.testing.assert_allclose(found["states"], expected, rtol=1e-4, atol=2e-5)
  here = last_by_hand(name, expected)
  np.testing.assert_allclose(found["last"], here, rtol=1e-4, atol=2e-5)
  vectors_ND = np.stack([vector_by_hand(name, ad) for ad in range(tiny.NUM_ADS)])
  np.testing.assert_allclose(found["vectors"], vectors_ND[ASKED], rtol=1e-4, atol=2e-5)
  scores = here @ vectors_ND.T
  np.testing.assert_allclose(found["every"], scores, rtol=1e-4, atol=2e-4)
  np.testing.assert_allclose(
    found["some"], np.take_along_axis(scores, ASKED, axis=1), rtol=1e-4, atol=2e-4
  )
  np.testing.assert_allclose(found["bias"], BIAS, rtol=1e-6)


@pytest.mark.parametrize("name", ["sasrec", "hstu", "two_tower"])
def test_scores_of_a_request_have_the_bias_on_its_history(name):
  expected = last_by_hand(name, states_by_hand(name))
  for b, row in enumerate(outputs(name)["biased"]):
    scores = np.array([expected[b] @ vector_by_hand(name, ad) for ad in range(tiny.NUM_ADS)])
    for ad in history_of(BATCH, b):
      if ad >= 0:
        scores[ad] += BIAS
    np.testing.assert_allclose(row, scores, rtol=1e-4, atol=2e-4)


class Drops:
  """Stands in for dropout: each call in training multiplies by numbers that all differ from call
  to call.
  """

  def __init__(self):
    self.factors, self.rates, self._calls = {}, {}, collections.Counter()

  def __call__(self, next_fun, args, kwargs, context):
    module = context.module
    if not isinstance(module, layers.Dropout | nn.Dropout) or context.method_name != "__call__":
      return next_fun(*args, **kwargs)
    if nn.merge_param("deterministic", module.deterministic, kwargs.get("deterministic")):
      return args[0]
    path = "/".join(module.path)
    key = path, self._calls[path]
    self._calls[path] += 1
    self.rates[path] = module.rate
    self.factors[key] = np.random.default_rng(len(self.factors)).choice(
      [0.0, 0.5, 1.5], args[0].shape
    )
    return args[0] * jnp.asarray(self.factors[key], args[0].dtype)

  def of(self, b):
    """As the reference takes it, for request b."""
    return lambda path, call, x, *place: x * self.factors[path, call][(b, *place)]


DROPPED = {
  "sasrec": {"dropout": DROPOUT, "block_0/Dropout_0": DROPOUT, "block_1/Dropout_0": DROPOUT},
  "hstu": {"dropout": DROPOUT, "block_0/Dropout_0": DROPOUT, "block_1/Dropout_0": DROPOUT},
  "two_tower": {"dropout": DROPOUT},
  "gr4ad_items": dict.fromkeys(
    ("dropout", "encoder_0/Dropout_0", "encoder_1/Dropout_0"), ENCODER_DROPOUT
  ),
}


@pytest.mark.parametrize("name", list(DROPPED))
def test_what_is_dropped_in_training(name):
  """Rematerialised, too: a block whose flag of the training were no constant could not be."""
  model, drops = build(name, remat="full"), Drops()
  run = lambda p, b: model.apply({"params": p}, b, train=True, method="states")  # noqa: E731
  with nn.intercept_methods(drops):
    traced = tiny.jit(run).trace(params_of(name), batch_of(name))
  found = traced.lower().compile({"xla_backend_optimization_level": 0})(
    params_of(name), batch_of(name)
  )
  assert drops.rates == DROPPED[name]
  np.testing.assert_allclose(found, states_by_hand(name, drops.of), rtol=1e-4, atol=2e-5)
  if name != "two_tower":  # it has no blocks
    assert str(traced.jaxpr).count("checkpoint[") + str(traced.jaxpr).count("remat2[") == LAYERS


def test_the_decoder_reads_codes_vectors_and_states():
  """Slots carry codes, sqrt(D) times the ad's vector, and of the history the encoder's state
  after the ad.
  """
  name = "gr4ad_items"
  p, batch, read, states = (
    params_of(name),
    batch_of(name),
    outputs(name)["read"],
    states_by_hand(name),
  )
  expected = np.zeros(read.slots_BSD.shape)
  for b, s in np.ndindex(*batch.slot_ad_BS.shape):
    ad, codes = batch.slot_ad_BS[b, s], batch.slot_codes_BST[b, s]
    expected[b, s] = sum(p[f"codes_{t}"][code] for t, code in enumerate(codes))
    if 0 <= ad < tiny.NUM_ADS:
      expected[b, s] += np.sqrt(p["items"].shape[1]) * p["items"][ad]
    if history_of(batch, b)[s] >= 0:
      expected[b, s] += states[b, s + 1]
  np.testing.assert_allclose(read.slots_BSD, expected, rtol=1e-4, atol=5e-5)
  np.testing.assert_array_equal(read.user_BF, batch.user_features_BF)
  np.testing.assert_allclose(read.skip_BD, last_by_hand(name, states), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["gr4ad_items", "gr4ad_items_both_ways"])
def test_the_head_scores_the_ads_that_the_beams_found(name):
  """The bias is on ads of the history, which an ad of another slot is not; ads after the
  training have no vector.
  """
  p, batch, found_BK, found = (
    params_of(name),
    batch_of(name),
    np.asarray(asked_of(name)),
    outputs(name)["found"],
  )
  last = last_by_hand(name, states_by_hand(name))
  assert (found[found_BK < 0] == 0).all()
  for b, k in np.argwhere(found_BK >= 0):
    ad = int(found_BK[b, k])
    score = last[b] @ p["items"][ad] if ad < tiny.NUM_ADS else 0.0
    score += BIAS if ad in history_of(batch, b) else 0.0
    np.testing.assert_allclose(found[b, k], score, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["sasrec", "hstu", "two_tower", "gr4ad_items"])
def test_states_and_scores_of_a_bfloat16_model_are_float32(name):
  model = build(name, compute_dtype="bfloat16")

  def parts(module, batch):
    states = module.states(batch)
    return states, module.scores(states[:, 0]), module.scores_of(states[:, 0], jnp.asarray(ASKED))

  shapes = jax.eval_shape(
    lambda p: model.apply({"params": p}, BATCH, method=parts), params_of(name)
  )
  assert [x.dtype for x in shapes] == [jnp.float32] * 3


def test_without_a_bias_there_is_none():
  model = build("sasrec", history_bias=False)
  params = {name: part for name, part in params_of("sasrec").items() if name != "history_bias"}
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), BATCH))["params"]
  assert set(shapes) == set(params)
  assert model.apply({"params": params}, method="head_bias") == 0
