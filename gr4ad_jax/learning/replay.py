"""A log's later part, replayed to a learner: each visit is predicted before it is learned from.

What a visit brings does not depend on the lists, which nobody has seen. So this judges parameters,
and not what recommending does.
"""

import glob
import itertools
import os
from collections.abc import Iterator

import numpy as np

from gr4ad_jax import files
from gr4ad_jax.data.schema import DAY, DataError, Dataset
from gr4ad_jax.learning import guard
from gr4ad_jax.learning.examples import Group
from gr4ad_jax.learning.feed import ADS, EVENTS
from gr4ad_jax.learning.prequential import Prediction
from gr4ad_jax.live import player
from gr4ad_jax.streams.stream import Stream

FOLDER = "replay"  # of a workdir
DEPTH = 200  # ads of a list that is kept: enough for 10 of them that the user has not seen
FROZEN = "frozen"
LEARNING = "learning"
_LISTS = "lists"


def fill(stream: Stream, dataset: Dataset, begin: int, end: int) -> int:
  """Appends the visits of [begin, end), and ads that were first heard of then, day by day; an ad
  comes before the visits of its first day. A stream that has some of them gets the rest.

  Args:
    stream: topics `ads` and `events`.
    dataset: the whole log.
    begin, end: unix seconds.

  Returns:
    Visits in all.

  Raises:
    DataError: the log has no visit then.
  """
  dataset = player.as_put(dataset)
  steps = [step for step in player.steps(dataset, begin) if step.time < end]
  for _, day in itertools.groupby(steps, key=lambda step: step.time // DAY):
    today = list(day)
    # In memory a day at a time. Ads come before the visits of their first day.
    new = [step.ad for step in today if step.ad >= 0]
    ids = [str(dataset.ads.ad_id[row]) for row in new]
    values = [{"ad_id": ad_id, **player.ad_fields(dataset, row)}
              for ad_id, row in zip(ids, new, strict=True)]  # fmt: skip
    events = [event for step in today if step.ad < 0
              for event in player.visit_events(dataset, step)]  # fmt: skip
    if values:
      stream.append(ADS, values, ids)
    if events:
      # Ids of events are keys of the stream: filling twice appends nothing twice.
      stream.append(EVENTS, events, [event["event_id"] for event in events])
  return sum(step.ad < 0 for step in steps)


class Recorder:
  """Keeps a learner's predictions, a file a group, for `studies.replay_table` to read.

  Args:
    folder: of the learner.
    ads: how many the run knows: those behind them are young.
  """

  def __init__(self, folder: str, ads: int):
    self._folder = os.path.join(folder, _LISTS)
    self._ads = ads

  def __call__(self, group: Group, found: Prediction) -> None:
    """Keeps the lists of a group. Those of the run's own parameters are the learner's, at first."""
    visits = [found.visits[place] for place in found.places]
    # What a user had taken before, so that lists without these can be judged later.
    seen = [np.unique(visit.known.ad) for visit in visits]
    lists = {
      LEARNING: found.ad_RK[guard.CANDIDATE],
      # In the first round the start is the candidate, and has no list of its own.
      FROZEN: found.ad_RK.get(guard.START, found.ad_RK[guard.CANDIDATE]),
    }
    requests = found.requests
    files.save_arrays(
      os.path.join(self._folder, f"{group.number:06d}.npz"),
      **{f"list_{name}": ad_RK for name, ad_RK in lists.items()},
      visit=np.array([str(visit.visit_id) for visit in visits]),
      user=np.array([visit.user_id for visit in visits]),
      time=np.array([visit.begin for visit in visits], np.int64),
      target_start=requests.target_start,
      target_ad=requests.target_ad,
      target_value=requests.target_value,
      # Sets of different sizes as one column with bounds.
      seen_start=np.append(0, np.cumsum([len(some) for some in seen])),
      seen=np.concatenate([np.zeros(0, np.int32), *seen]),
      known_ads=np.array(self._ads),
    )


def recorded(folder: str) -> Iterator[dict[str, np.ndarray]]:
  """What a `Recorder` kept, group by group.

  Raises:
    DataError: nothing.
  """
  paths = sorted(glob.glob(os.path.join(glob.escape(folder), _LISTS, "*.npz")))
  if not paths:
    raise DataError(f"{folder} holds no lists: replay to it first")
  for path in paths:
    yield files.load_all(path)
