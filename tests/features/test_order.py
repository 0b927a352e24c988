"""The order of the data: of seed and step alone, whatever the processes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr4ad_jax.examples.order import TrainingOrder
from gr4ad_jax.features import targets
from tests.data.splitmix import BITS, GOLDEN, splitmix


@settings(max_examples=25, deadline=None)
@given(
  st.integers(1, 40), st.sampled_from([4, 8]), st.integers(0, 2**31), st.sampled_from([1, 2, 4])
)
def test_order_is_of_seed_and_step_whatever_the_processes(number, batch_size, seed, processes):
  requests = 3 * np.arange(number) + 1
  order, other = (
    TrainingOrder(requests, batch_size, seed),
    TrainingOrder(requests, batch_size, seed),
  )
  steps = [order.step(step) for step in range(2 * number // batch_size + 2)]
  for step in reversed(range(len(steps))):  # any step can be asked for first
    parts = [other.step(step, process, processes) for process in range(processes)]
    for whole, part in zip(steps[step], zip(*parts, strict=True), strict=True):
      np.testing.assert_array_equal(np.concatenate(part), whole)
  rows, epochs = (np.concatenate(column) for column in zip(*steps, strict=True))
  for epoch in range(2):
    np.testing.assert_array_equal(np.sort(rows[epochs == epoch]), requests)
  assert order.steps_per_epoch == number / batch_size


def test_epochs_and_seeds_shuffle_differently():
  requests = np.arange(64)
  first, second = (TrainingOrder(requests, 64, 1).step(step)[0] for step in (0, 1))
  other = TrainingOrder(requests, 64, 2).step(0)[0]
  assert all((x != y).any() for x, y in ((first, second), (first, other), (first, requests)))


def test_impossible_orders_are_refused():
  with pytest.raises(ValueError, match="no training example"):
    TrainingOrder(np.zeros(0, int), 4, 0)
  with pytest.raises(ValueError, match="batch_size=6 is not a multiple of 4 processes"):
    TrainingOrder(np.arange(9), 6, 0).step(0, 1, 4)


def test_unshuffled_order_is_the_given_one_every_epoch():
  order = TrainingOrder(np.array([5, 2, 9, 4]), 3, 0, shuffled=False)
  taken = np.concatenate([order.step(step)[0] for step in range(4)])
  np.testing.assert_array_equal(taken, [5, 2, 9, 4] * 3)


def test_the_hash_of_a_counter_is_splitmix64():
  """Also its first outputs from seed 0, as published with the generator."""
  known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
  states = np.array([GOLDEN, 2 * GOLDEN & BITS, 3 * GOLDEN & BITS, 0, BITS, 12345], np.uint64)
  found = targets.splitmix64(states).tolist()
  assert found[:3] == known and found == [splitmix(int(state)) for state in states]


def test_an_epoch_is_philox_s_permutation_of_seed_and_number():
  requests = np.array([5, 2, 9, 4, 7, 11, 3])
  order = TrainingOrder(requests, 3, 6)
  taken = np.concatenate(
    [
      np.random.Generator(np.random.Philox(key=np.array([6, epoch], np.uint64))).permutation(
        requests
      )
      for epoch in range(3)
    ]
  )
  for step in (5, 0, 1, 4, 2, 3):  # any step may be asked for first
    rows, epochs = order.step(step)
    np.testing.assert_array_equal(rows, taken[3 * step : 3 * step + 3])
    np.testing.assert_array_equal(epochs, np.arange(3 * step, 3 * step + 3) // 7)
  assert order.steps_per_epoch == 7 / 3


def test_a_process_takes_its_own_rows_in_order():
  order = TrainingOrder(np.arange(100, 109), 6, 0, shuffled=False)
  parts = [order.step(1, process, 3)[0].tolist() for process in range(3)]
  assert parts == [[106, 107], [108, 100], [101, 102]]
  assert [order.step(1, process, 3)[1].tolist() for process in range(3)] == [[0, 0], [0, 1], [1, 1]]
