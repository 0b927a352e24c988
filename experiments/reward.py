"""Trains the reward model of a run, p(purchase) x E[value | purchase]; goes on where it was
stopped.

  python -m experiments.reward --workdir=runs/online_retail

All of it lies in <workdir>/reward; report.json tells how far it can be trusted on valid, unless
valid is learned from.
"""

import sys

from absl import flags

from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.training import loop
from gr4ad_jax.value import reward_report, reward_run

from . import flags as flags_lib
from .progress import RoundProgress, show_cost, show_progress

_REPORT = flags.DEFINE_boolean("report", True, "At the end, score all ads for valid.")


def main(argv):
  """Trains the reward model of the run that --workdir names."""
  del argv
  config = flags_lib.config_from_workdir()
  enable_compilation_cache()
  inputs = reward_run.RewardTask.open(config).inputs
  try:
    result = reward_run.train(config, inputs, show_progress, RoundProgress(), show_cost)
  except loop.DivergedError as error:
    advice = "" if error.of_data else "; try a lower --reward_learning_rate"
    print(f"error: {error}{advice}", file=sys.stderr)
    return 1
  if result.status == "preempted":
    print(
      f"stopped and saved at step {int(result.state.step)}; the same command goes on from there",
      flush=True,
    )
    return 0
  if (
    _REPORT.value and "valid" not in config.training.fitted and inputs.has_targets(config, "valid")
  ):
    print(
      reward_report.format_report(reward_report.report(config, inputs, "valid", RoundProgress())),
      flush=True,
    )
  print(f"the reward model lies in {reward_run.folder_of(config)}", flush=True)
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main)
