"""The only place that turns flags into the config: one flag a knob, named after it.

Order of precedence, strongest last: the defaults, `--preset` (or the workdir's config.json), flags that were given.
"""

import dataclasses
import os
import sys
import typing
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from gr4ad_jax import config as config_lib
from gr4ad_jax.data import schema

_FREE = (
  "data_dir", "ads_path", "events_path", "epochs", "max_steps", "remat", "log_every", "eval_every", "eval_requests",
  "save_every",
)  # fmt: skip
"""What a trained run may change: where its data lie (their content is compared), its length, and how often it tells."""

_MISTAKES = (config_lib.ConfigError, schema.DataError, OSError, ImportError)

flags.disclaim_key_flags()  # the flags belong to the binary that calls define_flags, so that its --help lists them


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines --workdir, --preset and a flag for every knob of the config."""
  flags.DEFINE_string("workdir", "", "The run's directory: all that it reads back lies here.", flag_values=flag_values)
  flags.DEFINE_enum("preset", "tiny", list(config_lib.PRESETS), "Model size.", flag_values=flag_values)
  for section in config_lib.SECTIONS:
    for field in _fields(section):
      help_text = field.metadata["help"]
      if field.type is bool:
        flags.DEFINE_boolean(field.name, field.default, help_text, flag_values=flag_values)
      else:
        flags.DEFINE(_KnobParser(field), field.name, field.default, help_text, flag_values, _KnobSerializer())


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
    try:
      parts = [part.strip() for part in argument.split(",")] if self._is_tuple else [argument]
      values = tuple(self._convert(part) for part in parts if part or not self._is_tuple)
    except ValueError as error:
      raise ValueError(f"not allowed: {self.syntactic_help}") from error
    return values if self._is_tuple else values[0]


class _KnobSerializer(flags.ArgumentSerializer):
  def serialize(self, value: typing.Any) -> str:
    return ",".join(str(element) for element in value) if isinstance(value, tuple) else str(value)


def config_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> config_lib.Config:
  """The config of a training run: the preset's sizes, then every flag that was given.

  Raises:
    ConfigError: a flag, or a pair of flags, that is not allowed.
  """
  preset = config_lib.PRESETS[flag_values.preset]
  return _with_given(config_lib.Config(workdir=flag_values.workdir, model=preset), flag_values)


def config_from_workdir(flag_values: flags.FlagValues = flags.FLAGS) -> config_lib.Config:
  """The config that a run was trained with, then the flags that were given: those of the search, say.

  Raises:
    ConfigError: no --workdir, a config.json that is damaged, a flag that is not allowed, or one that asks for another
      model or other codes than the run's.
    FileNotFoundError: the workdir holds no config.json.
  """
  if not flag_values.workdir:
    raise config_lib.ConfigError("--workdir= is not allowed: name the directory of a trained run")
  saved = base = config_lib.load_config(flag_values.workdir)
  if flag_values["preset"].present:
    base = dataclasses.replace(base, model=config_lib.PRESETS[flag_values.preset])
  config = _with_given(base, flag_values)
  _refuse_another_model(config, saved)
  return config


def config_from_flags_or_workdir(flag_values: flags.FlagValues = flags.FLAGS) -> config_lib.Config:
  """`config_from_workdir` where a run lies in the workdir, else `config_from_flags`, the workdir checked."""
  if os.path.exists(os.path.join(flag_values.workdir, config_lib.CONFIG_FILE)):
    return config_from_workdir(flag_values)
  config = config_from_flags(flag_values)
  check_workdir(config)
  return config


def check_workdir(config: config_lib.Config) -> None:
  """Refuses a workdir that cannot hold this run: a workdir is one run, and config.json tells how it was made.

  Model and codes never change. Once there is a checkpoint, nothing that shapes the training does either, but its
  length: with more --epochs or --max_steps it goes on, under the learning-rate schedule of the new length.

  Raises:
    ConfigError: no --workdir, a file in its place, or a run with another setting there; or a damaged config.json.
  """
  if not config.workdir:
    raise config_lib.ConfigError("--workdir= is not allowed: name the directory that the run is to live in")
  if os.path.exists(config.workdir) and not os.path.isdir(config.workdir):
    raise config_lib.ConfigError(f"--workdir={config.workdir} is not allowed: a file of that name is in the way")
  if os.path.exists(os.path.join(config.workdir, config_lib.CONFIG_FILE)):
    saved = config_lib.load_config(config.workdir)
    _refuse_another_model(config, saved)
    if config_lib.is_trained(config.workdir):
      _refuse_change(config, saved, ("data", "objective", "training"), but=_FREE)


def save_config(config: config_lib.Config) -> None:
  """Writes <workdir>/config.json, whole or not at all.

  Raises:
    ConfigError: as `check_workdir` does.
  """
  check_workdir(config)
  path = os.path.join(config.workdir, config_lib.CONFIG_FILE)
  os.makedirs(config.workdir, exist_ok=True)
  with open(path + ".part", "w", encoding="utf-8") as file:
    file.write(config_lib.to_json(config))
  os.replace(path + ".part", path)


def _refuse_another_model(config: config_lib.Config, saved: config_lib.Config) -> None:
  """Raises ConfigError where a parameter's shape or a code's meaning would differ from the saved run's."""
  _refuse_change(config, saved, ("sid", "model"), but=("compute_dtype",))


def _refuse_change(
  config: config_lib.Config, saved: config_lib.Config, sections: Sequence[str], but: Sequence[str]
) -> None:
  """Raises ConfigError for the first knob of `sections`, those of `but` aside, that is not the saved run's."""
  text = _KnobSerializer().serialize
  for section in sections:
    for field in _fields(section):
      ours, theirs = (getattr(getattr(c, section), field.name) for c in (config, saved))
      if ours != theirs and field.name not in but:
        raise config_lib.ConfigError(
          f"--{field.name}={text(ours)} is not allowed: the run in {config.workdir} has {text(theirs)}"
        )


def _fields(section: str) -> tuple[dataclasses.Field, ...]:
  return dataclasses.fields(config_lib.SECTIONS[section])


def _with_given(config: config_lib.Config, flag_values: flags.FlagValues) -> config_lib.Config:
  """The config with each knob whose flag was given (on the command line or in a flagfile) replaced, then validated."""
  sections = {}
  for section in config_lib.SECTIONS:
    given = {field.name: flag_values[field.name].value for field in _fields(section) if flag_values[field.name].present}
    sections[section] = dataclasses.replace(getattr(config, section), **given)
  return config_lib.validate(dataclasses.replace(config, **sections))


def run(main: Callable[[Sequence[str]], int | None]) -> None:
  """`app.run(main)`, with the user's mistakes told in one line: `error: …`, exit status 2; 130 after Ctrl-C."""

  def guarded(argv: Sequence[str]) -> int | None:
    if len(argv) > 1:
      print(f"error: {argv[1]!r} is not a flag; flags look like --name=value", file=sys.stderr)
      return 2
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)
      logging.get_absl_logger().setLevel("ERROR")  # the checkpointing library tells a great deal through it
    try:
      return main(argv)
    except KeyboardInterrupt:
      print("\ninterrupted; the same command starts over, or goes on from the last checkpoint", file=sys.stderr)
      return 130
    except _MISTAKES as error:
      logging.debug("Where it happened:", exc_info=True)  # shown with --verbosity=1
      print(f"error: {error}", file=sys.stderr)
      return 2

  app.run(guarded, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
  """Parses the flags; a bad one ends the process with one line that says what is allowed."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
