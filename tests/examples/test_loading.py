"""Which requests a loader gives, and that it gives memory's batches."""

from typing import NamedTuple

import numpy as np
import pytest

from gr4ad_jax.examples import loading
from gr4ad_jax.examples.order import TrainingOrder


class Drawn(NamedTuple):
  """A batch: the numbers of its requests, and their draws."""

  requests: np.ndarray
  draw: np.ndarray


class Numbers:
  """In place of contexts."""

  def batch(self, requests, draw):
    return Drawn(np.array(requests), np.array(draw))


def test_over_a_kill_and_other_processes_nothing_is_repeated_or_left_out():
  """Two epochs: 7 steps by 2 processes, then, gone on with, by 4, then by 1."""
  order = TrainingOrder(np.arange(100, 196), 8, seed=3)
  taken, draws = [], []
  for first, last, processes in ((0, 7, 2), (7, 15, 4), (15, 24, 1)):
    parts = [
      loading.Batches(Numbers(), order, first, process, processes) for process in range(processes)
    ]
    for step in range(first, last):
      for part in parts:
        requests, draw = part[step - first]
        assert len(requests) == 8 // processes
        taken += requests.tolist()
        draws += draw.tolist()
  assert len(taken) == 2 * 96
  for epoch in (0, 1):
    here = [request for request, draw in zip(taken, draws, strict=True) if draw == epoch]
    assert sorted(here) == list(range(100, 196))
  assert taken == np.concatenate([order.step(step)[0] for step in range(24)]).tolist()


class Started(loading.GrainSource):
  """Counts the starts of its pipeline, which is in this process."""

  def __init__(self, *about):
    super().__init__(*about)
    self.begun = []

  def _begin(self, step, process, processes):
    self.begun.append(step)
    super()._begin(step, process, processes)


def test_steps_may_be_asked_for_out_of_order_again_and_far_ahead():
  pytest.importorskip("grain")
  order = TrainingOrder(np.arange(50), 4, seed=0)
  source = Started(Numbers(), order, 0)
  for step in (5, 7, 6, 8, 7, 5, 3, 9, 2000, 2001):
    requests, draw = source.batch(step, 1, 2)
    wanted = order.step(step, 1, 2)
    assert requests.tolist() == wanted[0].tolist() and draw.tolist() == wanted[1].tolist(), step
  assert source.begun == [5, 2000]
  assert source.state(2002) == {"next_step": 2002}
  source.close()
