"""Writes the lists of all users of a run, or of those in a file, as Parquet; goes on where it was
stopped.

python -m experiments.batch_recommend --workdir=runs/online_retail --out=lists
python -m experiments.batch_recommend --workdir=runs/online_retail --out=lists --users=users.csv
  --seen_ads=masked --seen_days=30
"""

from absl import flags

from gr4ad_jax.answering.recommender import Recommender
from gr4ad_jax.config import ConfigError
from gr4ad_jax.delivery.batch_lists import BatchLists, Wanted
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache

from . import choices, jobs, progress
from . import flags as flags_lib

_OUT = flags.DEFINE_string("out", "", "Folder of the lists; one that was begun is gone on with.")
_USERS = flags.DEFINE_string(
  "users", "", "A .csv or .parquet file with a column user_id; empty: all users of the run's log."
)
_K = flags.DEFINE_integer("k", 10, "Ads a user.", lower_bound=1)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "'best', 'last' or a step.")
_PART_USERS = flags.DEFINE_integer("part_users", 1024, "Users a file.", lower_bound=1)


def main(argv):
  """Writes what is missing of the lists."""
  del argv
  checkpoint = flags_lib.checkpoint(_CHECKPOINT.value)
  config = flags_lib.config_from_workdir()
  if not _OUT.value:
    raise ConfigError("--out= is not allowed: name the folder of the lists")
  enable_compilation_cache()
  recommender = Recommender.load(
    config.workdir, checkpoint, config.search, config.model.compute_dtype
  )
  wanted = Wanted(_K.value, choices.choice(), _PART_USERS.value)
  lists = BatchLists.open(recommender, wanted, _USERS.value)
  done = lists.write(_OUT.value, progress.RoundProgress())
  if done:  # of several processes, the first tells it
    print(f"{done['lines']} lines of {done['users']} users in {_OUT.value}")
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  choices.define_flags()
  jobs.define_flags()
  flags_lib.run(main)
