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
  SIGTERM on any of them and makes all stop after the same step; Ctrl-C is handed on to it.

  One may lie inside another, as a loop's inside that of who calls the loop. What one of them was
  asked the other knows too: a request that comes in a loop's last step is for its caller.
  """

  def __init__(self):
    self._asked = threading.Event()
    self._before = {}
    self._outer: Preemption | None = None

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
      before = {number: signal.getsignal(number) for number in caught}
      # Handlers are methods of the Preemption that has set them.
      around = (getattr(handler, "__self__", None) for handler in before.values())
      self._outer = next((one for one in around if isinstance(one, Preemption)), None)
      if self._outer is not None and self._outer._asked.is_set():
        self._asked.set()
        # It is the second Ctrl-C that comes next, and it ends the process.
        before.pop(signal.SIGINT)
      for number in before:
        signal.signal(number, self._handle)
      self._before = before
    return self

  def __exit__(self, *_):
    if self._outer is not None and self._asked.is_set():
      self._outer._asked.set()
      # As above: the outer one must not catch a second Ctrl-C as if it were the first.
      self._before.pop(signal.SIGINT, None)
    # What stood there before is put back, for whoever caught these signals around the loop.
    for number, handler in self._before.items():
      signal.signal(number, handler)


def release() -> None:
  """After the last loop: from here on SIGTERM ends a process of several at once, as it does one
  that is alone.
  """
  if jax.process_count() > 1 and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
