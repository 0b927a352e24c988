"""The reward model of a log that grows: fitted again when so many events have come.

Each fit has a folder of its own, named by how many events of the stream it knew. The newest that is
whole is used, so a fit that was killed changes nothing.
"""

import dataclasses
import os
import shutil
from typing import Any

from gr4ad_jax.config import Config
from gr4ad_jax.live.grown import all_known
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.value import reward_run

_PREFIX = "reward_"
_KEPT = 2  # fits; the one before the newest may be being read


class Refits:
  """Fits of a run's reward model.

  Args:
    config: of the run.
    folder: where the fits lie.
    events: after how many new events of the stream the model is fitted again; 0: never.
  """

  def __init__(self, config: Config, folder: str, events: int):
    self._config = config
    self._folder = folder
    self._events = events

  def newest(self) -> tuple[Config, int] | None:
    """The config whose workdir holds the newest whole model, and the events that it knew; that of
    the run knew none. None: there is no model yet.
    """
    for known in reversed(self._fits()):
      # Newest first; one that is being fitted is passed over.
      if reward_run.is_finished(self._of(known)):
        return self._of(known), known
    return (self._config, 0) if reward_run.is_finished(self._config) else None

  def due(self, events: int) -> bool:
    """Whether it is to be fitted, the stream having brought so many events."""
    newest = self.newest()
    # 0 events ask for no refit, once there is a model.
    return newest is None or bool(self._events) and events - newest[1] >= self._events

  def fit(self, inputs: Inputs, events: int, *told: Any) -> bool:
    """Fits the model on a grown log. Returns whether it is whole: else it was asked to stop.

    Args:
      inputs: with the log.
      events: of the stream in it.
      *told: as `reward_run.train` takes them.

    Raises:
      DivergedError: as `reward_run.train`.
    """
    # What was begun with another log cannot be gone on with.
    for known in self._fits():
      if known != events and not reward_run.is_finished(self._of(known)):
        shutil.rmtree(self._of(known).workdir)
    config = self._of(events)
    os.makedirs(config.workdir, exist_ok=True)
    # Gone on with where it was stopped: the folder's name says that the log is the same.
    result = reward_run.train(config, inputs, *told)
    if result.status == "preempted":
      return False
    # Only after the new one is whole.
    for known in self._fits()[:-_KEPT]:
      shutil.rmtree(self._of(known).workdir)
    return True

  def _of(self, events: int) -> Config:
    # Nine digits, so that names sort as numbers do.
    place = os.path.join(self._folder, f"{_PREFIX}{events:09d}")
    return dataclasses.replace(all_known(self._config), workdir=place)

  def _fits(self) -> list[int]:
    """Events that the fits knew, ascending."""
    names = os.listdir(self._folder) if os.path.isdir(self._folder) else []
    numbers = (name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX))
    return sorted(int(number) for number in numbers if number.isdigit())
