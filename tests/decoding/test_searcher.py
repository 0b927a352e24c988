"""Compiled searches: which are compiled and when, progress that is told, precision, and tries
that are taken once.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.config import SearchConfig
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.decoding import searcher as searcher_lib
from gr4ad_jax.decoding.searcher import Searcher, TrieFeed, scaled
from gr4ad_jax.decoding.trie import Trie
from gr4ad_jax.index.live_index import LiveIndex
from tests.decoding.table_model import CODEBOOKS, CODES, MONEY, TableModel, loop_search, make_batch
from tests.models import tiny

BATCH = make_batch(4)
ECPM = EcpmBins(np.arange(2, dtype=np.float32), MONEY, 9.0)
SCHEDULES = ((2, 3, 4), (1, 2, 3))


def rows(n):
  return jax.tree.map(lambda x: x[:n], BATCH)


def live_index(overlay=8):
  return LiveIndex(CODES[::2], CODEBOOKS, overlay=overlay)


@pytest.mark.long
def test_each_bucket_and_schedule_is_compiled_once_and_told(monkeypatch):
  clock = iter(np.arange(100.0, 200.0, 2.5))
  monkeypatch.setattr(
    searcher_lib, "time", types.SimpleNamespace(monotonic=lambda: float(next(clock)))
  )
  index, told = live_index(), []
  trie, searcher = (
    TrieFeed(index).trie(),
    Searcher(TableModel(), ECPM, SearchConfig(order="blend", value_power=0.5)),
  )
  variables = searcher.variables({})
  assert not searcher.is_prepared(1, SCHEDULES[0], trie)
  searcher.prepare(
    variables, rows(1), (1, 3), SCHEDULES, trie, lambda *progress: told.append(progress)
  )
  assert told == [(1, 4, 2.5), (2, 4, 5.0), (3, 4, 7.5), (4, 4, 10.0)]
  for size in (1, 2, 3):
    for schedule in (*SCHEDULES, (2, 3, 5)):
      known = size != 2 and schedule in SCHEDULES
      assert searcher.is_prepared(size, list(schedule), trie) == known
      if known:
        beams = jax.device_get(searcher.search(variables, rows(size), trie, schedule))
        for b in range(size):
          active = [tuple(codes) for codes in CODES[::2].tolist()]
          search = SearchConfig(order="blend", value_power=0.5)
          expected = loop_search(BATCH, b, active, schedule, search)
          assert [tuple(codes) for codes in beams.codes_BWT[b, : len(expected)].tolist()] == [
            x.codes for x in expected
          ]
      else:
        with pytest.raises(KeyError):
          searcher.search(variables, rows(size), trie, schedule)
  programs = dict(searcher._programs)
  searcher.prepare(variables, rows(1), (3, 1), SCHEDULES, trie)
  assert (
    all(searcher._programs[key] is program for key, program in programs.items())
    and len(programs) == 4
  )


def test_equal_models_with_equal_settings_share_their_programs():
  """As the arms of a server do, whose parameters differ; what shapes a program is never shared."""
  first, second = (Searcher(tiny.make_model(), ECPM, SearchConfig()) for _ in range(2))
  assert first._run is second._run
  for model, search in (
    (tiny.make_model(lazy_layers=1), SearchConfig()),
    (tiny.make_model(), SearchConfig(order="ecpm")),
    (tiny.make_model(), SearchConfig(ecpm_beams=4)),
  ):
    assert Searcher(model, ECPM, search)._run is not first._run


def test_another_shape_of_the_trie_is_another_program():
  searcher, index = Searcher(TableModel(), ECPM, SearchConfig()), live_index()
  trie = TrieFeed(index).trie()
  searcher.prepare(searcher.variables({}), rows(1), (1,), SCHEDULES[:1], trie)
  main = Trie.of(index.view()[0])
  longer = TrieFeed(live_index(16)).trie()
  fewer = Trie.of(LiveIndex(CODES[:4], CODEBOOKS).view()[0])
  assert searcher.is_prepared(1, SCHEDULES[0], trie)
  for other in (main, longer, fewer):
    assert not searcher.is_prepared(1, SCHEDULES[0], other)


def test_parameters_are_in_the_precision_that_is_asked_for():
  params = {"layer": {"kernel": np.float32([[1.0, -4.0], [0.5, 2.0]]), "scale": np.float32([3.0])}}
  plain = Searcher(TableModel(), ECPM, SearchConfig()).variables(params)
  assert list(plain) == ["params"] and isinstance(plain["params"]["layer"]["kernel"], jax.Array)
  small = Searcher(TableModel(), ECPM, SearchConfig(quantize="int8")).variables(params)
  assert (
    small["params"]["layer"]["kernel"].dtype == jnp.int8
    and small["params"]["layer"]["scale"].dtype == jnp.float32
  )
  np.testing.assert_allclose(
    small["scales"]["layer"]["kernel"], np.float32([1, 4]) / 127, rtol=1e-6
  )


def test_a_feed_takes_the_main_part_once_a_merge_and_the_overlay_once_a_change(monkeypatch):
  index, taken = live_index(), []
  of = Trie.of
  counting = types.SimpleNamespace(of=lambda main: (taken.append(main.version), of(main))[1])
  monkeypatch.setattr(searcher_lib, "Trie", counting)
  feed = TrieFeed(index)
  first = feed.trie()
  assert feed.trie() is first and len(taken) == 1
  index.set(0, None)
  second = feed.trie()
  assert second is not first and feed.trie() is second and len(taken) == 1
  assert (np.asarray(second.overlay_TQP) != np.asarray(first.overlay_TQP)).any()
  index.set(1, tuple(CODES[1]))
  index.merge()
  third = feed.trie()
  assert (
    feed.trie() is third
    and len(taken) == 2
    and len(third.node_code[2]) == len(index.view()[0].node_code[2])
  )
  assert (np.asarray(third.overlay_TQP) == -1).all()


def test_schedules_are_scaled_narrowest_first():
  assert scaled((10, 3, 1), (2.0, 0.3, 1.0, 0.04)) == ((1, 1, 1), (3, 1, 1), (10, 3, 1), (20, 6, 2))
