"""Scores a trained run; writes eval/metrics.json in its directory. The request models stand beside
the simple methods, with plots.

python -m experiments.evaluate --workdir=runs/online_retail --split=test
"""

import os

from absl import flags

from gr4ad_jax import families
from gr4ad_jax.config import check_trained
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.runs import published

from . import flags as flags_lib

_SPLIT = flags.DEFINE_enum("split", "test", ["valid", "test"], "Which requests to predict.")
_BESIDE = flags.DEFINE_list(
  "beside",
  [],
  "Workdirs of other runs on the same data, for the same table; folders that differ by _seed<n> "
  "alone, that of --workdir among them, are averaged.",
)


def main(argv):
  """Evaluates the run that --workdir names."""
  del argv
  config = flags_lib.config_from_workdir(any_family=True)
  enable_compilation_cache()
  check_trained(config.workdir)
  family = families.find(config.family)
  task = families.part(family.task).open(config, started=True)
  print(families.part(family.report)(task, _SPLIT.value, _BESIDE.value))
  print(f"written to {os.path.join(published.output_dir(config), 'eval')}")
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main)
