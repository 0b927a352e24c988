"""Knobs that a model does not read, in runs that have them all the same."""

import dataclasses
import json

import pytest

from gr4ad_jax.config import Config, ConfigError, from_json, with_knobs
from gr4ad_jax.models import knobs
from gr4ad_jax.ranking import seen_ads
from gr4ad_jax.runs import workdir
from gr4ad_jax.zoo import registry

SMALL = {
  "codebooks": (3, 2), "beams": (2, 3), "width": 8, "layers": 1, "lazy_layers": 0, "heads": 2,
  "kv_groups": 1, "ecpm_bins": 3, "feature_bins": 2, "encoder_layers": 1, "history_slots": 3,
  "neighbor_slots": 1, "rising_slots": 0, "targets": 2, "compute_dtype": "float32",
}  # fmt: skip


def config_of(model, **more):
  least = {"layers": 2} if model == "deepseek_mtp" else {}
  return with_knobs(Config(), SMALL | {"model": model} | least | more)


def test_an_old_run_keeps_what_its_model_does_not_read(tmp_path):
  """Runs from before this check: they load, go on, and stand in tables as what they are."""
  old = with_knobs(
    Config(workdir=str(tmp_path)), {"model": "tiger", "history_bias": True, "lazy_layers": 1}
  )
  (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(old)))
  assert from_json((tmp_path / "config.json").read_text()) == old
  workdir.check_workdir(old)
  workdir.check_workdir(with_knobs(old, {"history_bias": False, "lazy_layers": 0}))
  registry.validate(with_knobs(old, {"dropout": 0.2}), old)
  assert seen_ads.treatment(old) == "left"
  assert seen_ads.treatment(with_knobs(old, {"model": "gr4ad"})) == "biased"
  with pytest.raises(ConfigError, match="--width=64 is not allowed: the run in"):
    workdir.check_workdir(with_knobs(old, {"width": 64}))


def test_sizes_that_a_model_does_not_read_contradict_nothing():
  two_levels = {
    "model": "sasrec",
    "codebooks": (3, 2),
    "layers": 1,
  }  # with three --beams and two lazy layers
  config = with_knobs(Config(), two_levels)
  assert from_json(json.dumps(dataclasses.asdict(registry.validate(config, Config())))) == config
  with pytest.raises(ConfigError, match="--lazy_layers=2 is not allowed: 0 to 0"):
    registry.validate(with_knobs(config, {"model": "gr4ad"}))


def test_a_model_that_says_nothing_is_refused_nothing(monkeypatch):
  monkeypatch.setattr(registry.find(config_of("tiger")), "reads", knobs.ALL)
  config = config_of("tiger", copy="history")
  assert registry.validate(config, Config()) == config


def test_what_a_model_lacks_may_be_said_to_be_absent():
  """A flagfile for several models may say "no lazy layers" to one that never has any."""
  none = ("lazy_layers", "feature_bins", "encoder_layers", "lambda_ecpm", "lambda_mtp",
          "lambda_item", "item_weight", "depth_weight", "feature_dropout")  # fmt: skip
  absent = dict.fromkeys(none, 0) | dict.fromkeys(("guided", "behavior_features"), False)
  absent |= {"copy": "off", "value_weight": "none"}
  assert set(absent) == set(knobs.ABSENT)
  tried = set()
  for model in registry.MODELS:
    base = with_knobs(Config(), {"model": model})
    for knob in registry.unread(base) & set(absent):
      registry.validate(with_knobs(base, {knob: absent[knob]}), base)
      tried.add(knob)
  assert tried == set(absent)
