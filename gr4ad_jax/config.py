"""Every knob of a run, with its default, its unit and the values it allows.

The dataclasses are frozen; `experiments/flags.py` turns each field into a flag of the same name, so a name is unique
over all of them. `validate` raises `ConfigError` with one line that says what is allowed.
"""

import dataclasses
import json
import math
import os
import typing
from typing import Any


class ConfigError(ValueError):
  """A setting, or a pair of settings, that is not allowed; the message says what is."""


def knob(default: Any, help: str, *, choices: tuple | None = None, low: float | None = None, high: float | None = None):
  """A dataclass field with its help text and its range (inclusive; of every element, where the field is a tuple)."""
  return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which data set, and the shape of a request."""

  dataset: str = knob("online_retail", "Which data set.", choices=("online_retail", "amazon_reviews", "ad_log"))
  data_dir: str = knob("", "Where prepared data sets lie; empty: a folder in the user's cache.")
  ads_path: str = knob("", "ad_log, amazon_reviews: the ad table (.parquet or .csv).")
  events_path: str = knob("", "ad_log, amazon_reviews: the event log (.parquet or .csv).")
  behaviors: tuple[str, ...] = knob(("click", "cart", "purchase"), "ad_log: behaviours, shallowest first.")
  on_unknown_ad: str = knob(
    "error", "ad_log: an event of an ad that the table lacks: stop, or set it aside.", choices=("error", "drop")
  )
  session_gap_minutes: float = knob(30.0, "ad_log without request_id: a pause this long starts a new visit.", low=0)
  target_behavior: str = knob("", "Shallowest behaviour that counts as a hit; empty: any.")
  history_slots: int = knob(128, "Context slots for distinct ads of the user's history (S).", low=1)
  neighbor_slots: int = knob(64, "Context slots for unseen ads co-bought with the history.", low=0)
  rising_slots: int = knob(32, "Context slots for ads that rise at request time.", low=0)
  targets: int = knob(16, "Supervised targets a request (M).", low=1)
  batch_size: int = knob(64, "Requests a step, over all devices (B).", low=1)


@dataclasses.dataclass(frozen=True)
class SidConfig:
  """UA-SID: how an ad becomes codes."""

  encoder: str = knob(
    "wordllama",
    "Text encoder: 'wordllama', a sentence-transformers folder, or .npy/.parquet vectors of the ads in table order.",
  )
  codebooks: tuple[int, ...] = knob((256, 64, 24), "Codes a level, first to last; the last level is hashed.", low=1)
  last_level: str = knob(
    "probe",
    "Last level: hash of business features, or hash then first free code of the prefix.",
    choices=("hash", "probe"),
  )
  tower_width: int = knob(128, "Width of the unified ad embedding.", low=2)
  tower_steps: int = knob(600, "InfoNCE steps of the embedding tower; 0 keeps the encoder's vectors.", low=0)
  tower_temperature: float = knob(0.07, "InfoNCE temperature.", low=1e-3)
  swing_alpha: float = knob(1.0, "Swing's smoothing constant.", low=0)
  swing_neighbors: int = knob(16, "Swing neighbours of an ad that count as positives.", low=1)
  kmeans_iterations: int = knob(20, "Lloyd iterations a level.", low=1)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The decoder and its context (method.md §2)."""

  layers: int = knob(3, "Decoder layers (L).", low=1)
  lazy_layers: int = knob(2, "Lazy layers (K), 0 to L-1: computed once a request, without tokens.", low=0)
  width: int = knob(128, "Model width (D).", low=8)
  heads: int = knob(2, "Query heads (H).", low=1)
  kv_groups: int = knob(1, "Key/value groups of the context (G).", low=1)
  kv_layers: int = knob(1, "Key/value sets of the context (L_kv).", low=1)
  kv_split: int = knob(1, "1: values are the keys; 2: separate (S_kv).", choices=(1, 2))
  ffn_multiple: int = knob(4, "Feed-forward width over model width.", low=1)
  dropout: float = knob(0.3, "Dropout rate.", low=0, high=0.9)
  copy: str = knob(
    "context",
    "Slots whose ads the copy path may name: none, the history's, or also neighbours and rising ads.",
    choices=("off", "history", "context"),
  )
  history_bias: bool = knob(False, "Learn a signed bias on the history's ads in the item-level score.")
  history_bias_ads: int = knob(16, "Latest ads of the history that the bias' normaliser is estimated on.", low=1)
  ecpm_bins: int = knob(16, "Equal-probability bins of the eCPM token.", low=2)
  compute_dtype: str = knob(
    "auto", "Matmul dtype; auto: bfloat16 on accelerators, float32 on CPU.", choices=("auto", "float32", "bfloat16")
  )


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
  """VSL (method.md §3.1)."""

  lambda_ecpm: float = knob(0.1, "Weight of the eCPM token.", low=0)
  lambda_mtp: float = knob(0.1, "Weight of the MTP branch.", low=0)
  value_weight: str = knob(
    "log",
    "w_behavior's growth with money: none, log(1+value), or root or value of what the 99th percentile clips.",
    choices=("none", "log", "sqrt", "linear"),
  )
  depth_weight: float = knob(1.0, "w_behavior's growth per step of depth (click < cart < purchase).", low=0)
  user_weight: float = knob(0.0, "Exponent of a user's long-term value in w_user; 0 treats users alike.", low=0, high=1)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Optimiser and loop."""

  fit_splits: str = knob(
    "train",
    "What is learned from: train alone, to choose settings on valid; or valid too, for a last run.",
    choices=("train", "train+valid"),
  )
  epochs: float = knob(3.0, "Passes over the training requests; --max_steps may end them sooner.", low=1e-3)
  max_steps: int = knob(0, "Stop after this many steps; 0: no limit beyond epochs.", low=0)
  learning_rate: float = knob(2e-3, "Peak learning rate of AdamW.", low=0)
  warmup_steps: int = knob(50, "Linear warm-up, steps.", low=0)
  weight_decay: float = knob(0.01, "AdamW's decoupled decay, matrices only.", low=0)
  clip_norm: float = knob(1.0, "Global gradient norm limit; 0: none.", low=0)
  accumulate: int = knob(1, "Micro-batches a step; each normalises its loss by its own targets.", low=1)
  remat: bool = knob(False, "Recompute decoder activations in the backward pass.")
  seed: int = knob(0, "Seed of initialisation, order and dropout.", low=0, high=2**31 - 1)
  log_every: int = knob(20, "Steps between metric lines.", low=1)
  eval_every: int = knob(200, "Steps between valid evaluations, unless valid is learned from; 0: at the end.", low=0)
  eval_requests: int = knob(512, "Valid requests of a periodic evaluation.", low=1)
  save_every: int = knob(200, "Steps between checkpoints.", low=1)

  @property
  def fitted(self) -> tuple[str, ...]:
    """The splits that are learned from, in order of time."""
    return tuple(self.fit_splits.split("+"))


@dataclasses.dataclass(frozen=True)
class SearchConfig:
  """Beam search over the index."""

  beams: tuple[int, ...] = knob((128, 128, 128), "Beam width after each level, as 128,256,512 or 128-256-512.", low=1)
  order: str = knob(
    "likelihood",
    "Final order of the list: p, E[value], or p * E[value]^value_power.",
    choices=("likelihood", "ecpm", "blend"),
  )
  value_power: float = knob(0.3, "Weight of the predicted value with --order=blend.", low=0)
  ecpm_beams: int = knob(0, "Likeliest final beams that get an eCPM, and are answered; 0: all.", low=0)
  precut: str = knob(
    "auto",
    "What goes before the global top k: nothing, short blocks' maxima, or each beam's own top k; the same result.",
    choices=("auto", "off", "blocks", "beams"),
  )
  quantize: str = knob(
    "none",
    "Precision of the weights in search: as trained, int8 a column, or fp8 with fp8 activations.",
    choices=("none", "int8", "fp8"),
  )


@dataclasses.dataclass(frozen=True)
class ServeConfig:
  """The server: batching, traffic-aware beams, cache, limits."""

  host: str = knob("127.0.0.1", "Address to listen on.")
  port: int = knob(8080, "Port to listen on; 0: any free one.", low=0, high=65535)
  buckets: tuple[int, ...] = knob((1, 2, 4, 8), "Batch sizes that are compiled; a batch is padded to the next.", low=1)
  max_wait_ms: float = knob(2.0, "How long a batch waits for more requests, ms.", low=0)
  queue_size: int = knob(256, "Requests that may wait; one more is refused with 503.", low=1)
  deadline_ms: float = knob(1000.0, "Deadline of a request that names none, ms.", low=1)
  target_ms: float = knob(100.0, "Latency that the traffic-aware beams hold at the 99th percentile, ms.", low=1)
  tabs: bool = knob(True, "Traffic-aware beam widths (TABS); off: always --beams.")
  tabs_factors: tuple[float, ...] = knob(
    (0.25, 0.5, 1.0, 1.6), "Widths that TABS chooses among, as factors of --beams.", low=0.01, high=16
  )
  cache_seconds: float = knob(60.0, "Life of a cached answer, seconds; 0: no cache.", low=0)
  cache_entries: int = knob(10_000, "Answers that the cache holds.", low=1)
  reload_seconds: float = knob(5.0, "How often a newer checkpoint is looked for, seconds; 0: never.", low=0)
  max_k: int = knob(100, "Most ads that a request may ask for.", low=1)
  max_history: int = knob(2_000, "Most events of a history in a request.", low=1)
  max_body_kb: int = knob(512, "Largest body of a request, KiB.", low=1)
  token_file: str = knob("", "File with the bearer token that requests must carry; empty: none is asked for.")
  overlay: int = knob(1_024, "Changes of a level of the index that are held beside its main part.", low=16)
  fallback_segments: int = knob(8, "Segments of users that have a popularity list of their own.", low=1)


@dataclasses.dataclass(frozen=True)
class Config:
  """A run."""

  workdir: str = ""
  data: DataConfig = DataConfig()
  sid: SidConfig = SidConfig()
  model: ModelConfig = ModelConfig()
  objective: ObjectiveConfig = ObjectiveConfig()
  training: TrainConfig = TrainConfig()
  search: SearchConfig = SearchConfig()
  serving: ServeConfig = ServeConfig()


BEHAVIORS = {"online_retail": ("purchase",), "amazon_reviews": ("review",)}  # of data sets that have no --behaviors
CONFIG_FILE, CHECKPOINTS = "config.json", "checkpoints"  # of a workdir
SECTIONS = {f.name: f.type for f in dataclasses.fields(Config) if f.name != "workdir"}


def allowed(field: dataclasses.Field) -> str:
  """What a knob accepts, in words: `'hash' or 'probe'`, `a whole number, at least 1`."""
  if field.metadata["choices"]:
    return " or ".join(repr(choice) for choice in field.metadata["choices"])
  element = typing.get_args(field.type)
  words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[(element or (field.type,))[0]]
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
  elements = value if kind and isinstance(value, tuple) else (value,)
  good = bool(elements) and all(_has_type(element, (kind or (field.type,))[0]) for element in elements)
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
  return ",".join(str(element) for element in value) if isinstance(value, (tuple, list)) else str(value)


def _check_pairs(config: Config) -> None:
  """Raises ConfigError on two settings that contradict each other."""
  data, model, levels = config.data, config.model, len(config.sid.codebooks)
  behaviors = BEHAVIORS.get(data.dataset, data.behaviors)
  rules = (
    (data.dataset == "online_retail" or bool(data.ads_path), "ads_path", f"--dataset={data.dataset} needs an ad table"),
    (
      data.dataset == "online_retail" or bool(data.events_path),
      "events_path",
      f"--dataset={data.dataset} needs an event log",
    ),
    (len(set(data.behaviors)) == len(data.behaviors), "behaviors", "distinct names, shallowest first"),
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
    (model.lazy_layers < model.layers, "lazy_layers", f"0 to {model.layers - 1}, as --layers={model.layers}"),
    (model.kv_layers <= model.layers, "kv_layers", f"1 to {model.layers}, as --layers={model.layers}"),
    (model.width % model.heads == 0, "heads", f"a divisor of --width={model.width}"),
    (model.heads % model.kv_groups == 0, "kv_groups", f"a divisor of --heads={model.heads}"),
    (
      len(config.search.beams) == levels,
      "beams",
      f"{levels} widths, one a level of --codebooks={shown(config.sid.codebooks)}",
    ),
    (data.batch_size % config.training.accumulate == 0, "accumulate", f"a divisor of --batch_size={data.batch_size}"),
  )
  values = {name: value for section in SECTIONS for name, value in vars(getattr(config, section)).items()}
  for holds, name, words in rules:
    if not holds:
      raise ConfigError(f"--{name}={shown(values[name])} is not allowed: {words}")


def validate(config: Config) -> Config:
  """Returns the config unchanged where every knob, and every pair of knobs, is allowed.

  Raises:
    ConfigError: one line naming the flag, its value and what is allowed.
  """
  for section, kind in SECTIONS.items():
    for field in dataclasses.fields(kind):
      _check_field(field, getattr(getattr(config, section), field.name))
  _check_pairs(config)
  return config


def to_json(config: Config) -> str:
  """The config as indented JSON text, one object a section."""
  return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
  """The config that `to_json` wrote; keys that are left out keep their defaults.

  Raises:
    ConfigError: text that is not a JSON object, a key that is not known, or a value that is not allowed.
  """
  try:
    saved = json.loads(text)
  except json.JSONDecodeError as error:
    raise ConfigError(f"config.json is not JSON: {error}") from error
  if not isinstance(saved, dict) or any(not isinstance(saved.get(section, {}), dict) for section in SECTIONS):
    raise ConfigError(f"config.json is not allowed: an object with the sections {', '.join(SECTIONS)}")
  _refuse_unknown(saved, ("workdir", *SECTIONS), "config.json")
  sections = {}
  for section, kind in SECTIONS.items():
    given = saved.get(section, {})
    _refuse_unknown(given, tuple(field.name for field in dataclasses.fields(kind)), f"config.json, section {section}")
    sections[section] = kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})
  return validate(Config(workdir=str(saved.get("workdir", "")), **sections))


def load_config(workdir: str) -> Config:
  """The config that a run was made with, its workdir set to where it lies now.

  Raises:
    FileNotFoundError: no run lies there.
    ConfigError: its config.json is damaged.
  """
  path = os.path.join(workdir, CONFIG_FILE)
  if not os.path.exists(path):
    raise FileNotFoundError(f"{workdir} holds no {CONFIG_FILE}: name the directory of a trained run")
  with open(path, encoding="utf-8") as file:
    return dataclasses.replace(from_json(file.read()), workdir=workdir)


def is_trained(workdir: str) -> bool:
  """Whether a run has a whole checkpoint: from then on its data, objective and optimiser stay as they are."""
  folder = os.path.join(workdir, CHECKPOINTS)
  return bool(workdir) and os.path.isdir(folder) and any(name.isdigit() for name in os.listdir(folder))


def _refuse_unknown(given: dict, known: tuple[str, ...], where: str) -> None:
  for name in given:
    if name not in known:
      raise ConfigError(f"{where}: {name!r} is not known; allowed: {', '.join(known)}")
