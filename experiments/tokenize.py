"""Fits UA-SIDs alone, or takes those of a run; keeps them in the workdir and reports their quality.

python -m experiments.tokenize --workdir=runs/online_retail
python -m experiments.tokenize --workdir=runs/grown --append=runs/mine --ads_path=more_ads.csv ...
python -m experiments.tokenize --workdir=runs/newer --refresh=runs/mine --ads_path=more_ads.csv ...
"""

import os

from gr4ad_jax.builders.prepare import load_dataset
from gr4ad_jax.evaluation import report_tables
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.runs import workdir as workdir_lib
from gr4ad_jax.sid import report as report_lib

from . import flags as flags_lib
from .progress import RoundProgress


def main(argv):
  """Fits, keeps and judges the tokenizer."""
  del argv
  config = flags_lib.config_from_flags_or_workdir()
  enable_compilation_cache()
  dataset = load_dataset(config.data)
  told = RoundProgress(quiet_seconds=5)
  with workdir_lib.alone(config):
    tokenizer, index = inputs_lib.tokenizer_of(config, dataset, told=told)
    workdir_lib.save_config(config)
    inputs_lib.save_tokenizer(config, dataset, tokenizer, index)
  found = report_lib.quality_report(
    tokenizer, dataset.ads, dataset.events, index.codes_NT, told=told
  )
  path = os.path.join(config.workdir, "eval", "sid.json")
  report_tables.write_json(path, found)
  print(report_lib.format_report(found))
  print(f"tokenizer and index lie in {config.workdir}; the report in {path}")
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main)
