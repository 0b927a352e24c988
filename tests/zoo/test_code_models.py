"""Models of UA-SIDs: proper distributions, search equal to the forward, and what makes each what
it is.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.config import Config, ConfigError, DataConfig, ItemConfig, SearchConfig, SidConfig
from gr4ad_jax.decoding.beam import beam_search
from gr4ad_jax.decoding.trie import Trie
from gr4ad_jax.features.batches import PADDING
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.zoo import registry
from tests.models import tiny

NAMES = ("onerec_v2", "parallel_heads", "deepseek_mtp", "tiger", "gr4ad_items")


def build(name, **settings):
  model = dataclasses.replace(tiny.CONFIG, model=name, **settings)
  return registry.build(
    Config(data=DataConfig(), sid=SidConfig(codebooks=tiny.CODEBOOKS), model=model), tiny.NUM_ADS
  )


class System:
  """A model with parameters, and its forward on all 140 UA-SIDs of four requests."""

  def __init__(self, name):
    layers = 3 if name == "deepseek_mtp" else 1  # the least that each takes
    self.model, self.batch = build(name, layers=layers, lazy_layers=0), tiny.make_batch()
    self.params = tiny.make_params(self.model)
    self.forward = tiny.jit(lambda p, b, c: self.model.apply({"params": p}, b, c))
    self.out = self.run(self.batch)

  def run(self, batch):
    return jax.device_get(self.forward(self.params, batch, tiny.every_code(batch)))

  def level(self, t):
    """p(s_t | s_<t): [B, 7, 5, 4]."""
    return np.exp(self.out.generated_logp_BMT[..., t]).reshape(4, *tiny.CODEBOOKS)


make_system = functools.lru_cache(System)


@pytest.fixture(params=NAMES)
def system(request):
  return make_system(request.param)


def test_probabilities_of_all_sequences_sum_to_one(system):
  np.testing.assert_allclose(np.exp(system.out.logp_BM).sum(-1), 1, atol=5e-6)


@pytest.mark.parametrize(
  "system",
  # The formulas' tests search with every model; here the one that differs most is enough.
  [pytest.param(n, marks=[pytest.mark.long] * (n != "tiger")) for n in NAMES],
  indirect=True,
)
def test_wide_search_is_exhaustive(system):
  index = SidIndex.build(tiny.ALL_CODES, tiny.CODEBOOKS)
  search = tiny.jit(
    lambda p, b, t: beam_search(
      system.model, {"params": p}, b, t, jnp.arange(5.0), widths=(7, 35, 140), search=SearchConfig()
    )
  )
  beams = jax.device_get(search(system.params, system.batch, Trie.of(index)))
  expected = np.take_along_axis(system.out.logp_BM, tiny.code_id(beams.codes_BWT), axis=1)
  np.testing.assert_allclose(beams.logp_BW, expected, atol=2e-5)
  assert (np.diff(beams.logp_BW, axis=1) <= 1e-5).all() and np.isfinite(beams.value_BW).all()


def test_padding_slots_are_not_read(system):
  batch = system.batch
  blank = batch.slot_kind_BS == PADDING
  other = batch._replace(
    slot_codes_BST=np.where(blank[..., None], 0, batch.slot_codes_BST),
    slot_features_BSF=np.where(blank[..., None], 9.0, batch.slot_features_BSF),
  )
  np.testing.assert_allclose(system.run(other).logp_BM, system.out.logp_BM, atol=1e-5)


def test_only_parallel_heads_ignore_the_codes_before():
  for name in NAMES:
    system = make_system(name)
    spread = np.ptp(system.level(1), axis=1).max(), np.ptp(system.level(2), axis=(1, 2)).max()
    assert (max(spread) < 1e-6) == (name == "parallel_heads"), name
    assert np.ptp(system.level(0), axis=(2, 3)).max() < 1e-6


def test_the_last_level_of_the_chain_knows_both_codes_before_it():
  last = make_system("deepseek_mtp").level(2)
  assert np.ptp(last, axis=1).max() > 1e-3 and np.ptp(last, axis=2).max() > 1e-3


def test_chain_needs_a_layer_a_level():
  with pytest.raises(ConfigError, match="--layers=2 is not allowed: 3 or more"):
    build("deepseek_mtp", layers=2)


def test_tiger_reads_the_history_alone_and_its_order():
  system = make_system("tiger")
  batch = system.batch
  other = batch._replace(
    slot_features_BSF=batch.slot_features_BSF + 1, user_features_BF=batch.user_features_BF + 1
  )
  np.testing.assert_array_equal(system.run(other).logp_BM, system.out.logp_BM)
  codes = batch.slot_codes_BST.copy()
  codes[1, [0, 1]] = codes[1, [1, 0]]
  assert (
    np.abs(system.run(batch._replace(slot_codes_BST=codes)).logp_BM - system.out.logp_BM)[1].max()
    > 1e-3
  )


def test_the_decoder_reads_vectors_and_states_and_does_not_move_them():
  model, batch = build("gr4ad_items", layers=2, lazy_layers=1), tiny.make_batch()
  params = tiny.make_params(model)

  def read(module, batch):
    start, first = module.start(batch), jnp.zeros((4, 1), int)
    logits, plain = (
      module.step(one, first, 0, None)[1] for one in (start, start.replace(skip_BD=None))
    )
    size = sum((x**2).sum() for x in (start.lazy_B1TD, start.skip_BD))
    return size, (start.skip_BD, module.last_state(batch), logits - plain)

  run = tiny.jit(
    jax.value_and_grad(lambda p: model.apply({"params": p}, batch, method=read), has_aux=True)
  )
  (_, (skip, state, added)), gradient = jax.device_get(run(params))
  np.testing.assert_allclose(skip, state, atol=1e-5)
  moved = {
    name
    for name, part in gradient.items()
    if any((leaf != 0).any() for leaf in jax.tree.leaves(part))
  }
  assert moved == {"processor", "decoder", *(f"codes_{level}" for level in range(3))}
  np.testing.assert_allclose(added[:, 0], state @ params["head_0"]["kernel"], atol=1e-4)


def test_the_item_heads_bias_is_not_that_of_the_decoder():
  batch = tiny.make_batch()
  model = build("gr4ad_items", history_bias=True, layers=1, lazy_layers=0)
  params = tiny.make_params(model)
  logp = tiny.jit(
    lambda params: model.apply({"params": params}, batch, tiny.every_code(batch)).logp_BM
  )
  np.testing.assert_array_equal(logp(params), logp(params | {"history_bias": np.float32(-3.0)}))


def test_a_bidirectional_encoder_takes_no_inner_targets():
  model = dataclasses.replace(tiny.CONFIG, model="gr4ad_items", encoder_causal=False)
  with pytest.raises(
    ConfigError, match="--inner_targets=True is not allowed: --encoder_causal=False"
  ):
    registry.build(Config(model=model, items=ItemConfig(inner_targets=True)), 3)
