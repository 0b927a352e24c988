"""Search against the training forward and against ranking everything."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.config import SearchConfig
from gr4ad_jax.decoding.beam import beam_search
from gr4ad_jax.decoding.trie import Trie
from gr4ad_jax.index.index import SidIndex
from tests.models import tiny

FULL = (7, 35, 140)  # as wide as the tree of all UA-SIDs
BIN_VALUES = jnp.asarray([0.0, 0.5, 2.0, 7.0, 30.0])
SYSTEMS = {
  "autoregressive, no copy": {"lazy_layers": 0, "copy": "off"},
  "lazy, history copied": {"lazy_layers": 1, "copy": "history", "kv_split": 2},
  "deep lazy, context copied, shared heads": {
    "lazy_layers": 2,
    "copy": "context",
    "kv_layers": 2,
    "kv_groups": 2,
  },
  "history bias": {
    "lazy_layers": 2,
    "history_bias": True,
    "kv_split": 2,
    "kv_layers": 3,
    "kv_groups": 1,
  },
}
BIAS = -1.5


class System:
  """A model, its parameters, a batch, and what the training forward makes of all 140 UA-SIDs."""

  def __init__(self, name):
    self.model, self.batch = tiny.make_model(**SYSTEMS[name]), tiny.make_batch()
    self.params = tiny.make_params(self.model, bias=BIAS)
    forward = tiny.jit(lambda p, b, c: self.model.apply({"params": p}, b, c))
    self.out = jax.device_get(forward(self.params, self.batch, tiny.every_code(self.batch)))
    self._found = {}

  def search(self, index, widths=FULL, **kwargs):
    key = (index.codes_NT.tobytes(), widths, tuple(kwargs.items()))
    if key not in self._found:
      how = {"widths": widths, "search": SearchConfig(**kwargs)}
      run = tiny.jit(
        lambda p, b, t: beam_search(self.model, {"params": p}, b, t, BIN_VALUES, **how)
      )
      self._found[key] = jax.device_get(run(self.params, self.batch, Trie.of(index)))
    return self._found[key]


make_system = functools.lru_cache(System)


# The two others have every part of these: shared heads, layers of keys, copies and the bias.
QUICK = ("deep lazy, context copied, shared heads", "history bias")


@pytest.fixture(
  params=[
    pytest.param(name, id=name.replace(" ", "_"), marks=[pytest.mark.long] * (name not in QUICK))
    for name in SYSTEMS
  ]
)
def system(request):
  return make_system(request.param)


@pytest.fixture
def plain():
  return make_system("deep lazy, context copied, shared heads")


def some_index(ads=50, seed=1):
  """50 ads on fewer UA-SIDs, in an order that is not that of their codes."""
  codes = tiny.ALL_CODES[np.random.default_rng(seed).integers(0, 140, ads)]
  codes[7] = codes[31]  # two ads of one UA-SID at least
  return SidIndex.build(codes, tiny.CODEBOOKS)


def leaf_codes(index):
  return index.codes_NT[index.leaf_ads[index.leaf_start[:-1]]]


def test_probabilities_of_all_sequences_sum_to_one(system):
  np.testing.assert_allclose(np.exp(system.out.logp_BM).sum(-1), 1, atol=2e-6)


def test_search_gives_the_training_forwards_probabilities(system):
  index = some_index()
  beams = system.search(index)
  filled = beams.leaf_BW >= 0
  assert filled.sum(1).tolist() == [index.num_leaves] * 4
  np.testing.assert_array_equal(beams.codes_BWT[filled], leaf_codes(index)[beams.leaf_BW[filled]])
  reference = np.take_along_axis(system.out.logp_BM, tiny.code_id(beams.codes_BWT), axis=1)
  gap = np.where(filled, beams.logp_BW - reference, np.nan)
  if system.model.config.history_bias:
    gap -= np.nanmean(gap, axis=1, keepdims=True)  # one constant a request
  np.testing.assert_allclose(gap[filled], 0, atol=1e-5)


def test_full_search_equals_ranking_every_leaf(system):
  index = some_index()
  beams = system.search(index)
  logp_BL = system.out.logp_BM[:, tiny.code_id(leaf_codes(index))]
  best = -np.sort(-logp_BL, axis=1)
  ranked = np.take_along_axis(logp_BL, beams.leaf_BW[:, : index.num_leaves], axis=1)
  np.testing.assert_allclose(
    ranked, best, atol=1e-5
  )  # the same order, up to what rounding can swap
  assert all(len(set(row[row >= 0])) == index.num_leaves for row in beams.leaf_BW)
  assert (beams.leaf_BW[:, index.num_leaves :] == -1).all() and np.isneginf(
    beams.logp_BW[:, index.num_leaves :]
  ).all()


def test_full_search_expands_to_every_ad_in_order(plain):
  index = some_index()
  ads = index.expand(plain.search(index).leaf_BW, 60)
  np.testing.assert_array_equal(np.sort(ads[:, :50], axis=1), np.tile(np.arange(50), (4, 1)))
  assert (ads[:, 50:] == -1).all()
  logp_BN = plain.out.logp_BM[:, tiny.code_id(index.codes_NT)]
  assert (np.diff(np.take_along_axis(logp_BN, ads[:, :50], axis=1), axis=1) <= 1e-5).all()
  for row in ads[:, :50]:  # ads of one UA-SID stand together, in table order
    leaf = index.ad_leaf[row]
    assert (np.diff(leaf) != 0).sum() == index.num_leaves - 1
    assert (np.diff(row)[np.diff(leaf) == 0] > 0).all()


@pytest.mark.long  # so do those of the table in `test_beam_loops.py`, in every order
def test_narrow_beams_keep_the_best_of_what_they_see(plain):
  index = some_index()
  widths = (3, 4, 6)
  beams = plain.search(index, widths)
  leaves = leaf_codes(index)
  p_BM = np.exp(plain.out.logp_BM)
  for b in range(4):
    kept = [()]
    for level, width in enumerate(widths):
      grown = sorted({tuple(leaf[: level + 1]) for leaf in leaves if tuple(leaf[:level]) in kept})
      mass = [p_BM[b, (tiny.ALL_CODES[:, : level + 1] == prefix).all(-1)].sum() for prefix in grown]
      kept = [grown[i] for i in np.argsort(-np.asarray(mass))[:width]]
    filled = beams.leaf_BW[b] >= 0
    assert [tuple(code) for code in beams.codes_BWT[b, filled].tolist()] == kept


@pytest.mark.long  # `test_log_p.py` has every prefix's probability from NumPy
def test_prefix_probabilities_add_up(plain):
  beams = plain.search(SidIndex.build(tiny.ALL_CODES, tiny.CODEBOOKS))
  assert (beams.leaf_BW >= 0).all()
  order = np.argsort(tiny.code_id(beams.codes_BWT), axis=1)
  p_BWT = np.exp(np.take_along_axis(beams.prefix_logp_BWT, order[..., None], axis=1)).reshape(
    4, *tiny.CODEBOOKS, 3
  )
  first, second, whole = p_BWT[:, :, 0, 0, 0], p_BWT[:, :, :, 0, 1], p_BWT[..., 2]
  np.testing.assert_allclose(first.sum(1), 1, atol=2e-6)
  np.testing.assert_allclose(second.sum(2), first, atol=1e-6)
  np.testing.assert_allclose(whole.sum(3), second, atol=1e-6)
  assert (p_BWT[:, :, :, :, 0] == first[:, :, None, None]).all()


def test_value_is_that_of_the_training_forward(plain):
  beams = plain.search(some_index())
  filled = beams.leaf_BW >= 0
  p_BMV = np.exp(plain.out.ecpm_logits_BMV.astype(np.float64))
  value_BM = p_BMV @ np.asarray(BIN_VALUES) / p_BMV.sum(-1)
  expected = np.take_along_axis(value_BM, tiny.code_id(beams.codes_BWT), axis=1)
  np.testing.assert_allclose(beams.value_BW[filled], expected[filled], rtol=2e-5)
  square_BM = p_BMV @ np.asarray(BIN_VALUES) ** 2 / p_BMV.sum(-1)
  spread_BM = np.sqrt(square_BM - value_BM**2)
  expected = np.take_along_axis(spread_BM, tiny.code_id(beams.codes_BWT), axis=1)
  np.testing.assert_allclose(beams.spread_BW[filled], expected[filled], rtol=1e-3)


@pytest.mark.long  # blended scores: `test_log_p.py`; orders by value: `test_beam_loops.py`
def test_value_reorders(plain):
  index = some_index()
  plainly, valued = plain.search(index), plain.search(index, FULL, order="blend", value_power=0.8)
  with np.errstate(invalid="ignore"):
    score = valued.logp_BW + 0.8 * np.log(valued.value_BW)
  assert (np.diff(score[:, : index.num_leaves], axis=1) <= 0).all()
  assert (valued.leaf_BW != plainly.leaf_BW).any()
  np.testing.assert_array_equal(np.sort(valued.leaf_BW), np.sort(plainly.leaf_BW))
  for b in range(4):  # each leaf keeps its own numbers
    pair = [
      dict(zip(x.leaf_BW[b].tolist(), x.logp_BW[b].tolist(), strict=True))
      for x in (plainly, valued)
    ]
    assert pair[0] == pytest.approx(pair[1], abs=1e-6)


@pytest.mark.long  # three ads in wider beams: `test_beam_loops.py`
def test_one_ad_in_a_wide_beam_stands_once(plain):
  beams = plain.search(SidIndex.build(tiny.ALL_CODES[[17]], tiny.CODEBOOKS), (8, 8, 8))
  assert (beams.leaf_BW == 0).tolist() == [[True]] * 4 and np.isfinite(beams.logp_BW).all()
