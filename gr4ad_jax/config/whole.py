"""A run's config: its sections together, checked, and as JSON.

The dataclasses of the sections are frozen; `experiments/flags.py` turns each field into a flag of
the same name, so a name is unique over all of them. `validate` raises `ConfigError` with one line
that says what is allowed.
"""

import dataclasses
import json
import math
import os
import typing
from collections.abc import Container
from typing import Any

from gr4ad_jax import checksums, families
from gr4ad_jax.config import pair_rules
from gr4ad_jax.config.data import DataConfig, SidConfig
from gr4ad_jax.config.live import LearnConfig
from gr4ad_jax.config.models import ItemConfig, ModelConfig, ObjectiveConfig
from gr4ad_jax.config.preference import PreferenceConfig, RewardConfig
from gr4ad_jax.config.serving import SearchConfig, ServeConfig
from gr4ad_jax.config.training import TrainConfig
from gr4ad_jax.knobs import ConfigError, shown


@dataclasses.dataclass(frozen=True)
class Config:
  """A run.

  Attributes:
    workdir: its directory.
    family: what kind of models it trains: a name of `families.FAMILIES`.
    own: the section of that family alone; None: the family has none. Made with its defaults where
      it is left out.

  The other attributes are the shared sections. A family reads some of them (`sections_of`); those
  that it does not read keep their defaults.
  """

  workdir: str = ""
  family: str = families.REQUESTS
  data: DataConfig = DataConfig()
  sid: SidConfig = SidConfig()
  model: ModelConfig = ModelConfig()
  items: ItemConfig = ItemConfig()
  objective: ObjectiveConfig = ObjectiveConfig()
  preference: PreferenceConfig = PreferenceConfig()
  reward: RewardConfig = RewardConfig()
  training: TrainConfig = TrainConfig()
  search: SearchConfig = SearchConfig()
  serving: ServeConfig = ServeConfig()
  learn: LearnConfig = LearnConfig()
  own: Any = None

  def __post_init__(self):
    # Families are found by name, so that the config imports none of them.
    kind = families.own_section(self.family)
    if kind and self.own is None:
      # The way into a frozen dataclass.
      object.__setattr__(self, "own", kind())


_SIZES = (
  "lazy_layers",
  "kv_layers",
  "heads",
  "kv_groups",
  "beams",
)  # what fits them is the model's to say
_LATER = (
  *_SIZES,
  "order",
)  # checked where a run is used: one from before the check loads, and is told another order
CONFIG_FILE = checksums.CONFIG_FILE
CHECKPOINTS = "checkpoints"  # of a workdir
WEIGHTS = "weights.safetensors"  # of a published run, in their place
SECTIONS = {
  f.name: f.type for f in dataclasses.fields(Config) if f.name not in ("workdir", "family", "own")
}
"""The shared sections."""


def sections_of(family: str) -> dict[str, type]:
  """Name -> class of the sections that runs of a family read, its own last.

  Raises:
    ConfigError: there is no such family.
  """
  found = {name: SECTIONS[name] for name in families.find(family).sections}
  own = families.own_section(family)
  return found | ({"own": own} if own else {})


def all_fields() -> dict[str, dataclasses.Field]:
  """Knob -> its field, of the shared sections and of every family's own."""
  own = [families.own_section(name) for name in families.FAMILIES]
  kinds = [*SECTIONS.values(), *filter(None, own)]
  return {field.name: field for kind in kinds for field in dataclasses.fields(kind)}


def fields_of(config: Config) -> dict[str, tuple[str, dataclasses.Field]]:
  """Knob -> its section and its field, of the knobs that the config's family reads."""
  return {
    field.name: (section, field)
    for section, kind in sections_of(config.family).items()
    for field in dataclasses.fields(kind)
    if field.metadata["of"] in ("", config.family)
  }


def check_family(config: Config, wanted: str) -> None:
  """Raises ConfigError where a run is of another family than the one that a binary is for."""
  if config.family != wanted:
    raise ConfigError(f"--family={config.family} is not allowed: this is for {wanted} alone")


def allowed(field: dataclasses.Field) -> str:
  """What a knob accepts, in words: `'hash' or 'probe'`, `a whole number, at least 1`."""
  if field.metadata["choices"]:
    return " or ".join(repr(choice) for choice in field.metadata["choices"])
  element = typing.get_args(field.type)
  # Of a tuple the type of its elements is what counts.
  words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[
    (element or (field.type,))[0]
  ]
  low = field.metadata["low"]
  high = field.metadata["high"]
  if None not in (low, high):
    words += f", {low} to {high}"
  elif low is not None:
    words += f", at least {low}"
  elif high is not None:
    words += f", at most {high}"
  return f"one or more, each {words}" if element else words


def _has_type(value: Any, kind: type) -> bool:
  if kind is float:
    # A bool is an int to Python, and no number here. NaN and infinity are no settings.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
  return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _check_field(field: dataclasses.Field, value: Any) -> None:
  kind = typing.get_args(field.type)
  elements = value if isinstance(value, tuple) else (value,)
  # An empty tuple is no value, and a single value is no tuple.
  good = bool(elements) and isinstance(value, tuple) == bool(kind)
  good = good and all(_has_type(element, (kind or (field.type,))[0]) for element in elements)
  if good and field.metadata["choices"]:
    good = all(element in field.metadata["choices"] for element in elements)
  if good and field.metadata["low"] is not None:
    good = all(element >= field.metadata["low"] for element in elements)
  if good and field.metadata["high"] is not None:
    good = all(element <= field.metadata["high"] for element in elements)
  if not good:
    raise ConfigError(f"--{field.name}={shown(value)} is not allowed: {allowed(field)}")


def _check_pairs(config: Config, unread: Container[str]) -> None:
  """Raises ConfigError on two settings that contradict each other, but for those of a knob that
  nothing reads.
  """
  rules = list(pair_rules.of_training(config.training))
  if config.family == families.REQUESTS:
    rules += pair_rules.of_requests(config)
  known = fields_of(config)
  # The first rule that does not hold is told; the order of the rules is that of their causes.
  for holds, name, words in rules:
    if not holds and name not in unread:
      value = getattr(getattr(config, known[name][0]), name)
      raise ConfigError(f"--{name}={shown(value)} is not allowed: {words}")


def validate(config: Config, unread: Container[str] = ()) -> Config:
  """Returns the config unchanged where every knob, and every pair of knobs, is allowed.

  Args:
    config: of a run.
    unread: knobs that its model does not read, which so contradict no other;
      `zoo/registry.validate` knows them.

  Raises:
    ConfigError: one line naming the flag, its value and what is allowed.
  """
  for name, (section, field) in fields_of(config).items():
    _check_field(field, getattr(getattr(config, section), name))
  _check_pairs(config, unread)
  return config


def with_knobs(config: Config, knobs: dict[str, Any]) -> Config:
  """The config with some knobs replaced, each in the section that has it; not validated.

  Raises:
    ConfigError: a knob that no section of its family has.
  """
  known = fields_of(config)
  _refuse_unknown(knobs, tuple(sorted(known)), "settings")
  sections = {}
  for name, value in knobs.items():
    sections.setdefault(known[name][0], {})[name] = value
  changed = {
    section: dataclasses.replace(getattr(config, section), **values)
    for section, values in sections.items()
  }
  return dataclasses.replace(config, **changed)


def to_json(config: Config, *, summed: bool = False) -> str:
  """The config as indented JSON text, one object for each section that its family reads.

  Args:
    config: of a run.
    summed: whether to say that all files of the run have checksums (`checksums.is_promised`).
  """
  all_of_it = dataclasses.asdict(config)
  read = ("workdir", "family", *sections_of(config.family))
  promise = {checksums.PROMISE: True} if summed else {}
  # Only what the family reads: other sections would look like settings of it.
  return json.dumps({name: all_of_it[name] for name in read} | promise, indent=2) + "\n"


def from_json(text: str) -> Config:
  """The config that `to_json` wrote; keys that are left out keep their defaults.

  Sizes of the model and of its beams, and the order of the list, are not compared: what fits
  together is checked where the model is known.

  Raises:
    ConfigError: text that is not a JSON object, a key that is not known, or a value that is not
      allowed.
  """
  try:
    saved = json.loads(text)
  except (json.JSONDecodeError, RecursionError) as error:
    raise ConfigError(f"config.json is not JSON: {error}") from error
  if not isinstance(saved, dict) or any(
    not isinstance(saved.get(section) or {}, dict) for section in (*SECTIONS, "own")
  ):
    raise ConfigError(
      f"config.json is not allowed: an object with the sections {', '.join(SECTIONS)}"
    )
  _refuse_unknown(saved, ("workdir", "family", *SECTIONS, "own", checksums.PROMISE), "config.json")
  _of_older_runs(saved)
  family = saved.get("family", families.REQUESTS)
  sections = {}
  for section, kind in sections_of(family).items():
    given = saved.get(section) or {}
    _refuse_unknown(
      given,
      tuple(field.name for field in dataclasses.fields(kind)),
      f"config.json, section {section}",
    )
    sections[section] = kind(
      **{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    )
  made = Config(workdir=str(saved.get("workdir", "")), family=family, **sections)
  return validate(made, _LATER)


def _of_older_runs(saved: dict) -> None:
  """Puts what a config.json of an older form says in today's words."""
  training = saved.setdefault("training", {})
  if isinstance(training.get("remat"), bool):  # before there were policies
    training["remat"] = "full" if training["remat"] else "none"
  data = saved.get("data") or {}
  if "batch_size" in data:  # before it was a knob of the training
    training["batch_size"] = data.pop("batch_size")


def load_config(workdir: str) -> Config:
  """The config that a run was made with, its workdir set to where it lies now.

  Raises:
    FileNotFoundError: no run lies there.
    ConfigError: its config.json is damaged.
  """
  path = os.path.join(workdir, CONFIG_FILE)
  # A pipe would be waited for without end.
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f"{workdir} holds no {CONFIG_FILE}: name the directory of a trained run"
    )
  try:
    with open(path, encoding="utf-8") as file:
      config = from_json(file.read())
  except ValueError as error:
    # A byte that is no UTF-8, or a ConfigError.
    raise ConfigError(f"{path} is not allowed: {error}") from error
  # After what can be told more plainly: a damaged file often is no JSON either.
  checksums.check(path)
  return dataclasses.replace(config, workdir=workdir)


def is_step(name: str) -> bool:
  """Whether a text is the number of a step, as checkpoints are named: digits of ASCII alone, so
  no `²`.
  """
  return name.isascii() and name.isdigit() and len(name) < 19


def is_trained(workdir: str) -> bool:
  """Whether a run has a whole checkpoint, or is published: from then on its data, objective and
  optimiser stay as they are.
  """
  folder = os.path.join(workdir, CHECKPOINTS)
  has_step = bool(workdir) and os.path.isdir(folder) and any(map(is_step, os.listdir(folder)))
  return has_step or is_published(workdir)


def check_trained(workdir: str) -> None:
  """Raises FileNotFoundError where `is_trained` is false."""
  if not is_trained(workdir):
    raise FileNotFoundError(f"{workdir} holds no whole checkpoint: train the run first")


def is_published(workdir: str) -> bool:
  """Whether a directory is a published run: weights alone, which nobody trains further."""
  return bool(workdir) and os.path.isfile(os.path.join(workdir, WEIGHTS))


def _refuse_unknown(given: dict, known: tuple[str, ...], where: str) -> None:
  for name in given:
    if name not in known:
      raise ConfigError(f"{where}: {name!r} is not known; allowed: {', '.join(known)}")
