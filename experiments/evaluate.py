"""Scores a trained run beside the simple methods; writes <workdir>/eval/metrics.json and plots.

python -m experiments.evaluate --workdir=runs/online_retail --split=test
"""

import os

from absl import flags

from experiments import flags as flags_lib
from gr4ad_jax.evaluation import report_tables
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.training import inputs as inputs_lib
from gr4ad_jax.training import scoring

_SPLIT = flags.DEFINE_enum("split", "test", ["valid", "test"], "Which requests to predict.")
_BESIDE = flags.DEFINE_list(
  "beside",
  [],
  "Workdirs of other runs on the same data, for the same table; folders that differ by _seed<n> "
  "alone, "
  "that of --workdir among them, are averaged.",
)


def main(argv):
  """Evaluates the run that --workdir names."""
  del argv
  config = flags_lib.config_from_workdir()
  enable_compilation_cache()
  found, _ = scoring.evaluate_run(
    config, inputs_lib.prepare_inputs(config), _SPLIT.value, _BESIDE.value
  )
  print(report_tables.format_table(found))
  print(f"written to {os.path.join(config.workdir, 'eval')}")
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main)
