"""Turns a log of any size into examples on disk, for logs that memory does not hold.

  python -m experiments.prepare --dataset=ad_log --ads_path=ads.parquet --events_path=log/ \
    --out=examples --workers=4
  python -m experiments.train --dataset=ad_log --examples_path=examples --workdir=…

The log is a folder of Parquet or CSV files, one or many a day, read in the order of their names.
The same command goes on where it was stopped, and adds the files that came since.
"""

import shlex

from absl import flags

# Nothing else here: every process of the pool imports this file, and takes what its task needs.

_OUT = flags.DEFINE_string("out", "", "Folder of the examples.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes that make examples; 0: this one alone.")
_MEMORY = flags.DEFINE_integer(
  "memory_mb", 512, "MiB that each of them may take for its part of the users, of a new folder."
)
_FORM = flags.DEFINE_enum(
  "form",
  "bytes",
  ["exact", "float16", "bytes"],
  "What an example keeps of a feature: a byte, two, or all of it.",
)
_DAYS = flags.DEFINE_integer("shard_days", 0, "Days of a shard; 0: all that a call adds.")
_PARTITIONS = flags.DEFINE_integer(
  "partitions", 0, "Parts of the users, of a new folder; 0: as many as --memory_mb asks for."
)
_BEAM = flags.DEFINE_string(
  "beam_options", None, "Options of a Beam pipeline in place of the processes, as --runner=…"
)


def main(argv):
  """Makes the examples, or adds those of new days."""
  from gr4ad_jax.config import ConfigError
  from gr4ad_jax.examples import preparing

  from . import flags as flags_lib
  from .progress import RoundProgress

  del argv
  config = flags_lib.config_from_flags()
  if not _OUT.value:
    raise ConfigError("--out= is not allowed: name a folder for the examples")
  try:
    beam = None if _BEAM.value is None else tuple(shlex.split(_BEAM.value))
  except ValueError as error:
    raise ConfigError(f"--beam_options={_BEAM.value} is not allowed: {error}") from error
  options = preparing.Options(
    workers=_WORKERS.value,
    memory_mb=_MEMORY.value,
    form=_FORM.value,
    shard_days=_DAYS.value,
    partitions=_PARTITIONS.value,
    beam=beam,
  )
  told = RoundProgress(quiet_seconds=2)
  made = preparing.prepare(_OUT.value, config, options, told)
  manifest = made.manifest
  size = sum(shard["bytes"] for shard in manifest["shards"])
  requests = manifest["requests"]
  print(made.report)
  print(
    f"{requests} examples in {len(manifest['shards'])} shards, {size / 1e6:.1f} MB "
    f"({size / max(1, sum(s['records'] for s in manifest['shards'])):.0f} bytes each), "
    f"{manifest['made']} of them by the last call; they lie in {_OUT.value}"
  )
  return 0


if __name__ == "__main__":
  from . import flags as flags_lib

  flags_lib.define_flags()
  flags_lib.run(main)
