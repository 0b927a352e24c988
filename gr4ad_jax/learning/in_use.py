"""The parameters that the servers use, read again when another checkpoint is promoted."""

import os
from typing import Any

from flax import linen as nn

from gr4ad_jax.config import Config, ConfigError
from gr4ad_jax.learning.promotions import LEARNER, Promotions
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.requests import request_task
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training.checkpoint import Checkpointer


class ParamsInUse:
  """Those that a learner's guard has promoted; the run's best as long as there are none.

  Args:
    config: of the run.
    model: its module.
  """

  def __init__(self, config: Config, model: nn.Module):
    self._config = config
    self._model = model
    self._promotions = Promotions(os.path.join(config.workdir, LEARNER))
    self._known: tuple[int | None, Any] | None = None

  def latest(self) -> Any:
    """The parameters. Raises ConfigError, FileNotFoundError as `Checkpointer.restore_params`."""
    step = self._promotions.in_use
    # None is a step, too: that of the run itself.
    while self._known is None or self._known[0] != step:
      try:
        self._known = step, self._read(step)
      except (ConfigError, FileNotFoundError):
        newest = self._promotions.in_use
        if newest == step:
          raise
        # A learner that is fast has deleted it meanwhile: then another one is in use.
        step = newest
    return self._known[1]

  def _read(self, step: int | None) -> Any:
    if step is None:
      return request_task.load_params(self._config, self._model)
    target = state_lib.abstract_params(
      lambda: request_task.init_params(self._model, self._config), mesh_lib.local_mesh()
    )
    # Opened for this one read, since the learner adds checkpoints there and removes them.
    with Checkpointer(self._promotions.checkpoints, read_only=True) as kept:
      return kept.restore_params(target, step)
