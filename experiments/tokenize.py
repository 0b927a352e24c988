"""Fits UA-SIDs alone, writes tokenizer and index into the workdir, and reports their quality.

  python -m experiments.tokenize --workdir=runs/online_retail
"""

import os

from experiments import flags as flags_lib
from gr4ad_jax.config import ConfigError
from gr4ad_jax.data.prepare import load_dataset
from gr4ad_jax.evaluation import tables
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.sid import report as report_lib
from gr4ad_jax.training import inputs as inputs_lib


def main(argv):
  """Fits, keeps and judges the tokenizer."""
  del argv
  config = flags_lib.config_from_flags()
  if not config.workdir:
    raise ConfigError("--workdir= is not allowed: name the directory that the run is to live in")
  enable_compilation_cache()
  flags_lib.save_config(config)
  dataset = load_dataset(config.data)
  tokenizer, index = inputs_lib.fit_tokenizer(config, dataset)
  found = report_lib.quality_report(tokenizer, dataset.ads, dataset.events, index.codes_NT)
  path = os.path.join(config.workdir, "eval", "sid.json")
  tables.write_json(path, found)
  print(report_lib.format_report(found))
  print(f"tokenizer and index lie in {config.workdir}; the report in {path}")
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main)
