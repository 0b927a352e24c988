"""A training step lowers for accelerators, in bfloat16, without one at hand."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from gr4ad_jax.btdnet import sizes
from gr4ad_jax.config import Config
from gr4ad_jax.scenes.referring import SegmentationBatch
from gr4ad_jax.scenes.sections import SegmentationConfig
from gr4ad_jax.segmentation import task as task_lib


class _Words:
  words = tuple(map(str, range(30522)))
  hidden = 103


class _Alone(task_lib.SegmentationTask):
  """The task's loss, without data."""

  def __init__(self, own):
    self.own = own
    self.pieces = _Words
    self.model = sizes.make(own, len(_Words.words), "full")


_TINY = SegmentationConfig(segment_dtype="bfloat16", dmols="both")
_BASE = dataclasses.replace(
  _TINY, swin="B", swin_window=12, drop_path=0.3, stem="patch", coordinates=False, subpixel=False,
  bert="base", bert_dropout=0.1, image_size=480, decoder_width=512, mask_loss="peers",
  language_norm=True,
)  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(
  ("own", "gflops"),
  [(_TINY, (0.5, 5)), pytest.param(_BASE, (1000, 6000), marks=pytest.mark.long)],
  ids=["tiny", "base"],
)
def test_a_step_lowers_for_cuda_and_tpu(own, gflops):
  B, S, N = 8, own.image_size, own.max_pieces
  shape = jax.ShapeDtypeStruct
  batch = SegmentationBatch(
    shape((B, S, S, 3), jnp.uint8), shape((B, N), jnp.int32), shape((B, N), bool),
    shape((B, N), bool), shape((B, S, S), bool),
  )  # fmt: skip
  config = Config(family="btdnet", own=own)
  params = nn.meta.unbox(jax.eval_shape(lambda: task_lib.fresh(config, _Words)))
  key = jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))
  task = _Alone(own)

  def step(params, batch, key):
    (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(params, batch, key)
    return loss, jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads)

  jitted = jax.jit(step)
  exported = jax.export.export(jitted, platforms=["cuda", "tpu"])(params, batch, key)
  assert set(exported.platforms) == {"cuda", "tpu"}
  text = exported.mlir_module()
  assert "bf16" in text and f"{B}x{S}x{S}" in text
  # An order of magnitude of a step's work for one sentence, as the compiler counts it.
  flops = jitted.lower(params, batch, key).cost_analysis()["flops"] / B / 1e9
  assert gflops[0] < flops < gflops[1], flops
