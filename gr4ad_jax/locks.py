"""Locks between processes, by `flock`: the kernel gives one free when its process ends, however
it ends.
"""

import fcntl
import logging
import os

_log = logging.getLogger(__name__)


class InUseError(OSError):
  """Another process holds the lock."""


class Lock:
  """A lock on a path, held from its making to `close`. A context manager.

  Args:
    path: a file, made where it is missing, in a directory that exists.
    wait: whether to wait until the lock is free.

  Raises:
    InUseError: another process holds it, and `wait` is not set.
    OSError: the file cannot be opened.
  """

  def __init__(self, path: str, *, wait: bool = False):
    self._path = path
    while True:
      # For writing: over NFS a lock that excludes others needs it.
      self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
      try:
        fcntl.flock(self._handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if self.stands:  # else the holder deleted the file between opening and locking
          return
      except BlockingIOError as error:
        os.close(self._handle)
        raise InUseError(f"{path}: in use by another process") from error
      except OSError as error:  # some network file systems have no such locks
        _log.warning("%s cannot be locked (%s): nothing keeps a second process away", path, error)
        return
      os.close(self._handle)

  @property
  def stands(self) -> bool:
    """Whether the path still leads to what is locked; otherwise another process can lock another
    file there.
    """
    try:
      there = os.stat(self._path)
    except FileNotFoundError:
      return False
    return os.path.samestat(os.fstat(self._handle), there)

  def remove(self) -> None:
    """Deletes the file of the lock, which is held on to until `close`."""
    if self.stands:
      os.remove(self._path)

  def close(self) -> None:
    """Gives it free."""
    os.close(self._handle)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()
