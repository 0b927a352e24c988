"""The local directory of a bucket's run, and what is known of it.

It lies at `<cache>/buckets/<digest of the address>/<last part of it>`. Beside it lie `mirror.json`,
`staging/` for what is on its way, `lock` and `training`, which processes of this machine hold, and
`overtaken/`, which `set_aside` fills.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence

from gr4ad_jax import checksums
from gr4ad_jax.locks import InUseError, Lock
from gr4ad_jax.remote import snapshot, transfers, urls
from gr4ad_jax.remote.pointer import File, Pointer
from gr4ad_jax.remote.snapshot import Known
from gr4ad_jax.remote.store import Store

_STATE = "mirror.json"
_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Synced:
  """What is known of a directory.

  Attributes:
    base: the bucket's state when it and the directory were last the same.
    pending: the state that was about to be written to the bucket; a kill may have come between.
    known: digests of local files, so that they are not hashed again.
  """

  base: Pointer = dataclasses.field(default_factory=Pointer)
  pending: Pointer | None = None
  known: dict[str, Known] = dataclasses.field(default_factory=dict)

  def own(self) -> list[str]:
    """Names of what lies here and the bucket did not have when the two were the same."""
    base = self.base.files
    return [
      name
      for name, one in self.known.items()
      if name not in base or base[name].digest != one.digest
    ]


class Directory:
  """The local directory of a run.

  Args:
    url: of the run, as `urls.checked` gives it.

  Attributes:
    path: the run's files.
  """

  def __init__(self, url: str):
    self._url = url
    self._root = urls.cache_folder("buckets", url)
    self.path = os.path.join(self._root, urls.last_part(url))
    os.makedirs(self.path, exist_ok=True)

  def at(self, name: str) -> str:
    """Path of a file of the run."""
    return os.path.join(self.path, name)

  @contextlib.contextmanager
  def alone(self) -> Iterator[Synced]:
    """A block in which no other process of this machine fetches into the directory."""
    with Lock(os.path.join(self._root, "lock"), wait=True):
      yield self.load()

  def training(self) -> Lock:
    """A lock that the process has which trains in the directory. Raises InUseError."""
    return Lock(os.path.join(self._root, "training"))

  def is_trained(self) -> bool:
    """Whether a process trains in the directory; to be asked in an `alone` block."""
    try:
      self.training().close()
    except InUseError:
      return True
    return False

  @contextlib.contextmanager
  def staging(self) -> Iterator[str]:
    """A folder beside the directory, on the same disk, which goes with the block."""
    above = os.path.join(self._root, "staging")
    os.makedirs(above, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=above) as folder:
      yield folder

  def load(self) -> Synced:
    """What was saved; without it, all that lies here counts as this machine's own."""
    try:
      with open(os.path.join(self._root, _STATE), encoding="utf-8") as file:
        saved = json.load(file)
      known = {name: Known(*one) for name, one in saved["known"].items()}
      pending = saved["pending"] and Pointer.from_json(saved["pending"])
      return Synced(Pointer.from_json(saved["base"]), pending, known)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
      return Synced()

  def save(self, synced: Synced) -> None:
    """Keeps what is known."""
    content = {
      "url": self._url,
      "base": synced.base.to_json(),
      "pending": synced.pending and synced.pending.to_json(),
      "known": {name: list(one) for name, one in synced.known.items()},
    }
    path = os.path.join(self._root, _STATE)
    part = f"{path}.{os.getpid()}.part"
    # Written often, and not waited for: one that a power cut tore counts as none.
    with open(part, "w", encoding="utf-8") as file:
      json.dump(content, file)
    os.replace(part, path)

  def set_aside(self) -> None:
    """Moves all files away, in place of what was set aside before."""
    aside = os.path.join(self._root, "overtaken")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(self.path, aside)
    os.makedirs(self.path)
    _log.warning(
      "%s: another job went on with this run, or it was deleted; what lay here alone is now in %s",
      self._url,
      aside,
    )

  def fetch(self, store: Store, wanted: Mapping[str, File], what: str) -> None:
    """Brings files, each under its name only when it is whole, a new checkpoint only when all of it
    is. Raises as `transfers.download`.
    """
    if not wanted:
      return
    with self.staging() as staging:
      paths = {
        os.path.join(staging, name): (file.object, file.digest, file.size)
        for name, file in wanted.items()
      }
      transfers.download(store, paths, what)
      for step in sorted({snapshot.step_of(name) for name in wanted} - {""}):
        if not os.path.exists(self.at(step)):
          os.makedirs(os.path.dirname(self.at(step)), exist_ok=True)
          os.rename(os.path.join(staging, step), self.at(step))
      # Lists of checksums come last: what they list is there by then.
      for name in sorted(wanted, key=lambda name: (name.endswith(checksums.NAME), name)):
        staged = os.path.join(staging, name)
        if os.path.exists(staged):  # else it came with its checkpoint
          os.makedirs(os.path.dirname(self.at(name)), exist_ok=True)
          os.replace(staged, self.at(name))

  def remove(self, names: Sequence[str]) -> None:
    """Deletes files; a whole checkpoint at once, so that readers see all of it or nothing."""
    for step in {snapshot.step_of(name) for name in names} - {""}:
      path = self.at(step)
      left = [f"{step}/{name}" for name in snapshot.names(path)] if os.path.isdir(path) else []
      if set(left) <= set(names) and left:
        with self.staging() as staging:
          os.rename(path, os.path.join(staging, "gone"))
    for name in names:
      with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.remove(self.at(name))
