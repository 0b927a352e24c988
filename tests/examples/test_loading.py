"""Which requests a loader gives, and that it gives memory's batches."""

import os
import signal
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest

from gr4ad_jax.examples import loading, preparing
from gr4ad_jax.examples.order import TrainingOrder
from gr4ad_jax.examples.preparing import Options
from tests.examples import drawn, made


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


def lines_of(path, first, processes, count):
  """What `count` steps of a process gave that was then killed, with its loader, by SIGKILL."""
  command = [sys.executable, "-m", "tests.examples.drawn", path, str(first), str(processes)]
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, text=True, start_new_session=True
  ) as process:
    try:
      return [process.stdout.readline().rstrip("\n") for _ in range(count)]
    finally:
      os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.long  # processes are started, which takes seconds
def test_killed_and_gone_on_with_by_other_processes_all_batches_are_given_once(tmp_path):
  pytest.importorskip("grain")
  made.write_ads(tmp_path / "ads.csv")
  made.write_files(tmp_path / "log", made.rows(), ())
  config = made.config_of(tmp_path)
  out = str(tmp_path / "out")
  preparing.prepare(out, config, Options(form="bytes", partitions=2))
  contexts, order = drawn.contexts_of(out)
  requests = len(order.examples)
  steps = int(np.ceil(2 * requests / drawn.BATCH))
  found = []
  for processes, until in ((2, 7), (3, 12), (1, steps)):
    found += lines_of(out, len(found), processes, until - len(found))
  wanted = [order.step(step) for step in range(steps)]
  assert found == [drawn.said_of(contexts.batch(*some), some[0]) for some in wanted]
  # Of two epochs every request stands in each once.
  given = [int(word) for line in found for word in line.split()[:-1]][: 2 * requests]
  for epoch in (given[:requests], given[requests:]):
    assert sorted(epoch) == list(range(requests))
