"""From the journal to numbers of users: what each brought, and how much of it the lists had."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from gr4ad_jax.arms.journal import Journal, Shown

DAY = 86_400.0


@dataclasses.dataclass(frozen=True)
class Rows:
  """One number a user.

  Attributes:
    arm_U: names of the users' arms.
    y_U: the outcome.
    x_U: what was known before the first request.
    known_U: unix seconds from which the outcome is known; ascending.
  """

  arm_U: np.ndarray
  y_U: np.ndarray
  x_U: np.ndarray
  known_U: np.ndarray


def one_arm_users(journal: Journal) -> tuple[dict[str, str], int]:
  """User -> arm, and how many users were answered by several arms, and so belong to none."""
  # Who was in several arms was treated by several, and belongs to no comparison.
  arms = {}
  mixed = 0
  for user, answers in journal.shown.items():
    names = {one.arm for one in answers}
    if len(names) == 1:
      arms[user] = names.pop()
    else:
      mixed += 1
  return arms, mixed


def revenue(
  journal: Journal, arms: Mapping[str, str], days: float, before: Mapping[str, float]
) -> Rows:
  """Money that each user brought within so many days of the first request.

  Users whose days are not over have no row. Before is what the stream has of a user from before
  the first request, and what `before` adds to it.

  Args:
    journal: what was shown and taken.
    arms: user -> arm, of the users that count.
    days: length of the window.
    before: user -> money from before the streams.
  """
  rows = []
  for user, arm in arms.items():
    first = journal.shown[user][0].moment
    known = first + days * DAY
    # The window is not over: counting it would favour those who came early.
    if known > journal.end:
      continue
    y = sum(event.value for event in journal.between(user, first, known))
    x = before.get(user, 0.0)
    x += sum(event.value for event in journal.between(user, -np.inf, first))
    # Money from before is what CUPED adjusts by; it cannot depend on the arm.
    rows.append((known, arm, y, x))
  return _rows(rows)


def recall(journal: Journal, arms: Mapping[str, str], days: float, hours: float, k: int) -> Rows:
  """Mean recall of the ads that followed a user's requests, over the requests of the user's window.

  What followed are the distinct ads that the user took from the request on, until the next one or
  for so many hours. Requests that nothing followed say nothing, and a user who has no other has no
  row.

  Args:
    journal, arms, days: as in `revenue`.
    hours: how long an ad counts as what followed.
    k: places of the list that are looked at.
  """
  rows = []
  for user, arm in arms.items():
    answers = journal.shown[user]
    known = answers[0].moment + days * DAY
    if known > journal.end:
      continue
    found = []
    for at, one in enumerate(answers):
      # A request that is answered twice at one moment is followed by the same ads.
      # The next request takes over what follows, so that an ad counts for one of them.
      later = next((other.moment for other in answers[at:] if other.moment > one.moment), np.inf)
      until = min(later, one.moment + hours * 3600, known)
      ads = {event.ad for event in journal.between(user, one.moment, until)}
      # A request that nothing followed has no recall.
      if ads:
        found.append(len(ads.intersection(one.ads[:k])) / len(ads))
    if found:
      # No covariate: recall has no value from before the first request.
      rows.append((known, arm, float(np.mean(found)), 0.0))
  return _rows(rows)


def latencies(journal: Journal, arms: Mapping[str, str]) -> dict[str, np.ndarray]:
  """Arm -> latencies of its answers, ms, ascending; without those that tell none."""
  found: dict[str, list[float]] = {}
  for user, arm in arms.items():
    told = [one.latency_ms for one in journal.shown[user] if one.latency_ms is not None]
    found.setdefault(arm, []).extend(told)
  return {arm: np.sort(np.array(values, np.float64)) for arm, values in found.items()}


def arrivals(journal: Journal, arms: Mapping[str, str], days: float = 1.0) -> list[dict[str, int]]:
  """Arm -> users who had come, at the end of each day on which one came."""
  firsts = sorted((journal.shown[user][0].moment, arm) for user, arm in arms.items())
  counts: dict[str, int] = {}
  looks = {}
  for moment, arm in firsts:
    counts[arm] = counts.get(arm, 0) + 1
    # The last count of a day stands for the day.
    looks[int(moment // (days * DAY))] = dict(counts)
  return list(looks.values())


@dataclasses.dataclass(frozen=True)
class Trials:
  """Draws for the place for trying whose outcomes are known.

  Attributes:
    draws: the answers, each with its trial.
    reward_R: money that the drawn ad brought within the hours.
  """

  draws: list[Shown]
  reward_R: np.ndarray


def trials(journal: Journal, arm: str, hours: float) -> Trials:
  """An arm's draws, and the money of the user's events on the drawn ad within so many hours."""
  draws = []
  rewards = []
  for user, answers in journal.shown.items():
    for one in answers:
      until = one.moment + hours * 3600
      # An outcome that is not over counts for no draw.
      if one.trial is None or one.arm != arm or until > journal.end:
        continue
      ad = one.trial.ads[one.trial.at]
      taken = journal.between(user, one.moment, until)
      draws.append(one)
      rewards.append(sum(event.value for event in taken if event.ad == ad))
  return Trials(draws, np.array(rewards, np.float64))


def _rows(rows: list[tuple[float, str, float, float]]) -> Rows:
  # Ascending by when they are known, as `_by_day` and whoever looks day by day read them.
  rows.sort(key=lambda row: row[0])
  known, arm, y, x = zip(*rows, strict=True) if rows else ((), (), (), ())
  return Rows(np.array(arm, object), *(np.array(column, np.float64) for column in (y, x, known)))
