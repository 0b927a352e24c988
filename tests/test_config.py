"""Every knob has a name of its own, a range that its default meets, and a one-line error."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr4ad_jax import config as config_lib
from gr4ad_jax.config import presets


def _with(**settings) -> config_lib.Config:
  sections = {}
  for section, kind in config_lib.SECTIONS.items():
    names = {field.name for field in dataclasses.fields(kind)}
    sections[section] = kind(**{name: value for name, value in settings.items() if name in names})
  return config_lib.Config(**sections)


def test_knob_names_are_unique_over_all_sections():
  names = [
    field.name for kind in config_lib.SECTIONS.values() for field in dataclasses.fields(kind)
  ]
  assert len(names) == len(set(names))


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_defaults_and_presets_are_allowed(preset):
  config = presets.preset(preset)
  assert config.model == presets.PRESETS[preset]
  assert config_lib.validate(config) is config


@pytest.mark.parametrize(
  ("settings", "flag", "words"),
  [
    ({"layers": 0}, "--layers=0", "at least 1"),
    ({"layers": 2.0}, "--layers=2.0", "a whole number"),
    ({"layers": True}, "--layers=True", "a whole number"),
    ({"dropout": 0.95}, "--dropout=0.95", "0 to 0.9"),
    ({"dropout": float("nan")}, "--dropout=nan", "a number"),
    ({"dataset": "movies"}, "--dataset=movies", "'online_retail' or"),
    ({"kv_split": 3}, "--kv_split=3", "1 or 2"),
    ({"kv_split": 2, "cross_attention": "fused"}, "--cross_attention=fused", "--kv_split=2"),
    ({"history_bias": 1}, "--history_bias=1", "true or false"),
    ({"remat": "some"}, "--remat=some", "'none' or 'dots' or 'full'"),
    ({"profile_steps": "10"}, "--profile_steps=10", "as 10:15"),
    ({"profile_steps": "15:10"}, "--profile_steps=15:10", "as 10:15"),
    ({"peak_tflops": -1.0}, "--peak_tflops=-1.0", "at least 0"),
    ({"codebooks": (256, 0, 18)}, "--codebooks=256,0,18", "at least 1"),
    ({"codebooks": ()}, "--codebooks=", "one or more"),
    ({"layers": 3, "lazy_layers": 3}, "--lazy_layers=3", "0 to 2, as --layers=3"),
    ({"layers": 3, "lazy_layers": 2, "kv_layers": 4}, "--kv_layers=4", "1 to 3, as --layers=3"),
    ({"width": 64, "heads": 5}, "--heads=5", "a divisor of --width=64"),
    ({"width": 64, "heads": 4, "kv_groups": 3}, "--kv_groups=3", "a divisor of --heads=4"),
    ({"codebooks": (8, 8, 8), "beams": (8, 8)}, "--beams=8,8", "3 widths"),
    ({"batch_size": 64, "accumulate": 5}, "--accumulate=5", "a divisor of --batch_size=64"),
    ({"codebooks": (8,), "beams": (8,)}, "--codebooks=8", "2 levels or more"),
    ({"behaviors": ("click", "click")}, "--behaviors=click,click", "distinct"),
    ({"on_unknown_ad": "drop"}, "--on_unknown_ad=drop", "as --dataset=online_retail"),
    (
      {"target_behavior": "click"},
      "--target_behavior=click",
      "online_retail, one of purchase; or empty",
    ),
    (
      {
        "dataset": "amazon_reviews",
        "ads_path": "a",
        "events_path": "e",
        "target_behavior": "purchase",
      },
      "--target_behavior=purchase",
      "amazon_reviews, one of review; or empty",
    ),
    (
      {"order": "ecpm", "lambda_ecpm": 0.0},
      "--order=ecpm",
      "only 'likelihood', as --lambda_ecpm=0",
    ),
    (
      {"order": "blend", "lambda_ecpm": 0.0},
      "--order=blend",
      "only 'likelihood', as --lambda_ecpm=0",
    ),
    ({"explore_spread": 1.0}, "--explore_spread=1.0", "only 0, as --noexplore"),
    (
      {"explore_spread": 1.0, "explore": True, "lambda_ecpm": 0.0},
      "--explore_spread=1.0",
      "only 0, as --lambda_ecpm=0",
    ),
    ({"held_out_ads": 0.1, "append": "r"}, "--held_out_ads=0.1", "UA-SIDs of r may know"),
    ({"held_out_ads": 0.1, "refresh": "r"}, "--held_out_ads=0.1", "UA-SIDs of r may know"),
    ({"held_out_ads": 0.1, "swing_path": "s.npz"}, "--held_out_ads=0.1", "--swing_path=s.npz"),
    ({"held_out_ads": 0.1, "encoder": "v.npy"}, "--held_out_ads=0.1", "in table order"),
    (
      {"held_out_ads": 0.1, "fit_splits": "train+valid+test"},
      "--held_out_ads=0.1",
      "as --fit_splits=train+valid+test learns",
    ),
    ({"seed": 2**31}, f"--seed={2**31}", f"0 to {2**31 - 1}"),
    ({"epochs": 0}, "--epochs=0", "at least 0.001"),
    ({"dataset": "ad_log"}, "--ads_path=", "needs an ad table"),
    ({"dataset": "ad_log", "ads_path": "a.csv"}, "--events_path=", "needs an event log"),
    (
      {"dataset": "ad_log", "ads_path": "a.csv", "events_path": "e.csv", "target_behavior": "view"},
      "--target_behavior=view",
      "click,cart,purchase",
    ),
  ],
)
def test_what_is_not_allowed_is_told_in_one_line(settings, flag, words):
  with pytest.raises(config_lib.ConfigError) as error:
    config_lib.validate(_with(**settings))
  message = str(error.value)
  assert message.startswith(f"{flag} is not allowed") and words in message and "\n" not in message


@given(
  layers=st.integers(1, 12),
  dropout=st.floats(0, 0.9),
  codebooks=st.lists(st.integers(1, 512), min_size=2, max_size=5).map(tuple),
  encoder=st.text(),
)
def test_json_round_trip(layers, dropout, codebooks, encoder):
  config = _with(
    layers=layers,
    lazy_layers=0,
    dropout=dropout,
    codebooks=codebooks,
    beams=codebooks,
    encoder=encoder,
  )
  assert config_lib.from_json(config_lib.to_json(config)) == config


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("{", "not JSON"),
    ("[]", "an object with the sections"),
    ('{"model": 3}', "an object with the sections"),
    ('{"modle": {}}', "'modle' is not known"),
    ('{"model": {"layres": 3}}', "'layres' is not known"),
    ('{"model": {"layers": "three"}}', "--layers=three is not allowed"),
  ],
)
def test_damaged_json_is_refused(text, words):
  with pytest.raises(config_lib.ConfigError, match=words):
    config_lib.from_json(text)


def test_json_keys_left_out_keep_their_defaults():
  assert config_lib.from_json(json.dumps({"model": {"layers": 5}})).model == config_lib.ModelConfig(
    layers=5
  )


@pytest.mark.parametrize(("old", "policy"), [("true", "full"), ("false", "none")])
def test_a_run_from_before_the_policies_of_remat_is_read(old, policy):
  assert config_lib.from_json(f'{{"training": {{"remat": {old}}}}}').training.remat == policy


def test_the_window_of_the_profiler():
  assert config_lib.validate(_with(profile_steps="0:5")).training.profiled == (0, 5)
  assert config_lib.Config().training.profiled == (0, 0)


def test_an_order_by_value_needs_a_head_that_has_learned_it():
  old = _with(order="blend", lambda_ecpm=0.0)
  loaded = config_lib.from_json(config_lib.to_json(old))  # a run from before the rule still opens
  assert loaded == old
  assert config_lib.validate(config_lib.with_knobs(loaded, {"order": "likelihood"}))
  for allowed in ({"lambda_ecpm": 0.1}, {"init_from": "a run that has learned it"}):
    assert config_lib.validate(config_lib.with_knobs(loaded, allowed))
  assert (
    config_lib.validate(loaded, unread={"order"}) is loaded
  )  # of a model that has no such order
