"""Models by name."""

import pytest

from gr4ad_jax.config import Config, ConfigError, ModelConfig
from gr4ad_jax.zoo import registry

CLASSES = {
  "gr4ad": "GR4AD",
  "deepseek_mtp": "DeepSeekMTP",
  "gr4ad_items": "GR4ADItems",
  "hstu": "HSTU",
  "onerec_v2": "OneRecV2",
  "parallel_heads": "ParallelHeads",
  "sasrec": "SASRec",
  "tiger": "Tiger",
  "two_tower": "TwoTower",
}


def test_every_name_has_its_class_and_builds_it():
  assert set(registry.MODELS) == set(CLASSES)
  for name, kind in CLASSES.items():
    config = Config(model=ModelConfig(model=name, layers=3))
    assert registry.find(config).__name__ == kind
    model = registry.build(config, 7)
    assert type(model).__name__ == kind and getattr(model, "num_ads", 7) == 7


def test_an_unknown_name_is_refused_with_those_that_are_known():
  for call in (registry.find, lambda config: registry.build(config, 7)):
    with pytest.raises(
      ConfigError,
      match="--model=bert is not allowed: any of gr4ad, deepseek_mtp, gr4ad_items, hstu",
    ):
      call(Config(model=ModelConfig(model="bert")))
