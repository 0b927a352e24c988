"""Checksums beside the files that they are of: who reads a file of a run finds out that it was
damaged.

Every folder with files of a run has a list, SHA256SUMS, as `sha256sum` writes it; a checkpoint has
one of its whole tree. While a file is replaced, it stands there twice, with the old and the new
digest: whichever of the two files a kill leaves behind is right.

The config.json of a run says whether the run was written with lists. Where it was, a list that is
gone, or that leaves out a file, is damage; a run that is older is read with a warning.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from gr4ad_jax.knobs import ConfigError
from gr4ad_jax.locks import Lock

NAME = "SHA256SUMS"
CONFIG_FILE = "config.json"  # of a run
PROMISE = "checksums"  # its key that says so
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
_PARTS = ("tokenizer", "index", "features", "candidates", "reward", "checkpoints")  # of a run
_THREADS = 4  # hashing lets go of the interpreter, so files are read side by side
# looks at files that are missing, a tenth of a second apart: a checkpoint may be on its way out
_PATIENCE = 20
_log = logging.getLogger(__name__)
_warned: set[str] = set()


class DamagedError(ConfigError):
  """A file is not what was written."""


def digest(path: str) -> str:
  """SHA-256 of a file, hexadecimal."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def listed(folder: str) -> dict[str, set[str]] | None:
  """File name -> the digests that are right for it, by a folder's list; None: it has no list.

  Raises:
    DamagedError: the list itself is damaged.
  """
  path = os.path.join(folder, NAME)
  try:
    with open(path, encoding="utf-8", newline="\n") as file:
      lines = file.read().removesuffix("\n").split("\n")
  except FileNotFoundError:
    return None
  except UnicodeDecodeError as error:
    raise DamagedError(f"{path} is damaged: no text") from error
  found: dict[str, set[str]] = {}
  for number, line in enumerate(lines, 1):
    match = _LINE.fullmatch(line)
    if not match:
      raise DamagedError(f"{path} is damaged: line {number} is no checksum")
    found.setdefault(match[2], set()).add(match[1])
  return found


def note(path: str, value: str, *, alone: bool) -> None:
  """Puts a file's digest into its folder's list: before it is renamed beside the others, and
  after it `alone`.
  """
  folder, name = os.path.split(os.path.abspath(path))
  with _alone(folder):
    known = listed(folder) or {}
    kept = {value} if alone else known.get(name, set()) | {value}
    if known.get(name) != kept:
      _write(folder, known | {name: kept})


def forget(path: str) -> None:
  """Takes a file that was deleted off its folder's list."""
  folder, name = os.path.split(os.path.abspath(path))
  with _alone(folder):
    known = listed(folder) or {}
    if known.pop(name, None) and known:
      _write(folder, known)
    elif not known:
      # A list of nothing would read as damaged.
      with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(folder, NAME))


def check(path: str) -> None:
  """Compares a file with its folder's list; warns, once a run, where an older run has nothing to
  compare it with.

  Raises:
    FileNotFoundError: there is no such file.
    DamagedError: it is another than was written, or its checksum is gone.
  """
  folder, name = os.path.split(os.path.abspath(path))
  right = (listed(folder) or {}).get(name)
  if right is None:
    os.stat(path)  # a file that is missing is no older file
    _refuse_or_warn(folder, path)
  elif digest(path) not in right:
    raise DamagedError(_words(path, folder))


def is_promised(run: str) -> bool:
  """Whether the config.json of a directory says that all its files have checksums."""
  try:
    with open(os.path.join(run, CONFIG_FILE), encoding="utf-8") as file:
      saved = json.load(file)
  except (OSError, ValueError, RecursionError):  # who needs the config tells what is wrong with it
    return False
  return isinstance(saved, dict) and saved.get(PROMISE) is True


def write_tree(folder: str) -> None:
  """Lists all files below a folder that nobody writes to any more."""
  names = sorted(_below(folder))
  with ThreadPoolExecutor(_THREADS) as threads:
    found = threads.map(lambda name: digest(os.path.join(folder, name)), names)
    _write(folder, {name: {value} for name, value in zip(names, found, strict=True)})


def check_tree(folder: str, wanted: Callable[[str], bool] = lambda name: True) -> None:
  """Compares the listed files below a folder with its list, those whose name is `wanted`; warns as
  `check` does.

  Raises:
    FileNotFoundError: the folder is gone, such as a checkpoint that made room for a newer one.
    DamagedError: a file is missing, or another than was written.
  """
  right = listed(folder)
  if right is None:
    os.stat(folder)
    _refuse_or_warn(folder, folder)
    return
  names = [name for name in right if wanted(name)]
  with ThreadPoolExecutor(_THREADS) as threads:
    for name, good in zip(
      names, threads.map(lambda name: _is_right(folder, name, right[name]), names), strict=True
    ):
      if not good:
        raise DamagedError(_words(os.path.join(folder, name), folder))


def _is_right(folder: str, name: str, right: set[str]) -> bool:
  path = os.path.join(folder, name)
  for _ in range(_PATIENCE):
    try:
      return digest(path) in right
    except (
      FileNotFoundError,
      NotADirectoryError,
      ValueError,
    ):  # ValueError: a damaged name with a null byte
      os.stat(folder)
      time.sleep(0.1)
  return False


def _words(path: str, folder: str) -> str:
  state = "is damaged: it is not what was written" if os.path.exists(path) else "is missing"
  return f"{path} {state}, by the checksums in {os.path.join(folder, NAME)}"


def _below(folder: str) -> list[str]:
  """Paths of the files below a folder, relative to it, its list left out."""
  found = (os.path.join(at, name) for at, _, names in os.walk(folder) for name in names)
  return [name for name in (os.path.relpath(path, folder) for path in found) if name != NAME]


def _write(folder: str, found: dict[str, set[str]]) -> None:
  path = os.path.join(folder, NAME)
  part = f"{path}.{os.getpid()}.part"
  with open(part, "w", encoding="utf-8") as file:
    file.writelines(f"{value}  {name}\n" for name in sorted(found) for value in sorted(found[name]))
    file.flush()
    os.fsync(file.fileno())
  os.replace(part, path)


@contextlib.contextmanager
def _alone(folder: str) -> Iterator[None]:
  """A block in which no other process changes the folder's list: several runs may share a folder of
  candidates.

  What is locked is a file, as NFS locks no directories; it goes with the block.
  """
  with Lock(os.path.join(folder, f".{NAME}.lock"), wait=True) as lock:
    try:
      yield
    finally:
      lock.remove()


def _refuse_or_warn(folder: str, path: str) -> None:
  """Of a file, or a tree, that has no checksum, in `folder`, which is a run's or lies below it."""
  run = folder
  if os.path.basename(os.path.dirname(run)) == "checkpoints":  # a step
    run = os.path.dirname(run)
  while os.path.basename(run) in _PARTS and not is_promised(run):
    run = os.path.dirname(run)
  if is_promised(run):
    there = os.path.join(folder, NAME)
    gone = f"lacks {os.path.basename(path)}" if os.path.exists(there) else "is missing"
    raise DamagedError(f"{there} {gone}, though {run} was written with checksums")
  if run not in _warned:
    _warned.add(run)
    _log.warning(
      "%s has files without checksums (it is older than they are): damage to them stays unnoticed",
      run,
    )
