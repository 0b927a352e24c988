"""The only place that turns flags into the config: one flag a knob, named after it.

Order of precedence, strongest last: the defaults, `--preset` (or the workdir's config.json), flags
  that were given.
"""

import dataclasses
import os
import re
import sys
import time
import typing
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from gr4ad_jax import config as config_lib
from gr4ad_jax import families
from gr4ad_jax.config import presets
from gr4ad_jax.data import schema
from gr4ad_jax.parallel.roll_call import StartError
from gr4ad_jax.runs import published
from gr4ad_jax.runs import workdir as workdir_lib

from . import buckets, jobs, log_lines, shipped

_MISTAKES = (config_lib.ConfigError, schema.DataError, ImportError)
_PATHS = (
  FileNotFoundError,
  FileExistsError,
  IsADirectoryError,
  NotADirectoryError,
)  # that the user gave
_TROUBLE = 3  # exit status where the disk or the network refuses: tried again, it may go well

# the flags belong to the binary that calls define_flags, so that its --help lists them
flags.disclaim_key_flags()


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines --workdir, --family, --preset and a flag for every knob of the config."""
  flags.DEFINE_string(
    "workdir",
    "",
    "The run's directory: all that it reads back lies here. pretrained:<name> is a run that is "
    "shipped, hf:<owner>/<name> one of the Hugging Face Hub, s3://<bucket>/<name> or "
    "gs://<bucket>/<name> lies in a bucket.",
    flag_values=flag_values,
  )
  flags.DEFINE_enum(
    "family",
    families.REQUESTS,
    list(families.FAMILIES),
    "Which family of models; a knob that it does not read is refused.",
    flag_values=flag_values,
  )
  codebooks, beams = map(config_lib.shown, (presets.LARGE_CODEBOOKS, presets.LARGE_BEAMS))
  help_text = (
    f"Sizes of a new run: the model's and, of all but tiny, --codebooks={codebooks} "
    f"--beams={beams}."
  )
  flags.DEFINE_enum("preset", "tiny", list(presets.PRESETS), help_text, flag_values=flag_values)
  for field in config_lib.all_fields().values():
    help_text = field.metadata["help"]
    if field.type is bool:
      flags.DEFINE_boolean(field.name, field.default, help_text, flag_values=flag_values)
    else:
      parser = _KnobParser(field)
      flags.DEFINE(parser, field.name, field.default, help_text, flag_values, _KnobSerializer())


class _KnobParser(flags.ArgumentParser):
  """Turns a flag's text into its knob's type; `128,256,512` into a tuple."""

  def __init__(self, field: dataclasses.Field):
    super().__init__()
    element = typing.get_args(field.type)
    self._is_tuple = bool(element)
    self._convert = (element or (field.type,))[0]
    self.syntactic_help = config_lib.allowed(field)

  def parse(self, argument: typing.Any) -> typing.Any:
    if not isinstance(argument, str):
      return argument
    if self._is_tuple and re.fullmatch(r"\d+(-\d+)+", argument):
      argument = argument.replace("-", ",")  # 128-256-512, as beam schedules are written
    try:
      parts = [part.strip() for part in argument.split(",")] if self._is_tuple else [argument]
      values = tuple(self._convert(part) for part in parts if part or not self._is_tuple)
    except ValueError as error:
      raise ValueError(f"not allowed: {self.syntactic_help}") from error
    return values if self._is_tuple else values[0]


class _KnobSerializer(flags.ArgumentSerializer):
  def serialize(self, value: typing.Any) -> str:
    return config_lib.shown(value)


def whole_numbers(
  name: str, given: Sequence[str | int], least: int = 0, words: str = "as 0,1,2"
) -> tuple[int, ...]:
  """Numbers of a flag that is a list of seeds, say. Raises ConfigError for others, or none.

  Args:
    name: of the flag.
    given: what it is.
    least: the smallest that is allowed.
    words: which whole numbers are meant.
  """
  texts = [str(one) for one in given]
  numbers = [int(one) for one in texts if one.isascii() and one.isdecimal()]
  if not texts or len(numbers) < len(texts) or min(numbers) < least:
    raise config_lib.ConfigError(
      f"--{name}={','.join(texts)} is not allowed: whole numbers, {words}"
    )
  return tuple(numbers)


def check_folder_of_runs(folder: str) -> None:
  """Raises ConfigError where a job of several runs has no folder for them."""
  if not folder:
    raise config_lib.ConfigError(
      "--workdir= is not allowed: name the folder that the runs are to live in"
    )


def config_from_flags(
  flag_values: flags.FlagValues = flags.FLAGS, any_family: bool = False
) -> config_lib.Config:
  """The config of a training run: the preset's sizes, or data, codes and model of --init_from; then
  the flags given.

  Args:
    flag_values: the flags.
    any_family: whether the binary is for every family; else for the request models.

  Raises:
    ConfigError: a flag, or a pair of flags, that is not allowed.
    FileNotFoundError: --init_from holds no run.
  """
  size = presets.preset(flag_values.preset)
  if flag_values.family != families.REQUESTS:
    if flag_values["preset"].present:
      raise config_lib.ConfigError(
        f"--preset={flag_values.preset} is not allowed: --family={flag_values.family} has no sizes "
        "by name"
      )
    size = config_lib.Config(family=flag_values.family)
  if not any_family:
    config_lib.check_family(size, families.REQUESTS)
  if flag_values.init_from:
    start = config_lib.load_config(flag_values.init_from)
    config_lib.check_family(start, size.family)
    # The batch size goes with the data.
    training = dataclasses.replace(size.training, batch_size=start.training.batch_size)
    size = dataclasses.replace(
      start, training=training, objective=size.objective, serving=size.serving
    )
  workdir = published.locate(flag_values.workdir, new=True)
  return _with_given(dataclasses.replace(size, workdir=workdir), flag_values)


def config_from_workdir(
  flag_values: flags.FlagValues = flags.FLAGS, any_family: bool = False
) -> config_lib.Config:
  """The config that a run was trained with, then the flags that were given: those of the search,
  say.

  Args:
    flag_values: the flags.
    any_family: whether the binary is for runs of every family; else for the request models.

  Raises:
    ConfigError: no --workdir, a config.json that is damaged, a run of another family, a flag that
      is not allowed, or one that would make it another run (see `workdir.check_workdir`).
    FileNotFoundError: the workdir holds no config.json.
  """
  if not flag_values.workdir:
    raise config_lib.ConfigError("--workdir= is not allowed: name the directory of a trained run")
  base = config_lib.load_config(published.locate(flag_values.workdir))
  if not any_family:
    config_lib.check_family(base, families.REQUESTS)
  if flag_values["family"].present:
    config_lib.check_family(base, flag_values.family)
  if flag_values["preset"].present:
    base = dataclasses.replace(base, model=presets.PRESETS[flag_values.preset])
  config = _with_given(base, flag_values)
  workdir_lib.check_workdir(config)
  return config


def config_from_flags_or_workdir(flag_values: flags.FlagValues = flags.FLAGS) -> config_lib.Config:
  """`config_from_workdir` where a run lies in the workdir, else `config_from_flags`, the workdir
  checked.
  """
  folder = published.locate(flag_values.workdir, new=True)
  if os.path.exists(os.path.join(folder, config_lib.CONFIG_FILE)):
    return config_from_workdir(flag_values)
  config = config_from_flags(flag_values)
  workdir_lib.check_workdir(config)
  return config


def checkpoint(text: str, promoted: bool = False) -> int | str:
  """What --checkpoint names: 'best', 'last' or a step; of a server also 'promoted'. Raises
  ConfigError.
  """
  if text in ("best", "last") or promoted and text == "promoted":
    return text
  if not config_lib.is_step(text):
    raise config_lib.ConfigError(
      f"--checkpoint={text} is not allowed: 'best', 'last' or the number of a step"
    )
  return int(text)


def knob_names() -> set[str]:
  """Names of the flags that are knobs of the config."""
  return {*config_lib.all_fields(), "family", "preset"}


def _with_given(config: config_lib.Config, flag_values: flags.FlagValues) -> config_lib.Config:
  """The config with each knob whose flag was given (on the command line or in a flagfile) replaced,
  then validated.

  A knob that its model does not read may keep its value, not change it; one that its family does
  not read may not be given.
  """
  known = config_lib.fields_of(config)
  given = {}
  for name in config_lib.all_fields():
    if flag_values[name].present:
      given[name] = flag_values[name].value
      if name not in known:
        value = config_lib.shown(given[name])
        raise config_lib.ConfigError(
          f"--{name}={value} is not allowed: --family={config.family} does not read it"
        )
  return families.task_of(config.family).validate(config_lib.with_knobs(config, given), config)


def run(main: Callable[[Sequence[str]], int | None], local: str = "") -> None:
  """`app.run(main)`, with the user's mistakes told in one line: `error: …`, exit status 2; 130
  after Ctrl-C. What the disk or the network refuses is told likewise, with 3: it is no mistake, and
  a launcher may try again.

  With --log_format=json all that it says is a JSON object a line (`log_lines`).

  Where `jobs.define_flags` was called, the process first joins the job of several that its flags
  name: status 1 where a process is missing or lost.

  Args:
    main: the binary.
    local: why its --workdir may not lie in a bucket; empty: it may.
  """
  joined = False
  _define_format()

  def guarded(argv: Sequence[str]) -> int | None:
    if len(argv) > 1:
      print(f"error: {argv[1]!r} is not a flag; flags look like --name=value", file=sys.stderr)
      return 2
    _quieten()
    nonlocal joined
    try:
      joined = _join()
      buckets.begin(local)
      status = main(argv)
      buckets.finish()
      return status
    except KeyboardInterrupt:
      print(
        "\ninterrupted; the same command starts over, or goes on from the last checkpoint",
        file=sys.stderr,
      )
      return 130
    except StartError as error:
      print(f"error: {error}", file=sys.stderr)
      return 1
    except (*_MISTAKES, OSError) as error:
      logging.debug("Where it happened:", exc_info=True)  # shown with --verbosity=1
      print(f"error: {error}", file=sys.stderr)
      return 2 if isinstance(error, (*_MISTAKES, *_PATHS)) else _TROUBLE

  def left(argv: Sequence[str]) -> int | None:
    try:
      status = guarded(argv)
    except Exception:
      if not joined:
        raise
      # A lost process shows as an error of the next collective operation; `jobs` tells it.
      time.sleep(3)
      sys.excepthook(*sys.exc_info())
      status = 1
    log_lines.end()  # an exception that is raised instead is told as an object, too
    if joined:
      jobs.leave(status or 0)
    return status

  app.run(left, flags_parser=_parse)


def _join() -> bool:
  """Joins the job that the flags name; see `jobs.join`."""
  # Where things lie may differ from machine to machine; their content is compared later.
  fields = config_lib.all_fields()
  places = {name for name, field in fields.items() if field.metadata["place"]}
  return jobs.join(knob_names() - places | {"workdir"})


def _define_format() -> None:
  """Defines --log_format, which every binary has; a process may run several of them."""
  if "log_format" not in flags.FLAGS:
    help_text = "Lines for people, or a JSON object a line, for a collector of logs."
    flags.DEFINE_enum("log_format", "text", ["text", "json"], help_text, flag_values=flags.FLAGS)


def _quieten() -> None:
  """Leaves the log's warnings; with --verbosity all that it asks for."""
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
    # The checkpointing library tells a great deal through it.
    logging.get_absl_logger().setLevel("ERROR")


def _parse(argv: Sequence[str]) -> list[str]:
  """Parses the flags; a bad one ends the process with one line that says what is allowed."""
  arguments = argv[1:]
  try:
    arguments = shipped.expanded(arguments)
    rest = flags.FLAGS([argv[0], *arguments])
  except flags.Error as error:
    if "--log_format=json" in arguments:
      log_lines.begin()
    print(f"error: {error}", file=sys.stderr)
    log_lines.end()
    sys.exit(2)
  if flags.FLAGS.log_format == "json":
    log_lines.begin()
  return rest
