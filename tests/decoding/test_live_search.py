"""Search over an index that changes: exact after every change, and never compiled anew."""

import numpy as np
import pytest

from gr4ad_jax.config import SearchConfig
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.decoding.searcher import Searcher, TrieFeed, scaled
from gr4ad_jax.index.live_index import LiveIndex
from tests.models import tiny

ECPM = EcpmBins(np.arange(4, dtype=np.float32), np.arange(5, dtype=np.float32), 4.0)
FULL = (7, 35, 140)


class Setup:
  """A searcher compiled for one index, and the training forward's log p of all 140 UA-SIDs."""

  def __init__(self):
    model = tiny.make_model(layers=2, lazy_layers=1)
    params, self.batch = tiny.make_params(model), tiny.make_batch()
    self.codes_NT = tiny.ALL_CODES  # every node is there, so that no merge needs other shapes
    self.index = LiveIndex(self.codes_NT, tiny.CODEBOOKS, overlay=64)
    self.feed, self.searcher = TrieFeed(self.index), Searcher(model, ECPM, SearchConfig())
    self.variables = self.searcher.variables(params)
    row = tiny.jax.tree.map(lambda x: x[:1], self.batch)
    self.told = []
    self.searcher.prepare(
      self.variables, row, (4,), (FULL,), self.feed.trie(), lambda *t: self.told.append(t[:2])
    )
    forward = tiny.jit(lambda p, b, c: model.apply({"params": p}, b, c).logp_BM)
    self.logp_BM = np.asarray(forward(params, self.batch, tiny.every_code(self.batch)))

  def search(self):
    return tiny.jax.device_get(
      self.searcher.search(self.variables, self.batch, self.feed.trie(), FULL)
    )


@pytest.fixture(scope="module")
def setup():
  return Setup()


def check_exact(setup, active):
  """The search gives every active UA-SID once, in the order of the exhaustive ranking."""
  beams = setup.search()
  ids = sorted({int(tiny.code_id(code)) for code in active.values()})
  found = beams.leaf_BW >= 0
  assert found.sum(1).tolist() == [len(ids)] * 4
  for b in range(4):
    got = tiny.code_id(beams.codes_BWT[b][found[b]])
    assert sorted(got.tolist()) == ids
    np.testing.assert_allclose(setup.logp_BM[b, got], -np.sort(-setup.logp_BM[b, ids]), atol=1e-5)
    np.testing.assert_allclose(beams.logp_BW[b][found[b]], setup.logp_BM[b, got], atol=1e-5)
  rows, beam = setup.index.expand(beams.codes_BWT, found, len(active) + 2)
  for b in range(4):
    assert sorted(rows[b][rows[b] >= 0].tolist()) == sorted(active)
    for row, w in zip(rows[b], beam[b], strict=True):
      assert row < 0 or tuple(beams.codes_BWT[b, w]) == tuple(active[row])


def test_search_equals_exhaustive_ranking_after_every_change_and_merge(setup):
  rng = np.random.default_rng(11)
  active = dict(enumerate(setup.codes_NT))
  check_exact(setup, active)
  for step in range(60):
    row = int(rng.integers(0, 160))
    if row in active and rng.random() < 0.8:
      setup.index.set(row, None)
      del active[row]
    else:
      active[row] = tiny.ALL_CODES[rng.integers(0, 140)]
      setup.index.set(row, active[row])
    if step % 20 == 19:
      setup.index.merge()
    if step % 4 == 0:
      check_exact(setup, active)
  setup.index.merge()
  for number, row in enumerate(list(active)[1:]):
    setup.index.set(row, None)
    if number % 50 == 49:
      setup.index.merge()
  check_exact(setup, dict(list(active.items())[:1]))
  assert setup.told == [(1, 1)]  # one program from beginning to end


def test_nothing_changes_a_trie_that_was_taken(setup):
  before = setup.feed.trie()
  kept = np.asarray(before.overlay_TQP).copy()
  setup.index.set(500, (6, 4, 3))
  assert setup.feed.trie() is not before
  np.testing.assert_array_equal(before.overlay_TQP, kept)
  setup.index.set(500, None)
  assert setup.feed.trie() is setup.feed.trie()


def test_an_unprepared_shape_is_refused(setup):
  assert setup.searcher.is_prepared(4, FULL, setup.feed.trie())
  assert not setup.searcher.is_prepared(3, FULL, setup.feed.trie())
  with pytest.raises(KeyError):
    setup.searcher.search(setup.variables, setup.batch, setup.feed.trie(), (1, 2, 3))


def test_schedules_are_scaled_and_never_empty():
  assert scaled((128, 256, 512), (1.0, 0.25, 1.6, 1.0)) == (
    (32, 64, 128),
    (128, 256, 512),
    (205, 410, 819),
  )
  assert scaled((1, 2, 3), (0.1,)) == ((1, 1, 1),)
