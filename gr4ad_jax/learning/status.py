"""How the loop fares, from what learner and reward system write beside a run: for the page.

Read while they write: a last line that is not whole yet is left for the next look.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from gr4ad_jax.checksums import DamagedError
from gr4ad_jax.data.schema import DAY
from gr4ad_jax.learning.promotions import LEARNER, POINTER, Promotions
from gr4ad_jax.live import proposer

METRICS = "metrics.jsonl"
_MOST = 1 << 22  # bytes of a file of metrics that are read, from its end
_NAMES = {"start": "frozen", "candidate": "learning"}
"""Of the learner's predictions, and what the page calls them."""


class LoopStatus:
  """Reads the files again when they have changed.

  Args:
    workdir: of the run.
  """

  def __init__(self, workdir: str):
    self._learner = os.path.join(workdir, LEARNER)
    self._proposer = os.path.join(workdir, proposer.FOLDER)
    self._seen: Any = None
    self._told: dict[str, Any] | None = None

  def read(self) -> dict[str, Any] | None:
    """What a page shows of the loop; None where nobody has learned here.

    Returns:
      A dict for JSON. `in_use`: step of the promoted checkpoint, None: the run's own, and `since`,
      unix seconds. `promoted`, `refused`: verdicts so far. `lag`: events that the learner has not
      read. `days`: a day of the log, and recall and revenue of the frozen and the learning
      parameters on its visits, each predicted before it was learned from. `rewards`: the reward
      model's expectation beside what was taken.
    """
    paths = [
      os.path.join(folder, name)
      for folder, name in (
        (self._learner, METRICS), (self._learner, POINTER), (self._proposer, METRICS)
      )
    ]  # fmt: skip
    seen = [_changed(path) for path in paths]
    # Times and sizes of files are cheap to ask for at each visit of the page.
    if seen != self._seen:
      self._told = self._read(paths) if any(seen) else None
      self._seen = seen
    return self._told

  def _read(self, paths: list[str]) -> dict[str, Any]:
    rounds = _lines(paths[0])
    verdicts = [one["guard/promoted"] for one in rounds if "guard/promoted" in one]
    lags = [one["stream/lag"] for one in rounds if "stream/lag" in one]
    rewards = [one for one in _lines(paths[2]) if "reward/expected" in one]
    try:
      in_use = Promotions(self._learner).in_use
    except DamagedError:  # the server's log says it
      in_use = None
    promoted_at = _changed(paths[1])
    return {
      "in_use": in_use,
      "since": promoted_at and promoted_at[0],
      "promoted": sum(value > 0 for value in verdicts),
      "refused": sum(value == 0 for value in verdicts),
      "lag": lags[-1] if lags else None,
      "days": days(rounds),
      "rewards": {
        name: sum(one[f"reward/{name}"] for one in rewards) for name in ("expected", "taken")
      },
    }


def days(rounds: list[Mapping[str, float]]) -> list[dict[str, Any]]:
  """Recall and revenue of a day's rounds, of frozen and learning parameters.

  Args:
    rounds: the learner's metrics, a mapping a round.

  Returns:
    In order of the days: `day`, unix seconds, `requests`, and for each kind of parameters recall
    and revenue, means over the requests.
  """
  found: dict[int, list[Mapping[str, float]]] = {}
  for one in rounds:
    if one.get("prequential/time") is not None and one.get("prequential/requests"):
      # Rounds go to the day on which their first visit began.
      found.setdefault(int(one["prequential/time"] // DAY) * DAY, []).append(one)
  return [{"day": day} | _of_day(found[day]) for day in sorted(found)]


def _of_day(rounds: list[Mapping[str, float]]) -> dict[str, Any]:
  requests = sum(one["prequential/requests"] for one in rounds)
  means: dict[str, Any] = {"requests": requests}
  for name, shown in _NAMES.items():
    # Means are weighted by requests, since rounds differ in size.
    # In its first round the learner is what it started from, and tells that one alone.
    means[shown] = {
      metric: sum(
        one["prequential/requests"]
        * one.get(f"prequential/{name}_{metric}@10", one[f"prequential/candidate_{metric}@10"])
        for one in rounds
      )
      / requests
      for metric in ("recall", "revenue")
      if all(f"prequential/candidate_{metric}@10" in one for one in rounds)
    }
  return means


def _changed(path: str) -> tuple[float, int] | None:
  """When a file was changed, and its size; None where there is none."""
  try:
    found = os.stat(path)
  except OSError:
    return None
  return found.st_mtime, found.st_size


def _lines(path: str) -> list[dict[str, float]]:
  """The records of a file of metrics, oldest first; of a long one the last."""
  try:
    with open(path, "rb") as file:
      size = file.seek(0, os.SEEK_END)
      # Of a file of months the end is enough for the page.
      file.seek(max(0, size - _MOST))
      text = file.read()
  except OSError:
    return []
  lines = text.split(b"\n")
  if size > _MOST:
    del lines[0]  # its beginning was cut off
  found = []
  # Behind the last line break, a line may be being written.
  for line in lines[:-1]:
    try:
      record = json.loads(line)
    # A line that was cut in two by a kill is passed over.
    except ValueError:
      continue
    if isinstance(record, dict):
      found.append(record)
  return found
