"""Files of a run: written whole or not at all, with a checksum, and checked whenever they are
read.
"""

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gr4ad_jax import checksums
from gr4ad_jax.checksums import DamagedError


@contextlib.contextmanager
def replacing(path: str, *, summed: bool = True) -> Iterator[str]:
  """Gives a temporary path beside `path`; what is written there is on disk, and takes its place, at
  the end.

  Nothing is left behind where the block raises. After a kill at any point, `path` holds the old
  content or the new one.

  Args:
    path: its folder is made where it is missing.
    summed: whether the folder's list of checksums gets its digest; `load_arrays`, `load_json` and
      `check` read it.
  """
  stem, ending = os.path.splitext(path)
  # several runs may share a folder; np.savez wants its ending
  part = f"{stem}.{os.getpid()}.part{ending}"
  os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
  try:
    yield part
    with open(part, "rb") as file:
      os.fsync(file.fileno())
    value = checksums.digest(part) if summed else ""
    if summed:
      checksums.note(path, value, alone=False)
    os.replace(part, path)
    if summed:
      checksums.note(path, value, alone=True)
  finally:
    if os.path.exists(part):
      os.remove(part)


@contextlib.contextmanager
def new_folder(path: str) -> Iterator[str]:
  """Gives an empty folder under a temporary name beside `path`, which takes its place at the end.

  Nothing is left behind where the block raises. The folders above it are made where they are
  missing; that nothing stands at `path` is the caller's to see.
  """
  # Beside the target, so that the rename stays within one file system.
  part = f"{os.path.abspath(path)}.{os.getpid()}.part"
  try:
    os.makedirs(part)
    yield part
    os.rename(part, path)
  finally:
    shutil.rmtree(part, ignore_errors=True)


def user_cache(*below: str) -> str:
  """A folder of this package in the user's cache ($XDG_CACHE_HOME, else ~/.cache); not made."""
  root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return os.path.join(root, "gr4ad_jax", *below)


def write_text(path: str, text: str, *, summed: bool = True) -> None:
  """Writes UTF-8 text, as `replacing` does."""
  with replacing(path, summed=summed) as part, open(part, "w", encoding="utf-8") as file:
    file.write(text)


def write_json(path: str, content: Any, *, summed: bool = True, indent: int | None = None) -> None:
  """Writes JSON, as `replacing` does. Raises ValueError for numbers that are not finite: JSON
  has none.
  """
  write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n", summed=summed)


def save_arrays(path: str, *, compressed: bool = False, **arrays: Any) -> None:
  """Writes an .npz file, as `replacing` does."""
  with replacing(path) as part:
    (np.savez_compressed if compressed else np.savez)(part, **arrays)


def load_all(path: str) -> dict[str, np.ndarray]:
  """The arrays of an .npz file of `save_arrays`, by their names.

  Raises:
    FileNotFoundError: there is no such file.
    DamagedError: it is another than was written, or no whole .npz file.
  """
  checksums.check(path)
  try:
    with np.load(path, allow_pickle=False) as saved:
      found = {name: saved[name] for name in saved.files}
    if all(isinstance(value, np.ndarray) for value in found.values()):  # other members are bytes
      return found
    raise ValueError("a member is no array")
  except (
    EOFError,
    zipfile.BadZipFile,
    KeyError,
    ValueError,
    TypeError,
    NotImplementedError,
    SyntaxError,
  ) as error:
    raise DamagedError(f"{path} is damaged: no whole .npz file ({_reason(error)})") from error
  except AttributeError as error:  # a lone .npy array has no names
    raise DamagedError(f"{path} is damaged: no .npz file") from error


def load_arrays(path: str, *names: str) -> list[np.ndarray]:
  """Some of the arrays of an .npz file of `save_arrays`; raises as `load_all` does, and where
  one is missing.
  """
  return _named(path, load_all(path), names)


def load_json(path: str) -> Any:
  """What `write_json` wrote.

  Raises:
    FileNotFoundError: there is no such file.
    DamagedError: it is another than was written, or not JSON.
  """
  checksums.check(path)
  with open(path, encoding="utf-8") as file:
    try:
      return json.load(file)
    except (ValueError, RecursionError) as error:  # ValueError: of JSON and of UTF-8
      raise DamagedError(f"{path} is damaged: not JSON ({_reason(error)})") from error


def load_fields(path: str, *names: str) -> list[Any]:
  """Some fields of the object in a file of `write_json`; raises as `load_json` does, and where
  one is missing.
  """
  saved = load_json(path)
  return _named(path, saved if isinstance(saved, dict) else {}, names)


def _named(path: str, saved: dict[str, Any], names: Sequence[str]) -> list[Any]:
  for name in names:
    if name not in saved:
      raise DamagedError(f"{path} is damaged: it has no {name!r}")
  return [saved[name] for name in names]


def _reason(error: Exception) -> str:
  return " ".join(str(error).split())[:200]
