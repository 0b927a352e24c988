"""What BTDNet's three parts bring to the base, alone and together: runs of one length and about one
size.

  python -m experiments.ablate_btdnet --flagfile=experiments/flagfiles/btdnet_scenes.flags
  --max_steps=450 --workdir=runs/parts

The rows fix --bsc, --decoder, --dmols and --background_loss; --decoder_width is that of the row
with all parts, and the others' follow from it. It goes on where it was stopped, and runs that lie
in the folder already, of other seeds too, stand in the table. Writes <workdir>/ablation.json and
ablation.md.
"""

import os

from absl import flags

from gr4ad_jax.config import ConfigError, check_family
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.ranking import list_cache
from gr4ad_jax.runs import run
from gr4ad_jax.studies import btdnet_ablation, btdnet_table
from gr4ad_jax.training import trainer

from . import flags as flags_lib
from .progress import RoundProgress, show_progress, tell

_ROWS = flags.DEFINE_list(
  "rows",
  [row.name for row in btdnet_ablation.ROWS],
  "Rows of the table; the base is always among them.",
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of every row.")


def main(argv):
  """Runs the ablation from flags."""
  del argv
  config = flags_lib.config_from_flags(any_family=True)
  check_family(config, "btdnet")
  flags_lib.check_folder_of_runs(config.workdir)
  if config.training.init_from:
    refused = f"--init_from={config.training.init_from} is not allowed"
    raise ConfigError(f"{refused}: no run has the parts of all rows")
  seeds = flags_lib.whole_numbers("seeds", _SEEDS.value)
  trainer.check_mesh(config)
  rows = btdnet_ablation.choose_rows(_ROWS.value)
  enable_compilation_cache()

  def train(task):
    print(f"run directory: {task.folder}", flush=True)
    return run.train(task, show_progress, RoundProgress())

  try:
    found = btdnet_ablation.Ablation(config, rows, seeds, train, tell).run()
  except list_cache.Stopped as stopped:
    print(stopped, flush=True)
    return 0
  print(btdnet_table.format_markdown(found))
  print(f"written to {os.path.join(config.workdir, 'ablation.md')}")
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main, local="it holds several runs")
