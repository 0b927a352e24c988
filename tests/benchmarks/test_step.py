"""The compiled step is compiled once, and its cost is read off it; the suite that measures it."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from gr4ad_jax.benchmarks import step as step_lib
from gr4ad_jax.benchmarks import timing
from gr4ad_jax.config import Config, ConfigError, DataConfig, ModelConfig, SidConfig, TrainConfig
from gr4ad_jax.training import cost as cost_lib

CONFIG = Config(
  data=DataConfig(history_slots=5, neighbor_slots=0, rising_slots=1, targets=3),
  sid=SidConfig(codebooks=(8, 4, 4)),
  model=ModelConfig(
    width=8, heads=2, kv_groups=2, layers=1, lazy_layers=0, ecpm_bins=4, compute_dtype="float32"
  ),
  training=TrainConfig(batch_size=4, peak_tflops=0.5),
)


@pytest.mark.long
def test_cost_of_a_step_and_its_figures(monkeypatch):
  compiled = []
  real = cost_lib.compile_step
  monkeypatch.setattr(
    step_lib, "compile_step", lambda step, *rest: compiled.append(step) or real(step, *rest)
  )
  system = step_lib.System(CONFIG)
  cost, batch, before = system.cost, system.batch, jax.device_get(system.state.params)
  assert cost.parameters == sum(leaf.size for leaf in jax.tree.leaves(before))
  unread = batch.slot_ad_BS.nbytes + batch.target_ad_BM.nbytes
  assert (
    cost.argument_bytes
    >= sum(leaf.nbytes for leaf in jax.tree.leaves((system.state, batch))) - unread
  )
  assert cost.peak_bytes >= cost.argument_bytes + cost.temporary_bytes > cost.temporary_bytes > 0
  assert (cost.requests, cost.tokens) == (4, 4 * 6 + 4 * 3 * 3)
  assert 0 < cost.model_flops < cost.xla_flops  # elementwise operations too
  assert cost.peak_flops == 0.5e12 * jax.device_count() and cost.utilization(
    2.0
  ) == 2 * cost.utilization(1.0)
  assert dataclasses.replace(cost, peak_flops=None).utilization(1.0) is None

  monkeypatch.setattr(step_lib, "System", lambda config: system)
  monkeypatch.setattr(timing, "matmul_peak", functools.partial(timing.matmul_peak, (64,)))
  figures = step_lib.measure(CONFIG, 2, steps=2)
  second = figures["seconds"]["median"]
  assert int(system.state.step) == (1 + 2) * 2  # the first repetition warms up
  moved = [
    np.abs(a - b).max()
    for a, b in zip(*map(jax.tree.leaves, (before, system.state.params)), strict=True)
  ]
  assert max(moved) > 0 and np.isfinite(moved).all()
  assert figures["utilization"] == pytest.approx(cost.model_flops / second / cost.peak_flops)
  assert figures["requests_per_second"] == pytest.approx(4 / second)
  assert f"utilisation: {100 * figures['utilization']:.1f} % of the peak" in step_lib.summary(
    figures
  )
  assert (
    len(compiled) == 1 and compiled[0]._cache_size() == 0
  )  # not compiled again by a call of the step itself


def test_a_model_of_single_ads_is_refused():
  config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, model="sasrec"))
  with pytest.raises(ConfigError, match="--model=sasrec is not allowed: .*--suite=step"):
    step_lib.System(config)
