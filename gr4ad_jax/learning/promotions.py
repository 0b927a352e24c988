"""Which of a learner's checkpoints the servers use: copies that stay, and one pointer to them."""

import os
import shutil
import time
from collections.abc import Callable

from gr4ad_jax import checksums, files
from gr4ad_jax.config import CHECKPOINTS, ConfigError, is_step

LEARNER = os.path.join("live", "learner")  # of a workdir
POINTER = "promoted.json"
HELD = "held.json"
PROMOTED = "promoted"
REFUSED = "refused"
NEIGHBORS = "neighbors"
_GONE = "_deleted"  # behind the name of a folder: where that goes which makes room
_KEPT = {PROMOTED: 10, REFUSED: 3}  # the latest of each, beside the one in use


class Promotions:
  """Checkpoints that were promoted or put aside, below a learner's folder.

  A promotion is one rename of the pointer: a server sees the old checkpoint or the new one.

  Args:
    folder: of the learner.
  """

  def __init__(self, folder: str):
    self._folder = folder
    self._pointer = os.path.join(folder, POINTER)
    self._held = os.path.join(folder, HELD)

  @property
  def checkpoints(self) -> str:
    """The folder of those that were promoted, as `Checkpointer` reads it."""
    return os.path.join(self._folder, PROMOTED)

  @property
  def in_use(self) -> int | None:
    """Step of the checkpoint in use; None: that of the run from which the learner started.

    Raises:
      DamagedError: the pointer is not what was written.
    """
    if not os.path.exists(self._pointer):
      return None
    return files.load_fields(self._pointer, "step")[0]

  @property
  def kept(self) -> list[int]:
    """Steps that a rollback may name, ascending."""
    return _steps(self.checkpoints)

  def neighbors(self, step: int) -> str | None:
    """Folder of the co-visit neighbours that belong to a promoted checkpoint; None: they are the
    run's.
    """
    folder = self._neighbors_of(step)
    return folder if os.path.isdir(folder) else None

  def promote(self, step: int, keep_neighbors: Callable[[str], None] | None = None) -> None:
    """Puts a checkpoint of the learner into use; keeps it alone where another one is held.

    Args:
      step: of the checkpoint.
      keep_neighbors: writes the neighbours that belong to it into a new folder; None: the run's.
    """
    self._copy(step, PROMOTED)
    # Before the pointer: who follows it finds both.
    if keep_neighbors and not self.neighbors(step):
      keep_neighbors(self._neighbors_of(step))
    # A hold may come between these lines, so it is asked for once more after the write.
    if not self.is_held:
      self.use(step)
      # Who holds another one meanwhile has written so first: the word is theirs.
      if self.is_held:
        self.use(files.load_fields(self._held, "step")[0])
    # Last, when the pointer no longer names what may go.
    self._clear(PROMOTED)

  @property
  def is_held(self) -> bool:
    """Whether what is in use stays, whatever the learner promotes."""
    return os.path.exists(self._held)

  def hold(self, step: int | None) -> None:
    """Puts a former checkpoint into use, as `use`, and holds it until `release`."""
    self._check(step)
    # The hold is written first: a learner that promotes meanwhile sees it.
    files.write_json(self._held, {"step": step})
    self.use(step)

  def release(self) -> None:
    """Lets the learner promote again."""
    if self.is_held:
      os.remove(self._held)
      # Else the list of checksums would name a file that is gone.
      checksums.forget(self._held)

  def use(self, step: int | None) -> None:
    """Puts a checkpoint into use that was promoted before; None: the run's own.

    Raises:
      ConfigError: there is no such checkpoint.
    """
    self._check(step)
    files.write_json(self._pointer, {"step": step, "time": time.time()})

  def _check(self, step: int | None) -> None:
    if step is not None and step not in self.kept:
      some = ", ".join(map(str, self.kept)) or "none"
      raise ConfigError(f"checkpoint {step} is not there; those that were promoted: {some}")

  def put_aside(self, step: int) -> str:
    """Keeps a checkpoint that was refused, to be looked at. Returns where."""
    self._copy(step, REFUSED)
    self._clear(REFUSED)
    return os.path.join(self._folder, REFUSED, str(step))

  def _copy(self, step: int, kind: str) -> None:
    """Links a checkpoint's files: they never change, and the learner soon lets go of its own."""
    place = os.path.join(self._folder, kind, str(step))
    if os.path.exists(place):
      return
    # Under another name until it is whole: readers take every folder with a step's name.
    part = os.path.join(self._folder, f"{kind}_{step}.part")
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    shutil.copytree(os.path.join(self._folder, CHECKPOINTS, str(step)), part, copy_function=_linked)
    os.rename(part, place)

  def _clear(self, kind: str) -> None:
    folder = os.path.join(self._folder, kind)
    gone = os.path.join(self._folder, f"{kind}{_GONE}")
    # What a kill has left.
    shutil.rmtree(gone, ignore_errors=True)
    for step in _steps(folder)[: -_KEPT[kind]]:
      # What a server may still read is never deleted.
      if kind == REFUSED or step != self.in_use:
        # Moved first: whoever lists the folder meanwhile, or after a kill, meets no half of one.
        os.makedirs(gone, exist_ok=True)
        os.rename(os.path.join(folder, str(step)), os.path.join(gone, str(step)))
        if kind == PROMOTED:
          shutil.rmtree(self._neighbors_of(step), ignore_errors=True)
    shutil.rmtree(gone, ignore_errors=True)

  def _neighbors_of(self, step: int) -> str:
    return os.path.join(self._folder, NEIGHBORS, str(step))


def _linked(source: str, place: str) -> None:
  """A second name for a file; a copy, where the file system has none."""
  try:
    os.link(source, place)
  except OSError:
    shutil.copy2(source, place)


def _steps(folder: str) -> list[int]:
  if not os.path.isdir(folder):
    return []
  return sorted(int(name) for name in os.listdir(folder) if is_step(name))
