"""Recommends ads for a user of the log, or for a history in a file.

  python -m experiments.recommend --workdir=runs/online_retail --user=14911
  python -m experiments.recommend --workdir=runs/online_retail --history=history.csv --json
"""

import dataclasses
import json

import numpy as np
from absl import flags

from experiments import flags as flags_lib
from gr4ad_jax.config import ConfigError, load_config
from gr4ad_jax.data import tables
from gr4ad_jax.data.prepare import load_dataset
from gr4ad_jax.data.schema import EventLog
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.serving.recommender import Recommender

_WORKDIR = flags.DEFINE_string("workdir", "", "Directory of a trained run.")
_USER = flags.DEFINE_string("user", "", "user_id of the event log that the run was trained on.")
_HISTORY = flags.DEFINE_string("history", "", "A .csv or .parquet file with ad_id and time, and, as known, behavior, value, quantity, request_id.")
_K = flags.DEFINE_integer("k", 10, "Ads wanted.", lower_bound=1)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "'best', 'last' or a step.")
_JSON = flags.DEFINE_boolean("json", False, "Print one JSON object instead of a table.")


def user_log(workdir: str, user: str) -> EventLog:
  """All that the log holds of one user. Raises ConfigError for a user that it lacks."""
  events = load_dataset(load_config(workdir).data).events
  if user not in events.user_id:
    raise ConfigError(f"--user={user} is not allowed: the event log has no such user_id; one that it has is {events.user_id[0]}")
  number = int(np.flatnonzero(events.user_id == user)[0])
  mine = events.user == number
  columns = {f.name: getattr(events, f.name)[mine] for f in dataclasses.fields(EventLog) if f.name != "user_id"}
  return EventLog(events.user_id[[number]], **columns | {"user": np.zeros(mine.sum(), np.int32)})


def file_log(recommender: Recommender, path: str) -> EventLog:
  """The history in a file, checked like an event log. Raises DataError."""
  tables.check_file("history", path)
  optional = tuple(name for name in tables.EVENT_OPTIONAL)
  cells = tables.read_file(path, ("ad_id", "time"), optional)
  cells["user_id"] = tables.constant("user_id", "user", len(cells["ad_id"]))
  gap = recommender.config.data.session_gap_minutes
  return tables.event_log(cells, recommender.ads, tables.EventRules(recommender.behaviors, session_gap_minutes=gap))[0]


def main(argv):
  """Prints one ranked list."""
  del argv
  if bool(_USER.value) == bool(_HISTORY.value):
    raise ConfigError("--user and --history: exactly one of them is needed")
  if not _WORKDIR.value:
    raise ConfigError("--workdir= is not allowed: name the directory of a trained run")
  enable_compilation_cache()
  checkpoint = int(_CHECKPOINT.value) if _CHECKPOINT.value.isdigit() else _CHECKPOINT.value
  recommender = Recommender.load(_WORKDIR.value, checkpoint)
  events = user_log(_WORKDIR.value, _USER.value) if _USER.value else file_log(recommender, _HISTORY.value)
  found = recommender.recommend_log(events, _K.value)[0]
  if _JSON.value:
    print(json.dumps({"user": _USER.value or None, "ads": [dataclasses.asdict(ad) for ad in found]}))
    return 0
  print(f"{'':>3}  {'ad_id':<12} {'score':>7} {'eCPM':>8}  text")
  for rank, ad in enumerate(found, 1):
    print(f"{rank:>3}  {ad.ad_id:<12} {ad.score:>7.3f} {ad.ecpm:>8.2f}  {ad.text}")
  return 0


if __name__ == "__main__":
  flags_lib.run(main)
