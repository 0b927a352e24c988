"""An index that outgrows its arrays while searches are compiled: whatever is asked, the trie that
is given has its searches.
"""

import threading
import types

import numpy as np
import pytest

from gr4ad_jax.answering.computing import Computer, Searches
from gr4ad_jax.config import Config
from gr4ad_jax.index.live_index import LiveIndex

CODEBOOKS = (8, 8, 8)
ALL = Searches(((2, 2, 2), (4, 4, 4)), (1, 4))
FIRST = ALL.first((4, 4, 4))


class SlowSearcher:
  """Stands for the searcher: a program of a shape for which there is a gate is compiled when that
  opens.
  """

  def __init__(self):
    self.programs = set()
    self.gates = {}

  def is_prepared(self, rows, schedule, trie):
    return (rows, schedule, shape_of(trie)) in self.programs

  def prepare(self, variables, row, buckets, schedules, trie, told):
    wanted = [(rows, schedule) for rows in buckets for schedule in schedules]
    # The search that is in use is compiled before the others of its shape.
    for rows, schedule in sorted(wanted, key=lambda pair: pair not in FIRST.pairs()):
      if (rows, schedule) not in FIRST.pairs() and shape_of(trie) in self.gates:
        assert self.gates[shape_of(trie)].wait(30)
      self.programs.add((rows, schedule, shape_of(trie)))


def shape_of(trie):
  return tuple(len(x) for x in trie.node_code)


def outgrow(index):
  """Adds ads until the arrays have another shape."""
  for row in range(200):
    index.set(24 + row, (row % 8, row // 8 % 8, row % 7))
  index.merge()


@pytest.fixture
def made():
  codes_NT = np.random.default_rng(0).integers(0, 8, (24, 3))
  index, searcher = LiveIndex(codes_NT, CODEBOOKS, overlay=4096), SlowSearcher()
  catalog = types.SimpleNamespace(index=index, before_merge=None)
  state = types.SimpleNamespace(contexts=lambda *_: None, end=0)
  computer = Computer(Config(), catalog, state, searcher, ALL, ("click",), None)
  computer.prepare(None, FIRST)
  return computer, index, searcher


def wait_for(condition):
  for _ in range(3000):
    if condition():
      return
    threading.Event().wait(0.01)
  raise AssertionError("it did not happen")


def usable(computer, searcher, searches):
  """The trie that a batch gets, for which all its searches must be there."""
  trie, _ = computer._usable_view(None, searches)
  assert all(searcher.is_prepared(*pair, trie) for pair in searches.pairs())
  return trie


def test_an_index_that_outgrows_its_arrays_while_the_searches_are_compiled(made):
  computer, index, searcher = made
  small = usable(computer, searcher, FIRST)
  small_gate = searcher.gates[shape_of(small)] = threading.Event()
  widener = threading.Thread(target=computer.prepare, args=(None,))
  widener.start()
  outgrow(index)
  large_shape = shape_of(computer._feed.trie())
  assert large_shape != shape_of(small)
  large_gate = searcher.gates[large_shape] = threading.Event()
  usable(computer, searcher, FIRST)
  wait_for(lambda: shape_of(usable(computer, searcher, FIRST)) == large_shape)

  # The first search is there for the new shape, the others for the old one alone.
  small_gate.set()
  wait_for(lambda: searcher.is_prepared(1, (2, 2, 2), small))
  assert shape_of(usable(computer, searcher, FIRST)) == large_shape
  widener.join(0.2)
  assert widener.is_alive()  # all searches are not there before they are for the new shape, too

  large_gate.set()
  widener.join(30)
  assert not widener.is_alive()
  assert shape_of(usable(computer, searcher, ALL)) == large_shape


def test_an_index_that_outgrows_its_arrays_right_after(made):
  """Between the first search's and the others' programs for the new shape, all searches are asked
  for.
  """
  computer, index, searcher = made
  computer.prepare(None)
  small = usable(computer, searcher, ALL)
  outgrow(index)
  gate = searcher.gates[shape_of(computer._feed.trie())] = threading.Event()
  usable(computer, searcher, FIRST)
  wait_for(lambda: shape_of(usable(computer, searcher, FIRST)) != shape_of(small))
  assert shape_of(usable(computer, searcher, ALL)) == shape_of(small)
  gate.set()
  wait_for(lambda: shape_of(usable(computer, searcher, ALL)) != shape_of(small))
