"""Prepares the data, fits UA-SIDs, trains, evaluates; goes on where it was stopped.

python -m experiments.train --flagfile=experiments/flagfiles/online_retail.flags
--workdir=runs/online_retail
"""

import sys
import time

from absl import flags

from gr4ad_jax import families
from gr4ad_jax.answering import printed
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.remote import mirrors
from gr4ad_jax.runs import run
from gr4ad_jax.runs import workdir as workdir_lib
from gr4ad_jax.training import loop, trainer

from . import flags as flags_lib
from . import jobs
from .progress import RoundProgress, duration, show_cost, show_progress

_EVALUATE = flags.DEFINE_boolean(
  "evaluate", True, "At the end, evaluate on test; of the request models, show a few lists too."
)


def main(argv):
  """Runs a training from flags."""
  del argv
  config = flags_lib.config_from_flags(any_family=True)
  workdir_lib.check_workdir(config)
  families.task_of(config.family).check(config)
  trainer.check_mesh(config)
  enable_compilation_cache()
  began = time.monotonic()
  print(f"run directory: {mirrors.shown(config.workdir)}", flush=True)
  stepped = False

  def on_progress(progress: loop.Progress) -> None:
    nonlocal stepped
    stepped = True
    show_progress(progress)

  with workdir_lib.alone(config):
    task = run.start(config, RoundProgress(quiet_seconds=5))
    print("\n".join(task.about()), flush=True)
    try:
      result = run.train(task, on_progress, RoundProgress(), show_cost)
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
  if "test" in config.training.fitted:
    print("all splits were learned from: none is left to evaluate on", flush=True)
  elif _EVALUATE.value:
    report = families.part(families.find(config.family).report)
    print(report(task, "test", width=printed.terminal_width()), flush=True)
  print(f"the run lies in {mirrors.shown(config.workdir)}", flush=True)
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  jobs.define_flags()
  flags_lib.run(main)
