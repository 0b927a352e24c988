"""A workdir is one run: what may be changed in it, and config.json, which tells how it was made."""

import contextlib
import dataclasses
import glob
import os
from collections.abc import Iterator, Sequence

import jax

from gr4ad_jax import checksums, families, files
from gr4ad_jax import config as config_lib
from gr4ad_jax.config import Config, ConfigError
from gr4ad_jax.locks import InUseError, Lock
from gr4ad_jax.remote import mirrors

LOCK = "lock"  # of a workdir
# What a run writes, by what it must be.
_FOLDERS = (config_lib.CHECKPOINTS, "features", "index", "tensorboard", "tokenizer")
_FILES = (config_lib.CONFIG_FILE, LOCK, "metrics.jsonl", checksums.NAME)

FREE = tuple(
  field.name
  for kind in config_lib.SECTIONS.values()
  for field in dataclasses.fields(kind)
  if field.metadata["free"]
)
"""What a trained run may change.

Where its data lie (their content is compared), its length, how often it tells, and what changes no
result.
"""


def changes(
  config: Config, other: Config, sections: Sequence[str], but: Sequence[str] = ()
) -> Iterator[tuple[str, str, str]]:
  """(knob, its value in `config`, in `other`) of every knob of `sections` that differs, those of
  `but` aside. Both must be of one family.
  """
  known = config_lib.sections_of(config.family)
  for section in sections:
    for field in dataclasses.fields(known[section]) if section in known else ():
      # Compared by value: two configs that say the same differ in nothing.
      ours, theirs = (getattr(getattr(c, section), field.name) for c in (config, other))
      if ours != theirs and field.name not in but:
        yield field.name, config_lib.shown(ours), config_lib.shown(theirs)


def check_workdir(config: Config) -> None:
  """Refuses a workdir that cannot hold this run.

  What shapes the parameters never changes, but for what has no effect on them. Once there is a
  checkpoint, nothing that shapes the training does either, but its length: with more --epochs or
  --max_steps it goes on, under the learning-rate schedule of the new length.

  Raises:
    ConfigError: no --workdir, a file in its place, or something else in that of its files; a run
      with another setting there; or a damaged config.json. For a new run, as `check_folder`.
  """
  if not config.workdir:
    raise ConfigError("--workdir= is not allowed: name the directory that the run is to live in")
  if os.path.exists(config.workdir) and not os.path.isdir(config.workdir):
    raise ConfigError(
      f"--workdir={config.workdir} is not allowed: a file of that name is in the way"
    )
  _check_kinds(config.workdir)
  if not os.path.exists(os.path.join(config.workdir, config_lib.CONFIG_FILE)):
    check_folder(config.workdir)
    # No run is here yet, and anything may become one.
    return
  saved = config_lib.load_config(config.workdir)
  task = families.task_of(config.family)
  refused = f"the run in {config.workdir} has"
  if saved.family != config.family:
    raise ConfigError(f"--family={config.family} is not allowed: {refused} {saved.family}")
  fixed = [*task.shaping]
  # What a family frees, beside the knobs that are free in every run.
  free = set(task.free(config))
  free |= {
    name for name, (_, field) in config_lib.fields_of(config).items() if field.metadata["free"]
  }
  if config_lib.is_trained(config.workdir):
    fixed += task.learning
  for name, ours, theirs in changes(config, saved, fixed, but=free):
    raise ConfigError(f"--{name}={ours} is not allowed: {refused} {theirs}")


def _check_kinds(workdir: str) -> None:
  """Refuses what would be found in the way only after the data are read and the step compiled."""
  for name in _FOLDERS:
    path = os.path.join(workdir, name)
    if os.path.lexists(path) and not os.path.isdir(path):
      raise ConfigError(f"--workdir={workdir} is not allowed: {name} in it is no directory")
  for name in _FILES:
    path = os.path.join(workdir, name)
    if os.path.lexists(path) and not os.path.isfile(path):
      raise ConfigError(f"--workdir={workdir} is not allowed: {name} in it is no file")


def check_folder(workdir: str) -> None:
  """Raises ConfigError for a path in which no checkpoint can be written: Orbax takes some
  letters for wildcards or escapes, finds none of its own files, and leaves a checkpoint that
  nothing can read.
  """
  whole = os.path.abspath(workdir)
  if glob.has_magic(whole) or "\\" in whole:
    raise ConfigError(
      f"--workdir={workdir} is not allowed: the whole path must be without *, ?, [ and \\"
    )


def save_config(config: Config) -> None:
  """Writes <workdir>/config.json, whole or not at all; from then on the run is this process', as
  `alone` says.

  Raises:
    ConfigError: a knob that is not allowed, or as `check_workdir`, `check_folder` and `alone` do.
  """
  check_folder(config.workdir)
  # Checked once more just before the write: another process may have begun meanwhile.
  check_workdir(families.task_of(config.family).validate(config))
  _hold(config.workdir)
  path = os.path.join(config.workdir, config_lib.CONFIG_FILE)
  # A run of before there were checksums has files without them, however it is resumed.
  summed = not os.path.exists(path) or checksums.is_promised(config.workdir)
  files.write_text(path, config_lib.to_json(config, summed=summed))


@dataclasses.dataclass
class _Held:
  """A run that is this process'.

  Attributes:
    lock: of its directory.
    made: directories that were made for it, the innermost first.
    users: `alone` blocks that it is held by; none: until the next one ends.
  """

  lock: Lock
  made: list[str]
  users: int = 0


_held: dict[str, _Held] = {}


@contextlib.contextmanager
def alone(config: Config) -> Iterator[None]:
  """A block in which no other process writes to the run: process 0 of a job holds a lock on its
  directory. A run in a bucket is this job's there, too, and all that it wrote is sent by the end.

  Blocks may be nested. A directory that is made for the lock, and to which nothing else was
  written, goes with it.

  Raises:
    ConfigError: another process trains the run.
    OSError: the directory cannot be made or locked, or the bucket does not take what was written.
  """
  if jax.process_index():
    yield
    return
  held = _hold(config.workdir)
  # Blocks may stand in one another; the last one lets go.
  held.users += 1
  try:
    with mirrors.claimed(config.workdir) if held.users == 1 else contextlib.nullcontext():
      yield
  finally:
    held.users -= 1
    if not held.users:
      _held.pop(os.path.realpath(config.workdir), None)
      _let_go(config.workdir, held)


def _hold(workdir: str) -> _Held:
  if config_lib.is_published(workdir):
    raise ConfigError(f"--workdir={workdir} is not allowed: a published run is only read")
  path = os.path.realpath(workdir)
  if path in _held and not _held[path].lock.stands:  # the directory was deleted meanwhile
    _held.pop(path).lock.close()
  if path not in _held:
    made = []
    # Which folders this process makes, so that it can take them away again.
    while not os.path.isdir(path):
      made.append(path)
      path = os.path.dirname(path)
    os.makedirs(workdir, exist_ok=True)
    try:
      lock = Lock(os.path.join(workdir, LOCK))
    except InUseError as error:
      shown = mirrors.url_of(workdir) or workdir
      message = f"--workdir={shown} is not allowed: another process is training the run in it"
      raise ConfigError(message) from error
    _held[os.path.realpath(workdir)] = _Held(lock, made)
  # Held until the last `alone` block ends, or, without one, until the process does.
  return _held[os.path.realpath(workdir)]


def _let_go(workdir: str, held: _Held) -> None:
  # A folder that holds the lock alone has no run in it.
  if held.made and os.path.isdir(workdir) and os.listdir(workdir) == [LOCK]:
    # The lock is the only file, so the folder is empty after this and can be removed.
    held.lock.remove()
    # Another process may have written there in the meantime.
    with contextlib.suppress(OSError):
      for folder in held.made:
        os.rmdir(folder)
  held.lock.close()
