"""The roof of a program by hand; of a step and a search of a few weights; what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.accelerators import roofline
from gr4ad_jax.accelerators.roofline import DEVICES, Device, roof_of
from gr4ad_jax.config import (
  Config,
  ConfigError,
  DataConfig,
  ModelConfig,
  SearchConfig,
  SidConfig,
  TrainConfig,
)
from gr4ad_jax.models.cross_attention import fused_attend
from gr4ad_jax.training import flops
from tests import tiny

SLOW = Device("H100", 1.0)  # 1 GB/s: what it reads is what takes its time
CONFIG = Config(
  data=DataConfig(history_slots=5, neighbor_slots=0, rising_slots=1, targets=3),
  sid=SidConfig(codebooks=(16, 8, 4)),
  model=ModelConfig(width=32, heads=2, kv_groups=2, layers=2, lazy_layers=1, ecpm_bins=4),
  search=SearchConfig(beams=(2, 3, 4)),
  training=TrainConfig(batch_size=4),
)


def roof(run, *arguments, device=DEVICES["h100"]):
  return roof_of(jax.make_jaxpr(run)(*arguments).jaxpr, device)


def test_a_product_takes_the_larger_of_its_arithmetic_and_its_bytes():
  x = jnp.zeros((64, 32), jnp.bfloat16)
  y = jnp.zeros((32, 16), jnp.bfloat16)
  work = 2 * 64 * 32 * 16
  moved = 2 * (64 * 32 + 32 * 16 + 64 * 16)
  fast = roof(jnp.matmul, x, y, device=Device("H100", 1e9))
  assert (fast["flops"], fast["bytes"]) == (work, moved)
  assert fast["seconds"] == fast["arithmetic_seconds"] == pytest.approx(work / 989e12)
  slow = roof(jnp.matmul, x, y, device=SLOW)
  assert slow["seconds"] == slow["memory_seconds"] == pytest.approx(moved / 1e9)
  assert [one["bound"] for one in (*fast["largest"], *slow["largest"])] == ["arithmetic", "memory"]


def test_each_product_has_its_own_larger_side():
  """Their sum is above the larger sum: a product that waits for memory computes nothing."""
  thin = jnp.zeros((1, 4096), jnp.bfloat16)
  wide = jnp.zeros((4096, 4096), jnp.bfloat16)
  found = roof(lambda thin, wide: (thin @ wide, wide @ wide), thin, wide)
  assert {one["bound"] for one in found["largest"]} == {"arithmetic", "memory"}
  assert found["seconds"] > max(found["arithmetic_seconds"], found["memory_seconds"])
  assert found["seconds"] == pytest.approx(sum(one["seconds"] for one in found["largest"]))


def test_a_loop_counts_as_often_as_it_runs_and_float32_at_half_the_rate():
  x = jnp.zeros((8, 8), jnp.float32)

  def run(x):
    return jax.lax.scan(lambda h, _: (h @ x, h + 1), x, None, length=5)

  found = roof(run, x, device=Device("H100", 1e9))
  assert [one["times"] for one in found["largest"]] == [5]
  assert found["seconds"] == pytest.approx(5 * 2 * 8**3 / (989e12 / 2))
  assert found["written"]["add"] == 5 * x.nbytes
  assert found["written"]["dot_general"] == 5 * x.nbytes
  assert "scan" not in found["written"]


def test_a_kernel_is_one_product_that_reads_and_writes_once():
  B, Q, S, d = 2, 4, 33, 16
  q = jnp.zeros((B, Q, 2, d), jnp.bfloat16)
  kv = jnp.zeros((B, S, 2, d), jnp.bfloat16)
  mask = jnp.ones((B, S), bool)
  found = roof(lambda q, kv: fused_attend(q, kv, mask)[0], q, kv)
  (one,) = found["largest"]
  assert one["what"].startswith("kernel forward_kernel of [2, 4, 32], [2, 33, 32]")
  assert one["flops"] == 2 * 2 * B * Q * 2 * S * d
  # Queries and what is read, the slots, and the mask in float32.
  assert one["bytes"] == 2 * q.nbytes + kv.nbytes + 4 * B * S


def test_a_step_and_its_words():
  found = roofline.measure(CONFIG, "v5e", (), ads=30)
  assert found["model"] == {
    "compute_dtype": "bfloat16", "cross_attention": "fused", "head_piece": 0,
  }  # fmt: skip
  step = found["programs"]["step"]
  assert step["compiled"] is None
  assert step["seconds"] >= max(step["arithmetic_seconds"], step["memory_seconds"]) > 0
  assert step["written_bytes"] > step["bytes"] > 0
  words = roofline.summary(found)
  assert "v5e, 197 TFLOP/s in bfloat16, 819 GB/s" in words
  assert "nothing was run on it" in words and "not compiled" in words


@pytest.mark.long
def test_the_command_tells_of_the_step_and_of_each_search(tmp_path):
  out = tmp_path / "roof.json"
  done = tiny.run(
    "benchmark", "--suite=roofline", "--device=l20", "--batches=1,2", "--ads=30", "--beams=2,3,4",
    "--codebooks=16,8,4", "--width=32", "--heads=2", "--kv_groups=2", "--layers=2",
    "--lazy_layers=1", "--batch_size=4", "--history_slots=5", f"--out={out}",
  )  # fmt: skip
  assert (done.status, done.err) == (0, "")
  for name in ("step: ", "search of 1: ", "search of 2: "):
    assert name in done.out
  assert out.exists()


def test_only_a_tpu_compiles_without_one():
  with pytest.raises(ConfigError, match="--compile is not allowed: --device=h100; v5e and v6e"):
    roofline.measure(CONFIG, "h100", (), 30, compiled=True)


def test_a_model_of_single_ads_is_refused():
  config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, model="sasrec"))
  with pytest.raises(ConfigError, match="--model=sasrec is not allowed: .*--suite=roofline"):
    roofline.measure(config, "h100", (), 30)


def test_every_device_has_its_peak():
  peaks = {name: device.peak / 1e12 for name, device in DEVICES.items()}
  assert peaks == {"h100": 989, "h200": 989, "l20": 119.5, "v5e": 197, "v6e": 918}
  assert all(flops.peak_of(device.kind) == device.peak for device in DEVICES.values())


@pytest.mark.long
def test_compiled_for_a_tpu():
  """What XLA counts in the step of a few weights, for v5e; needs the extra `roofline`."""
  pytest.importorskip("libtpu")
  step = roofline.measure(CONFIG, "v5e", (), 30, compiled=True)["programs"]["step"]
  compiled = step["compiled"]
  assert np.isfinite(compiled["bytes"]) and compiled["bytes"] > 0
  assert compiled["seconds"] == pytest.approx(compiled["bytes"] / 819e9)
  # The parameters and their moments are read and written at least; XLA counts the chip's too.
  assert compiled["xla_bytes"] > compiled["bytes"]
  assert "compiled for it, " in roofline.summary(
    {"device": "v5e", "peak_tflops": 197.0, "bandwidth_gbs": 819.0, "shapes": {}, "model": {},
     "programs": {"step": step}}
  )  # fmt: skip
