"""Measures a run's speed on this machine; each figure beside its counterpart, interleaved.

  python -m experiments.benchmark --suite=train --workdir=runs/online_retail --out=train.json

--suite=train: the data path against the train step, and the step's rate in matrix products against that of plain
jnp.dot on the same shapes.
"""

import statistics
import time

import jax
from absl import flags

from experiments import flags as flags_lib
from gr4ad_jax.evaluation import tables
from gr4ad_jax.models.gr4ad import compute_dtype
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.training import inputs as inputs_lib
from gr4ad_jax.training import run, throughput

flags.DEFINE_enum("suite", "train", ["train"], "What to measure.")
_OUT = flags.DEFINE_string("out", "", "JSON file for the figures; empty: they are only printed.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 15, "Interleaved measurements of each figure.", lower_bound=1)


def measure_training(config, repetitions: int) -> dict:
  """Seconds of one batch, one train step and the step's matmuls alone."""
  inputs = inputs_lib.prepare_inputs(config)
  trainer = run.Trainer(config, inputs)
  state, number = trainer.state, 0
  batch = trainer.make_batch(0)
  matmuls = throughput.matmuls_of(trainer.step, state, batch)

  def one_batch():
    nonlocal number
    number += 1
    begin = time.perf_counter()
    jax.block_until_ready(trainer.make_batch(number))
    return time.perf_counter() - begin

  def one_step():
    nonlocal state
    begin = time.perf_counter()
    state, metrics = trainer.step(state, batch)
    jax.block_until_ready(metrics)
    return time.perf_counter() - begin

  timers = {"batch": one_batch, "step": one_step, "plain_dots": throughput.plain_dots(matmuls)}
  throughput.interleaved(timers, 2)  # compiles and warms up
  seconds = throughput.interleaved(timers, repetitions)
  work = throughput.flops(matmuls)
  median = {name: statistics.median(values) for name, values in seconds.items()}
  return {
    "machine": throughput.machine(),
    "shapes": {
      "B": config.data.batch_size,
      "M": config.data.targets,
      "S": int(batch.slot_kind_BS.shape[1]),
      "D": config.model.width,
      "L": config.model.layers,
      "K": config.model.lazy_layers,
    },
    "dtype": str(compute_dtype(config.model)),
    "repetitions": repetitions,
    "seconds": {name: throughput.spread(values) for name, values in seconds.items()},
    "matmul_gflop_per_step": work / 1e9,
    "step_gflops": work / median["step"] / 1e9,
    "plain_dot_gflops": work / median["plain_dots"] / 1e9,
    "share_of_plain_dot": throughput.spread(
      [p / s for p, s in zip(seconds["plain_dots"], seconds["step"], strict=True)]
    ),
    "batches_per_step": throughput.spread([s / b for b, s in zip(seconds["batch"], seconds["step"], strict=True)]),
  }


def summary(figures: dict) -> str:
  """The figures of `measure_training` in words."""
  milliseconds = {name: 1e3 * value["median"] for name, value in figures["seconds"].items()}
  return "\n".join([
    f"machine          {figures['machine']}",
    f"one batch        {milliseconds['batch']:.1f} ms",
    f"one train step   {milliseconds['step']:.1f} ms, {figures['step_gflops']:.1f} GFLOP/s in matrix products",
    f"plain jnp.dot    {milliseconds['plain_dots']:.1f} ms for the same, {figures['plain_dot_gflops']:.1f} GFLOP/s",
    f"share reached    {figures['share_of_plain_dot']['median']:.2f} of the plain rate",
    f"data path        {figures['batches_per_step']['median']:.1f} batches in the time of one step",
  ])


def main(argv):
  """Prints the figures of a suite."""
  del argv
  config = flags_lib.config_from_flags()
  enable_compilation_cache()
  figures = measure_training(config, _REPETITIONS.value)
  print(summary(figures))
  if _OUT.value:
    tables.write_json(_OUT.value, figures)
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main)
