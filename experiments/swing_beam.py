"""Fits Swing with Apache Beam, for logs that one machine does not hold.

The neighbours are kept for --swing_path:

  python -m experiments.swing_beam --dataset=ad_log --events_path=… --ads_path=… \
    --out=neighbors.npz \
    --beam_options="--runner=FlinkRunner --flink_master=host:8081 --environment_type=LOOPBACK"
  python -m experiments.train --dataset=ad_log --events_path=… --ads_path=… \
    --swing_path=neighbors.npz --workdir=…

The folder of the prepared data (--data_dir) and that of --out must be one that all workers can
reach.
"""

import os
import shlex
import tempfile

from absl import flags

from gr4ad_jax.builders.prepare import prepared_folders
from gr4ad_jax.config import ConfigError
from gr4ad_jax.data.extras import optional
from gr4ad_jax.swing import by_config, pipeline

from . import flags as flags_lib

_OUT = flags.DEFINE_string("out", "neighbors.npz", "File for the neighbours.")
_BEAM = flags.DEFINE_string(
  "beam_options", "", "Options of the Beam pipeline, such as '--runner=DirectRunner'."
)


def main(argv):
  """Runs the pipeline, then puts its rows together."""
  del argv
  config = flags_lib.config_from_flags()
  if config.sid.swing_path:
    raise ConfigError("--swing_path is not allowed: it is what this binary makes")
  optional("apache_beam", "beam")
  try:
    options = shlex.split(_BEAM.value)
  except ValueError as error:
    raise ConfigError(f"--beam_options={_BEAM.value} is not allowed: {error}") from error
  with tempfile.TemporaryDirectory(
    dir=os.path.dirname(os.path.abspath(_OUT.value)), prefix="swing_"
  ) as parts:
    folders = prepared_folders(config.data)
    found = pipeline.run(folders, config.sid, config.training.seed, parts, options)
  found.save(_OUT.value, by_config.swing_settings(config.sid, config.training.seed))
  print(
    f"{(found.ads_NK[:, 0] >= 0).sum()} of {len(found.ads_NK)} ads have neighbours; they lie in "
    f"{_OUT.value}"
  )
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main)
