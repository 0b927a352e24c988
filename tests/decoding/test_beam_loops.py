"""Beam search of a table against a search in loops: pruning, copies, orders of value, changes of
the index, ties.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.config import SearchConfig
from gr4ad_jax.decoding.beam import beam_search
from gr4ad_jax.decoding.guide import Guide
from gr4ad_jax.decoding.trie import NO_NODE, Trie
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.index.live_index import LiveIndex
from tests.decoding.table_model import (
  CODEBOOKS,
  CODES,
  MONEY,
  WIDTH,
  TableModel,
  loop_search,
  make_batch,
)

BATCH = make_batch()
B = len(BATCH.gate_B)
PLAIN = SearchConfig()


def make_index(leaves=34, seed=2):
  """Ads of `leaves` UA-SIDs in no order, one of them of two ads."""
  codes = CODES[np.random.default_rng(seed).permutation(60)[:leaves]]
  return SidIndex.build(np.concatenate([codes, codes[:1]]), CODEBOOKS)


def tuples(codes_NT):
  return [tuple(codes) for codes in np.asarray(codes_NT).tolist()]


def check(beams, batch, active, widths, search, **how):
  """The beams are those of the loops, one by one; returns how many of a row are filled."""
  width = min(search.ecpm_beams or beams.leaf_BW.shape[1], beams.leaf_BW.shape[1])
  assert (
    beams.leaf_BW.shape
    == beams.logp_BW.shape
    == beams.value_BW.shape
    == (len(beams.leaf_BW), width)
  )
  for b in range(len(beams.leaf_BW)):
    expected = loop_search(batch, b, active, widths, search, **how)
    n = len(expected)
    assert tuples(beams.codes_BWT[b, :n]) == [one.codes for one in expected]
    np.testing.assert_allclose(beams.logp_BW[b, :n], [one.logp for one in expected], atol=2e-5)
    np.testing.assert_allclose(
      beams.score_BW[b, :n], [one.score for one in expected], rtol=1e-4, atol=2e-5
    )
    np.testing.assert_allclose(
      beams.value_BW[b, :n], [one.value for one in expected], rtol=1e-4, atol=1e-8
    )
    np.testing.assert_allclose(
      beams.prefix_logp_BWT[b, :n], [one.prefixes for one in expected], atol=2e-5
    )
    assert (beams.leaf_BW[b, :n] >= 0).all() and (beams.leaf_BW[b, n:] == -1).all()
    assert np.isneginf(beams.logp_BW[b, n:]).all() and np.isneginf(beams.score_BW[b, n:]).all()
  return n


def run(model, batch, trie, widths, search=PLAIN, money=MONEY, guide=None):
  def search_of(batch, trie, guide):
    return beam_search(
      model, {"params": {}}, batch, trie, money, widths=widths, search=search, guide=guide
    )

  compute = jax.jit(search_of)
  return jax.device_get(compute(batch, trie, guide))


@pytest.mark.parametrize(
  ("copy", "widths", "settings"),
  [
    ("history", (5, 20, 60), {}),
    ("history", (2, 3, 5), {"order": "likelihood"}),
    ("off", (3, 4, 6), {"order": "ecpm", "ecpm_beams": 4}),
    ("history", (3, 5, 9), {"order": "blend", "value_power": 0.7, "ecpm_beams": 5}),
    (
      "context",
      (4, 5, 7),
      {"order": "blend", "value_power": 1.6, "ecpm_beams": 7, "precut": "beams"},
    ),
    ("off", (1, 2, 3), {"order": "ecpm", "ecpm_beams": 50}),
    ("history", (2, 4, 4), {"ecpm_beams": 1}),
  ],
)
def test_beams_are_those_of_the_loops(copy, widths, settings):
  index, search = make_index(), SearchConfig(**settings)
  beams = run(TableModel(copy), BATCH, Trie.of(index), widths, search)
  check(beams, BATCH, tuples(index.codes_NT), widths, search, copy=copy != "off")
  there = beams.leaf_BW >= 0
  for leaf, codes in zip(beams.leaf_BW[there], beams.codes_BWT[there], strict=True):
    np.testing.assert_array_equal(index.codes_NT[index.leaf_ads[index.leaf_start[leaf]]], codes)


@pytest.mark.parametrize("order", ["likelihood", "ecpm", "blend"])
def test_beams_that_find_nothing_are_last_in_every_order(order):
  index, search = make_index(3), SearchConfig(order=order, value_power=0.5)
  beams = run(TableModel(), BATCH, Trie.of(index), (5, 6, 8), search)
  assert beams.leaf_BW.shape[1] > 3  # wider than what exists
  assert check(beams, BATCH, tuples(index.codes_NT), (5, 6, 8), search) == 3


def test_without_money_no_value_is_predicted():
  index = make_index()
  beams = run(TableModel(), BATCH, Trie.of(index), (3, 4, 5), money=None)
  check(beams, BATCH, tuples(index.codes_NT), (3, 4, 5), SearchConfig(), valued=False)
  assert (beams.value_BW == 0).all() and (beams.spread_BW == 0).all()


def test_narrow_beams_of_an_index_that_changes_are_those_of_the_loops():
  """What came and what went is pruned with the rest, at each level; whole prefixes come and go."""
  rng, index = np.random.default_rng(4), make_index()
  live, active = (
    LiveIndex(index.codes_NT, CODEBOOKS, overlay=64),
    dict(enumerate(tuples(index.codes_NT))),
  )
  main = Trie.of(live.view()[0])
  compute = jax.jit(
    lambda trie: beam_search(TableModel(), {"params": {}}, BATCH, trie, MONEY, widths=(3, 5, 9))
  )
  for row, codes in list(active.items()):  # a first code whose ads all go
    if codes[0] == 3:
      live.set(row, None)
      del active[row]
  for step in range(14):
    beams = jax.device_get(compute(main.with_overlay(live.view()[1])))
    check(beams, BATCH, sorted(set(active.values())), (3, 5, 9), SearchConfig())
    row = int(rng.integers(0, 45))
    if row in active and step % 2:
      live.set(row, None)
      del active[row]
    else:
      active[row] = tuple(CODES[rng.integers(0, 60)].tolist())
      live.set(row, active[row])
  for row in list(active)[1:]:
    live.set(row, None)
  left = list(active.values())[:1]
  check(
    jax.device_get(compute(main.with_overlay(live.view()[1]))),
    BATCH,
    left,
    (3, 5, 9),
    SearchConfig(),
  )


def test_of_equal_beams_the_earlier_prefix_then_the_smaller_code_and_what_came_later_last():
  flat = BATCH._replace(
    **{
      name: np.zeros_like(getattr(BATCH, name))
      for name in BATCH._fields
      if getattr(BATCH, name).dtype == np.float32
    }
  )
  index, model = make_index(), TableModel("off")
  active = sorted(set(tuples(index.codes_NT)))
  for order in ("likelihood", "ecpm"):
    beams = run(model, flat, Trie.of(index), (2, 4, 6), SearchConfig(order=order))
    assert check(beams, flat, active, (2, 4, 6), SearchConfig(order=order), copy=False) == 6
  live = LiveIndex(index.codes_NT, CODEBOOKS, overlay=8)
  new = [
    codes for codes in tuples(CODES) if codes not in active and codes[:2] in {a[:2] for a in active}
  ][:2]
  for row, codes in enumerate(new):
    live.set(900 + row, codes)
  beams = run(model, flat, Trie.of(live.view()[0]).with_overlay(live.view()[1]), (5, 20, 60))
  n = len(active)
  assert tuples(beams.codes_BWT[0, :n]) == active and set(
    tuples(beams.codes_BWT[0, n : n + 2])
  ) == set(new)
  assert (beams.leaf_BW[0, : n + 2] >= 0).all() and (beams.leaf_BW[0, n : n + 2] >= n).all()


def test_guided_beams_are_those_of_the_loops():
  index, rng = make_index(), np.random.default_rng(8)
  vectors = [rng.normal(size=(len(code), WIDTH)).astype(np.float32) for code in index.node_code]
  row_of, prefixes = {}, [()]
  for level, (start, code) in enumerate(zip(index.child_start, index.node_code, strict=True)):
    prefixes = [
      (*prefix, int(c)) for p, prefix in enumerate(prefixes) for c in code[start[p] : start[p + 1]]
    ]
    row_of.update({prefix: (level, row) for row, prefix in enumerate(prefixes)})
  guide = Guide(tuple(map(jnp.asarray, vectors)), jnp.float32(1.7))
  beams = run(TableModel(), BATCH, Trie.of(index), (2, 3, 5), guide=guide)
  for b in range(B):

    def added(prefix, b=b):
      level, row = row_of[prefix]
      return 1.7 * float(BATCH.state_BD[b].astype(np.float64) @ vectors[level][row])

    one = jax.tree.map(lambda x, b=b: x[b : b + 1], beams)
    rows = jax.tree.map(lambda x, b=b: x[b : b + 1], BATCH)
    check(one, rows, tuples(index.codes_NT), (2, 3, 5), SearchConfig(), added=added)


def test_children_of_each_node_are_those_of_the_index_and_its_overlay():
  index = make_index()
  live = LiveIndex(index.codes_NT, CODEBOOKS, overlay=16)
  active = set(tuples(index.codes_NT))
  gone = sorted(active)[::5]
  for row, codes in enumerate(tuples(index.codes_NT)):
    if codes in gone:
      live.set(row, None)
  came = [codes for codes in tuples(CODES)[::11] if codes not in active]
  for row, codes in enumerate(came):
    live.set(500 + row, codes)
  active = (active - set(gone)) | set(came)
  trie, level_nodes = Trie.of(live.view()[0]).with_overlay(live.view()[1]), {(): 0}
  # By themselves they would be compiled an operation at a time.
  children = jax.jit(Trie.children, static_argnums=1)
  overlay_node = jax.jit(Trie.overlay_node, static_argnums=1)
  for level in range(3):
    beams = [*level_nodes, None]  # the last beam is empty
    node_BW = np.array([[*level_nodes.values(), NO_NODE]], np.int32)
    found = jax.device_get(children(trie, level, node_BW))
    grown = {}
    for w, prefix in enumerate(beams):
      there = np.flatnonzero(found.valid_BWC[0, w])
      here = {int(found.code_BWC[0, w, c]): int(found.node_BWC[0, w, c]) for c in there}
      extra = np.flatnonzero(found.beam_BP[0] == w)
      for entry in extra:
        assert int(found.code_P[entry]) not in here
        here[int(found.code_P[entry])] = int(overlay_node(trie, level, entry))
      expected = (
        {codes[level] for codes in active if codes[:level] == prefix}
        if prefix is not None
        else set()
      )
      assert set(here) == expected
      grown |= {(*prefix, code): node for code, node in here.items()} if prefix is not None else {}
    assert len(set(grown.values())) == len(grown)
    assert ((found.beam_BP[0] >= 0) & (found.beam_BP[0] <= len(beams))).all()
    level_nodes = grown
