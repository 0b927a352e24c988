"""The towers of a trained run, for the contexts of another one (--retriever)."""

import os
from typing import Any

import jax
import numpy as np

from gr4ad_jax.config import Config, ConfigError, is_trained, load_config
from gr4ad_jax.data import ad_store
from gr4ad_jax.data.schema import AdTable
from gr4ad_jax.knobs import shown
from gr4ad_jax.parallel import row_tables
from gr4ad_jax.requests import request_task
from gr4ad_jax.retrieval.towers import Retriever
from gr4ad_jax.zoo import registry

# What the towers read was made by these; with others they would read something else.
_READING = (
  "dataset", "until", "held_out_ads", "behaviors", "history_slots", "behavior_features",
  "promotions", "ad_age",
)  # fmt: skip


def check(config: Config) -> None:
  """Raises ConfigError where --retriever holds no two towers that suit the run."""
  folder = config.data.retriever
  refused = f"--retriever={folder} is not allowed:"
  if not is_trained(folder):
    raise ConfigError(f"{refused} it holds no whole checkpoint; train a two_tower there first")
  other = load_config(folder)
  if other.model.model != "two_tower":
    raise ConfigError(f"{refused} its run is of --model={other.model.model}, not of two_tower")
  if other.model.history_bias:
    raise ConfigError(f"{refused} its run has --history_bias, which unseen ads do without")
  for name in _READING:
    ours = getattr(config.data, name)
    theirs = getattr(other.data, name)
    if ours != theirs:
      raise ConfigError(f"{refused} its run has --{name}={shown(theirs)}, and not {shown(ours)}")
  # Towers that know what followed valid would give the answers away where valid is the judge.
  more = [split for split in other.training.fitted if split not in config.training.fitted]
  if more:
    raise ConfigError(
      f"{refused} its run has learned from {more[0]}, which this one is judged by; give it "
      f"--fit_splits={config.training.fit_splits}"
    )


def load(config: Config, ads: AdTable) -> Retriever:
  """The towers of --retriever.

  Raises:
    ConfigError: its run was trained on another ad table.
    FileNotFoundError: it has no checkpoint.
  """
  folder = config.data.retriever
  if not ad_store.same_ads(ad_store.load_ads(os.path.join(folder, "index")), ads):
    raise ConfigError(
      f"--retriever={folder} is not allowed: its run was trained on another ad table"
    )
  other = load_config(folder)
  model = registry.build(other, len(ads))
  return of_model(model, request_task.load_params(other, model), len(ads))


def of_model(model: Any, params: Any, num_ads: int) -> Retriever:
  """The towers of a `TwoTower` with its parameters."""
  rows = np.arange(num_ads)
  ads_ND = model.apply({"params": params}, rows, method="vectors")
  table = jax.device_get(params[row_tables.NAME])
  weights = {}
  for name in ("user_in", "slot_in", "slot_kv", "query", "user_hidden", "user_out"):
    for part, array in jax.device_get(params[name]).items():
      # A kernel has the layer's name.
      weights[name if part == "kernel" else f"{name}_{part}"] = np.asarray(array, np.float32)
  read_ND = np.asarray(table[:num_ads], np.float32)
  return Retriever(np.asarray(ads_ND, np.float32), read_ND, weights, model.config.heads)
