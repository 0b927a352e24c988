"""The compiled step is the step, and its cost is read off it."""

import dataclasses

import jax
import numpy as np
import pytest

from gr4ad_jax.benchmarks import step as step_lib
from gr4ad_jax.config import Config, ConfigError, DataConfig, ModelConfig, SidConfig, TrainConfig
from gr4ad_jax.training import cost as cost_lib

CONFIG = Config(
  data=DataConfig(history_slots=5, neighbor_slots=0, rising_slots=1, targets=3, batch_size=4),
  sid=SidConfig(codebooks=(8, 4, 4)),
  model=ModelConfig(width=8, heads=2, kv_groups=2, layers=1, lazy_layers=0, ecpm_bins=4, compute_dtype="float32"),
  training=TrainConfig(peak_tflops=0.5),
)


def test_cost_of_a_step(monkeypatch):
  compiled = []
  real = cost_lib.compile_step
  monkeypatch.setattr(step_lib, "compile_step", lambda step, *rest: compiled.append((step, rest)) or real(step, *rest))
  figures = step_lib.measure(CONFIG, 2, steps=2)
  (step, (state, batch, _)), cost = compiled[0], figures["cost"]
  sizes = [leaf.nbytes for leaf in jax.tree.leaves((state, batch))]
  assert cost["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(state.params))
  assert cost["argument_bytes"] >= sum(sizes) - batch.slot_ad_BS.nbytes - batch.target_ad_BM.nbytes  # not read
  assert cost["peak_bytes"] >= cost["argument_bytes"] and cost["temporary_bytes"] > 0
  assert (cost["requests"], cost["tokens"]) == (4, 4 * 6 + 4 * 3 * 3)
  assert 0 < cost["model_flops"] < cost["xla_flops"]  # elementwise operations too
  assert cost["peak_flops"] == 0.5e12 * jax.device_count()
  assert figures["utilization"] == pytest.approx(cost["model_flops"] / figures["seconds"]["median"] / cost["peak_flops"])
  assert figures["requests_per_second"] == pytest.approx(4 / figures["seconds"]["median"])
  words = step_lib.summary(figures)
  assert f"utilisation  {100 * figures['utilization']:.1f} % of" in words
  assert step._cache_size() == 0  # compiled once, not again by a call of the step


def test_the_compiled_step_is_the_step():
  config = dataclasses.replace(CONFIG, training=TrainConfig(remat="full"))
  system = step_lib.System(config)
  assert system.cost.peak_flops is None and system.cost.utilization(1.0) is None  # of a CPU
  before = jax.device_get(system.state.params)
  assert system.run(2) > 0 and int(system.state.step) == 2
  moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (before, system.state.params)), strict=True)]
  assert max(moved) > 0 and np.isfinite(moved).all()


def test_a_model_of_single_ads_is_refused():
  config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, model="sasrec"))
  with pytest.raises(ConfigError, match="--model=sasrec is not allowed: .*--suite=step"):
    step_lib.System(config)
