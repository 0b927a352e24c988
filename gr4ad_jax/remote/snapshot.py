"""What lies in a run's local directory, file by file with its digest, as one moment saw it."""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from gr4ad_jax import checksums

# A part of a name that belongs to this machine alone, or to what is being written.
_PASSING = re.compile(r"\.part$|\.part\.|\.orbax-checkpoint-tmp|^\.SHA256SUMS\.lock$")
_TOP_LEFT_OUT = ("lock", "live")  # of a directory: held by a process; of a server
_STEP = re.compile(r"((?:.*/)?checkpoints/\d+)/")
_ARRAYS = re.compile(r"(?:.*/)?checkpoints/\d+/(?:params|opt_state)/")
_THREADS = 4  # hashing lets go of the interpreter


class Known(NamedTuple):
  """A file as it was when it was hashed: SHA-256, bytes, time of its last change."""

  digest: str
  size: int
  changed: int


def step_of(name: str) -> str:
  """The checkpoint that a file belongs to, such as `checkpoints/400`; empty: to none."""
  found = _STEP.match(name)
  return found[1] if found else ""


def is_array(name: str) -> bool:
  """Whether it is one of the large files of a checkpoint, which are fetched when they are read."""
  return bool(_ARRAYS.match(name))


def names(folder: str) -> list[str]:
  """Names of the files that belong to the run, with `/`."""
  found = []
  for at, inner, here in os.walk(folder):
    below = os.path.relpath(at, folder)
    inner[:] = [name for name in inner if not _PASSING.search(name)]
    if os.path.basename(at) == "checkpoints":
      inner[:] = [name for name in inner if name != "deleted"]  # they make room just now
    if below == ".":
      inner[:] = [name for name in inner if name not in _TOP_LEFT_OUT]
      here = [name for name in here if name not in _TOP_LEFT_OUT]
    for name in here:
      if not _PASSING.search(name):
        found.append(os.path.normpath(os.path.join(below, name)).replace(os.sep, "/"))
  return sorted(found)


def look(folder: str, before: Mapping[str, Known]) -> dict[str, Known]:
  """Name -> digest of every file; what has its old size and time is not hashed again.

  A file that vanishes meanwhile is left out.
  """

  def known(name: str) -> Known | None:
    path = os.path.join(folder, name)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
      about = os.stat(path)
      old = before.get(name)
      if old and (old.size, old.changed) == (about.st_size, about.st_mtime_ns):
        return old
      return Known(checksums.digest(path), about.st_size, about.st_mtime_ns)
    return None

  found = names(folder)
  with ThreadPoolExecutor(_THREADS) as threads:
    looked = zip(found, threads.map(known, found), strict=True)
    return {name: one for name, one in looked if one is not None}


def stage(
  folder: str, staging: str, known: Mapping[str, Known], changed: Callable[[str, str], bool]
) -> tuple[dict[str, Known], dict[str, str]]:
  """What is to be sent: files that stay as they are until it is done.

  A checkpoint's files never change, but it may be deleted meanwhile: they are sent from links of
  their own. All others are copied, since a training may go on writing them.

  Args:
    folder: of the run.
    staging: an empty folder for the copies.
    known: as of `look`, from before.
    changed: of a name and a digest, whether it is to be sent.

  Returns:
    (name -> digest of every file, name -> path of each that is to be sent)
  """
  found = look(folder, known)
  sources = {}
  for name, one in list(found.items()):
    path = os.path.join(folder, name)
    if not changed(name, one.digest):
      continue
    copied = os.path.join(staging, name)
    os.makedirs(os.path.dirname(copied), exist_ok=True)
    try:
      _link_or_copy(path, copied, link=bool(step_of(name)))
    except (FileNotFoundError, NotADirectoryError):
      del found[name]
      continue
    if not step_of(name):
      about = os.stat(copied)
      found[name] = Known(checksums.digest(copied), about.st_size, about.st_mtime_ns)
    sources[name] = copied
  return found, sources


def _link_or_copy(path: str, copied: str, link: bool) -> None:
  """`link`: whether another name of the same file will do."""
  if link:
    try:
      os.link(path, copied)
      return
    except (FileNotFoundError, NotADirectoryError):
      raise
    except OSError:  # a file system without links
      pass
  shutil.copy2(path, copied)


def disagreement(
  folder: str, found: Mapping[str, Known], sources: Mapping[str, str], there: Mapping[str, object]
) -> str:
  """The first file that its folder's list of checksums does not agree with; empty: all do.

  Args:
    folder: of the run.
    found: name -> digest, as `stage` gives it.
    sources: what is sent, as `stage` gives it.
    there: names that lie in the bucket and need not lie here.
  """
  for name in found:
    if name.rpartition("/")[2] != checksums.NAME:
      continue
    above = name.removesuffix(checksums.NAME)
    # The list as it is sent, not as it may have become since.
    where = os.path.dirname(sources.get(name, os.path.join(folder, name)))
    for inner, right in (checksums.listed(where) or {}).items():
      one = found.get(above + inner)
      if one and one.digest not in right:
        return above + inner
      # A checkpoint is whole or is not sent; half of one may have been deleted just now.
      if one is None and step_of(name) and above + inner not in there:
        return above + inner
  return ""
