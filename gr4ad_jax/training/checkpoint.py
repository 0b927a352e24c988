"""Checkpoints of a run: the two most recent and the best. The only importer of orbax.

A checkpoint is a directory named after its step, written under a temporary name and renamed when
whole, so a process killed in mid-save leaves the checkpoint before it as the last one. Before it is
renamed it gets a list of the checksums of all its files; whoever restores it compares what he reads
with the list.
"""

import contextlib
import errno
import logging
import math
import os
import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

# What the public `temporary_path_class` takes has no public name.
from orbax.checkpoint._src.path import atomicity
from orbax.checkpoint.checkpoint_managers import preservation_policy
from orbax.checkpoint.options import MultiprocessingOptions

from gr4ad_jax import checksums
from gr4ad_jax.checksums import DamagedError
from gr4ad_jax.config import ConfigError, is_step
from gr4ad_jax.remote import mirrors
from gr4ad_jax.training.state import TrainState, abstract, is_finite

# The second one back serves where the last turns out to be damaged.
_KEEP = 2
# The large items of a checkpoint; the small ones are read when it is looked at.
_ARRAYS = ("params", "opt_state")
_MARK = "_CHECKPOINT_METADATA"  # of every whole checkpoint
_GONE = "deleted"  # where checkpoints go that make room, at once and whole
_ORBAX_LOG = logging.getLogger("absl")  # Orbax logs by absl
# Words of what a full or broken disk says, by the libraries below.
_NO_ROOM = (
  "no space left",
  "resource_exhausted",
  "file too large",
  "quota",
  "permission",
  "read-only file system",
  "input/output error",
  "stale file handle",
)


def _delete_gone(directory: str) -> None:
  """Deletes what made room. What a kill leaves of it is deleted the next time."""
  shutil.rmtree(os.path.join(directory, _GONE), ignore_errors=True)


class _Renamed:
  """The last thing done to a checkpoint: its list of checksums is written, then it gets its
  name.
  """

  def __init__(self, temporary: str, final: str):
    self._temporary = temporary
    self._final = final

  async def replace_source(self) -> None:
    # The list comes first: whatever has a checkpoint's name has its list, too.
    checksums.write_tree(self._temporary)
    os.rename(self._temporary, self._final)
    # Here it is behind the training, and before Orbax moves the next one there.
    _delete_gone(os.path.dirname(self._final))
    mirrors.saved(self._final)


class _Summed(atomicity.AtomicRenameTemporaryPath):
  """The directory that a checkpoint is written in."""

  async def finalize(self) -> None:
    # The parent class writes its last files, then hands over to a snapshot, where there is one,
    # instead of renaming.
    # The items of a checkpoint are renamed before it, and lie in it.
    if is_step(self.get_final().name):
      self._snapshot = _Renamed(os.fspath(self.get()), os.fspath(self.get_final()))
    await super().finalize()


@contextlib.contextmanager
def _saving(directory: str) -> Iterator[None]:
  """Turns what the disk refuses into an OSError of one line; the libraries below have exceptions
  of their own.
  """
  try:
    yield
  except OSError:
    raise
  except Exception as error:
    reason = " ".join(str(error).split())
    if any(words in reason.lower() for words in _NO_ROOM):
      raise OSError(
        errno.EIO, f"a checkpoint cannot be saved ({reason[:300]})", directory
      ) from error
    raise


class _NoTraces(logging.Filter):
  """Leaves out tracebacks that Orbax logs of its background threads.

  What they failed with is raised by the next `save`, `wait` or `close`, so it is told once, there.
  """

  def filter(self, record: logging.LogRecord) -> bool:
    is_told_later = record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname
    return not is_told_later or _ORBAX_LOG.isEnabledFor(logging.DEBUG)


_NO_TRACES = _NoTraces()


def _alone() -> MultiprocessingOptions:
  """This process does not wait for the others of its job."""
  me = jax.process_index()
  return MultiprocessingOptions(me, {me}, f"process_{me}")


class Restored(NamedTuple):
  """What a checkpoint held.

  Attributes:
    state: on the devices, and in the shardings, of the target.
    data: position in the data, such as {"next_step": 400}.
    metadata: what the caller gave when saving.
  """

  state: TrainState
  data: dict
  metadata: dict


class Checkpointer:
  """Saves in the background, keeps the last two and the best, restores into given shardings. A
  context manager.

  Args:
    directory: of the run's checkpoints; made if need be, unless `read_only`.
    best_metric: name of the valid metric that ranks checkpoints; higher is better.
    read_only: for evaluation and serving: never writes, never cleans up. A process of a job of
      several may open one by itself; one that saves must be opened, and called, by all of them.

  Raises:
    FileNotFoundError: `read_only`, and there is no such directory.
    DamagedError: a checkpoint in it is not whole, or its small files are not what was written.
  """

  def __init__(self, directory: str, *, best_metric: str | None = None, read_only: bool = False):
    self._directory = os.path.abspath(directory)
    self._best_metric = best_metric
    self._read_only = read_only
    if read_only and not os.path.isdir(directory):
      raise FileNotFoundError(f"{directory} is missing: no checkpoint was saved there")
    self._check_small()
    # There is one filter, however many are open: a logger keeps no second one that is equal.
    _ORBAX_LOG.addFilter(_NO_TRACES)
    # A reader waits for nobody, since it may be one process of a job that reads alone.
    multi = _alone() if read_only else MultiprocessingOptions()
    kept = [preservation_policy.LatestN(_KEEP)]
    if best_metric:
      kept.append(
        preservation_policy.BestN(
          get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False
        )
      )
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        best_fn=self._score if best_metric else None,
        preservation_policy=preservation_policy.AnyPreservationPolicy(kept),
        create=not read_only,
        read_only=read_only,
        cleanup_tmp_directories=not read_only,
        # Moved first and deleted then: no reader, and no start after a kill, meets half of one.
        todelete_subdir=None if read_only else _GONE,
        temporary_path_class=_Summed,
        multiprocessing_options=multi,
      ),
      item_names=("params", "opt_state", "data", "metadata"),
      item_handlers={
        "params": ocp.StandardCheckpointHandler(multiprocessing_options=multi),
        "opt_state": ocp.StandardCheckpointHandler(multiprocessing_options=multi),
        "data": ocp.JsonCheckpointHandler(multiprocessing_options=multi),
        "metadata": ocp.JsonCheckpointHandler(multiprocessing_options=multi),
      },
    )

  def _check_small(self) -> None:
    """Compares what is read of every checkpoint: which items it has, its metrics, its position
    in the data.
    """
    for name in os.listdir(self._directory) if os.path.isdir(self._directory) else ():
      folder = os.path.join(self._directory, name)
      if not is_step(name):
        continue
      whole = os.path.exists(os.path.join(folder, _MARK))
      if not whole and os.path.isdir(folder):
        raise DamagedError(f"{folder} is no whole checkpoint: it has no {_MARK}; move it away")
      # One that is gone made room for a newer one.
      with contextlib.suppress(FileNotFoundError):
        checksums.check_tree(folder, lambda file: not file.startswith(_ARRAYS))

  def _score(self, metrics: dict) -> float:
    # NaN compares as neither more nor less: it counts as the worst.
    value = metrics.get(self._best_metric, -math.inf)
    return -math.inf if math.isnan(value) else value

  @property
  def steps(self) -> list[int]:
    """Steps of the whole checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  @property
  def best_step(self) -> int | None:
    """Step of the checkpoint with the highest `best_metric`; None where no checkpoint has it."""
    best = self._manager.best_step() if self._best_metric else None
    has_one = best is not None and self._best_metric in (self._manager.metrics(best) or {})
    return best if has_one else None

  def save(
    self,
    state: TrainState,
    *,
    data: dict,
    metadata: dict | None = None,
    metrics: dict | None = None,
  ) -> None:
    """Copies the state off the devices, then writes it in the background; a step that is already
    saved is left as is.

    Args:
      state: its arrays may be donated as soon as this returns.
      data: position in the data, JSON.
      metadata: anything else to keep, JSON.
      metrics: valid metrics of this step, floats; none where it was not evaluated.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    items = ocp.args.Composite(
      params=ocp.args.StandardSave(state.params),
      opt_state=ocp.args.StandardSave(state.opt_state),
      data=ocp.args.JsonSave(data),
      metadata=ocp.args.JsonSave(metadata or {}),
    )
    with _saving(self._directory):
      self._manager.save(
        step, args=items, metrics=(metrics or {}) if self._best_metric else None, force=True
      )

  def restore(self, target: TrainState, which: int | str = "last") -> Restored:
    """Reads a whole checkpoint.

    Args:
      target: shapes, dtypes and shardings to restore into: a state, or `state.abstract` of one.
      which: 'last', 'best' or a step.

    Raises:
      FileNotFoundError: no such checkpoint.
      ConfigError: it holds another model, or numbers that are not finite.
      DamagedError: its files are not what was written.
    """
    step = self.resolve(which)
    items = self._read(
      step,
      params=ocp.args.StandardRestore(abstract(target.params)),
      opt_state=ocp.args.StandardRestore(abstract(target.opt_state)),
      data=ocp.args.JsonRestore(),
      metadata=ocp.args.JsonRestore(),
    )
    # The step is not stored as an array: it is the folder's name.
    number = jax.device_put(jax.numpy.asarray(step, target.step.dtype), target.step.sharding)
    return Restored(
      TrainState(number, items["params"], items["opt_state"]), items["data"], items["metadata"]
    )

  def restore_params(self, target: Any, which: int | str = "best") -> Any:
    """Reads only the parameters: for evaluation and serving.

    Args:
      target: shapes, dtypes and shardings to restore into: `state.abstract_params`, or parameters.
      which: 'last', 'best' (the last, where none was evaluated) or a step.

    Raises:
      FileNotFoundError: no such checkpoint.
      ConfigError: it holds another model, or numbers that are not finite.
      DamagedError: its files are not what was written.
    """
    return self._read(self.resolve(which), params=ocp.args.StandardRestore(abstract(target)))[
      "params"
    ]

  def _read(self, step: int, **items: Any) -> ocp.args.Composite:
    folder = os.path.join(self._directory, str(step))
    self.wait()  # it may be being written by this very object
    mirrors.bring(folder, tuple(items))  # of a run in a bucket
    checksums.check_tree(folder, lambda file: file.startswith(tuple(f"{item}/" for item in items)))
    try:
      found = self._manager.restore(step, args=ocp.args.Composite(**items))
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
      reason = " ".join(str(error).split())[:300]
      # A disk that fails says nothing of the model.
      if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
        raise
      raise ConfigError(f"{folder} holds another model than the one asked for: {reason}") from error
    if not is_finite(found["params"]):
      raise ConfigError(f"{folder} holds numbers that are not finite")
    return found

  def resolve(self, which: int | str) -> int:
    """Step of 'last', 'best' (the last, where none was evaluated) or a step. Raises
    FileNotFoundError.
    """
    steps = self.steps
    if not steps:
      raise FileNotFoundError(f"{self._directory} holds no whole checkpoint")
    if which == "last":
      return steps[-1]
    if which == "best":
      best = self.best_step
      return steps[-1] if best is None else best
    if which not in steps:
      raise FileNotFoundError(
        f"{self._directory} holds no checkpoint {which!r}; it has {steps}, 'last' and 'best'"
      )
    return which

  def wait(self) -> None:
    """Returns when all saves are on disk; raises what a background save raised."""
    with _saving(self._directory):
      self._manager.wait_until_finished()
    if not self._read_only and jax.process_index() == 0:
      _delete_gone(self._directory)

  def close(self) -> None:
    """Waits, then lets go of the background threads."""
    self.wait()
    self._manager.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()
