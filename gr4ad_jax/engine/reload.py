"""Watches a run's checkpoints, and loads a new one in the background.

Listing a folder tells whether anything changed; only then is a checkpoint opened. One that cannot
be read, or that holds numbers that are not finite, is told once and left alone, and the parameters
in use stay. So is a folder that is gone, until it is there again.
"""

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from gr4ad_jax.config import Config
from gr4ad_jax.learning import promotions
from gr4ad_jax.learning.promotions import PROMOTED, Promotions
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.remote import mirrors
from gr4ad_jax.requests import request_task
from gr4ad_jax.runs import run
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training.checkpoint import Checkpointer
from gr4ad_jax.training.weights import Weights

_log = logging.getLogger(__name__)


class CheckpointSource:
  """Reads parameters of a run.

  Args:
    config: of the run.
    model: its module.
    which: 'best', 'last' or a step; or 'promoted': what a learner's guard has put into use, and as
      long as that is nothing, the best.
  """

  def __init__(self, config: Config, model: GR4AD, which: int | str = "best"):
    self._config = config
    self._which = which
    self._promotions = Promotions(os.path.join(config.workdir, promotions.LEARNER))
    mesh = mesh_lib.local_mesh()
    # Shapes and shardings of what is restored; no parameter is made for it.
    self._target = state_lib.abstract_params(lambda: request_task.init_params(model, config), mesh)

  def newest(self) -> int:
    """The step that `load` would take. Raises FileNotFoundError where there is none."""
    if self._which != PROMOTED:
      with self._open() as checkpointer:
        return checkpointer.resolve(self._which)
    step = self._promotions.in_use
    if step is not None:
      return step
    with self._open() as checkpointer:
      return checkpointer.resolve("best")

  def load(self, step: int) -> Any:
    """The parameters of a step.

    Raises:
      FileNotFoundError: no such checkpoint.
      ConfigError: it holds another model, numbers that are not finite, or files that were damaged.
    """
    folder = self._promotions.checkpoints
    is_promoted = self._is_promoted(step)
    opened = Checkpointer(folder, read_only=True) if is_promoted else self._open()
    with opened as checkpointer:
      return checkpointer.restore_params(self._target, step)

  def neighbors(self, step: int) -> str | None:
    """Folder of the co-visit neighbours that belong to a checkpoint; None: they are the run's."""
    return self._promotions.neighbors(step) if self._is_promoted(step) else None

  def _is_promoted(self, step: int) -> bool:
    # A learner counts on from its run's step: no two of their checkpoints have one number.
    return self._which == PROMOTED and step in self._promotions.kept

  def listing(self) -> frozenset[str]:
    """Names in the checkpoints' folder, and what is promoted; changes when there is something to
    look at.
    """
    mirrors.refresh(self._config.workdir)  # of a run in a bucket
    folder = run.checkpoint_dir(self._config)
    names = frozenset(os.listdir(folder)) if os.path.isdir(folder) else frozenset()
    # A promotion changes no name in the folder, so it is part of what is compared.
    return names | {str(self._promotions.in_use)} if self._which == PROMOTED else names

  def _open(self) -> Checkpointer | Weights:
    return run.open_checkpoints(self._config)


class Reloader:
  """A thread that looks for a newer checkpoint every few seconds.

  Args:
    source: where checkpoints come from.
    step: of the parameters in use.
    use: called with a step and its parameters, on the thread.
    seconds: between two looks; 0: no thread, only `look`.
  """

  def __init__(
    self, source: CheckpointSource, step: int, use: Callable[[int, Any], None], seconds: float
  ):
    self._source = source
    self._step = step
    self._use = use
    self._seconds = seconds
    self._seen = source.listing()
    self._lock = threading.Lock()
    self._stop = threading.Event()
    self._thread = (
      threading.Thread(target=self._watch, name="reloader", daemon=True) if seconds else None
    )
    if self._thread:
      self._thread.start()

  def look(self) -> bool:
    """Looks now. Returns whether other parameters came into use; raises what reading a damaged
    checkpoint does.
    """
    # A look by hand and one of the thread must not load the same step twice.
    with self._lock:
      # What is wrong is looked at again when something else changes.
      self._seen = self._source.listing()
      step = self._source.newest()
      # The listing changes also when an old checkpoint goes.
      if step == self._step:
        return False
      self._use(step, self._source.load(step))
      self._step = step
      return True

  def close(self) -> None:
    """Ends the thread."""
    self._stop.set()
    if self._thread:
      self._thread.join()

  def _watch(self) -> None:
    told = ""
    while not self._stop.wait(self._seconds):
      try:
        if self._source.listing() != self._seen:
          self.look()
          told = ""
      except (
        Exception
      ) as error:  # whatever is wrong with a checkpoint, the server goes on with what it has
        reason = " ".join(str(error).split())[:500] or repr(error)
        # A folder that cannot be listed is met at every look, and told once.
        if reason != told:
          _log.error("the newest checkpoint cannot be used; step %d stays: %s", self._step, reason)
          _log.debug("where it happened:", exc_info=True)
        told = reason
