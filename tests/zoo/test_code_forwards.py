"""The zoo's models of UA-SIDs against forwards in NumPy that are written from the formulas."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from gr4ad_jax.config import Config, DataConfig, SidConfig
from gr4ad_jax.zoo import registry, tiger
from tests.models import forwards, tiny
from tests.models.numbers import RATE, drop_known
from tests.models.reference import Request, outputs
from tests.zoo import code_references as references

SETTINGS = {
  "onerec_v2": {"layers": 1, "history_bias": True},
  "parallel_heads": {"layers": 2, "kv_layers": 2, "kv_groups": 2, "feature_bins": 1},
  "deepseek_mtp": {"layers": 4, "kv_layers": 3, "kv_groups": 2, "feature_bins": 1},
  "gr4ad_items": {"layers": 2, "lazy_layers": 1, "feature_bins": 1, "history_bias": True},
}  # fmt: skip
REQUESTS = {
  "onerec_v2": Request,
  "parallel_heads": references.ParallelRequest,
  "deepseek_mtp": references.ChainRequest,
  "gr4ad_items": references.ItemsRequest,
}


def build(name, **settings):
  model = dataclasses.replace(tiny.CONFIG, model=name, dropout=RATE, **settings)
  return registry.build(
    Config(data=DataConfig(), sid=SidConfig(codebooks=tiny.CODEBOOKS), model=model), tiny.NUM_ADS
  )


def make_batch():
  """Two requests; ads of slots in and outside of the history came after the training."""
  batch = jax.tree.map(lambda x: x[:2], forwards.make_batch())
  ads = batch.slot_ad_BS.copy()
  ads[0, [1, 7]] = tiny.NUM_ADS, tiny.NUM_ADS + 3
  ads[1, 4] = tiny.NUM_ADS + 1
  return batch._replace(slot_ad_BS=ads)


class System:
  """A model of the zoo, with parameters and UA-SIDs to score."""

  def __init__(self, name, **settings):
    self.model, self.batch = build(name, **settings), make_batch()
    self.params, self.codes = forwards.make_params(self.model), forwards.make_codes(self.batch)

  def run(self, method):
    return jax.device_get(forwards.run(method, self.model, self.params, self.batch, self.codes))

  def requests(self, kind, *drop):
    return [kind(self.model, self.params, self.batch, b, *drop) for b in range(len(self.codes))]


@functools.lru_cache
def make_system(name):
  return System(name, **SETTINGS[name])


@pytest.mark.parametrize(
  # onerec_v2 is GR4AD's request, whose own test has all of it.
  "name",
  [pytest.param(name, marks=[pytest.mark.long] * (name == "onerec_v2")) for name in SETTINGS],
)
def test_forward_and_search_are_the_formulas(name):
  system = make_system(name)
  found, requests = system.run(forwards.everything), system.requests(REQUESTS[name])
  forwards.assert_same_outputs(found["outputs"], outputs(requests, system.codes, forwards.VALUED))
  forwards.assert_search_follows(found, requests, system.codes)
  for b, request in enumerate(requests):
    forwards.assert_close(found["start"].lazy_B1TD[b, 0], request.m)


@pytest.mark.parametrize(
  "name", [pytest.param("parallel_heads", marks=pytest.mark.long), "deepseek_mtp"]
)
def test_training_has_dropout_where_the_formulas_have_it(name):
  system = make_system(name)
  found, requests = system.run(forwards.training), system.requests(REQUESTS[name], drop_known)
  forwards.assert_same_outputs(found._asdict(), outputs(requests, system.codes, forwards.VALUED))


def test_tiger_is_the_formulas():
  system = System("tiger", layers=2)
  found, requests = system.run(forwards.everything), system.requests(references.TigerRequest)
  bins = system.model.config.ecpm_bins
  forwards.assert_same_outputs(
    found["outputs"], references.tiger_outputs(requests, system.codes, bins)
  )
  T = system.codes.shape[-1]
  for b, request in enumerate(requests):
    for m, codes in enumerate(system.codes[b]):
      states = request.states(codes)
      for level in range(T):
        forwards.assert_close(found["h"][level][b, m], states[level])
        forwards.assert_close(found["logits"][level][b, m], request.logits(level, states[level]))
  np.testing.assert_array_equal(found["final"], found["outputs"]["logp_BM"])
  np.testing.assert_array_equal(found["start"].slot_codes_BST, system.batch.slot_codes_BST)
  assert found["logits"][T] is None and not found["h"][T].any()
  assert found["value"].shape == (*system.codes.shape[:2], bins) and not found["value"].any()


def test_tigers_training_has_dropout_where_the_formulas_have_it():
  system = System("tiger", layers=1)
  found = system.run(lambda model, batch, codes: model(batch, codes, train=True))
  requests = system.requests(references.TigerRequest, drop_known)
  expected = references.tiger_outputs(requests, system.codes, system.model.config.ecpm_bins)
  forwards.assert_same_outputs(found._asdict(), expected)


def test_position_buckets_are_t5s():
  expected = [[references.bucket(key - query) for key in range(150)] for query in range(150)]
  np.testing.assert_array_equal(tiger.position_buckets(150), expected)
