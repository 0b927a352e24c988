"""A run is a directory and a task: where it starts, how it is trained and judged, what is
restored.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from gr4ad_jax import checksums, families, files
from gr4ad_jax.config import CHECKPOINTS, Config, ConfigError, is_published, load_config
from gr4ad_jax.parallel import distributed
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.runs import workdir as workdir_lib
from gr4ad_jax.training import loop, preemption, prefetch
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training.checkpoint import Checkpointer
from gr4ad_jax.training.cost import StepCost
from gr4ad_jax.training.profiling import StepProfiler
from gr4ad_jax.training.state import TrainState
from gr4ad_jax.training.task import Task, Told
from gr4ad_jax.training.trainer import Trainer
from gr4ad_jax.training.weights import Weights
from gr4ad_jax.training.writers import open_writers

PROFILE = "profile"  # of a workdir


def checkpoint_dir(config: Config) -> str:
  """Where a run's checkpoints lie."""
  return os.path.join(config.workdir, CHECKPOINTS)


def best_metric(config: Config) -> str | None:
  """What ranks the checkpoints of a run; see `Task.best_metric`."""
  return families.task_of(config.family).best_metric(config)


def open_checkpoints(config: Config) -> Checkpointer | Weights:
  """A run's checkpoints, or the weights of a published one, to read. Raises as these do."""
  if is_published(config.workdir):
    return Weights(config.workdir)
  return Checkpointer(checkpoint_dir(config), best_metric=best_metric(config), read_only=True)


def scored_step(config: Config) -> int:
  """Step of the checkpoint that `load_params` takes as the best. Raises FileNotFoundError where
  there is none.
  """
  with open_checkpoints(config) as checkpointer:
    return checkpointer.resolve("best")


def load_params(config: Config, init_fn: Callable[[], Any], which: int | str = "best") -> Any:
  """Parameters of a trained run, on one device of this process.

  Args:
    config: of the run.
    init_fn: () -> fresh parameters, of which the shapes are read.
    which: 'best' on valid, 'last', or a step.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    ConfigError: the checkpoint holds another model.
  """
  # Shapes alone: the parameters of the file go straight into their places.
  target = state_lib.abstract_params(init_fn, mesh_lib.local_mesh())
  with open_checkpoints(config) as checkpointer:
    return checkpointer.restore_params(target, which)


def start(config: Config, told: Told | None = None) -> Task:
  """Opens the task of a run, then writes config and the task's files into the workdir.

  Of a job of several processes the first one does so; the others wait, and read the workdir, which
  all share.

  Args:
    config: of the run.
    told: hears what is fitted, how much of it is done, and of how much.

  Raises:
    ConfigError, DataError, OSError: input that is refused, or a run that another process trains;
      nothing was written then.
  """
  kind = families.task_of(config.family)
  if jax.process_index() == 0:
    # First of all: another training would write what is read here.
    with workdir_lib.alone(config):
      task = kind.open(config, told)
      # Not before all input is known to be good.
      workdir_lib.save_config(config)
      task.save()
  distributed.barrier("inputs")
  if jax.process_index():
    # The files lie there by now, and are read instead of made again.
    task = kind.open(config, started=True)
  if not distributed.same(_digest(task)):
    raise ConfigError(
      f"--workdir={config.workdir} is not allowed: its files differ from process to process; "
      "share it"
    )
  return task


def _digest(task: Task) -> bytes:
  """SHA-256 of the task's files; of a folder its list of checksums stands for what lies in it."""
  made = hashlib.sha256()
  for name in task.files:
    path = os.path.join(task.folder, name)
    known = checksums.listed(path) if os.path.isdir(path) else checksums.digest(path)
    made.update(repr(sorted(known.items()) if isinstance(known, dict) else known).encode())
  return made.digest()


def _start_state(
  task: Task, trainer: Trainer, checkpointer: Checkpointer
) -> tuple[TrainState, dict]:
  """The state to go on from, and the sums of metrics that were kept with it."""
  # By precedence; of the three, the highest number that there is counts.
  state = trainer.state  # 1. fresh parameters
  if checkpointer.steps:  # 3. the run's own last whole checkpoint wins
    restored = checkpointer.restore(state_lib.abstract(state))
    task.source.restore(restored.data)
    return restored.state, restored.metadata.get("sums", {})
  if task.training.init_from:  # 2. the best ones of another run
    with open_checkpoints(load_config(task.training.init_from)) as other:
      state = state.replace(params=other.restore_params(state_lib.abstract(state.params)))
  return state, {}


def train(
  task: Task,
  on_progress: Callable[[loop.Progress], None] | None = None,
  on_round: Told = lambda *_: None,
  on_compiled: Callable[[StepCost], None] = lambda _: None,
) -> loop.FitResult:
  """Trains a run, from its last whole checkpoint where there is one.

  Args:
    task: of the run; its files lie in its folder.
    on_progress: told after every step.
    on_round: told of what is done between steps: what, how much of it is done, how much there is.
    on_compiled: told what a step costs, once it is compiled.

  Raises:
    DivergedError: the loss stopped being finite.
    ConfigError: the folder's checkpoints hold another model, the devices cannot share a batch,
      --profile_steps goes past the end, or another process trains the run.
  """
  with workdir_lib.alone(task.config), _gone(task.folder):
    return _train(task, on_progress, on_round, on_compiled)


@contextlib.contextmanager
def _gone(folder: str) -> Iterator[None]:
  """Tells a file that vanished under a training from a path that the user got wrong: the disk is
  to blame.
  """
  try:
    yield
  except FileNotFoundError as error:
    if error.errno is None:  # a message of this library's own
      raise
    raise OSError(f"{folder} lost a file while it was trained: {error}") from error


def _train(
  task: Task,
  on_progress: Callable[[loop.Progress], None] | None,
  on_round: Told,
  on_compiled: Callable[[StepCost], None],
) -> loop.FitResult:
  t = task.training
  trainer = Trainer(task)
  metric = task.best_metric(task.config)
  # Told before the first step, and not when the trace does not come.
  if t.profiled[1] > trainer.total_steps:
    raise ConfigError(
      f"--profile_steps={t.profile_steps} is not allowed: the run has {trainer.total_steps} steps"
    )
  evaluate = task.evaluation("valid")
  traced = StepProfiler(os.path.join(task.folder, PROFILE), *t.profiled)
  # Collective operations do not wait long for a process that was slower up to here.
  distributed.barrier("trainer")
  with Checkpointer(task.checkpoints, best_metric=metric) as checkpointer, traced as profiler:
    state, sums = _start_state(task, trainer, checkpointer)
    writer = open_writers(task.folder, int(state.step))
    try:
      # A task with rounds makes what is learned from before each of them.
      while True:
        # 0 stands for the end of the run: a run that is done takes no further step.
        until = 0
        if int(state.step) < trainer.total_steps:
          until = task.begin_round(state, writer, on_round)
          # Compiled once; of later rounds the same step is taken.
          trainer.compile(state, on_compiled)
        result = loop.fit(
          state,
          trainer.step,
          trainer.make_batch,
          loop.Schedule(
            trainer.total_steps, t.log_every, t.eval_every if evaluate else 0, t.save_every, until
          ),
          checkpointer=checkpointer,
          writer=writer,
          evaluate_fn=(lambda state: evaluate(state.params)) if evaluate else None,
          on_progress=on_progress,
          cost=trainer.cost,
          profiler=profiler,
          workers=prefetch.threads(t.loader_threads),
          position=task.source.state,
          # Ratios go on over rounds, as over a stop.
          sums=sums,
        )
        state = result.state
        sums = result.sums
        if result.status == "preempted":
          return result
        # Only where the last step was taken: a stopped run is finished by the one that goes on.
        if int(state.step) >= trainer.total_steps:
          task.finish(state.params)
          return result
    finally:
      task.close()
      writer.close()
      preemption.release()


def report(task: Task, split: str, beside: Sequence[str] = (), width: int = 0) -> str:
  """Scores a trained run by its task's own evaluation, and writes eval/metrics.json in its folder.

  All processes of a job must call it.

  Args:
    task: of the run.
    split: 'valid' or 'test'.
    beside: other runs for the same table; there is none here.
    width: columns of a terminal that examples are to be shown on; none are shown here.

  Returns:
    A line a metric, or one that says that there is nothing to judge by.

  Raises:
    ConfigError: other runs were named.
    FileNotFoundError: a run without a checkpoint.
  """
  del width
  config = task.config
  if beside:
    raise ConfigError(f"--beside is not allowed: --family={config.family} has no table of runs")
  evaluate = task.evaluation(split)
  if evaluate is None:
    return f"nothing to evaluate on: {split} holds nothing to judge the run by"
  key = jax.random.key(task.training.seed)
  found = evaluate(load_params(config, lambda: task.init(key)))
  if jax.process_index() == 0:
    about = {"split": split, "checkpoint": scored_step(config), "metrics": found}
    path = os.path.join(task.folder, "eval", "metrics.json")
    files.write_json(path, about, summed=False, indent=2)
  return "\n".join(f"{split} {name} {value:.4f}" for name, value in found.items())
