"""Training steps and searches of every model, lowered for CUDA and for TPU without one."""

import contextlib

import flax.linen as nn
import jax
import numpy as np
import pytest

from gr4ad_jax.accelerators import roofline
from gr4ad_jax.benchmarks.step import abstract_step
from gr4ad_jax.config import Config, with_knobs
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.features.batches import zero_batch
from gr4ad_jax.requests.item_task import make_item_loss, with_item_loss
from gr4ad_jax.requests.vsl_task import make_vsl_loss
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training.step import make_train_step
from gr4ad_jax.zoo import registry
from gr4ad_jax.zoo.items import ItemModel

ADS = 6
SMALL = {
  "codebooks": (16, 8, 4), "beams": (2, 3, 4), "width": 64, "layers": 3, "lazy_layers": 1,
  "heads": 2, "kv_groups": 2, "ecpm_bins": 4, "feature_bins": 2, "history_slots": 5,
  "neighbor_slots": 2, "rising_slots": 0, "targets": 3, "batch_size": 2,
}  # fmt: skip
KERNELS = {"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}


def device_of(platform):
  """Says for which GPU a kernel is lowered: since JAX 0.11 one must be there, or be named."""
  if platform != "cuda":
    return contextlib.nullcontext()
  device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
  return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


def config_of(name):
  kind = registry.find(with_knobs(Config(), {"model": name}))
  asked = {knob: value for knob, value in SMALL.items()
           if knob in kind.reads or knob in ("codebooks", "history_slots", "neighbor_slots",
                                             "rising_slots", "targets", "batch_size")}  # fmt: skip
  return roofline.as_on_accelerator(with_knobs(Config(), {"model": name} | asked))


def lowered(run, arguments, platform):
  with device_of(platform):
    return run.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def item_step(config, model):
  """The step of a model of single ads, or of an item-level head, and shapes of what it takes."""
  batch = zero_batch(config.data, len(config.sid.codebooks), config.training.batch_size)
  inputs = (batch,) if isinstance(model, ItemModel) else (batch, batch.target_codes_BMT)
  optimizer = state_lib.make_optimizer(config.training, 10)

  def fresh():
    params = nn.meta.unbox(model.init(jax.random.key(0), *inputs)["params"])
    return state_lib.TrainState(jax.numpy.zeros((), int), params, optimizer.init(params))

  loss = make_item_loss(model, np.full(ADS, 1 / ADS))
  if not isinstance(model, ItemModel):
    bins = config.model.ecpm_bins
    ecpm = EcpmBins(np.arange(1, bins, dtype=np.float32), np.ones(bins, np.float32), 100.0)
    loss = with_item_loss(make_vsl_loss(model, config.objective, ecpm), loss, 1.0)
  step = make_train_step(loss, optimizer, 0)
  return step, (jax.eval_shape(fresh), roofline._shapes(batch))


@pytest.mark.long
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", registry.MODELS)
def test_every_model_trains_there(name, platform):
  config = config_of(name)
  model = registry.build(config, ADS)
  if isinstance(model, ItemModel) or name == "gr4ad_items":
    step, arguments = item_step(config, model)
  else:
    step, arguments = abstract_step(config)
  text = lowered(step, arguments, platform)
  assert "bf16" in text  # as on an accelerator
  # Those with a shared context read it by the kernels, which are in the very program.
  decoded = "cross_attention" in type(model).reads and not isinstance(model, ItemModel)
  assert (KERNELS[platform] in text) == decoded


@pytest.mark.long
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(
  "name",
  [name for name in registry.MODELS if name not in ("sasrec", "hstu", "two_tower", "gr4ad_items")],
)
def test_every_model_of_sequences_searches_there(name, platform):
  config = config_of(name)
  text = lowered(*roofline._search(config, 2, 40), platform)
  assert (KERNELS[platform] in text) == ("cross_attention" in registry.find(config).reads)


@pytest.mark.long
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", ["sasrec", "hstu", "two_tower"])
def test_every_model_of_single_ads_scores_there(name, platform):
  config = config_of(name)
  model = registry.build(config, ADS)
  _, (state, batch) = item_step(config, model)

  def scores(params, batch):
    states = model.apply({"params": params}, batch, method="states")
    return model.apply({"params": params}, states.reshape(-1, states.shape[-1]), method="scores")

  assert "dot_general" in lowered(jax.jit(scores), (state.params, batch), platform)
