"""The models by name: `--model=<name>`.

A model is a class with `build(config, num_ads)`, of one of two kinds. Models of UA-SIDs have the methods of
`models/gr4ad.GR4AD` that search and VSL call. Models of single ads derive from `models/zoo/items.ItemModel`.
"""

import importlib

import flax.linen as nn

from gr4ad_jax.config import Config, ConfigError

MODELS = {
  "gr4ad": "gr4ad_jax.models.gr4ad:GR4AD",
  "deepseek_mtp": "gr4ad_jax.models.zoo.deepseek_mtp:DeepSeekMTP",
  "gr4ad_items": "gr4ad_jax.models.zoo.gr4ad_items:GR4ADItems",
  "hstu": "gr4ad_jax.models.zoo.hstu:HSTU",
  "onerec_v2": "gr4ad_jax.models.zoo.onerec_v2:OneRecV2",
  "parallel_heads": "gr4ad_jax.models.zoo.parallel_heads:ParallelHeads",
  "sasrec": "gr4ad_jax.models.zoo.sasrec:SASRec",
  "tiger": "gr4ad_jax.models.zoo.tiger:Tiger",
  "two_tower": "gr4ad_jax.models.zoo.two_tower:TwoTower",
}
"""Name -> module:class; the module is imported when its model is built."""


def find(config: Config) -> type[nn.Module]:
  """The class of --model. Raises ConfigError where the registry has no such name."""
  name = config.model.model
  if name not in MODELS:
    raise ConfigError(f"--model={name} is not allowed: any of {', '.join(MODELS)}")
  module, kind = MODELS[name].split(":")
  return getattr(importlib.import_module(module), kind)


def build(config: Config, num_ads: int) -> nn.Module:
  """The module of a config.

  Args:
    config: of the run.
    num_ads: rows of the ad table (N).

  Raises:
    ConfigError: a model that the registry lacks, or settings that it refuses.
  """
  return find(config).build(config, num_ads)
