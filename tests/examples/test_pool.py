"""A pool whose processes die."""

import os
import pathlib
import signal

import pytest

from gr4ad_jax.examples.pool import Pool


def square(number, folder):
  """Kills its own process the first time that it gets to 2."""
  mark = pathlib.Path(folder) / "died"
  if number == 2 and not mark.exists():
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)
  return number * number


def dies(number, folder):
  """Always."""
  os.kill(os.getpid(), signal.SIGKILL)


def test_in_this_process_all_is_done_in_order(tmp_path):
  (tmp_path / "died").touch()
  arguments = [(number, str(tmp_path)) for number in range(4)]
  assert list(Pool(0).run(square, arguments)) == [(0, 0), (1, 1), (2, 4), (3, 9)]


@pytest.mark.long  # processes are started, which takes seconds
def test_a_dead_process_is_made_good(tmp_path):
  arguments = [(number, str(tmp_path)) for number in range(5)]
  with Pool(2) as pool:
    found = dict(pool.run(square, arguments))
    assert list(pool.run(square, arguments[4:])) == [(0, 16)]  # the pool goes on
  assert found == {number: number * number for number in range(5)}
  assert (tmp_path / "died").exists()


@pytest.mark.long
def test_processes_that_die_again_and_again_end_it(tmp_path):
  with Pool(1) as pool, pytest.raises(OSError, match="died 3 times"):
    list(pool.run(dies, [(0, str(tmp_path))]))
