"""The names of a run's features, kept with it: a model knows columns by their place alone."""

import logging
import os

from gr4ad_jax import files
from gr4ad_jax.config import ConfigError, DataConfig
from gr4ad_jax.features import ages, batches, pair_features

_log = logging.getLogger(__name__)
_FILE = "names.json"


def names(config: DataConfig) -> dict[str, tuple[str, ...]]:
  """What this code makes, by what it tells of: the columns' names in their order.

  Some features are there by a knob alone, such as --promotions and --ad_age.
  """
  return {
    "slots": batches.slot_features(config),
    "users": batches.USER_FEATURES,
    "pairs": (*pair_features.FEATURES, *(ages.FEATURES if config.ad_age else ())),
  }


def save(directory: str, config: DataConfig) -> None:
  """Writes `names.json`."""
  kept = {kind: list(columns) for kind, columns in names(config).items()}
  files.write_json(os.path.join(directory, _FILE), kept)


def check(directory: str, config: DataConfig) -> None:
  """Compares the names that a run kept with those that this code makes.

  A run of before names were kept is taken to have today's, with a warning.

  Raises:
    ConfigError: a feature is missing, new, or in another place; the message names it.
    DamagedError: the file is another than was written.
  """
  path = os.path.join(directory, _FILE)
  if not os.path.exists(path):
    _log.warning("%s is missing: the run's features are taken to be those of this code", path)
    return
  made = names(config)
  for kind, kept in zip(made, files.load_fields(path, *made), strict=True):
    _check(path, kind, kept, made[kind])


def _check(path: str, kind: str, kept: list[str], made: tuple[str, ...]) -> None:
  # Names first, places after: a missing name would shift all places behind it, and hide the cause.
  for name in kept:
    if name not in made:
      raise ConfigError(f"{path}: feature {name!r} of {kind} is not known: other code made the run")
  for name in made:
    if name not in kept:
      raise ConfigError(f"{path}: feature {name!r} of {kind} is missing: the run was without it")
  for place, (old, new) in enumerate(zip(kept, made, strict=True)):
    if old != new:
      raise ConfigError(
        f"{path}: feature {place + 1} of {kind} is {old!r} in the run and {new!r} in this code"
      )
