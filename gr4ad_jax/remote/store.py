"""The objects below one address of a bucket: list, read, write, delete, over fsspec.

A write of an object is whole or not at all, and whoever lists or reads after it sees it: S3 (since
December 2020) and Google Cloud Storage promise both. Neither can rename. `create` writes an object
only where none of that name is there; it is what decides between two writers.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from gr4ad_jax.data.extras import optional
from gr4ad_jax.knobs import ConfigError
from gr4ad_jax.remote import urls

PATIENCE = 120.0
"""Seconds that a store which does not answer is asked again."""

_SECONDS = 30.0  # that a write of nothing may take
_SLOWEST = 250_000.0  # bytes a second that a write must make beside
_PAUSES = (0.2, 1.0, 3.0, 10.0)  # seconds between two tries; the last one from then on
# What an answer says for good. All else may be the network, or a store that is overloaded.
_FINAL = (
  FileNotFoundError,
  FileExistsError,
  IsADirectoryError,
  PermissionError,
  TypeError,
  ValueError,
  ImportError,
)
# s3fs asks five times by itself, 15 seconds each; botocore below it would five times as often.
_OPTIONS = {"s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}}}}
# Names, since the packages that have them may be missing.
_NO_CREDENTIALS = (
  "NoCredentialsError",
  "PartialCredentialsError",
  "CredentialRetrievalError",
  "DefaultCredentialsError",
  "ProfileNotFound",
)
# What tells two versions of an object apart, as each kind of store calls it.
_VERSION = ("ETag", "etag", "md5Hash", "generation", "LastModified", "updated", "created", "mtime")
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Entry(NamedTuple):
  """An object of a listing: its size in bytes, and a text that changes with its content."""

  size: int
  version: str


class Store:
  """Objects below an address; names are relative to it, with `/`.

  Args:
    url: as `urls.checked` gives it.
    patience: seconds that a store which does not answer is asked again.

  Raises:
    ImportError: the scheme's extra is missing.
  """

  def __init__(self, url: str, patience: float = PATIENCE):
    self.url = url
    self._patience = patience
    self._told = False  # that it does not answer, since it last did
    scheme = urls.scheme_of(url)
    optional(*urls.SCHEMES[scheme])
    # Each store has its own: listings that are kept would hide what others write.
    self._system = optional("fsspec", urls.SCHEMES[scheme][1]).filesystem(
      scheme, use_listings_cache=False, skip_instance_cache=True, **_OPTIONS.get(scheme, {})
    )
    self._root = self._system._strip_protocol(url).rstrip("/")

  def hurry(self) -> None:
    """From now on what does not answer is asked no second time; other threads' calls included."""
    self._patience = 0.0

  def entries(self, below: str = "") -> dict[str, Entry]:
    """Name -> entry of all objects in a folder, and in those below it; empty: there is none."""
    top = self._path(below)

    def listed() -> dict[str, Any]:
      self._system.invalidate_cache()
      return self._system.find(top, detail=True)

    with contextlib.suppress(FileNotFoundError):
      found = self._tried("listed", below, listed)
      return {
        path[len(self._root) + 1 :]: Entry(int(about["size"] or 0), _version(about))
        for path, about in found.items()
        # A store may list what merely begins alike, and marks of folders.
        if path.startswith(f"{top}/") and about["type"] == "file"
      }
    return {}

  def entry(self) -> Entry | None:
    """The object that lies at the address itself; None: none does."""

    def asked() -> dict[str, Any] | None:
      self._system.invalidate_cache()
      about = self._system.info(self._root)
      return about if about["type"] == "file" else None

    with contextlib.suppress(FileNotFoundError):
      about = self._tried("read", "", asked)
      return about and Entry(int(about["size"] or 0), _version(about))
    return None

  def read(self, name: str) -> bytes:
    """An object's content. Raises FileNotFoundError where there is none."""
    return self._tried("read", name, lambda: self._system.cat_file(self._path(name)))

  def write(self, name: str, content: bytes) -> None:
    """Writes a small object, in place of one of that name."""
    path = self._path(name)
    self._tried("written", name, lambda: self._system.pipe_file(path, content, **self._limit()))

  def create(self, name: str, content: bytes) -> bool:
    """Writes a small object where none of that name is there; False: there is one, of another
    content. Of two writers one succeeds.
    """
    path = self._path(name)
    limit = self._limit()
    try:
      self._tried(
        "written", name, lambda: self._system.pipe_file(path, content, mode="create", **limit)
      )
      return True
    except FileExistsError:
      # A try whose answer was lost may have been this very one.
      with contextlib.suppress(FileNotFoundError):
        return self.read(name) == content
      return False

  def get(self, name: str, path: str, told: Callable[[int], None]) -> None:
    """Copies an object to a local file; `told` hears of bytes. Raises FileNotFoundError."""
    callback = _callback(told)
    here = self._path(name)
    self._tried("read", name, lambda: self._system.get_file(here, path, callback=callback))

  def put(self, path: str, name: str, told: Callable[[int], None]) -> None:
    """Copies a local file to an object; `told` hears of bytes."""
    limit = self._limit(os.path.getsize(path))
    callback = _callback(told)
    there = self._path(name)
    self._tried(
      "written", name, lambda: self._system.put_file(path, there, callback=callback, **limit)
    )

  def _limit(self, size: int = 0) -> dict[str, float]:
    """How long a write may take. Before the first byte the client below waits for the store's leave
    (`Expect: 100-continue`), and would wait for good where it hangs.
    """
    is_async = getattr(self._system, "async_impl", False)
    return {"timeout": _SECONDS + size / _SLOWEST} if is_async else {}

  def delete(self, names: Sequence[str]) -> None:
    """Deletes objects; one that is gone already is no mistake."""
    for name in names:
      with contextlib.suppress(FileNotFoundError):
        self._tried("deleted", name, lambda name=name: self._system.rm_file(self._path(name)))

  def _path(self, name: str) -> str:
    return f"{self._root}/{name}" if name else self._root

  def _tried(self, done: str, name: str, call: Callable[[], _T]) -> _T:
    """What a call to the store gives; asked again for as long as it does not answer.

    Raises:
      FileNotFoundError, FileExistsError, PermissionError: as the store says.
      ConfigError: there are no credentials.
      OSError: it does not answer, or refuses.
    """
    where = f"{self.url}/{name}" if name else self.url
    began = time.monotonic()
    tries = 0
    while True:
      try:
        answer = call()
        self._told = False
        return answer
      except Exception as error:
        reason = " ".join(str(error).split())[:200] or repr(error)
        if type(error).__name__ in _NO_CREDENTIALS:
          raise ConfigError(f"{where} cannot be {done}: no credentials ({reason})") from error
        invalid = isinstance(error, OSError) and error.errno == errno.EINVAL
        if invalid or isinstance(error, _FINAL):
          raise _final(error, where, done, reason) from error
        if time.monotonic() >= began + self._patience:
          raise OSError(f"{where} cannot be {done}: {reason}") from error
        if tries and not self._told:  # the first refusal passes often
          self._told = True
          _log.warning(
            "%s cannot be %s (%s); trying again for %.0f s", where, done, reason, self._patience
          )
        time.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
        tries += 1


def _callback(told: Callable[[int], None]) -> Any:
  """What fsspec tells of a copy, handed on as numbers of bytes."""
  import fsspec

  class Callback(fsspec.Callback):
    """Hears of bytes, more of them or all so far: stores differ."""

    def relative_update(self, inc: int = 1) -> None:
      self.value += inc
      told(inc)

    def absolute_update(self, value: int) -> None:
      self.relative_update(value - self.value)

  return Callback()


def _version(about: dict[str, Any]) -> str:
  return " ".join(f"{key}={about[key]}" for key in _VERSION if key in about)


def _final(error: Exception, where: str, done: str, reason: str) -> Exception:
  """The error again, in one line with the address."""
  if isinstance(error, FileNotFoundError):
    return FileNotFoundError(f"{where}: there is no such object, or no such bucket")
  if isinstance(error, PermissionError):
    return PermissionError(f"{where} cannot be {done}: it is not allowed ({reason})")
  if isinstance(error, FileExistsError):
    return FileExistsError(f"{where} is there already")
  return OSError(f"{where} cannot be {done}: {reason}")
