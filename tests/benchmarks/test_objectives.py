"""Cost of the list objectives on a few weights."""

import pytest

from gr4ad_jax.benchmarks import objectives
from gr4ad_jax.config import Config, DataConfig, ModelConfig, SidConfig


@pytest.mark.long
def test_figures_agree_with_each_other_and_memory_is_bounded():
  config = Config(
    data=DataConfig(history_slots=4, neighbor_slots=0, rising_slots=2, targets=2),
    sid=SidConfig(codebooks=(8, 4, 4)),
    model=ModelConfig(
      width=8, heads=2, layers=2, lazy_layers=1, ecpm_bins=4, compute_dtype="float32"
    ),
  )
  figures = objectives.measure(config, 3, requests=2, candidates=12)
  for where in ("alone", "in_the_model"):
    ratio = figures[f"rspo_over_sdpo_{where}"]
    assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
  places = ("alone", "in the model")
  assert set(figures["seconds"]) == {
    f"{name} {where}" for name in objectives.NAMES for where in places
  }
  words = objectives.summary(figures)
  assert f"RSPO over S-DPO, alone: {figures['rspo_over_sdpo_alone']['median']:.2f} x" in words


@pytest.mark.parametrize("candidates", [300, 512])
def test_rspo_takes_less_than_200_mb(candidates):
  compiled = objectives._alone("rspo", objectives.lists_of(64, candidates))
  assert compiled.memory_analysis().temp_size_in_bytes < 200e6
