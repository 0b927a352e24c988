"""The models by name: `--model=<name>`.

A model is a class with `build(config, num_ads)`, of one of two kinds. Models of UA-SIDs have the
methods of `models/gr4ad.GR4AD` that search and VSL call. Models of single ads derive from
`zoo/items.ItemModel`.

A class says in `reads` which knobs (settings) of `models/knobs.ALL` it reads. A change of one that
it does not read is refused, since nothing would come of it. A value of `knobs.ABSENT` says what is
true of such a model, and is allowed.
"""

import dataclasses
import importlib

import flax.linen as nn

from gr4ad_jax import config as config_lib
from gr4ad_jax.config import Config, ConfigError, SearchConfig
from gr4ad_jax.models import knobs

MODELS = {
  "gr4ad": "gr4ad_jax.models.gr4ad:GR4AD",
  "deepseek_mtp": "gr4ad_jax.zoo.deepseek_mtp:DeepSeekMTP",
  "gr4ad_items": "gr4ad_jax.zoo.gr4ad_items:GR4ADItems",
  "hstu": "gr4ad_jax.zoo.hstu:HSTU",
  "onerec_v2": "gr4ad_jax.zoo.onerec_v2:OneRecV2",
  "parallel_heads": "gr4ad_jax.zoo.parallel_heads:ParallelHeads",
  "sasrec": "gr4ad_jax.zoo.sasrec:SASRec",
  "tiger": "gr4ad_jax.zoo.tiger:Tiger",
  "two_tower": "gr4ad_jax.zoo.two_tower:TwoTower",
}
"""Name -> module:class. A module is imported when its model is asked for."""


def find(config: Config) -> type[nn.Module]:
  """The class of --model. Raises ConfigError where the registry has no such name."""
  return _class(config.model.model)


def _class(name: str) -> type[nn.Module]:
  if name not in MODELS:
    raise ConfigError(f"--model={name} is not allowed: any of {', '.join(MODELS)}")
  module, kind = MODELS[name].split(":")
  # Imported when it is asked for, so that no model pays for another one's imports.
  return getattr(importlib.import_module(module), kind)


def unread(config: Config) -> frozenset[str]:
  """Knobs that --model does not read; none for a class without `reads`. Raises as `find` does."""
  return knobs.ALL - getattr(find(config), "reads", knobs.ALL)


def validate(config: Config, base: Config | None = None) -> Config:
  """Returns the config unchanged, where all of it is allowed and all of its changes are read.

  Args:
    config: of a run.
    base: what the config is a change of: the preset or the saved run. None: it may hold what its
      model does not read, as runs from before this check do.

  Raises:
    ConfigError: what `config.validate` or the model's `build` refuses, or a change of a knob that
      --model does not read.
  """
  ignored = unread(config)
  name = config.model.model
  # Without a base there is no change that could be refused.
  for section in config_lib.SECTIONS if base else ():
    plain = config_lib.SECTIONS[section]()
    for knob, value in vars(getattr(config, section)).items():
      # A knob that is not read may stay as it was, or go back to its default.
      allowed = (getattr(getattr(base, section), knob), getattr(plain, knob))
      if knob in knobs.ABSENT:
        allowed += (knobs.ABSENT[knob],)
      if knob in ignored and value not in allowed:
        readers = [other for other in MODELS if knob in getattr(_class(other), "reads", knobs.ALL)]
        shown = config_lib.shown(value)
        raise ConfigError(
          f"--{knob}={shown} is not allowed: --model={name} does not read it; {_listed(readers)}"
        )
  config_lib.validate(config, ignored)
  # A model refuses settings in `build`. The number of ads is not known yet; it shapes parameters
  # alone, and none are made here.
  build(config, 1)
  return config


def _listed(readers: list[str]) -> str:
  if not readers:
    return "no model does"
  return f"{', '.join(readers)} do" if len(readers) > 1 else f"{readers[0]} does"


def build(config: Config, num_ads: int) -> nn.Module:
  """The module of a config.

  Args:
    config: of the run.
    num_ads: rows of the ad table (N).

  Raises:
    ConfigError: a model that the registry lacks, or settings that it refuses.
  """
  return find(config).build(config, num_ads)


def asked(saved: Config, search: SearchConfig | None, compute_dtype: str | None) -> Config:
  """A run's config with the search and dtype that are asked for; None: the run's own.

  Raises ConfigError for what the run does not allow.
  """
  dtype = compute_dtype or saved.model.compute_dtype
  sizes = dataclasses.replace(saved.model, compute_dtype=dtype)
  return validate(
    dataclasses.replace(saved, search=search or saved.search, model=sizes), base=saved
  )
