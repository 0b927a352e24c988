"""The live index among threads: whoever holds its lock is waited for, and an expansion is of one
moment.
"""

import threading

import numpy as np
import pytest

from gr4ad_jax.index.live_index import LiveIndex


class TellingLock:
  """A lock that tells when somebody has to wait for it."""

  def __init__(self):
    self.waited_for, self._lock = threading.Event(), threading.Lock()

  def __enter__(self):
    if not self._lock.acquire(blocking=False):
      self.waited_for.set()
      self._lock.acquire()

  def __exit__(self, *_):
    self._lock.release()


class Beside:
  """A call in a thread of its own."""

  def __init__(self, lock, call):
    self._lock, self._call, self.ended = lock, call, threading.Event()
    self._thread = threading.Thread(target=self._run)

  def _run(self):
    self._call()
    self.ended.set()

  def waits(self):
    """Starts it; whether it waits for the lock, rather than ends. Nothing else can happen, so
    there is no clock.
    """
    self._thread.start()
    while not self._lock.waited_for.is_set() and not self.ended.is_set():
      self._lock.waited_for.wait(0.01)
    return not self.ended.is_set()

  def join(self):
    self._thread.join()


CODES = np.array([[0, 0], [0, 0], [0, 1], [1, 0]])
BEAMS = np.array([[[0, 0], [0, 1], [1, 0], [1, 1]]])
METHODS = {
  "view": lambda index: index.view(),
  "arrays": lambda index: index.arrays(),
  "overlay": lambda index: index.overlay(),
  "set": lambda index: index.set(0, (1, 1)),
  "rows_of": lambda index: index.rows_of((0, 0)),
  "codes_below": lambda index: index.codes_below((0,)),
  "expand": lambda index: index.expand(BEAMS, np.ones((1, 4), bool), 3),
  "num_leaves": lambda index: index.num_leaves,
  "fill": lambda index: index.fill,
  "nbytes": lambda index: index.nbytes,
  "merge": lambda index: index.merge(),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_waits_for_the_lock(name):
  index = LiveIndex(CODES, (2, 2))
  index._lock = TellingLock()
  beside = Beside(index._lock, lambda: METHODS[name](index))
  with index._lock:
    assert beside.waits()
  beside.join()


def test_an_expansion_is_of_one_moment():
  """A row that moves from the first part of the beams to the second, in between, would stand in
  the list twice.
  """
  index = LiveIndex(CODES, (2, 2))
  index._lock = TellingLock()
  before = index.expand(BEAMS[:, ::-1], np.ones((1, 4), bool), 3)
  beside, real, parts = Beside(index._lock, lambda: index.set(3, (0, 0))), index._flat_rows, []

  def flat_rows(*arguments):
    parts.append(arguments)
    if len(parts) == 2:
      beside.waits()
    return real(*arguments)

  index._flat_rows = flat_rows
  found = index.expand(BEAMS[:, ::-1], np.ones((1, 4), bool), 3)
  beside.join()
  assert len(parts) == 2
  assert (
    [part.tolist() for part in found]
    == [part.tolist() for part in before]
    == [[[3, 2, 0]], [[1, 2, 3]]]
  )
  assert index.rows_of((0, 0)).tolist() == [0, 1, 3]


def test_two_merges_do_not_overlap():
  index = LiveIndex(CODES, (2, 2))
  index._merging = TellingLock()
  second = Beside(index._merging, index.merge)
  index.merge(lambda trie: pytest.fail("not waited for") if not second.waits() else None)
  second.join()


def test_changes_go_on_while_a_merge_compiles():
  """What is set between a merge's copy of the keys and its end is in the new part, and is
  counted as changed.
  """
  index = LiveIndex(CODES, (2, 2), overlay=8)

  def meanwhile(trie):
    assert trie.version == index.arrays().version + 1
    index.set(0, None)
    index.set(1, (1, 1))
    index.set(9, (0, 0))  # a row beyond those the merge began with
    index.set(3, None)
    index.set(3, (1, 0))  # and back

  index.merge(meanwhile)
  assert [index.rows_of(codes).tolist() for codes in BEAMS[0]] == [[9], [2], [3], [1]]
  assert index.num_active == 4 and index.num_leaves == 4 and index.fill == 2 / 8
  index.merge()
  assert [index.rows_of(codes).tolist() for codes in BEAMS[0]] == [
    [9],
    [2],
    [3],
    [1],
  ] and index.fill == 0


def test_a_merge_that_fails_leaves_the_index_as_it_was():
  index = LiveIndex(CODES, (2, 2))
  index.set(0, (1, 1))

  def fail(trie):
    raise MemoryError

  with pytest.raises(MemoryError):
    index.merge(fail)
  assert index.rows_of((1, 1)).tolist() == [0] and index._changed is None
  index.merge()
  assert index.rows_of((1, 1)).tolist() == [0] and index.fill == 0
