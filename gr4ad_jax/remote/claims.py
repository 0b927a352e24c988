"""Which job a bucket's run belongs to: one at a time trains it.

A job writes its id into the pointer, so that no other can move it (`pointer.advance`), and as long
as it lives it writes `alive/<id>` anew every few seconds. Another job that finds the run claimed
looks at this object: where it changes, the owner lives, and the job is refused; where it is gone or
stays as it is, the job takes over. No clock is compared with another machine's.

What this promises: a job that was taken for dead, since it did not reach the bucket for long, and
that comes back, can write no state any more; its next push is an error of one line.
"""

import datetime
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from gr4ad_jax.knobs import ConfigError
from gr4ad_jax.remote.pointer import Pointer
from gr4ad_jax.remote.store import Store

FOLDER = "alive"
RENEWED = 20.0
"""Seconds between two signs of life."""

DEAD = 120.0
"""Seconds without one after which an owner is taken for dead."""

LOOK = 2.0
"""Seconds between two looks at another job's signs."""

_log = logging.getLogger(__name__)


def here() -> str:
  """This machine, since it was started, and the space that its process ids are of; empty: not
  known.
  """
  try:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
      boot = file.read().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:  # no Linux
    return ""


def owner() -> dict[str, Any]:
  """Whose a claim of this process is."""
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  return {"host": socket.gethostname(), "pid": os.getpid(), "since": now, "machine": here()}


def in_words(about: Mapping[str, Any]) -> str:
  """An owner for a message."""
  return f"process {about.get('pid')} on {about.get('host')}, since {about.get('since')}"


class Signs:
  """Signs of life of a job, from its making to `close`; a thread writes them.

  Args:
    store: of the run.
    claim: the job's id.
    seconds: between two signs.
  """

  def __init__(self, store: Store, claim: str, seconds: float = RENEWED):
    self._store = store
    self._name = f"{FOLDER}/{claim}"
    self._seconds = seconds
    self._over = threading.Event()
    self._give()
    self._thread = threading.Thread(target=self._go_on, name="signs", daemon=True)
    self._thread.start()

  def close(self) -> None:
    """Ends the thread and takes the sign away: the run is free."""
    self._over.set()
    self._thread.join()
    self._store.delete([self._name])

  def _give(self) -> None:
    self._store.write(self._name, uuid.uuid4().hex.encode())

  def _go_on(self) -> None:
    while not self._over.wait(self._seconds):
      try:
        self._give()
      except OSError as error:  # the next push says what becomes of it
        _log.warning("no sign of life could be given: %s", error)


def check_free(
  store: Store,
  pointer: Pointer,
  told: Callable[[str], None],
  dead: float = DEAD,
  look: float = LOOK,
) -> None:
  """Returns when no job trains the run.

  Args:
    store: of the run.
    pointer: its newest.
    told: hears in words why it waits.
    dead: seconds without a sign after which an owner is taken for dead.
    look: seconds between two looks.

  Raises:
    ConfigError: another job trains it.
  """
  sign = _sign(store, pointer.claim)
  if sign is None or _ended_here(pointer.owner):
    return
  told(
    f"{store.url}: a job claimed this run ({in_words(pointer.owner)}); waiting up to "
    f"{dead:.0f} s to see whether it lives"
  )
  until = time.monotonic() + dead
  while time.monotonic() < until:
    time.sleep(look)
    now = _sign(store, pointer.claim)
    if now is None:
      return
    if now != sign:
      raise ConfigError(
        f"--workdir={store.url} is not allowed: another job is training the run in it "
        f"({in_words(pointer.owner)})"
      )


def forget_others(store: Store, claim: str) -> None:
  """Deletes signs that jobs which were killed have left behind."""
  store.delete([name for name in store.entries(FOLDER) if name != f"{FOLDER}/{claim}"])


def _sign(store: Store, claim: str) -> bytes | None:
  try:
    return store.read(f"{FOLDER}/{claim}") if claim else None
  except FileNotFoundError:
    return None


def _ended_here(about: Mapping[str, Any]) -> bool:
  """Whether an owner was a process of this very machine that is gone."""
  if not here() or about.get("machine") != here():
    return False
  try:
    os.kill(int(about["pid"]), 0)
  except ProcessLookupError:
    return True
  except (PermissionError, KeyError, TypeError, ValueError):
    return False
  # This process holds the local lock, so an earlier claim of its own has ended.
  return int(about["pid"]) == os.getpid()
