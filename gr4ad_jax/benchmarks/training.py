"""The train step against the data path, and against plain `jnp.dot` on the step's own products."""

import dataclasses
import statistics
import time

import jax

from gr4ad_jax.benchmarks import timing
from gr4ad_jax.config import Config
from gr4ad_jax.models.outputs import compute_dtype
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.requests import request_task
from gr4ad_jax.training import flops
from gr4ad_jax.training.cost import StepCost, compile_step, in_words
from gr4ad_jax.training.trainer import Trainer


def measure(config: Config, repetitions: int) -> dict:
  """Seconds of one batch, one train step and the step's matmuls alone, interleaved."""
  task = request_task.make(config, inputs_lib.prepare_inputs(config))
  trainer = Trainer(task)
  state = trainer.state
  number = 0
  batch = trainer.make_batch(0)
  # Read off the program. Nothing is run.
  matmuls = flops.matmuls_of(trainer.step, state, batch)
  step, cost = compile_step(trainer.step, state, batch, task.units(batch), config.training)

  # Another batch each time, as in training.
  def one_batch():
    nonlocal number
    number += 1
    begin = time.perf_counter()
    jax.block_until_ready(trainer.make_batch(number))
    return time.perf_counter() - begin

  # The step is given the state to overwrite (donated), so each goes on from the one before.
  def one_step():
    nonlocal state
    begin = time.perf_counter()
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    return time.perf_counter() - begin

  timers = {"batch": one_batch, "step": one_step, "plain_dots": timing.plain_dots(matmuls)}
  timing.interleaved(timers, 2)  # compiles and warms up
  seconds = timing.interleaved(timers, repetitions)
  work = flops.matmul_flops(matmuls)
  median = {name: statistics.median(values) for name, values in seconds.items()}
  return {
    "machine": timing.machine(),
    "shapes": {
      "B": config.training.batch_size,
      "M": config.data.targets,
      "S": int(batch.slot_kind_BS.shape[1]),
      "D": config.model.width,
      "L": config.model.layers,
      "K": config.model.lazy_layers,
    },
    "dtype": str(compute_dtype(config.model)),
    "repetitions": repetitions,
    "seconds": {name: timing.spread(values) for name, values in seconds.items()},
    "cost": dataclasses.asdict(cost),
    "utilization": cost.utilization(1 / median["step"]),
    "matmul_gflop_per_step": work / 1e9,
    "step_gflops": work / median["step"] / 1e9,
    "plain_dot_gflops": work / median["plain_dots"] / 1e9,
    "share_of_plain_dot": timing.spread(
      # The roof over the step, of the same repetition, so that a slow moment meets both.
      [p / s for p, s in zip(seconds["plain_dots"], seconds["step"], strict=True)]
    ),
    "batches_per_step": timing.spread(
      [s / b for b, s in zip(seconds["batch"], seconds["step"], strict=True)]
    ),
  }


def summary(figures: dict) -> str:
  """The figures of `measure` in words."""
  used = figures["utilization"]
  share = (
    "unknown: --peak_tflops sets the peak of a device"
    if used is None
    else f"{100 * used:.1f} % of the peak"
  )
  milliseconds = {name: 1e3 * value["median"] for name, value in figures["seconds"].items()}
  return "\n".join(
    [
      f"machine          {figures['machine']}",
      f"one batch        {milliseconds['batch']:.1f} ms",
      (
        f"one train step   {milliseconds['step']:.1f} ms, {figures['step_gflops']:.1f} GFLOP/s in "
        "matrix products"
      ),
      (
        f"plain jnp.dot    {milliseconds['plain_dots']:.1f} ms for the same, "
        f"{figures['plain_dot_gflops']:.1f} GFLOP/s"
      ),
      f"share reached    {figures['share_of_plain_dot']['median']:.2f} of the plain rate",
      f"utilisation      {share}",
      *in_words(StepCost(**figures["cost"])),
      (
        f"data path        {figures['batches_per_step']['median']:.1f} batches in the time of one "
        "step"
      ),
    ]
  )
