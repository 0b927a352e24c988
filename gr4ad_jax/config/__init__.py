"""Every knob of a run, with its default, its unit and the values it allows.

A section is a frozen dataclass: `data`, `models`, `preference`, `training`, `serving`, `live`.
`whole` puts them together to a run's config, checks it, and reads and writes it as JSON.
`pair_rules` says which settings contradict each other, `presets` has model sizes by name.
"""

from gr4ad_jax.config.data import DataConfig, SidConfig
from gr4ad_jax.config.live import LearnConfig
from gr4ad_jax.config.models import ItemConfig, ModelConfig, ObjectiveConfig
from gr4ad_jax.config.preference import PreferenceConfig, RewardConfig
from gr4ad_jax.config.serving import SearchConfig, ServeConfig
from gr4ad_jax.config.training import TrainConfig
from gr4ad_jax.config.whole import (
  CHECKPOINTS,
  CONFIG_FILE,
  SECTIONS,
  WEIGHTS,
  Config,
  all_fields,
  allowed,
  check_family,
  check_trained,
  fields_of,
  from_json,
  is_published,
  is_step,
  is_trained,
  load_config,
  sections_of,
  to_json,
  validate,
  with_knobs,
)
from gr4ad_jax.knobs import ConfigError, shown

__all__ = [
  "CHECKPOINTS",
  "CONFIG_FILE",
  "SECTIONS",
  "Config",
  "ConfigError",
  "DataConfig",
  "ItemConfig",
  "LearnConfig",
  "ModelConfig",
  "ObjectiveConfig",
  "PreferenceConfig",
  "RewardConfig",
  "SearchConfig",
  "ServeConfig",
  "SidConfig",
  "TrainConfig",
  "WEIGHTS",
  "all_fields",
  "allowed",
  "check_family",
  "check_trained",
  "fields_of",
  "from_json",
  "is_published",
  "is_step",
  "is_trained",
  "load_config",
  "sections_of",
  "shown",
  "to_json",
  "validate",
  "with_knobs",
]
