"""A workdir is one run: what may be changed in it, and config.json, which tells how it was made."""

import dataclasses
import os
from collections.abc import Iterator, Sequence

from gr4ad_jax import config as config_lib
from gr4ad_jax.config import Config, ConfigError

FREE = (
  "data_dir", "ads_path", "events_path", "epochs", "max_steps", "remat", "mesh", "log_every", "eval_every",
  "eval_requests", "save_every", "candidates_cache", "collapse_entropy", "collapse_coverage", "profile_steps",
  "peak_tflops", "swing_memory_mb", "loader_threads",
)  # fmt: skip
"""What a trained run may change: where its data lie (their content is compared), its length, how often it tells,
and what changes no result."""


def changes(
  config: Config, other: Config, sections: Sequence[str], but: Sequence[str] = ()
) -> Iterator[tuple[str, str, str]]:
  """(knob, its value in `config`, in `other`) of every knob of `sections` that differs, those of `but` aside."""
  for section in sections:
    for field in dataclasses.fields(config_lib.SECTIONS[section]):
      ours, theirs = (getattr(getattr(c, section), field.name) for c in (config, other))
      if ours != theirs and field.name not in but:
        yield field.name, config_lib.shown(ours), config_lib.shown(theirs)


def check_workdir(config: Config) -> None:
  """Refuses a workdir that cannot hold this run.

  Model and codes never change. Once there is a checkpoint, nothing that shapes the training does either, but its
  length: with more --epochs or --max_steps it goes on, under the learning-rate schedule of the new length.

  Raises:
    ConfigError: no --workdir, a file in its place, or a run with another setting there; or a damaged config.json.
  """
  if not config.workdir:
    raise ConfigError("--workdir= is not allowed: name the directory that the run is to live in")
  if os.path.exists(config.workdir) and not os.path.isdir(config.workdir):
    raise ConfigError(f"--workdir={config.workdir} is not allowed: a file of that name is in the way")
  if not os.path.exists(os.path.join(config.workdir, config_lib.CONFIG_FILE)):
    return
  fixed, free = ["sid", "model", "items"], [*FREE, "compute_dtype"]
  if config_lib.is_trained(config.workdir):
    fixed += ["data", "objective", "preference", "training"]
    free.append("swing_path")  # the run has its codes
  saved = config_lib.load_config(config.workdir)
  for name, ours, theirs in changes(config, saved, fixed, but=free):
    raise ConfigError(f"--{name}={ours} is not allowed: the run in {config.workdir} has {theirs}")


def save_config(config: Config) -> None:
  """Writes <workdir>/config.json, whole or not at all.

  Raises:
    ConfigError: a knob that is not allowed, or as `check_workdir` does.
  """
  check_workdir(config_lib.validate(config))
  path = os.path.join(config.workdir, config_lib.CONFIG_FILE)
  os.makedirs(config.workdir, exist_ok=True)
  with open(path + ".part", "w", encoding="utf-8") as file:
    file.write(config_lib.to_json(config))
  os.replace(path + ".part", path)
