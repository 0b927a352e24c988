"""A profiler trace of some steps of a run."""

import logging
from collections.abc import Callable
from typing import Any

import jax

_log = logging.getLogger(__name__)


class StepProfiler:
  """Traces the steps of a window, once; a context manager that ends a trace which the run leaves
  open.

  Only process 0 traces. Where the profiler fails the run goes on without it, and the log says so.

  Args:
    folder: where the trace goes; Tensorboard's profile plugin and xprof read it.
    first: steps done where it begins; a run that goes on from within the window begins there.
    last: steps done where it ends; with `first` or less nothing is traced.
  """

  def __init__(self, folder: str, first: int, last: int):
    self._folder = folder
    self._first = first
    self._last = last
    self._traces = False
    # One process is enough: all do the same.
    self._over = first >= last or jax.process_index() != 0

  def begin(self, done: int, state: Any) -> None:
    """Before a step is dispatched: `done` steps are, and `state` is theirs."""
    # A trace is of whole steps that this call takes itself.
    if self._traces or self._over or done < self._first:
      return
    self._over = done >= self._last
    if self._over:
      _log.warning(
        "no trace of steps %d to %d: the run goes on from step %d", self._first, self._last, done
      )
      return
    # So that no step before the window is in the trace.
    jax.block_until_ready(state)
    options = jax.profiler.ProfileOptions()
    # Calls in Python are many, and slow the steps down.
    options.python_tracer_level = 0
    self._traces = self._tried(
      lambda: jax.profiler.start_trace(self._folder, profiler_options=options)
    )
    self._over = not self._traces

  def end(self, done: int, state: Any) -> None:
    """After a step was dispatched, the `done`-th."""
    if self._traces and done >= self._last:
      # The last steps are still running on the devices: they belong into the trace.
      jax.block_until_ready(state)
      self.close()

  def close(self) -> None:
    """Writes an open trace."""
    if self._traces:
      self._traces = False
      self._over = True
      if self._tried(jax.profiler.stop_trace):
        _log.info("the trace lies in %s", self._folder)

  def _tried(self, call: Callable[[], None]) -> bool:
    try:
      call()
    except Exception as error:
      # Whatever a profiler meets is no reason to lose a run.
      _log.warning("the run goes on without a trace: %s", error)
      return False
    return True

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()
