"""Writes a run's search as a folder that needs none of this package: StableHLO for CPU, CUDA and
TPU, weights, trie, the features that it takes, and a loader.

python -m experiments.export --workdir=runs/online_retail --out=model
python model/load.py
"""

from absl import flags

from gr4ad_jax.answering.recommender import Recommender
from gr4ad_jax.config import ConfigError
from gr4ad_jax.delivery import exporting
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache

from . import flags as flags_lib

_OUT = flags.DEFINE_string("out", "", "Folder that is written; it must not be there yet.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "'best', 'last' or a step.")


def main(argv):
  """Exports the run that --workdir names."""
  del argv
  checkpoint = flags_lib.checkpoint(_CHECKPOINT.value)
  config = flags_lib.config_from_workdir()
  if not _OUT.value:
    raise ConfigError("--out= is not allowed: name the folder that is written")
  exporting.check(config)
  enable_compilation_cache()
  recommender = Recommender.load(
    config.workdir, checkpoint, config.search, config.model.compute_dtype
  )
  spec = exporting.export(recommender, _OUT.value)
  print(f"checkpoint {spec['checkpoint']} for {', '.join(spec['platforms'])} in {_OUT.value}")
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main)
