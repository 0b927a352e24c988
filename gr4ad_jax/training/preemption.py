"""Notices that the process is asked to stop, so that the loop can save first."""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils


class Preemption:
  """A context manager under which SIGTERM and Ctrl-C ask for a stop; a second Ctrl-C interrupts at
  once.

  One process: a signal handler sets a flag. Several: JAX's preemption service, which catches
    SIGTERM on any of them and
  makes all stop after the same step; Ctrl-C is handed on to it.
  """

  def __init__(self):
    self._asked = threading.Event()
    self._before = {}

  def asked(self, step: int) -> bool:
    """Whether to stop after `step`; every process gets the same answer."""
    # JAX has a handler of its own for SIGTERM, and agrees with all processes on a step.
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked.is_set()

  def _handle(self, number, frame):
    del number, frame
    # From here on a second Ctrl-C ends the process in the usual way.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if jax.process_count() > 1:
      # Ctrl-C reaches one process of a job: as SIGTERM it goes through the agreement of all.
      os.kill(os.getpid(), signal.SIGTERM)
    self._asked.set()

  def __enter__(self):
    # Python lets only the main thread set handlers.
    if threading.current_thread() is threading.main_thread():
      caught = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT)
      self._before = {number: signal.signal(number, self._handle) for number in caught}
    return self

  def __exit__(self, *_):
    # What stood there before is put back, for whoever caught these signals around the loop.
    for number, handler in self._before.items():
      signal.signal(number, handler)


def release() -> None:
  """After the last loop: from here on SIGTERM ends a process of several at once, as it does one
  that is alone.
  """
  if jax.process_count() > 1 and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
