"""The order of a fixed set of examples, and a source of batches that follows it."""

from collections.abc import Callable
from typing import Any

import numpy as np


class TrainingOrder:
  """Which examples make up a step: a pure function of seed and step.

  Every epoch is a new permutation. A process takes its own rows of the step's global batch, so the
  order of the data does not depend on how many processes there are, and the data position is the
  step number.

  Args:
    examples: their numbers; where `shuffled` is off, in the order that every epoch takes.
    batch_size: examples a step, over all processes.
    seed: of the permutations.
    shuffled: whether an epoch is a permutation.
  """

  def __init__(self, examples: np.ndarray, batch_size: int, seed: int, shuffled: bool = True):
    if not len(examples):
      raise ValueError("there is no training example")
    self.examples = np.asarray(examples)
    self.batch_size = batch_size
    self.seed = seed
    self.shuffled = shuffled
    self._permutation = -1, self.examples  # of an epoch

  @property
  def steps_per_epoch(self) -> float:
    """Steps in one pass over the examples."""
    return len(self.examples) / self.batch_size

  def _ordered(self, epoch: int) -> np.ndarray:
    if not self.shuffled:
      return self.examples
    # A pair is taken in one read, so epoch and permutation always belong together. Other threads
    # may be in another epoch.
    known, permutation = self._permutation
    if epoch != known:
      bits = np.random.Philox(key=np.array([self.seed, epoch], np.uint64))
      permutation = np.random.Generator(bits).permutation(self.examples)
      self._permutation = epoch, permutation
    return permutation

  def step(self, step: int, process: int = 0, processes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """This process' rows of a step.

    Returns:
      Numbers of examples [batch_size / processes] and the epoch in which each is drawn.
    """
    if self.batch_size % processes:
      raise ValueError(f"batch_size={self.batch_size} is not a multiple of {processes} processes")
    each = self.batch_size // processes
    # Positions count on through all epochs; an epoch need not end with a batch.
    position = step * self.batch_size + process * each + np.arange(each)
    epochs = position // len(self.examples)
    # A batch may hold the end of one epoch and the beginning of the next.
    rows = [
      self._ordered(int(e))[position[epochs == e] % len(self.examples)] for e in np.unique(epochs)
    ]
    return np.concatenate(rows), epochs


class OrderedSource:
  """A `task.Source` over a fixed set: any step can be made at any time, from its number alone.

  Args:
    order: which examples make up a step.
    make: (numbers of examples [B / processes], the epoch of each) -> batch; called in several
      threads.
  """

  def __init__(self, order: TrainingOrder, make: Callable[[np.ndarray, np.ndarray], Any]):
    self._order = order
    self._make = make
    self.steps_per_epoch = order.steps_per_epoch

  def batch(self, step: int, process: int = 0, processes: int = 1) -> Any:
    """This process' rows of a step."""
    return self._make(*self._order.step(step, process, processes))

  def state(self, step: int) -> dict:
    """The number of the next step is all that there is to keep."""
    return {"next_step": step}

  def restore(self, state: dict) -> None:
    """Nothing: the step that is asked for says it all."""
    del state
