"""The one trainer: a task's parameters, batches and step on a mesh."""

from collections.abc import Callable
from typing import Any

import jax

from gr4ad_jax import families
from gr4ad_jax.config import Config, ConfigError
from gr4ad_jax.parallel import distributed
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training.cost import StepCost, compile_step
from gr4ad_jax.training.state import TrainState
from gr4ad_jax.training.task import Task


def check_mesh(config: Config) -> None:
  """Raises ConfigError where devices, sizes of the model or a step's examples do not fit --mesh."""
  t = config.training
  refused = f"--mesh={t.mesh} is not allowed"
  # Both may refuse: the first for what is written, the second for the devices that there are.
  try:
    sizes = mesh_lib.parse(t.mesh, jax.device_count())
    mesh_lib.make_mesh(t.mesh)
  except ValueError as error:
    raise ConfigError(f"{refused}: {error}") from error
  for axis, knob, size in families.task_of(config.family).divided(config):
    if size % sizes[axis]:
      raise ConfigError(f"{refused}: {axis}:{sizes[axis]} does not divide --{knob}={size}")
  # The parts of one layer exchange at every product, so they stay within a process.
  if jax.local_device_count() % sizes[mesh_lib.TENSOR]:
    raise ConfigError(
      f"{refused}: tensor:{sizes[mesh_lib.TENSOR]} does not divide the "
      f"{jax.local_device_count()} devices of a process"
    )
  shards = sizes[mesh_lib.DATA] * sizes[mesh_lib.FSDP]
  # Each shard of the batch is cut again into micro-batches.
  if t.batch_size % (shards * t.accumulate):
    raise ConfigError(
      f"--batch_size={t.batch_size} is not allowed: a multiple of {shards * t.accumulate}, "
      f"{shards} part{'s' * (shards > 1)} of --mesh={t.mesh} times --accumulate={t.accumulate}"
    )


class Trainer:
  """A task with its optimiser, its step and a state, all on the mesh.

  Args:
    task: what is trained.
    state: to begin with, on the mesh; None: a fresh one.

  Attributes:
    task: what is trained.
    total_steps: length of the run.
    state: to begin with.
    step: of the state and a batch of `make_batch`.
    cost: of a step, once it is compiled.

  Raises:
    ConfigError: the devices cannot share a batch, or what the task's `make_step` refuses.
  """

  def __init__(self, task: Task, state: TrainState | None = None):
    check_mesh(task.config)
    self.task = task
    self.mesh = mesh_lib.make_mesh(task.training.mesh)
    task.prepare()
    self.total_steps = task.total_steps
    self.optimizer = state_lib.make_optimizer(task.training, self.total_steps)
    # A given state is one that was restored; without one it is made fresh.
    self.state = state or state_lib.init_state(self._init, self.optimizer, self.mesh)
    self.step = task.make_step(self.optimizer, state_lib.shardings_of(self.state))
    self.cost: StepCost | None = None

  def _init(self) -> Any:
    return self.task.init(jax.random.key(self.task.training.seed))

  def make_batch(self, step: int) -> Any:
    """This process' rows of a step, put on the mesh."""
    # Each process makes its own rows alone; `put_batch` joins them to one batch over the mesh.
    rows = self.task.source.batch(step, jax.process_index(), jax.process_count())
    return mesh_lib.put_batch(rows, self.mesh)

  def compile(self, state: TrainState, told: Callable[[StepCost], None] = lambda _: None) -> None:
    """Compiles the step ahead, once, and tells what it costs.

    Then all processes begin together, since a collective operation does not wait long.
    """
    if self.cost is None:
      batch = self.make_batch(int(state.step))
      units = self.task.units(batch)
      self.step, self.cost = compile_step(self.step, state, batch, units, self.task.training)
      told(self.cost)
      distributed.barrier("compiled")
