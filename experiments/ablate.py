"""The ablation: base, VSL, every list objective on top of it, value at decode time; tuned on valid,
scored on test.

  python -m experiments.ablate --flagfile=experiments/flagfiles/online_retail.flags
  --workdir=runs/ablation

It goes on where it was stopped. Writes <workdir>/ablation.json, ablation.md and ablation.png.
"""

import os

from absl import flags

from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.ranking import list_cache
from gr4ad_jax.runs import run
from gr4ad_jax.studies import ablation, ablation_table
from gr4ad_jax.training import trainer
from gr4ad_jax.value import reward_run

from . import flags as flags_lib
from .progress import RoundProgress, show_progress, tell

_ROWS = flags.DEFINE_list(
  "rows", [row.name for row in ablation.ROWS], "Rows of the table; vsl is always among them."
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the final runs.")
_EPOCHS = flags.DEFINE_float(
  "preference_epochs", 1.0, "Passes of what starts from the VSL run.", lower_bound=1e-3
)
_RATE = flags.DEFINE_float("preference_learning_rate", 1e-3, "Its learning rate.", lower_bound=0)


def _plan() -> ablation.Plan:
  config = flags_lib.config_from_flags()
  flags_lib.check_folder_of_runs(config.workdir)
  seeds = flags_lib.whole_numbers("seeds", _SEEDS.value)
  trainer.check_mesh(config)
  rows = ablation.choose_rows(_ROWS.value)
  return ablation.Plan(config, rows, seeds, _EPOCHS.value, _RATE.value)


def main(argv):
  """Runs the ablation from flags."""
  del argv
  plan = _plan()
  enable_compilation_cache()

  def train(task):
    return run.train(task, show_progress, RoundProgress())

  def train_reward(config, inputs):
    return reward_run.train(config, inputs, show_progress)

  try:
    found = ablation.Ablation(plan, train, train_reward, tell).run()
  except list_cache.Stopped as stopped:
    print(stopped, flush=True)
    return 0
  print(ablation_table.format_markdown(found))
  print(f"written to {os.path.join(plan.config.workdir, 'ablation.md')}")
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main, local="it holds several runs")
