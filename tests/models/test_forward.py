"""GR4AD against a forward in NumPy, written from the formulas: outputs, search and training."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from gr4ad_jax.models.context import EDGES
from tests.models import forwards, tiny
from tests.models.numbers import RATE, drop_known
from tests.models.reference import Request, outputs

SETTINGS = {
  "context": {"layers": 4, "kv_layers": 3, "kv_split": 2, "kv_groups": 2, "feature_bins": 3,
              "copy": tiny.fresh("context"), "ffn_multiple": 2, "history_bias": True,
              "history_bias_ads": 3},
  "history": {"layers": 2, "lazy_layers": 0, "kv_layers": 2, "heads": 2, "kv_groups": 1,
              "copy": "history", "feature_bins": 0, "history_bias": True, "history_bias_ads": 5},
  "off": {"layers": 2, "lazy_layers": 1, "copy": tiny.fresh("off"), "feature_bins": 2,
          "ffn_multiple": 1},
}  # fmt: skip


def make_system(model):
  """A model, parameters, batch and UA-SIDs to score."""
  batch = forwards.make_batch()
  return model, forwards.make_params(model), batch, forwards.make_codes(batch)


@pytest.fixture(scope="module", params=SETTINGS)
def system(request):
  """What a model computes, and the reference's requests."""
  model, params, batch, codes = make_system(tiny.make_model(**SETTINGS[request.param]))
  found = jax.device_get(forwards.run(forwards.everything, model, params, batch, codes))
  return found, [Request(model, params, batch, b) for b in range(len(codes))], codes


def test_the_forward_is_the_formulas(system):
  found, requests, codes = system
  forwards.assert_same_outputs(found["outputs"], outputs(requests, codes, forwards.VALUED))


def test_all_sequences_are_valued_unless_asked_otherwise():
  model, params, batch, codes = make_system(tiny.make_model(**SETTINGS["off"]))
  found, more = jax.device_get(forwards.run(forwards.plain, model, params, batch, codes))
  requests = [Request(model, params, batch, b) for b in range(len(codes))]
  forwards.assert_same_outputs(found._asdict(), outputs(requests, codes, codes.shape[1]))
  forwards.assert_same_outputs(more._asdict(), outputs(requests, codes[:, :2], 2))


def test_what_a_request_computes_once_is_the_formulas(system):
  found, requests, _ = system
  start = found["start"]
  for b, request in enumerate(requests):
    for made, expected in (
      (start.context.keys, request.keys),
      (start.context.values, request.values),
    ):
      assert len(made) == len(expected)
      for kv, rows in enumerate(expected):
        forwards.assert_close(made[kv][b], rows)
    assert np.flatnonzero(start.context.mask_BS[b]).tolist() == request.visible
    forwards.assert_close(start.context.slots_BSD[b], request.slots)
    forwards.assert_close(start.lazy_B1TD[b, 0], request.m)
    assert start.copyable_BS[b].tolist() == [
      bool(request.copyable(s)) for s in range(len(request.kinds))
    ] or (request.config.copy == "off")
    assert start.history_BS[b].tolist() == (request.kinds == 1).tolist()
    assert start.slot_codes_BST[b].tolist() == request.codes_ST.tolist()
  assert start.skip_BD is None


def test_the_search_is_the_formulas(system):
  forwards.assert_search_follows(*system)


def test_the_cases_are_there(system):
  """Histories that are cut, an estimate well below one, copies that matter, and none at all."""
  found, requests, codes = system
  config = requests[0].config
  if config.history_bias:
    past = [request.past() for request in requests]
    assert [len(x) for x in past] == [3, 4, 0, 0]
    mass = sum(np.exp(requests[1].unbiased_logp(y)) for y in past[1][: config.history_bias_ads])
    assert 0.02 < mass < 0.7
  gates = [request.gate for request in requests]
  named = {
    "context": [True, True, True, False],
    "history": [True, True, False, False],
    "off": [False] * 4,
  }
  assert [0.05 < gate < 0.95 for gate in gates] == named[config.copy]


def test_dropout_stands_where_it_should_and_the_copy_path_reads_slots_without():
  settings = {
    "layers": 2,
    "lazy_layers": 1,
    "history_bias": True,
    "history_bias_ads": 2,
    "dropout": RATE,
  }
  model, params, batch, codes = make_system(tiny.make_model(**settings))
  found = jax.device_get(forwards.run(forwards.training, model, params, batch, codes))._asdict()
  requests = [Request(model, params, batch, b, drop_known) for b in range(len(codes))]
  forwards.assert_same_outputs(found, outputs(requests, codes, forwards.VALUED))
  plain = outputs(
    [Request(model, params, batch, b) for b in range(len(codes))], codes, forwards.VALUED
  )
  assert np.abs(plain["logp_BM"] - found["logp_BM"]).max() > 0.1  # dropout changes it


def test_gradients_are_the_formulas_slopes():
  """Along a random direction in all parameters, against a difference of the reference's float64."""
  settings = {"layers": 2, "lazy_layers": 1, "kv_split": 2, "feature_bins": 2}
  settings |= {"history_bias": True, "history_bias_ads": 3}
  model, params, batch, codes = make_system(tiny.make_model(**settings))
  batch, codes = jax.tree.map(lambda x: x[[0, 1, 3]], batch), codes[[0, 1, 3], ::2]
  rng = np.random.default_rng(11)
  weights = outputs([Request(model, params, batch, b) for b in range(3)], codes, forwards.VALUED)
  weights = {name: rng.normal(size=x.shape) for name, x in weights.items()}

  def total(model, batch, codes):
    out = model(batch, codes, valued=forwards.VALUED)._asdict()
    return sum((x * weights[name]).sum() for name, x in out.items())

  slope = tiny.jit(jax.grad(lambda p: nn.apply(total, model)({"params": p}, batch, codes)))(params)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
  for name in EDGES:  # fitted, not learned
    assert params["processor"][name].any() and not slope["processor"][name].any()
  toward = jax.tree.map(lambda x: rng.normal(size=np.shape(x)), params)
  toward["processor"] |= {name: np.zeros_like(params["processor"][name]) for name in EDGES}

  def at(step):
    moved = jax.tree.map(lambda x, d: np.float64(x) + step * d, params, toward)
    out = outputs([Request(model, moved, batch, b) for b in range(3)], codes, forwards.VALUED)
    return sum((x * weights[name]).sum() for name, x in out.items())

  step = 1e-6
  expected = (at(step) - at(-step)) / (2 * step)
  parts = jax.tree.leaves(jax.tree.map(lambda g, d: np.vdot(np.float64(g), d), slope, toward))
  np.testing.assert_allclose(sum(parts), expected, rtol=2e-3)
