"""Draws one request of a run: the history, the beams, the ads that they lead to, and the ads'
value.

  python -m experiments.draw_request --workdir=pretrained:online_retail --user=16769
  --out=docs/request.png

The request is the user's last visit in the log. What came before is the history; what was taken
then is starred.
"""

import dataclasses
import datetime
import os

import numpy as np
from absl import flags

from gr4ad_jax.answering import printed
from gr4ad_jax.answering.contexts import UserHistories
from gr4ad_jax.answering.recommender import Recommender
from gr4ad_jax.config import ConfigError
from gr4ad_jax.data.schema import EventLog
from gr4ad_jax.delivery.request_plot import DrawnRequest, plot_request
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.runs import published

from . import flags as flags_lib

_USER = flags.DEFINE_string("user", "", "user_id of the event log that the run was trained on.")
_K = flags.DEFINE_integer("k", 8, "Ads drawn.", lower_bound=1)
_OUT = flags.DEFINE_string(
  "out", "", "The picture, a .png file; empty: eval/request.png in the run."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "'best', 'last' or a step.")
_HISTORY = 7  # ads of the history that are drawn


def drawn(recommender: Recommender, events: EventLog, k: int) -> DrawnRequest:
  """A user's last visit, predicted from those before it.

  Raises:
    ConfigError: the user has one visit, or the run's model has no beams.
  """
  last = events.request == events.request[-1]
  if last.all():
    raise ConfigError("--user is not allowed: the user has one visit, and nothing before it")
  before = _some(events, ~last)
  now = max(int(events.time[last].min()), int(before.time.max()))
  try:
    tree = recommender.beam_tree(before, now)
  except ValueError as error:
    raise ConfigError(str(error)) from error
  ads = recommender.ads
  latest = list(dict.fromkeys(before.ad[::-1].tolist()))[:_HISTORY]
  day = datetime.datetime.fromtimestamp(now, datetime.UTC).date()
  user = printed.plain(str(events.user_id[0]), 40)
  return DrawnRequest(
    title=(
      f"user {user}, {day}: visit {len(np.unique(events.request))}, predicted from those before"
    ),
    history=[str(ads.text[ad]) or str(ads.ad_id[ad]) for ad in latest],
    ads=recommender.recommend_log(before, k, now)[0],
    tree=tree,
    taken=frozenset(str(ads.ad_id[ad]) for ad in events.ad[last]),
  )


def _some(log: EventLog, chosen_E: np.ndarray) -> EventLog:
  """The log with the chosen events alone; its users stay."""
  columns = {
    f.name: getattr(log, f.name)[chosen_E] for f in dataclasses.fields(log) if f.name != "user_id"
  }
  return EventLog(log.user_id, **columns)


def main(argv):
  """Draws one request."""
  del argv
  checkpoint = flags_lib.checkpoint(_CHECKPOINT.value)
  config = flags_lib.config_from_workdir()
  histories = UserHistories.load(config)
  events = histories.log_of(_USER.value)
  if events is None:
    raise ConfigError(
      f"--user={printed.plain(_USER.value)} is not allowed: the event log has no such user_id; "
      "one that it has is "
      f"{printed.plain(histories.user_ids[0])}"
    )
  enable_compilation_cache()
  recommender = Recommender.load(
    config.workdir, checkpoint, config.search, config.model.compute_dtype
  )
  path = _OUT.value or os.path.join(published.output_dir(config), "eval", "request.png")
  plot_request(drawn(recommender, events, _K.value), path)
  print(f"written to {path}")
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main)
