"""A second family in one file: images and labels, a class a pixel, judged by intersection over
union.

As a program it trains: `python -m tests.toy_family --workdir=…` is `experiments.train` with this
family's line in the registry, and with --family=toy.
"""

import dataclasses
import os
import runpy
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gr4ad_jax import families, files
from gr4ad_jax.config import ConfigError
from gr4ad_jax.examples.order import OrderedSource, TrainingOrder
from gr4ad_jax.knobs import knob
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.training import sums
from gr4ad_jax.training.task import Task

FAMILY = families.Family("tests.toy_family:ToyTask", own="tests.toy_family:ToyConfig")
_TRAIN, _VALID, _SIZE = 24, 6, 6
_PAUSE = "TOY_PAUSE"  # seconds that a batch takes, so that a test can stop the run between two


@dataclasses.dataclass(frozen=True)
class ToyConfig:
  """The family's own knobs."""

  channels: int = knob(4, "Hidden channels.", low=1)
  threshold: float = knob(0.5, "Brightness from which a pixel is of the object.", low=0, high=1)


class Net(nn.Module):
  """Two convolutions: a logit a pixel."""

  channels: int

  @nn.compact
  def __call__(self, image_BHWC):
    kernel = nn.with_logical_partitioning(
      nn.initializers.lecun_normal(), (None, None, "embed", "mlp")
    )
    hidden = nn.relu(nn.Conv(self.channels, (3, 3), kernel_init=kernel)(image_BHWC))
    return nn.Conv(1, (1, 1))(hidden)[..., 0]


def overlap(logit_BHW, label_BHW) -> sums.Ratio:
  """Intersection over union of the pixels that are called the object's, over a batch."""
  found = logit_BHW > 0
  return sums.Ratio((found & label_BHW).sum(), (found | label_BHW).sum())


class ToyTask(Task):
  """Learns which pixels are bright."""

  files = ("toy.json",)

  def __init__(self, config):
    super().__init__(config)
    self.net = Net(config.own.channels)
    order = TrainingOrder(np.arange(_TRAIN), self.training.batch_size, self.training.seed)
    self._source = OrderedSource(order, self._make)

  @classmethod
  def check(cls, config):
    if config.own.channels % 2:
      raise ConfigError(f"--channels={config.own.channels} is not allowed: an even number")

  @classmethod
  def divided(cls, config):
    return ((mesh_lib.FSDP, "channels", config.own.channels),)

  @classmethod
  def best_metric(cls, config):
    return "iou"

  @classmethod
  def open(cls, config, told=None, started=False):
    if started:
      saved = files.load_json(os.path.join(config.workdir, "toy.json"))
      assert saved == {"size": _SIZE}
    return cls(config)

  def save(self):
    files.write_json(os.path.join(self.folder, "toy.json"), {"size": _SIZE})

  def about(self):
    return [f"{_TRAIN} images of {_SIZE} x {_SIZE} pixels"]

  @property
  def source(self):
    return self._source

  def _make(self, images, epochs):
    del epochs
    time.sleep(float(os.environ.get(_PAUSE, "0")))
    made = [np.random.default_rng([1, int(n)]).random((_SIZE, _SIZE, 1)) for n in images]
    image_BHWC = np.stack(made).astype(np.float32)
    return {"image": image_BHWC, "label": image_BHWC[..., 0] > self.config.own.threshold}

  def init(self, key):
    return self.net.init(key, jnp.zeros((1, _SIZE, _SIZE, 1)))["params"]

  def loss(self, params, batch, key):
    del key
    logit_BHW = self.net.apply({"params": params}, batch["image"])
    loss = optax.sigmoid_binary_cross_entropy(logit_BHW, batch["label"]).mean()
    return loss, {"iou": overlap(logit_BHW, batch["label"])}

  def units(self, batch):
    return {"images": len(batch["image"]), "pixels": batch["label"].size}

  def evaluation(self, split):
    numbers = _TRAIN + np.arange(_VALID) + _VALID * (split == "test")
    mine = numbers[jax.process_index() :: jax.process_count()]
    batch = self._make(mine, mine)
    apply = jax.jit(lambda params: overlap(
      self.net.apply({"params": params}, batch["image"]), batch["label"]
    ))  # fmt: skip
    return lambda params: sums.over_processes({"iou": apply(mesh_lib.local_copy(params))})


if __name__ == "__main__":
  families.FAMILIES["toy"] = FAMILY
  sys.argv.insert(1, "--family=toy")
  runpy.run_module("experiments.train", run_name="__main__")
