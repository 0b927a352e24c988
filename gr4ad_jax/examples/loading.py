"""Batches of examples made ready by processes: grain reads the shards, an element a whole batch.

Which requests a batch holds is a function of seed and step (`examples/order`), as in memory. So a
run goes on at any step at once, on any number of processes, and gets the batches that it would have
got.
"""

import threading
from typing import Any, Protocol

import numpy as np

from gr4ad_jax.data.extras import optional
from gr4ad_jax.examples.reading import ExampleContexts

_ENDLESS = 1 << 40  # steps that a pipeline could go on for
_AHEAD = 2  # batches that a process of the loader has ready
_JUMP = 64  # steps ahead of what was asked for before: nearer ones are waited for


class Order(Protocol):
  """Which requests make up a step: `order.TrainingOrder`, say."""

  steps_per_epoch: float

  def step(self, step: int, process: int, processes: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of requests of a process' part of a step, and the draw of each."""


class Batches:
  """A grain data source whose element is a batch of a step: this process' part of it.

  Args:
    contexts: turns numbers of requests into batches.
    order: which requests make up a step.
    first: the step of element 0.
    process, processes: which part of each step.
  """

  def __init__(
    self, contexts: ExampleContexts, order: Order, first: int, process: int, processes: int
  ):
    self._contexts = contexts
    self._order = order
    self._first = first
    self._part = process, processes

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, element: int) -> Any:
    return self._contexts.batch(*self._order.step(self._first + int(element), *self._part))


class GrainSource:
  """A `task.Source` over examples on disk, read by processes of grain.

  Args:
    contexts: turns numbers of requests into batches.
    order: which requests make up a step.
    workers: processes.

  Raises:
    ImportError: grain is missing.
  """

  def __init__(self, contexts: ExampleContexts, order: Order, workers: int):
    self._grain = optional("grain")
    self._contexts = contexts
    self._order = order
    self._workers = workers
    self._lock = threading.Lock()
    self._iterator = None
    self._next = 0
    self._ready: dict[int, Any] = {}
    self.steps_per_epoch = order.steps_per_epoch

  def batch(self, step: int, process: int = 0, processes: int = 1) -> Any:
    """This process' rows of a step. Several threads may ask, not always in order."""
    with self._lock:
      # A jump, as after a resume, starts anew; what lies a little ahead is read up to.
      if self._iterator is None or step >= self._next + _JUMP:
        self._begin(step, process, processes)
      # Elements come in order. Those that other threads will ask for wait in `_ready`.
      while self._next <= step:
        element = next(self._iterator)
        # Copied: the arrays lie in memory that the loader shares, and takes back.
        self._ready[self._next] = type(element)(*map(np.array, element))
        self._next += 1
      # Handed out once, so that what was taken does not fill the memory.
      found = self._ready.pop(step, None)
    # It is asked for again, or lies before the first step that was asked for.
    if found is None:
      found = Batches(self._contexts, self._order, 0, process, processes)[step]
    return found

  def _begin(self, step: int, process: int, processes: int) -> None:
    """Starts the pipeline at a step."""
    # The processes of before read from another step on, and would go on doing so.
    self.close()
    grain = self._grain
    # The first element of the pipeline is this step.
    source = Batches(self._contexts, self._order, step, process, processes)
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    many = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=_AHEAD)
    dataset = grain.MapDataset.source(source).to_iter_dataset(read).mp_prefetch(many)
    self._iterator = iter(dataset)
    self._next = step
    self._ready = {}

  def close(self) -> None:
    """Ends the processes."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None

  def state(self, step: int) -> dict:
    """The number of the next step is all that there is to keep."""
    return {"next_step": step}

  def restore(self, state: dict) -> None:
    """Nothing: the step that is asked for says it all."""
    del state
