"""What a run is made of, whatever its family: the one thing that trainer, loop and run know of it.

A family is a subclass of `Task` and a line in `gr4ad_jax/families.py`. Parameters and batches are
pytrees. The leading axis of every array of a batch is that of its examples.
"""

import abc
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax

from gr4ad_jax import config as config_lib
from gr4ad_jax.config import Config, TrainConfig
from gr4ad_jax.training.state import Optimizer, TrainState
from gr4ad_jax.training.step import Metrics, Step, make_train_step
from gr4ad_jax.training.writers import Writer

Told = Callable[[str, int, int], None]  # of what, how much is done, of how much
Evaluate = Callable[[Any], dict[str, float]]  # parameters -> metrics


class Source(Protocol):
  """Where a run's batches come from: an order over a fixed set, shards, or a stream.

  `examples.order.OrderedSource` is the first of these.
  """

  steps_per_epoch: float  # steps of one pass over the data; of a stream: of what counts as one

  def batch(self, step: int, process: int, processes: int) -> Any:
    """Rows of a step that are this process': it holds the `process`-th run of equal size.

    Steps are asked for in order, ahead of time, by several threads. A step may be asked for again.
    """

  def state(self, step: int) -> dict:
    """Where the source stands once `step` batches were taken, as JSON: kept with a checkpoint."""

  def restore(self, state: dict) -> None:
    """Goes on from what `state` gave. Called before the first `batch`."""


class Task(abc.ABC):
  """How a run starts, where its batches come from, what it learns, and how it is judged.

  Made by `open` once the config is allowed. What is dear to make should wait for `prepare`, or
  until it is asked for: of a job of several processes, the first opens its task while the others
  wait.

  Args:
    config: of the run.

  Attributes:
    config: of the run.
    training: rates, length, batch size and mesh of its training.
    folder: where the run lies: its checkpoints, its metrics and its trace.
    files: what `save` writes, as paths below `folder`, of files or folders. Every process of a job
      must see the same.
  """

  # A run may differ from its checkpoint in what neither of these two lists names.
  shaping: Sequence[str] = ("own",)
  """Sections of the config that say which parameters there are. A run never changes them."""

  learning: Sequence[str] = ("training",)
  """Sections that say what is learned. A run with a checkpoint changes them no more."""

  files: Sequence[str] = ()

  def __init__(self, config: Config):
    self.config = config
    self.training: TrainConfig = config.training
    self.folder = config.workdir

  # Of the family, by a config alone.

  @classmethod
  def validate(cls, config: Config, base: Config | None = None) -> Config:
    """Returns a config that is allowed.

    Args:
      config: of a run.
      base: what the config is a change of, such as the saved one; None: it was made anew.

    Raises:
      ConfigError: it is not allowed; one line that names flag and value.
    """
    del base
    return config_lib.validate(config)

  @classmethod
  def free(cls, config: Config) -> frozenset[str]:
    """Knobs that a run may change beside those that are marked so, such as those of no effect."""
    del config
    return frozenset()

  @classmethod
  def divided(cls, config: Config) -> Sequence[tuple[str, str, int]]:
    """(axis of the mesh, knob, its value) of the sizes that the mesh must divide."""
    del config
    return ()

  @classmethod
  def best_metric(cls, config: Config) -> str | None:
    """Name of the valid metric that ranks checkpoints, higher is better; None: the last is best."""
    del config
    return None

  @classmethod
  def check(cls, config: Config) -> None:
    """Looks at all that can be checked before the data are read. Raises ConfigError."""
    del config

  @classmethod
  @abc.abstractmethod
  def open(cls, config: Config, told: Told | None = None, started: bool = False) -> "Task":
    """The task of a run. Only reads, so input that is refused leaves nothing behind.

    Args:
      config: of the run; it was validated and checked.
      told: hears how a long preparation fares.
      started: whether `save` has already written the files of this run. Then they are taken.

    Raises:
      ConfigError, DataError, OSError: input that is refused.
    """

  # Of a run.

  def prepare(self) -> None:  # noqa: B027 - a family may have nothing to prepare
    """Makes what `init` and `loss` read, before they are traced; on every process of a job."""

  @property
  @abc.abstractmethod
  def source(self) -> Source:
    """Where the batches come from; the same object each time."""

  @abc.abstractmethod
  def init(self, key: jax.Array) -> Any:
    """Fresh parameters; they may be boxed with logical axis names. Traced, so it must be pure."""

  @abc.abstractmethod
  def loss(self, params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
    """The scalar loss, a mean over the batch, and metrics by name.

    A metric is a scalar, of this step alone, or a `sums.Ratio`: numerator and denominator, which
    are added up over micro-batches and over the steps between two metric lines. Under `jax.jit`
    over a mesh both are of the whole batch, whatever devices and processes hold it.

    Args:
      params: as `init` makes them, unboxed.
      batch: of `source`, on the mesh.
      key: all randomness of the step.
    """

  @abc.abstractmethod
  def units(self, batch: Any) -> dict[str, int]:
    """What a batch holds, by unit: {"images": 64}. Rates and cost are told in these."""

  def save(self) -> None:  # noqa: B027 - a family may have nothing to keep
    """Writes `files`: all that use of the trained run needs beside config and parameters.

    Called on process 0, before training. A run that is trained already keeps what it has.
    """

  def about(self) -> list[str]:
    """Lines that tell a user what was read."""
    return []

  def evaluation(self, split: str) -> Evaluate | None:
    """What judges parameters on 'valid' or 'test'; None: there is nothing to judge them by.

    Of a job of several processes all call it together, and get the same figures. Figures that are
    ratios of sums are merged by `sums.over_processes`.
    """
    del split

  @property
  def total_steps(self) -> int:
    """Length of the run, steps."""
    steps = max(1, round(self.source.steps_per_epoch * self.training.epochs))
    return min(steps, self.training.max_steps) if self.training.max_steps else steps

  def make_step(self, optimizer: Optimizer, shardings: TrainState) -> Step:
    """The jitted step; another than `make_train_step`'s where a task knows a cheaper one."""
    t = self.training
    return make_train_step(self.loss, optimizer, t.seed, t.accumulate, shardings)

  def begin_round(self, state: TrainState, writer: Writer, told: Told) -> int:
    """What is done before the steps from `state.step` on, such as making their lists.

    Returns:
      The step at which it is to be done again.
    """
    del state, writer, told
    return self.total_steps

  def finish(self, params: Any) -> None:
    """What follows the last step, such as a calibration; on every process."""
    del params

  def close(self) -> None:
    """Ends what the source runs beside the training, such as processes that read, which would
    outlive it; called when the training has ended, however it did. A source that holds nothing has
    no `close`.
    """
    end = getattr(self.source, "close", None)
    if end:
      end()

  @property
  def checkpoints(self) -> str:
    """Where the run's checkpoints lie."""
    return os.path.join(self.folder, config_lib.CHECKPOINTS)
