"""The decoding suite: its counterparts do the same work, and its figures agree."""

import dataclasses
import time

import jax
import numpy as np
import pytest

from gr4ad_jax.benchmarks import decode, index, synthetic
from gr4ad_jax.decoding.trie import Trie
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.index.live_index import LiveIndex
from tests.timing import undisturbed


@pytest.fixture(scope="module")
def small():
  """Makes the suite's shapes small: (codes, trie)."""
  patch = pytest.MonkeyPatch()
  for module in (decode, index):
    patch.setattr(module, "CODEBOOKS", (32, 16, 8))
  for name, value in {"SLOTS": 15, "PROGRESSIVE": (4, 8, 16), "FIXED": (16, 16, 16)}.items():
    patch.setattr(decode, name, value)
  codes_NT = synthetic.catalogue(300, decode.CODEBOOKS)
  yield codes_NT, Trie.of(SidIndex.build(codes_NT, decode.CODEBOOKS))
  patch.undo()


def setting(**changes):
  return dataclasses.replace(
    decode.Setting(width=64, layers=2, lazy_layers=1, widths=decode.PROGRESSIVE), **changes
  )


@pytest.mark.long
def test_beams_that_share_no_context_find_the_same(small):
  shared, alone = (decode.Decode(setting(batch=2, shared=share), *small) for share in (True, False))
  one, other = (timer.over(small[1]) for timer in (shared, alone))
  np.testing.assert_array_equal(one.codes_BWT, other.codes_BWT)
  np.testing.assert_allclose(one.logp_BW, other.logp_BW, atol=1e-5)
  assert shared.gflop == pytest.approx(alone.gflop, rel=1e-6)


@pytest.mark.long
def test_figures_hold_their_ratios(small):
  settings = {"lazy": setting(), "autoregressive": setting(lazy_layers=0, widths=decode.FIXED)}
  figures, seconds, timers = decode._timed(settings, *small, repetitions=2)
  assert timers["lazy"].parameters == timers["autoregressive"].parameters
  assert figures["autoregressive"]["matmul_gflop"] > 2 * figures["lazy"]["matmul_gflop"]
  for name, row in figures.items():
    assert row["seconds"]["low"] == min(seconds[name])
    assert 0 < row["share_of_peak"]["median"] < 1
    assert row["gflops"] == pytest.approx(row["matmul_gflop"] / row["seconds"]["median"])


def test_the_cache_saves_its_hits():
  calls = []

  def search():
    calls.append(1)
    time.sleep(0.002)

  def measured():
    calls.clear()
    found = decode.with_cache(search, 2)
    assert found["off_over_on"]["median"] > 1
    return found

  found = undisturbed(measured)
  distinct = round(40 * (1 - found["hits"]))
  assert 0.15 < found["hits"] < 0.4 and len(calls) == 2 * (40 + distinct)


def test_the_unconstrained_search_looks_nothing_up(small):
  codes_NT, _ = small
  one_layer = setting(widths=(32, 512, 4096), layers=1, lazy_layers=0)
  free = decode.Decode(one_layer, codes_NT, index.AllCodes.make())
  beams = free.over(index.AllCodes.make())
  assert np.isfinite(beams.logp_BW).all()
  assert np.exp(np.asarray(beams.logp_BW)).sum() == pytest.approx(1, abs=1e-4)  # all 4,096 UA-SIDs


def test_reachable_sees_the_overlay(small):
  codes_NT, _ = small
  live = LiveIndex(codes_NT, decode.CODEBOOKS, overlay=32)
  taken = {tuple(code) for code in codes_NT.tolist()}
  new = next(code for code in np.ndindex(*decode.CODEBOOKS) if code not in taken)
  main, overlay = live.view()
  assert not index.reachable(Trie.of(main).with_overlay(overlay), np.array(new))
  live.set(300, new)
  trie = Trie.of(main).with_overlay(live.view()[1])
  assert index.reachable(trie, np.array(new)) and index.reachable(trie, codes_NT[0])
  for row in np.flatnonzero((codes_NT == codes_NT[0]).all(axis=1)):
    live.set(int(row), None)
  assert not index.reachable(Trie.of(main).with_overlay(live.view()[1]), codes_NT[0])
  assert jax.tree.leaves(trie)


@pytest.mark.long
def test_the_index_suite_measures_every_size(small):
  patch = pytest.MonkeyPatch()
  patch.setattr(index, "Setting", lambda batch, ecpm: setting(batch=batch, ecpm=ecpm))
  patch.setattr(index, "CHANGES", 5)
  figures = index.measure(2, sizes=(50, 200), batches=(1,))
  patch.undo()
  assert [one["ads"] for one in figures["index"]] == [50, 200]
  assert all(one["add_to_generable_seconds"] > 0 for one in figures["index"])
  assert figures["decode_batch_1"]["over_smallest"]["50"]["median"] == 1
  assert "200 ads" in index.summary(figures)
