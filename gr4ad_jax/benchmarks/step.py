"""The train step of a model of any size: its time, share of the devices' peak, and memory.

Weights are random and batches are made up. So it needs neither data nor a trained run, and any size
can be tried on any devices.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from gr4ad_jax.benchmarks import synthetic, timing
from gr4ad_jax.config import Config, ConfigError
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.features.batches import RequestBatch
from gr4ad_jax.models.outputs import compute_dtype
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.requests.request_task import RequestTask, init_params
from gr4ad_jax.requests.vsl_task import make_vsl_loss
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training.cost import StepCost, compile_step, in_words
from gr4ad_jax.training.step import make_train_step
from gr4ad_jax.training.trainer import check_mesh
from gr4ad_jax.zoo import registry
from gr4ad_jax.zoo.gr4ad_items import GR4ADItems
from gr4ad_jax.zoo.items import ItemModel

_STEPS = 100  # that the learning-rate schedule is made for


def made_up_batch(config: Config, seed: int = 0) -> RequestBatch:
  """A global batch of full histories, every slot and target real."""
  data = config.data
  codebooks = config.sid.codebooks
  rng = np.random.default_rng(seed)
  codes_NT = synthetic.catalogue(100_000, codebooks, seed)
  slots = data.history_slots + data.neighbor_slots + data.rising_slots
  batch = synthetic.requests(codes_NT, slots, config.training.batch_size, seed)
  shape = (config.training.batch_size, data.targets)
  target = rng.integers(0, len(codes_NT), shape)
  return batch._replace(
    target_ad_BM=target.astype(np.int32),
    target_codes_BMT=codes_NT[target],
    target_mask_BM=np.ones(shape, bool),
    target_value_BM=rng.exponential(10.0, shape).astype(np.float32),
    target_depth_BM=np.zeros(shape, np.int32),
  )


def _parts(config: Config) -> tuple:
  """(model, optimizer, loss) of a model of UA-SIDs that learns by VSL. Raises ConfigError."""
  if issubclass(registry.find(config), (ItemModel, GR4ADItems)):
    raise ConfigError(
      f"--model={config.model.model} is not allowed: a model of UA-SIDs alone, with --suite=step "
      "and --suite=roofline"
    )
  bins = config.model.ecpm_bins
  model = registry.build(config, 0)
  objective = config.objective
  # A model without an eCPM head and an MTP branch: VSL then has no such terms.
  if not model.predicts_value:
    objective = dataclasses.replace(objective, lambda_ecpm=0.0, lambda_mtp=0.0)
  # Edges 1, 2, … : bins of any width cost the same.
  ecpm = EcpmBins(np.arange(1, bins, dtype=np.float32), np.ones(bins, np.float32), 100.0)
  optimizer = state_lib.make_optimizer(config.training, _STEPS)
  return model, optimizer, make_vsl_loss(model, objective, ecpm)


def abstract_step(config: Config, place: NamedSharding | None = None) -> tuple[Callable, tuple]:
  """The train step and shapes of its arguments, (step, (state, batch)): nothing is made or run.

  Args:
    config: as `System` takes it; one device, whatever its mesh.
    place: of all arguments; None: of no device.

  Raises:
    ConfigError: a model of single ads.
  """
  model, optimizer, loss = _parts(config)

  def fresh():
    params = nn.meta.unbox(init_params(model, config))
    return state_lib.TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

  t = config.training
  step = make_train_step(loss, optimizer, t.seed, t.accumulate)
  arguments = (jax.eval_shape(fresh), made_up_batch(config))
  return step, jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments
  )


class System:
  """A model of UA-SIDs, its state on the mesh, and its step by VSL, compiled.

  Attributes:
    state: of the model. Each call of `run` takes it some steps on.
    batch: on the mesh.
    cost: of a step.

  Args:
    config: model, codebooks, slots, targets, requests a step, mesh.

  Raises:
    ConfigError: a model of single ads, or devices that do not fit --mesh.
  """

  def __init__(self, config: Config):
    model, optimizer, loss = _parts(config)
    check_mesh(config)
    t = config.training
    mesh = mesh_lib.make_mesh(t.mesh)
    self.state = state_lib.init_state(lambda: init_params(model, config), optimizer, mesh)
    step = make_train_step(
      loss, optimizer, t.seed, t.accumulate, state_lib.shardings_of(self.state)
    )
    # All processes make the same whole batch, and each puts its own rows on its devices.
    local = jax.tree.map(_rows_of_process, made_up_batch(config))
    self.batch = mesh_lib.put_batch(local, mesh)
    units = RequestTask.units(self.batch)
    self._step, self.cost = compile_step(step, self.state, self.batch, units, t)

  def run(self, steps: int) -> float:
    """Takes steps in a row, each dispatched while the one before runs, as in training.

    Returns:
      Seconds a step.
    """
    begin = time.perf_counter()
    for _ in range(steps):
      self.state, metrics = self._step(self.state, self.batch)
    # Those of the last step, which needs the states of all steps before it.
    jax.block_until_ready(metrics)
    return (time.perf_counter() - begin) / steps


def _rows_of_process(x: np.ndarray) -> np.ndarray:
  """The run of rows of a whole batch that this process brings."""
  rows = len(x) // jax.process_count()
  return x[jax.process_index() * rows : (jax.process_index() + 1) * rows]


def measure(config: Config, repetitions: int, steps: int = 5) -> dict:
  """Seconds of a train step, interleaved with the rate of plain `jnp.dot` in the same dtype.

  Args:
    config: as `System` takes it.
    repetitions: of each.
    steps: in a row, of a repetition.

  Raises:
    ConfigError: as `System` says.
  """
  began = time.perf_counter()
  system = System(config)
  compiled = time.perf_counter() - began
  dtype = str(compute_dtype(config.model))
  timers: dict[str, Callable[[], float]] = {
    "step": lambda: system.run(steps),
    "roof": timing.matmul_peak(dtype=dtype),
  }
  timing.interleaved(timers, 1)  # warms up
  seconds = timing.interleaved(timers, repetitions)
  cost = system.cost
  step = statistics.median(seconds["step"])
  # Of one device, since the roof is that of one.
  flop = cost.model_flops / jax.device_count()
  slots = int(system.batch.slot_kind_BS.shape[1])
  return {
    "machine": timing.machine(),
    "shapes": {
      "B": config.training.batch_size, "M": config.data.targets, "S": slots,
      "D": config.model.width,
      "L": config.model.layers, "K": config.model.lazy_layers, "codebooks": config.sid.codebooks,
    },
    "dtype": dtype,
    "remat": config.training.remat,
    "mesh": config.training.mesh,
    "repetitions": repetitions,
    "steps_in_a_row": steps,
    "start_seconds": compiled,
    "cost": dataclasses.asdict(cost),
    "seconds": timing.spread(seconds["step"]),
    "requests_per_second": cost.units["requests"] / step,
    "tokens_per_second": cost.units["tokens"] / step,
    "model_tflops": cost.model_flops / step / 1e12,
    "utilization": cost.utilization(1 / step),
    "share_of_plain_dot": timing.spread(
      # FLOP times seconds a FLOP, over seconds: each step with the roof of the same repetition.
      [flop * roof / one for roof, one in zip(seconds["roof"], seconds["step"], strict=True)]
    ),
    # A CPU counts none, and gives None in place of a mapping.
    "device_bytes_in_use": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
  }  # fmt: skip


def summary(figures: dict) -> str:
  """The figures of `measure` in words."""
  cost = StepCost(**figures["cost"])
  second = figures["seconds"]
  used = "unknown: --peak_tflops sets the peak of a device"
  if figures["utilization"] is not None:
    used = f"{100 * figures['utilization']:.1f} % of the peak"
  lines = [
    f"machine: {figures['machine']}",
    f"{figures['dtype']}, remat {figures['remat']}, mesh {figures['mesh']}, {figures['shapes']}",
    *in_words(cost),
    f"step: {1e3 * second['median']:.1f} ms [{1e3 * second['low']:.1f}, "
    f"{1e3 * second['high']:.1f}], {figures['requests_per_second']:,.0f} requests/s, "
    f"{figures['tokens_per_second']:,.0f} tokens/s",
    f"utilisation: {used}, {figures['model_tflops']:.3f} TFLOP/s",
    (
      f"plain dot: {figures['share_of_plain_dot']['median']:.2f} of what plain jnp.dot reaches on "
      "one device"
    ),
  ]
  if figures["device_bytes_in_use"]:
    lines.append(f"memory in use at most: {figures['device_bytes_in_use'] / 2**30:.2f} GiB")
  return "\n".join(lines)
