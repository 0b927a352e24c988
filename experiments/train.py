"""Prepares the data, fits UA-SIDs, trains, evaluates; goes on where it was stopped.

  python -m experiments.train --flagfile=experiments/flagfiles/online_retail.flags --workdir=runs/online_retail
"""

import sys
import time

from absl import flags

from experiments import flags as flags_lib
from gr4ad_jax.config import ConfigError
from gr4ad_jax.evaluation import tables
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.serving import examples
from gr4ad_jax.training import inputs as inputs_lib
from gr4ad_jax.training import loop, run, scoring

_EVALUATE = flags.DEFINE_boolean("evaluate", True, "Evaluate on test, draw plots and show a few recommendations at the end.")


def _duration(seconds: float) -> str:
  return "unknown" if seconds == float("inf") else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def show_progress(progress: loop.Progress) -> None:
  """One line that is rewritten on a terminal; one every --log_every steps elsewhere."""
  tty = sys.stdout.isatty()
  if not (progress.log or tty or progress.valid):
    return
  line = (
    f"step {progress.step}/{progress.total_steps}  loss {progress.metrics['loss']:.3f}  "
    f"{progress.steps_per_second:.2f} steps/s  ETA {_duration(progress.eta_seconds)}"
  )
  if progress.valid:
    line += "  valid " + "  ".join(f"{name} {value:.4f}" for name, value in progress.valid.items())
  kept = progress.valid or progress.step == progress.total_steps
  print(f"\r\033[K{line}" if tty else line, end="\n" if kept or not tty else "", flush=True)


def main(argv):
  """Runs a training from flags."""
  del argv
  config = flags_lib.config_from_flags()
  if not config.workdir:
    raise ConfigError("--workdir= is not allowed: name the directory that the run is to live in")
  enable_compilation_cache()
  began = time.monotonic()
  print(f"run directory: {config.workdir}", flush=True)
  flags_lib.save_config(config)
  inputs = inputs_lib.prepare_inputs(config)
  print(f"{config.data.dataset}: {inputs.dataset.report}", flush=True)
  print(f"UA-SIDs: {inputs.index.num_leaves} for {len(inputs.dataset.ads)} ads, codebooks {inputs.index.codebooks}", flush=True)
  result = run.train(config, inputs, show_progress)
  if result.status == "preempted":
    print(f"stopped and saved at step {int(result.state.step)}; the same command goes on from there", flush=True)
    return 0
  print(f"trained {int(result.state.step)} steps, {_duration(time.monotonic() - began)} since the start", flush=True)
  if _EVALUATE.value:
    found, ranking = scoring.evaluate_run(config, inputs, "test")
    print(tables.format_table(found), flush=True)
    print(examples.describe(inputs.dataset, ranking, config.data.target_behavior), flush=True)
  print(f"the run lies in {config.workdir}", flush=True)
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main)
