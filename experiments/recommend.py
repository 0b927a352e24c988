"""Recommends ads for a user of the log, or for a history in a file.

python -m experiments.recommend --workdir=runs/online_retail --user=14911
python -m experiments.recommend --workdir=runs/online_retail --user=14911 --explain
python -m experiments.recommend --workdir=runs/online_retail --basket=85123A,22423
python -m experiments.recommend --workdir=runs/online_retail --history=history.csv --json
python -m experiments.recommend --workdir=pretrained:online_retail --ads=85123A,22423
"""

import dataclasses
import json

from absl import flags

from gr4ad_jax.answering import printed
from gr4ad_jax.answering.contexts import UserHistories
from gr4ad_jax.answering.recommender import Recommendation, Recommender
from gr4ad_jax.config import Config, ConfigError
from gr4ad_jax.data.schema import DataError, EventLog
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.reading import column_files, tables

from . import choices
from . import flags as flags_lib

_USER = flags.DEFINE_string("user", "", "user_id of the event log that the run was trained on.")
_HISTORY = flags.DEFINE_string(
  "history",
  "",
  (
    "A .csv or .parquet file of one user: ad_id, time; if known behavior, value, quantity, "
    "request_id."
  ),
)
_TAKEN = flags.DEFINE_list("ads", [], "Ids of ads that a user took in one visit, just now.")
_BASKET = flags.DEFINE_list(
  "basket", [], "Ids of ads that a visit has already: the ads that complete it are wanted."
)
_ONE_BY_ONE = flags.DEFINE_boolean(
  "one_by_one", False, "With --basket: each ad joins it before the next one is looked for."
)
_K = flags.DEFINE_integer("k", 10, "Ads wanted.", lower_bound=1)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "'best', 'last' or a step.")
_EXPLAIN = flags.DEFINE_boolean(
  "explain", False, "Tell why each ad is in the list: what each slot of the context carries of it."
)
_JSON = flags.DEFINE_boolean("json", False, "Print one JSON object instead of a table.")


def user_log(config: Config, user: str) -> EventLog:
  """All that a run's log holds of one user. Raises ConfigError for a user that it lacks, or
  where the log changed.
  """
  histories = UserHistories.load(config)
  log = histories.log_of(user)
  if log is None:
    one = printed.plain(histories.user_ids[0])
    problem = "is not allowed: the event log has no such user_id; one that it has is"
    raise ConfigError(f"--user={printed.plain(user)} {problem} {one}")
  return log


def file_log(recommender: Recommender, path: str) -> EventLog:
  """The history in a file, checked like an event log; `user_id` may be left out. Raises
  DataError.
  """
  column_files.check_file("history", path)
  cells = column_files.read_file(path, ("ad_id", "time"), ("user_id", *tables.EVENT_OPTIONAL))
  if "user_id" not in cells:
    cells["user_id"] = tables.constant("user_id", "user", len(cells["ad_id"]))
  rules = tables.EventRules(
    recommender.behaviors, "error", recommender.config.data.session_gap_minutes
  )
  log = tables.event_log(cells, recommender.ads, rules)[0]
  if len(log.user_id) > 1:
    raise DataError(f"{path}: column 'user_id' names {len(log.user_id)} users; a history is of one")
  return log


def _fields(ad: Recommendation) -> dict:
  """An ad for JSON; reasons only where they were asked for."""
  fields = dataclasses.asdict(ad)
  if ad.reasons is None:
    del fields["reasons"]
  return fields


def asked_log(config: Config, recommender: Recommender) -> EventLog:
  """The history that the flags name. Raises as `user_log` and `file_log` do."""
  if _USER.value:
    return user_log(config, _USER.value)
  if _HISTORY.value:
    return file_log(recommender, _HISTORY.value)
  # Of whoever comes with a basket alone nothing is known.
  return recommender.log_of(_TAKEN.value, recommender.end)


def main(argv):
  """Prints one ranked list."""
  del argv
  checkpoint = flags_lib.checkpoint(_CHECKPOINT.value)
  config = flags_lib.config_from_workdir()
  named = sum(map(bool, (_USER.value, _HISTORY.value, _TAKEN.value)))
  if named != 1 and not (_BASKET.value and not named):
    raise ConfigError(
      "--user, --history and --ads: exactly one of them is needed, or --basket alone"
    )
  if _ONE_BY_ONE.value and not _BASKET.value:
    raise ConfigError("--one_by_one is not allowed: there is no --basket to complete")
  if _EXPLAIN.value and _BASKET.value:
    raise ConfigError("--explain is not allowed beside --basket")
  enable_compilation_cache()
  recommender = Recommender.load(
    config.workdir, checkpoint, config.search, config.model.compute_dtype
  )
  events = asked_log(config, recommender)
  choice = choices.choice()
  if _BASKET.value:
    basket = tuple(_BASKET.value)
    found = recommender.complete(
      events, basket, _K.value, choice=choice, one_by_one=_ONE_BY_ONE.value
    )
  else:
    found = recommender.recommend_log(events, _K.value, choice=choice)[0]
  if _EXPLAIN.value:
    found = recommender.explained(events, None, found)
  if _JSON.value:
    print(
      json.dumps(
        {"user": _USER.value or None, "ads": [_fields(ad) for ad in found]},
        allow_nan=False,
      )
    )
  else:
    print(printed.ranked_list(found, printed.terminal_width()))
    if _EXPLAIN.value:
      print("\n" + printed.reasons(found, printed.terminal_width()))
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  choices.define_flags()
  flags_lib.run(main)
