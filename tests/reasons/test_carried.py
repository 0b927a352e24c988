"""What slots carry: the same as asking the model again with each slot padded by hand, and parts
that add up.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from gr4ad_jax.config import ItemConfig
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.features.batches import PADDING
from gr4ad_jax.reasons import carried, deletion
from gr4ad_jax.reasons.carried import Scorer
from gr4ad_jax.zoo.gr4ad_items import GR4ADItems
from gr4ad_jax.zoo.sasrec import SASRec
from tests.models import tiny

MEANS = np.array([0.0, 0.5, 2.0, 7.0, 30.0], np.float32)
ECPM = EcpmBins(MEANS[1:], MEANS, 30.0)


def make_model(kind):
  if kind == "items":
    sizes = {"model": "gr4ad_items", "copy": "off", "layers": 1, "lazy_layers": 0}
    config = dataclasses.replace(tiny.CONFIG, **sizes)
    return GR4ADItems(config, tiny.CODEBOOKS, "none", ItemConfig(), tiny.NUM_ADS)
  if kind == "biased":
    return tiny.make_model(layers=1, lazy_layers=0, history_bias=True)
  if kind == "split":
    return tiny.make_model(layers=3, lazy_layers=2, kv_split=2, kv_layers=2, copy="history")
  return tiny.make_model(layers=2, lazy_layers=1, copy=kind)


class System:
  """A model with drawn weights, the first of the tiny requests, and ads of its slots and others;
  and what is carried, by a scorer that asks about some slots.
  """

  def __init__(self, kind, asked):
    self.model = make_model(kind)
    self.params = tiny.make_params(self.model, bias=-1.5 if kind == "biased" else 0.0)
    self.batch = jax.tree.map(lambda x: x[:1], tiny.make_batch())
    codes_ST = self.batch.slot_codes_BST[0]
    self.codes_MT = np.stack([codes_ST[0], codes_ST[6], [6, 4, 3]]).astype(np.int32)
    scorer = Scorer(self.model, ECPM, asked)
    self.found = scorer.carried({"params": self.params}, self.batch, self.codes_MT)
    self._forward = tiny.jit(
      lambda batch: self.model.apply(
        {"params": self.params},
        batch,
        np.broadcast_to(tiny.ALL_CODES, (len(batch.slot_kind_BS), *tiny.ALL_CODES.shape)),
      )
    )

  def asked(self, gone):
    """log p of all UA-SIDs [versions, 140] and their values, with slots padded by hand."""
    rows = jax.tree.map(lambda x: np.repeat(x, len(gone), axis=0), self.batch)
    for row, slots in enumerate(gone):
      rows.slot_kind_BS[row, slots] = PADDING
      rows.slot_ad_BS[row, slots] = -1
      rows.slot_codes_BST[row, slots] = 0
      rows.slot_features_BSF[row, slots] = 0
    out = self._forward(rows)
    bins = np.exp(np.asarray(out.ecpm_logits_BMV, np.float64))
    value = bins @ MEANS / bins.sum(-1)
    return (
      np.asarray(out.logp_BM, np.float64),
      value,
      np.asarray(out.generated_logp_BMT),
      out.gate_B,
    )


_made = functools.lru_cache(System)


def make_system(kind, asked=4):
  return _made(kind, asked)


LONG = [pytest.param(kind, marks=pytest.mark.long) for kind in ("off", "items", "biased", "split")]


@pytest.mark.parametrize("asked", [4, pytest.param(None, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["context", *LONG])
def test_each_slot_carries_what_the_model_loses_without_it(kind, asked):
  system = make_system(kind, asked)
  slots = range(system.batch.slot_kind_BS.shape[1])
  everything = list(slots)
  logp, value, _, _ = system.asked([[], everything, *([s] for s in slots)])
  at = tiny.code_id(system.codes_MT)
  if kind == "biased":  # the forward estimates its normaliser, the search's log p does not
    logp = logp - np.log(np.exp(logp).sum(axis=1, keepdims=True))
  found = system.found
  np.testing.assert_allclose(found.logp_M, logp[0, at], atol=2e-5)
  np.testing.assert_allclose(found.bare_logp_M, logp[1, at], atol=2e-5)
  np.testing.assert_allclose(found.value_M, value[0, at], rtol=1e-4)
  real_S = system.batch.slot_kind_BS[0] != PADDING
  some_S = found.asked_S
  # An encoder mixes slots, so all of them are asked about.
  assert some_S.sum() == (4 if asked and kind != "items" else real_S.sum())
  assert real_S.any() and not real_S.all() and (some_S <= real_S).all()
  loss_MS = (logp[0] - logp[2:]).T[at]
  np.testing.assert_allclose(found.slot_logp_MS[:, some_S], loss_MS[:, some_S], atol=4e-5)
  value_MS = (value[0] - value[2:]).T[at]
  np.testing.assert_allclose(found.slot_value_MS[:, some_S], value_MS[:, some_S], atol=1e-3)
  # What was asked about was worth it: each ad's strongest slot is among it.
  assert some_S[np.where(real_S, loss_MS, -np.inf).argmax(axis=1)].all()
  # Of the other slots there is an estimate, and no value.
  assert (found.slot_logp_MS[:, ~real_S] == 0).all() and (found.slot_logp_MS[:, real_S] != 0).all()
  assert (found.slot_value_MS[:, ~some_S] == 0).all()


def test_ads_name_slots_in_turn():
  estimate_MS = np.array([[5.0, 1, 4, 3, -np.inf], [0, 9, 0.5, 8, -np.inf]])
  # The firsts of both ads, then their seconds; no slot twice.
  named = carried._first_slots(estimate_MS, 4).tolist()
  assert sorted(named[:2]) == [0, 1] and sorted(named[2:]) == [2, 3]


@pytest.mark.parametrize("kind", ["context", LONG[0], LONG[2]])
def test_levels_add_up_and_are_conditional_probabilities(kind):
  system = make_system(kind)
  found = system.found
  np.testing.assert_allclose(found.level_logp_MT.sum(-1), found.logp_M, atol=1e-5)
  np.testing.assert_allclose(
    found.level_lift_MT.sum(-1), found.logp_M - found.bare_logp_M, atol=1e-5
  )
  p = np.exp(system.asked([[]])[0][0])
  p /= p.sum()
  for m, codes in enumerate(system.codes_MT):
    begins = (tiny.ALL_CODES[:, :1] == codes[:1]).all(-1)
    both = (tiny.ALL_CODES[:, :2] == codes[:2]).all(-1)
    expected = [np.log(p[begins].sum()), np.log(p[both].sum() / p[begins].sum())]
    np.testing.assert_allclose(found.level_logp_MT[m, :2], expected, atol=2e-5)


def test_the_copied_share_is_what_the_decoder_leaves():
  found = make_system("context").found
  logp, _, generated, gate = make_system("context").asked([[]])
  at = tiny.code_id(make_system("context").codes_MT)
  own = np.log1p(-np.asarray(gate)[0]) + generated[0, at].sum(-1)
  np.testing.assert_allclose(found.copied_M, 1 - np.exp(own - logp[0, at]), atol=1e-5)
  assert found.copied_M[0] > 0.01 and found.copied_M[2] < 1e-5  # the last one is in no slot


@pytest.mark.long
def test_without_a_copy_path_nothing_is_copied():
  assert (make_system("off").found.copied_M == 0).all()


def test_attention_is_that_of_the_decoders_layers_and_levels():
  model = make_system("context").model
  batch = make_system("context").batch
  codes_1MT = make_system("context").codes_MT[None]
  variables = {"params": make_system("context").params}
  look = tiny.jit(lambda *inputs: model.apply(*inputs, mutable=["intermediates"])[1])
  looks = look(variables, batch, codes_1MT)["intermediates"]
  found_MS = deletion.mean_attention(looks)
  lazy = np.asarray(looks["decoder"]["block_0"]["cross"][0])  # (1, 1, T + 1, S + 1)
  first, others = (np.asarray(x) for x in looks["decoder"]["block_1"]["cross"][:2])
  np.testing.assert_allclose(lazy.sum(-1), 1, rtol=1e-5)
  for m in range(3):
    late = [first[0, 0, 0], *others[0, m]]
    expected = (lazy[0, 0].mean(0) + np.mean(late, axis=0)) / 2
    np.testing.assert_allclose(found_MS[m], expected[1:], rtol=1e-5)
  padded = batch.slot_kind_BS[0] == PADDING
  assert (found_MS[:, padded] == 0).all() and (found_MS[:, ~padded] > 0).all()
  made = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, codes_1MT))
  assert set(made) == {"params"}  # nothing is noted where nobody asked


def test_a_model_without_slots_of_its_own_gives_no_reasons():
  with pytest.raises(TypeError, match="SASRec has no slots to take out"):
    Scorer(SASRec(tiny.CONFIG, ItemConfig(), 9), ECPM)
