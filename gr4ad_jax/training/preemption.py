"""Notices that the process is asked to stop, so that the loop can save first."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Preemption:
  """A context manager under which SIGTERM and Ctrl-C ask for a stop; a second Ctrl-C interrupts at once.

  One process: a signal handler sets a flag. Several: JAX's preemption service, which catches SIGTERM on any of them and
  makes all stop after the same step.
  """

  def __init__(self):
    self._asked = threading.Event()
    self._before = {}

  def asked(self, step: int) -> bool:
    """Whether to stop after `step`; every process gets the same answer."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked.is_set()

  def _handle(self, number, frame):
    del number, frame
    self._asked.set()
    signal.signal(signal.SIGINT, signal.default_int_handler)

  def __enter__(self):
    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
      self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)
