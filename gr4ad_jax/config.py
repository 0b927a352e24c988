"""A run's config: its sections together, checked, and as JSON.

The dataclasses of `sections.py` are frozen; `experiments/flags.py` turns each field into a flag of
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

from gr4ad_jax import checksums
from gr4ad_jax.sections import (
  ConfigError,
  DataConfig,
  ItemConfig,
  ModelConfig,
  ObjectiveConfig,
  PreferenceConfig,
  RewardConfig,
  SearchConfig,
  ServeConfig,
  SidConfig,
  TrainConfig,
)


@dataclasses.dataclass(frozen=True)
class Config:
  """A run."""

  workdir: str = ""
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
BEHAVIORS = {
  "online_retail": ("purchase",),
  "amazon_reviews": ("review",),
}  # of data sets that have no --behaviors
CONFIG_FILE = checksums.CONFIG_FILE
CHECKPOINTS = "checkpoints"  # of a workdir
SECTIONS = {f.name: f.type for f in dataclasses.fields(Config) if f.name != "workdir"}


def allowed(field: dataclasses.Field) -> str:
  """What a knob accepts, in words: `'hash' or 'probe'`, `a whole number, at least 1`."""
  if field.metadata["choices"]:
    return " or ".join(repr(choice) for choice in field.metadata["choices"])
  element = typing.get_args(field.type)
  words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[
    (element or (field.type,))[0]
  ]
  low, high = field.metadata["low"], field.metadata["high"]
  if None not in (low, high):
    words += f", {low} to {high}"
  elif low is not None:
    words += f", at least {low}"
  elif high is not None:
    words += f", at most {high}"
  return f"one or more, each {words}" if element else words


def _has_type(value: Any, kind: type) -> bool:
  if kind is float:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
  return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _check_field(field: dataclasses.Field, value: Any) -> None:
  kind = typing.get_args(field.type)
  elements = value if isinstance(value, tuple) else (value,)
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


def shown(value: Any) -> str:
  """A knob's value as its flag is written: `128,256,512`."""
  return (
    ",".join(str(element) for element in value) if isinstance(value, (tuple, list)) else str(value)
  )


def _check_pairs(config: Config, unread: Container[str]) -> None:
  """Raises ConfigError on two settings that contradict each other, but for those of a knob that
  nothing reads.
  """
  data, model, levels = config.data, config.model, len(config.sid.codebooks)
  behaviors = BEHAVIORS.get(data.dataset, data.behaviors)
  rules = (
    (
      data.dataset == "online_retail" or bool(data.ads_path),
      "ads_path",
      f"--dataset={data.dataset} needs an ad table",
    ),
    (
      data.dataset == "online_retail" or bool(data.events_path),
      "events_path",
      f"--dataset={data.dataset} needs an event log",
    ),
    (
      len(set(data.behaviors)) == len(data.behaviors),
      "behaviors",
      "distinct names, shallowest first",
    ),
    (
      data.target_behavior in ("", *behaviors),
      "target_behavior",
      f"a behaviour of {data.dataset}, one of {shown(behaviors)}; or empty",
    ),
    (
      data.on_unknown_ad == "error" or data.dataset == "ad_log",
      "on_unknown_ad",
      f"only 'error', as --dataset={data.dataset}",
    ),
    (levels >= 2, "codebooks", "2 levels or more: the last is hashed"),
    (math.prod(config.sid.codebooks) < 1 << 63, "codebooks", "a product below 2^63"),
    (
      model.lazy_layers < model.layers,
      "lazy_layers",
      f"0 to {model.layers - 1}, as --layers={model.layers}",
    ),
    (
      model.kv_layers <= model.layers,
      "kv_layers",
      f"1 to {model.layers}, as --layers={model.layers}",
    ),
    (model.width % model.heads == 0, "heads", f"a divisor of --width={model.width}"),
    (model.heads % model.kv_groups == 0, "kv_groups", f"a divisor of --heads={model.heads}"),
    (
      len(config.search.beams) == levels,
      "beams",
      f"{levels} widths, one a level of --codebooks={shown(config.sid.codebooks)}",
    ),
    (
      config.search.reranker != "neighbors" or config.search.order == "likelihood",
      "order",
      "only 'likelihood', as --reranker=neighbors",
    ),
    (
      config.search.order == "likelihood"
      or bool(config.objective.lambda_ecpm)
      or bool(config.training.init_from),
      "order",
      "only 'likelihood', as --lambda_ecpm=0: the eCPM is not learned",
    ),
    (
      len(config.training.period) == 2 and config.training.period[0] < config.training.period[-1],
      "period",
      "begin and end, as 0,0.8",
    ),
    (
      _is_window(config.training),
      "profile_steps",
      "two numbers of steps, the first smaller, as 10:15; or empty",
    ),
    (
      data.batch_size % config.training.accumulate == 0,
      "accumulate",
      f"a divisor of --batch_size={data.batch_size}",
    ),
  )
  values = {
    name: value for section in SECTIONS for name, value in vars(getattr(config, section)).items()
  }
  for holds, name, words in rules:
    if not holds and name not in unread:
      raise ConfigError(f"--{name}={shown(values[name])} is not allowed: {words}")


def _is_window(training: TrainConfig) -> bool:
  """Whether --profile_steps is empty or a:b with a < b."""
  try:
    return bool(training.profiled)
  except ValueError:
    return False


def validate(config: Config, unread: Container[str] = ()) -> Config:
  """Returns the config unchanged where every knob, and every pair of knobs, is allowed.

  Args:
    config: of a run.
    unread: knobs that its model does not read, which so contradict no other;
      `models/zoo/registry.validate` knows them.

  Raises:
    ConfigError: one line naming the flag, its value and what is allowed.
  """
  for section, kind in SECTIONS.items():
    for field in dataclasses.fields(kind):
      _check_field(field, getattr(getattr(config, section), field.name))
  _check_pairs(config, unread)
  return config


def with_knobs(config: Config, knobs: dict[str, Any]) -> Config:
  """The config with some knobs replaced, each in the section that has it; not validated.

  Raises:
    ConfigError: a knob that no section has.
  """
  sections = {}
  for section, kind in SECTIONS.items():
    names = [field.name for field in dataclasses.fields(kind) if field.name in knobs]
    sections[section] = dataclasses.replace(
      getattr(config, section), **{name: knobs[name] for name in names}
    )
  known = {field.name for kind in SECTIONS.values() for field in dataclasses.fields(kind)}
  _refuse_unknown(knobs, tuple(sorted(known)), "settings")
  return dataclasses.replace(config, **sections)


def to_json(config: Config, *, summed: bool = False) -> str:
  """The config as indented JSON text, one object a section.

  Args:
    config: of a run.
    summed: whether to say that all files of the run have checksums (`checksums.is_promised`).
  """
  promise = {checksums.PROMISE: True} if summed else {}
  return json.dumps(dataclasses.asdict(config) | promise, indent=2) + "\n"


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
    not isinstance(saved.get(section, {}), dict) for section in SECTIONS
  ):
    raise ConfigError(
      f"config.json is not allowed: an object with the sections {', '.join(SECTIONS)}"
    )
  _refuse_unknown(saved, ("workdir", *SECTIONS, checksums.PROMISE), "config.json")
  remat = saved.get("training", {}).get("remat")
  if isinstance(remat, bool):  # of a run that is older than the policies
    saved["training"]["remat"] = "full" if remat else "none"
  sections = {}
  for section, kind in SECTIONS.items():
    given = saved.get(section, {})
    _refuse_unknown(
      given,
      tuple(field.name for field in dataclasses.fields(kind)),
      f"config.json, section {section}",
    )
    sections[section] = kind(
      **{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    )
  return validate(Config(workdir=str(saved.get("workdir", "")), **sections), _LATER)


def load_config(workdir: str) -> Config:
  """The config that a run was made with, its workdir set to where it lies now.

  Raises:
    FileNotFoundError: no run lies there.
    ConfigError: its config.json is damaged.
  """
  path = os.path.join(workdir, CONFIG_FILE)
  if not os.path.exists(path):
    raise FileNotFoundError(
      f"{workdir} holds no {CONFIG_FILE}: name the directory of a trained run"
    )
  try:
    with open(path, encoding="utf-8") as file:
      config = from_json(file.read())
  except ValueError as error:  # a byte that is no UTF-8, or a ConfigError
    raise ConfigError(f"{path} is not allowed: {error}") from error
  checksums.check(path)  # after what can be told more plainly
  return dataclasses.replace(config, workdir=workdir)


def is_step(name: str) -> bool:
  """Whether a text is the number of a step, as checkpoints are named: digits of ASCII alone, so
  no `²`.
  """
  return name.isascii() and name.isdigit() and len(name) < 19


def is_trained(workdir: str) -> bool:
  """Whether a run has a whole checkpoint: from then on its data, objective and optimiser stay as
  they are.
  """
  folder = os.path.join(workdir, CHECKPOINTS)
  return bool(workdir) and os.path.isdir(folder) and any(map(is_step, os.listdir(folder)))


def _refuse_unknown(given: dict, known: tuple[str, ...], where: str) -> None:
  for name in given:
    if name not in known:
      raise ConfigError(f"{where}: {name!r} is not known; allowed: {', '.join(known)}")
