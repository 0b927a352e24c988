"""Several objects at once, to a bucket or from it, and how far that is.

Whoever wants to hear of it says so to `listen`: the library prints nothing.
"""

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from gr4ad_jax import checksums
from gr4ad_jax.remote.store import Store

Told = Callable[[str, int, int], None]
"""Hears what is carried, how many bytes of it are, and how many there are."""

_THREADS = 8  # a store answers one request slowly and many at once well
_listener: Told = lambda *_: None  # noqa: E731


def listen(told: Told) -> None:
  """From now on `told` hears of every transfer of this process, from several threads."""
  global _listener
  _listener = told


class _Sum:
  """Bytes so far, of all threads of a transfer."""

  def __init__(self, what: str, total: int):
    self._what = what
    self._total = total
    self._done = 0
    self._lock = threading.Lock()

  def add(self, number: int) -> None:
    with self._lock:
      # A copy that was begun again counts twice: never more than all is told.
      self._done = min(self._done + number, self._total)
      _listener(self._what, self._done, self._total)


def download(store: Store, wanted: Mapping[str, tuple[str, str, int]], what: str) -> None:
  """Copies objects to local files, and compares them.

  Args:
    store: where they lie.
    wanted: path here -> (object, SHA-256 or empty, bytes); a file is made with its folders.
    what: for whoever listens.

  Raises:
    FileNotFoundError: an object is gone.
    DamagedError: what came is not what was written.
  """
  told = _Sum(what, sum(size for _, _, size in wanted.values()))

  def copy(path: str) -> None:
    name, digest, size = wanted[path]
    os.makedirs(os.path.dirname(path), exist_ok=True)
    store.get(name, path, told.add)
    found = os.path.getsize(path)
    if found != size or digest and checksums.digest(path) != digest:
      raise checksums.DamagedError(f"{store.url}/{name} is damaged: it is not what was written")

  _each(copy, wanted)


def upload(store: Store, wanted: Mapping[str, str], what: str) -> None:
  """Copies local files, each to its object.

  Args:
    store: where to.
    wanted: object -> path here.
    what: for whoever listens.
  """
  told = _Sum(what, sum(os.path.getsize(path) for path in wanted.values()))
  _each(lambda name: store.put(wanted[name], name, told.add), wanted)


def _each(call: Callable[[str], None], names: Mapping[str, object]) -> None:
  with ThreadPoolExecutor(min(_THREADS, max(1, len(names)))) as threads:
    done = [threads.submit(call, name) for name in names]
    try:
      for one in done:
        one.result()  # raises what the copy did
    finally:
      # After the first failure what was not begun is not begun any more.
      for one in done:
        one.cancel()
