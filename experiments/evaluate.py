"""Scores a trained run; writes eval/metrics.json in its directory. The request models stand beside
the simple methods, with plots.

python -m experiments.evaluate --workdir=runs/online_retail --split=test
"""

import os

from absl import flags

from gr4ad_jax import families
from gr4ad_jax.config import ConfigError, check_trained
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
_USERS = flags.DEFINE_integer(
  "users",
  0,
  "Score so many users, evenly spread over the split, into eval/sample.json; 0: all.",
  lower_bound=0,
)


def main(argv):
  """Evaluates the run that --workdir names."""
  del argv
  config = flags_lib.config_from_workdir(any_family=True)
  enable_compilation_cache()
  check_trained(config.workdir)
  family = families.find(config.family)
  more = {}
  if _USERS.value:
    if config.family != families.REQUESTS:
      raise ConfigError(f"--users={_USERS.value} is not allowed: the run is no model of requests")
    more["users"] = _USERS.value
  task = families.part(family.task).open(config, started=True)
  print(families.part(family.report)(task, _SPLIT.value, _BESIDE.value, **more))
  print(f"written to {os.path.join(published.output_dir(config), 'eval')}")
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main)
