"""BTDNet over a mesh: one step's loss and gradients equal one device's."""

import pathlib
import subprocess
import sys

import pytest

from tests import devices

pytestmark = pytest.mark.long
_ROOT = pathlib.Path(__file__).parents[2]

_STEP = """
import dataclasses, sys
import flax.linen as nn
import jax, jax.numpy as jnp, numpy as np
from gr4ad_jax.config import Config
from gr4ad_jax.btdnet import sizes
from gr4ad_jax.models import remat
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.segmentation import task as task_lib
from gr4ad_jax.scenes.referring import SegmentationBatch
from gr4ad_jax.scenes.sections import SegmentationConfig
from gr4ad_jax.training import step as step_lib

assert jax.device_count() == 8
size = sys.argv[1]
# As few as data and fsdp divide: the step of the base keeps gigabytes for each.
B = 4 if size == "B" else 8
# The base's maps of all layers would take more than 16 GB.
REMAT = "full" if size == "B" else "none"
if size == "B":
  own = SegmentationConfig(
    swin="B", swin_window=12, stem="patch", coordinates=False, subpixel=False, bert="base",
    image_size=480, decoder_width=512, dmols="both", mask_loss="peers", language_norm=True,
  )
else:  # as deep, with all parts, and windows that are padded
  sizes.SWINS["T"] = dataclasses.replace(sizes.SWINS["T"], width=32, depths=(1, 1, 1, 1),
                                         heads=(2, 4, 8, 8))
  sizes.BERTS["mini"] = dataclasses.replace(sizes.BERTS["mini"], layers=1, width=48, hidden=64)
  own = SegmentationConfig(swin="T", swin_window=3, stem="patch", bert="mini", image_size=64,
                           decoder_width=16, dmols="both", mask_loss="peers", drop_path=0.0)


class Words:
  words = tuple(map(str, range(96)))
  hidden = 4


class Alone(task_lib.SegmentationTask):
  def __init__(self):
    self.own, self.pieces = own, Words
    self.model = sizes.make(own, len(Words.words), REMAT)


config = Config(family="btdnet", own=own)
rng = np.random.default_rng(0)
S, N = own.image_size, own.max_pieces
batch = SegmentationBatch(
  rng.integers(0, 256, (B, S, S, 3)).astype(np.uint8), rng.integers(5, 96, (B, N)).astype(np.int32),
  np.arange(N) < rng.integers(4, N, (B, 1)), np.arange(N) == np.full((B, 1), 2),
  np.zeros((B, S, S), bool),
)
for b in range(B):
  y, x = rng.integers(0, S // 2, 2)
  batch.target_BHW[b, y : y + S // 3, x : x + S // 4] = True
boxed = task_lib.fresh(config, Words, jax.random.key(0))
params = jax.device_get(nn.meta.unbox(boxed))
task = Alone()
found = {}
for name, count in (("data:1", 1), ("data:2,fsdp:2,tensor:2", 8)):
  mesh = mesh_lib.make_mesh(name, jax.devices()[:count])
  with jax.set_mesh(mesh):
    shardings = mesh_lib.param_shardings(boxed, mesh)
    here = jax.device_put(params, shardings)
    rows = mesh_lib.put_batch(batch, mesh)
    loss = step_lib.gathering(task.loss, shardings)
    gradient = jax.jit(
      jax.value_and_grad(loss, has_aux=True), out_shardings=(None, shardings),
      compiler_options=remat.compiler_options(REMAT),
    )
    (value, metrics), grads = gradient(here, rows, jax.random.key(1, impl="rbg"))
    found[name] = float(value), jax.device_get((grads, metrics))
    cut = [leaf for leaf in jax.tree.leaves(here) if not leaf.sharding.is_fully_replicated]
    assert (len(cut) > 20) == (count == 8), len(cut)
(one, (grads, metrics)), (eight, (others, other_metrics)) = found.values()
np.testing.assert_allclose(eight, one, rtol=1e-4)
np.testing.assert_allclose(float(other_metrics["oIoU"].denominator),
                           float(metrics["oIoU"].denominator), rtol=1e-3)
def length(tree):
  return np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree)))


norm, away = length(grads), length(jax.tree.map(np.subtract, grads, others))
assert away < 1e-4 * norm, (away, norm)
assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads["decoder"]))
print("passed", one, eight, away / norm)
"""


@pytest.mark.parametrize("size", ["small", "B"])
def test_a_step_over_a_mesh_equals_one_devices(size, compile_cache):
  environment = devices.environment(8, PYTHONPATH=str(_ROOT))
  done = subprocess.run(
    [sys.executable, "-c", _STEP, size],
    capture_output=True,
    text=True,
    check=False,
    env=environment,
    cwd=_ROOT,
  )
  assert done.returncode == 0 and "passed" in done.stdout, done.stderr[-3000:]
