"""The bucket runs of this process, by their local directories.

All functions but `local_folder` take any directory, and do nothing for one that is of no bucket.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence

from gr4ad_jax.knobs import ConfigError
from gr4ad_jax.remote import urls
from gr4ad_jax.remote.mirror import Mirror

_log = logging.getLogger(__name__)
_mirrors: dict[str, Mirror] = {}
_senders: dict[str, "_Sender"] = {}


def local_folder(url: str, new: bool = False) -> str:
  """The local directory of a bucket's run, with what is newer in the bucket.

  Args:
    url: of the run.
    new: whether the run may be one that is only begun.

  Raises:
    ConfigError: an address that is not allowed, or no credentials.
    FileNotFoundError: no run lies there, and `new` is not set.
    ImportError: the scheme's extra is missing.
    OSError: the bucket does not answer.
  """
  url = urls.checked("workdir", url)
  mirror = next((one for one in _mirrors.values() if one.url == url), None) or Mirror(url)
  if not mirror.pull() and not new:
    raise FileNotFoundError(f"--workdir={url}: no run lies there")
  _mirrors[mirror.folder] = mirror
  return mirror.folder


def url_of(folder: str) -> str:
  """The address of a bucket run's local directory; empty for any other."""
  return _mirrors[folder].url if folder in _mirrors else ""


def shown(folder: str) -> str:
  """A run's directory for people: the address, where it has one."""
  url = url_of(folder)
  return f"{url} (here in {folder})" if url else folder


def refresh(folder: str) -> None:
  """Fetches what is newer in the bucket. Raises as `local_folder`."""
  if folder in _mirrors:
    _mirrors[folder].pull()


def bring(step_folder: str, items: Sequence[str]) -> None:
  """Fetches the arrays of a checkpoint that are to be read. Raises as `Mirror.bring`."""
  mirror = _around(step_folder)
  if mirror:
    mirror.bring(step_folder, items)


@contextlib.contextmanager
def claimed(folder: str) -> Iterator[None]:
  """A block in which this job has the run in the bucket for itself; states are sent behind it.

  At its end all is sent, also where the block raises, but not after Ctrl-C.

  Raises:
    ConfigError: another job trains the run, or has taken it over; or a directory below a bucket's
      run.
    OSError: what was made could not be sent; it lies in the directory.
  """
  mirror = _mirrors.get(folder)
  if mirror is None:
    above = _around(folder)
    if above:
      raise ConfigError(
        f"--workdir={above.url} is not allowed: runs within a directory need a local one"
      )
    yield
    return
  mirror.take()
  sender = _Sender(mirror)
  _senders[folder] = sender
  try:
    try:
      yield
    except Exception:
      with _told(mirror):
        sender.close()
        mirror.push()
      raise
    if not sender.close():
      mirror.hurry()  # it was waited for just now
    _push(mirror)
  finally:
    del _senders[folder]
    sender.stop()
    mirror.release()


def saved(step_folder: str) -> None:
  """Has a new checkpoint sent, behind the training.

  Raises:
    ConfigError: another job has taken the run over.
  """
  mirror = _around(step_folder)
  sender = _senders.get(mirror.folder) if mirror else None
  if sender:
    sender.send()


def finish() -> list[str]:
  """Sends what this process wrote in runs that it did not train, such as tables and plots.

  Returns:
    Addresses of the runs that got something.

  Raises:
    OSError: a bucket does not take it; it lies in the directory.
  """
  return [mirror.url for mirror in list(_mirrors.values()) if not mirror.claim and _push(mirror)]


def _push(mirror: Mirror) -> bool:
  try:
    return mirror.push()
  except OSError as error:
    mirror.hurry()
    raise OSError(
      f"{error}; nothing is lost: it lies in {mirror.folder}, and the same command sends it once "
      "the bucket answers"
    ) from error


def _around(path: str) -> Mirror | None:
  """The run that a path lies in."""
  found = (mirror for folder, mirror in _mirrors.items() if path.startswith(folder + os.sep))
  return next(found, None)


@contextlib.contextmanager
def _told(mirror: Mirror) -> Iterator[None]:
  """Logs what goes wrong in sending, since something else is being raised."""
  try:
    yield
  except (ConfigError, OSError) as error:
    _log.warning("%s; what was made lies in %s", error, mirror.folder)


class _Sender:
  """A thread that sends a run's states one after another, the newest each time.

  Args:
    mirror: of the run.
  """

  def __init__(self, mirror: Mirror):
    self._mirror = mirror
    self._wanted = threading.Event()
    self._over = False
    self._refused: ConfigError | None = None
    self._failed = False
    self._thread = threading.Thread(target=self._go_on, name="sender", daemon=True)
    self._thread.start()

  def send(self) -> None:
    """Sends what there is, soon. Raises ConfigError where an earlier state was refused for good."""
    if self._refused:
      raise self._refused
    self._wanted.set()

  def stop(self) -> None:
    """Sends nothing further, and waits for nothing."""
    self._over = True
    self._wanted.set()

  def close(self) -> bool:
    """Ends the thread; waits for what is being sent. Returns whether the bucket took the last."""
    self.stop()
    self._thread.join()
    return not self._failed

  def _go_on(self) -> None:
    while True:
      self._wanted.wait()
      self._wanted.clear()
      if self._over:
        return
      self._failed = False
      try:
        self._mirror.push()
      except ConfigError as error:
        self._refused = error
      except Exception as error:  # training goes on, and the next state is sent with all of this
        self._failed = True
        _log.warning("%s; it is sent with the next checkpoint", error)
