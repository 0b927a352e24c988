"""Writes a run's report: one HTML file for whoever signs off a launch, which opens without a
network.

python -m experiments.report --workdir=runs/online_retail --out=report.html
"""

import os

from absl import flags

from gr4ad_jax.config import ConfigError, check_trained
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.reporting import report

from . import flags as flags_lib
from . import progress

_OUT = flags.DEFINE_string("out", "report.html", "Where the HTML file goes.")
_SPLIT = flags.DEFINE_enum("split", "test", ["valid", "test"], "Which requests are scored.")
_CUSTOMERS = flags.DEFINE_integer(
  "customers", report.CUSTOMERS, "Customers that are told in words.", lower_bound=0
)


def main(argv):
  """Writes the report of the run that --workdir names."""
  del argv
  config = flags_lib.config_from_workdir()
  enable_compilation_cache()
  check_trained(config.workdir)
  folder = os.path.dirname(os.path.abspath(_OUT.value))
  if os.path.isdir(_OUT.value) or not os.path.isdir(folder):
    raise ConfigError(f"--out={_OUT.value} is not allowed: a file in a folder that exists")
  report.write(config, _OUT.value, _SPLIT.value, _CUSTOMERS.value, progress.RoundProgress())
  print(f"written to {_OUT.value}")
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main)
