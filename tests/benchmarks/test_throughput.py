"""Requests a second of a search of a few weights."""

import pytest

from gr4ad_jax.benchmarks import throughput
from gr4ad_jax.config import Config, DataConfig, ModelConfig, SearchConfig, ServeConfig, SidConfig


@pytest.mark.long
def test_figures_agree_with_each_other():
  config = Config(
    data=DataConfig(history_slots=6, neighbor_slots=0, rising_slots=2),
    sid=SidConfig(codebooks=(16, 8, 4)),
    model=ModelConfig(
      width=16, heads=2, kv_groups=2, layers=3, lazy_layers=1, compute_dtype="float32"
    ),
    search=SearchConfig(beams=(4, 6, 8), quantize="int8"),
    serving=ServeConfig(target_ms=60_000.0),
  )
  figures = throughput.measure(config, (1, 3), 4, ads=200)
  assert [one["batch"] for one in figures["batches"]] == [1, 3] and figures["shapes"]["S"] == 9
  one, three = figures["batches"]
  assert three["matmul_gflop"] == pytest.approx(3 * one["matmul_gflop"], rel=0.05)
  best = max(one["requests_per_second"], three["requests_per_second"])
  assert figures["requests_per_second_within_target"] == best > 0
  assert (
    one["seconds"]["low"]
    <= one["seconds"]["median"]
    <= one["seconds"]["p99"]
    <= one["seconds"]["high"]
  )
  assert f"{best:.1f} requests/s with p99 under 60000 ms" in throughput.summary(figures)
