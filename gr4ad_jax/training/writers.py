"""Where scalars go: JSON lines and tensorboard files, behind one small protocol. Only process 0
writes.
"""

import json
import logging
import os
from typing import Protocol

import jax

from gr4ad_jax import files

_log = logging.getLogger(__name__)


class Writer(Protocol):
  """A sink of scalars by step."""

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Keeps the scalars of a step."""

  def close(self) -> None:
    """Puts all on disk."""


class JsonlWriter:
  """One JSON object a line, `{"step": …, …}`, on disk as soon as `write` returns.

  Args:
    path: the file, appended to.
    resume_step: the step that the run resumes from; later lines are dropped, so that no step stands
      there twice, and so are a torn last one and, with a warning, lines that are none of metrics.
  """

  def __init__(self, path: str, resume_step: int = 0):
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    if os.path.exists(path):
      # A run that was killed may have written lines of steps after its last checkpoint. They come
      # again.
      _truncate(path, resume_step)
    self._file = open(path, "a", encoding="utf-8")

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Appends a line."""
    self._file.write(
      json.dumps({"step": step, **{name: float(value) for name, value in scalars.items()}}) + "\n"
    )
    # A line is on its way to the disk at once: a kill loses none that was told.
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def _truncate(path: str, resume_step: int) -> None:
  with open(path, "rb") as file:
    lines = file.readlines()
  kept = []
  for number, line in enumerate(lines, 1):
    step = _step_of(line)
    # A torn last line is what a kill leaves behind.
    if step is None and line.endswith(b"\n"):
      _log.warning("%s, line %d: no line of metrics, left out: %.40r", path, number, line)
    elif step is not None and line.endswith(b"\n") and step <= resume_step:
      kept.append(line)
  # Metrics have no checksum: they are appended to all the time.
  with files.replacing(path, summed=False) as part, open(part, "wb") as file:
    file.writelines(kept)


def _step_of(line: bytes) -> int | None:
  """The step of a line of metrics; None: it is none."""
  try:
    found = json.loads(line)
  except (ValueError, RecursionError):  # of JSON or of UTF-8
    return None
  step = found.get("step") if isinstance(found, dict) else None
  # True and False are whole numbers to Python, and no steps here.
  return step if isinstance(step, int) and not isinstance(step, bool) else None


class TensorboardWriter:
  """Tensorboard event files, through tensorboardX.

  Args:
    directory: of the event files.
    resume_step: the step that the run resumes from; tensorboard hides what an earlier run wrote
      after it.

  Raises:
    ImportError: tensorboardX is not installed.
  """

  def __init__(self, directory: str, resume_step: int = 0):
    try:
      import tensorboardX
    except ImportError as error:
      raise ImportError("tensorboardX is missing: pip install 'gr4ad_jax[log]'") from error
    # Points of steps that will be taken again are hidden.
    self._writer = tensorboardX.SummaryWriter(
      directory, purge_step=resume_step + 1 if resume_step else None
    )
    self._directory = directory
    # tensorboardX has no interface for this: the thread that writes is found inside it.
    events = self._writer.file_writer.event_writer
    # It writes what stands in a queue, and ends where the disk refuses.
    self._thread = events._worker
    # else the end of the process would wait for that thread for good
    events._event_queue.cancel_join_thread()

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Adds a point to each curve. Raises OSError where an earlier one could not be written."""
    if not self._thread.is_alive():
      raise OSError(f"{self._directory}: events cannot be written; is the disk full?")
    for name, value in scalars.items():
      self._writer.add_scalar(name, float(value), step)

  def close(self) -> None:
    """Flushes and closes the event file; what could not be written is left."""
    # Without the thread nobody takes what would be put into the queue.
    if self._thread.is_alive():
      self._writer.close()


class MultiWriter:
  """Passes scalars on to several writers, or to none."""

  def __init__(self, writers: list[Writer]):
    self._writers = writers

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Writes to each."""
    for writer in self._writers:
      writer.write(step, scalars)

  def close(self) -> None:
    """Closes each."""
    for writer in self._writers:
      writer.close()


def open_writers(workdir: str, resume_step: int = 0) -> MultiWriter:
  """Writers of a run: `metrics.jsonl`, and `tensorboard/` where tensorboardX is installed; none
  but on process 0.
  """
  if jax.process_index() != 0:
    return MultiWriter([])
  writers: list[Writer] = [JsonlWriter(os.path.join(workdir, "metrics.jsonl"), resume_step)]
  try:
    writers.append(TensorboardWriter(os.path.join(workdir, "tensorboard"), resume_step))
  except ImportError as error:
    logging.info("No tensorboard files: %s", error)
  return MultiWriter(writers)
