"""Prepares the data, fits UA-SIDs, trains, evaluates; goes on where it was stopped.

python -m experiments.train --flagfile=experiments/flagfiles/online_retail.flags
--workdir=runs/online_retail
"""

import sys
import time

import jax
from absl import flags

from experiments import flags as flags_lib
from experiments import jobs
from experiments.progress import RoundProgress, duration, show_cost, show_progress
from gr4ad_jax.evaluation import report_tables
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.serving import examples, printed
from gr4ad_jax.sid import report
from gr4ad_jax.training import loop, run, scoring, trainer
from gr4ad_jax.training import workdir as workdir_lib

_EVALUATE = flags.DEFINE_boolean(
  "evaluate", True, "At the end, evaluate on test, draw plots and show a few recommendations."
)


def main(argv):
  """Runs a training from flags."""
  del argv
  config = flags_lib.config_from_flags()
  workdir_lib.check_workdir(config)
  run.check_start(config)
  trainer.check_mesh(config)
  enable_compilation_cache()
  began = time.monotonic()
  print(f"run directory: {config.workdir}", flush=True)
  stepped = False

  def on_progress(progress: loop.Progress) -> None:
    nonlocal stepped
    stepped = True
    show_progress(progress)

  with workdir_lib.alone(config):
    inputs = run.start(config, RoundProgress(quiet_seconds=5))
    dataset, index = inputs.dataset, inputs.index
    print(f"{dataset.name}: {dataset.report}", flush=True)
    print(
      f"UA-SIDs: {index.num_leaves} for {len(dataset.ads)} ads, codebooks {index.codebooks}",
      flush=True,
    )
    shared = report.sharing(index, inputs.tokenizer.config.last_level)
    if shared:
      print(f"warning: {shared}", flush=True)
    try:
      result = run.train(config, inputs, on_progress, RoundProgress(), show_cost)
    except loop.DivergedError as error:
      advice = "" if error.of_data else "; try a lower --learning_rate in another workdir"
      print(f"error: {error}{advice}", file=sys.stderr)
      return 1
  done = int(result.state.step)
  if result.status == "preempted":
    print(f"stopped and saved at step {done}; the same command goes on from there", flush=True)
    return 0
  if stepped:
    print(f"trained {done} steps, {duration(time.monotonic() - began)} since the start", flush=True)
  else:
    print(f"the run was finished already, at step {done}: nothing is trained again", flush=True)
  if jax.process_index():
    return 0
  if _EVALUATE.value and inputs.has_targets(config, "test"):
    found, ranking = scoring.evaluate_run(config, inputs, "test")
    print(report_tables.format_table(found), flush=True)
    width = printed.terminal_width()
    print(examples.describe(dataset, ranking, config.data.target_behavior, width=width), flush=True)
  elif _EVALUATE.value:
    print("nothing to evaluate on: no user has the three visits that it takes", flush=True)
  print(f"the run lies in {config.workdir}", flush=True)
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  jobs.define_flags()
  flags_lib.run(main)
