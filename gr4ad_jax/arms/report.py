"""The comparison of arms as a table: who brought what, at every day and today."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from gr4ad_jax.arms import comparison, measures, off_policy, sequence, split
from gr4ad_jax.arms.comparison import Difference, Moments
from gr4ad_jax.arms.journal import Journal, Trial
from gr4ad_jax.data.schema import DataError


@dataclasses.dataclass(frozen=True)
class Terms:
  """What is compared, and how sure it is to be; fixed before the first look.

  Attributes:
    shares: arm -> share that was meant, the first is the one that others are compared with.
    days: of a user that count, from the first request on.
    hours: within which an ad counts as what followed a request.
    k: places of a list whose recall is told.
    alpha: chance of any wrong interval among all arms, at all times.
    users: how many are aimed at; the interval is narrowest there.
  """

  shares: Mapping[str, float]
  days: float
  hours: float
  k: int
  alpha: float
  users: float


RULES = {
  "drawn": lambda trial: np.array(trial.propensity),
  "log_p": lambda trial: _first(trial.log_p),
  "ecpm": lambda trial: _first(trial.ecpm),
  "p * ecpm": lambda trial: _first(np.exp(trial.log_p) * np.array(trial.ecpm)),
}
"""Rules for the place for trying -> the chances that they give to the candidates."""


def _first(score: Sequence[float]) -> np.ndarray:
  """All chance on the largest, on the earliest of equals."""
  # A row of the identity: 1 for the chosen one.
  return np.eye(len(score))[int(np.argmax(score))]


def report(journal: Journal, terms: Terms, before: Mapping[str, float]) -> dict:
  """Compares the arms that a journal tells of.

  Args:
    journal: what was shown and taken.
    terms: what is compared.
    before: user -> money from before the streams.

  Returns:
    A dict for JSON: `split`, `arms` and, in them, what each brought; `days`, one look a day at the
    first arm's revenue against each other's; `tried`, estimates of other rules.

  Raises:
    DataError: an answer of an arm that the terms do not know, or no answer at all.
  """
  arms, mixed = measures.one_arm_users(journal)
  unknown = set(arms.values()) - set(terms.shares)
  if unknown:
    raise DataError(
      f"topic 'impressions' has arm {min(unknown)!r}; --arms names {', '.join(terms.shares)}"
    )
  if not arms:
    raise DataError("topic 'impressions' has no answer to a user of one arm: nothing to compare")
  looks = measures.arrivals(journal, arms)
  rows = {
    "revenue": measures.revenue(journal, arms, terms.days, before),
    f"recall@{terms.k}": measures.recall(journal, arms, terms.days, terms.hours, terms.k),
  }
  names = list(terms.shares)
  late = measures.latencies(journal, arms)
  return {
    "end": journal.end,
    "terms": dataclasses.asdict(terms),
    "split": {
      "users": {name: looks[-1].get(name, 0) for name in names},
      "mixed": mixed,
      # Of all looks so far, so that looking every day does no harm.
      "p": split.mismatch_p(looks, terms.shares),
    },
    "arms": {
      name: {metric: _against(found, names[0], name, terms) for metric, found in rows.items()}
      | {"latency_ms": _quantiles(late.get(name, np.zeros(0)))}
      for name in names
    },
    "days": _by_day(rows["revenue"], names, terms),
    "tried": {name: _tried(journal, name, terms.hours) for name in names},
  }


def _compared(rows: measures.Rows, first: str, other: str, terms: Terms) -> Difference:
  moments = [
    Moments.of(rows.y_U[rows.arm_U == name], rows.x_U[rows.arm_U == name])
    for name in (first, other)
  ]
  # Bonferroni: each of the others may be wrong with its part of alpha.
  alpha = terms.alpha / max(len(terms.shares) - 1, 1)
  return comparison.compare(*moments, alpha, sequence.rho_for(terms.users, alpha))


def _against(rows: measures.Rows, first: str, other: str, terms: Terms) -> dict:
  """An arm's mean and users, and how it differs from the first arm."""
  mine = rows.y_U[rows.arm_U == other]
  found = {"users": len(mine), "mean": _number(mine.mean()) if len(mine) else None}
  if other == first:
    return found
  difference = _compared(rows, first, other, terms)
  return found | {
    "ahead": _number(difference.value),
    "low": _number(difference.low),
    "high": _number(difference.high),
    "known before": _number(difference.explained),
  }


def _number(value: float) -> float | None:
  """For JSON, which has neither infinity nor NaN."""
  return float(value) if np.isfinite(value) else None


def _quantiles(latency: np.ndarray) -> dict:
  if not len(latency):
    return {"answers": 0, "p50": None, "p99": None}
  return {"answers": len(latency)} | {
    f"p{share}": float(np.quantile(latency, share / 100)) for share in (50, 99)
  }


def _by_day(rows: measures.Rows, names: list[str], terms: Terms) -> list[dict]:
  """One look a day: the differences as they would have been told then."""
  found = []
  day_U = (rows.known_U // measures.DAY).astype(np.int64)
  for day in np.unique(day_U):
    # What was known up to each day, as whoever looked then saw it.
    known = measures.Rows(
      *(getattr(rows, field.name)[day_U <= day] for field in dataclasses.fields(rows))
    )
    look = {name: _against(known, names[0], name, terms) for name in names[1:]}
    found.append({"day": int(day), "users": int((day_U <= day).sum()), "arms": look})
  return found


def _tried(journal: Journal, arm: str, hours: float) -> dict | None:
  """What other rules would have brought in the arm's place for trying; None: it had none."""
  found = measures.trials(journal, arm, hours)
  if not found.draws:
    return None
  draws: list[Trial] = [one.trial for one in found.draws if one.trial is not None]
  propensity_R = np.array([trial.propensity[trial.at] for trial in draws])
  # What the model expects of a candidate, as the reward's prediction: probability times value. It
  # is off by a factor, which one regression through 0 on half of the draws mends for the other.
  guess = [np.exp(trial.log_p) * np.array(trial.ecpm) for trial in draws]
  guess_R = np.array([g[trial.at] for g, trial in zip(guess, draws, strict=True)])
  factor_R = _factors(guess_R, found.reward_R)
  rules = {}
  for name, rule in RULES.items():
    chance = [rule(trial) for trial in draws]
    target_R = np.array([c[trial.at] for c, trial in zip(chance, draws, strict=True)])
    mean_R = np.array([(c * g).sum() for c, g in zip(chance, guess, strict=True)])
    logged = (target_R, propensity_R, found.reward_R)
    rules[name] = {
      "ips": _pair(off_policy.ips(*logged)),
      "snips": _pair(off_policy.snips(*logged)),
      "dr": _pair(off_policy.doubly_robust(*logged, factor_R * guess_R, factor_R * mean_R)),
      "effective": off_policy.effective_draws(target_R, propensity_R),
    }
  return {"draws": len(draws), "rules": rules}


def _factors(guess_R: np.ndarray, reward_R: np.ndarray) -> np.ndarray:
  """Of each draw the factor that the other half's draws give: so it never saw its own outcome."""
  # Even and odd draws: halves of the same mix of moments.
  half_R = np.arange(len(guess_R)) % 2
  factor_R = np.zeros(len(guess_R))
  for half in (0, 1):
    other = half_R != half
    squares = float((guess_R[other] ** 2).sum())
    product = float((guess_R[other] * reward_R[other]).sum())
    factor_R[half_R == half] = product / squares if squares else 0.0
  return factor_R


def _pair(estimate: off_policy.Estimate) -> list[float | None]:
  return [_number(estimate.value), _number(estimate.error)]


def text(found: dict) -> str:
  """The report as lines to read."""
  terms = found["terms"]
  names = list(found["split"]["users"])
  metrics = [name for name in found["arms"][names[0]] if name != "latency_ms"]
  lines = [
    f"A user's first {terms['days']:g} days; intervals hold at all looks together with "
    f"{1 - terms['alpha']:.0%}.",
    f"Users: {', '.join(f'{name} {count}' for name, count in found['split']['users'].items())}; "
    f"in several arms, left out: {found['split']['mixed']}. "
    + ("The split is OFF: users were lost" if found["split"]["p"] < 0.01 else "The split fits")
    + f" (p = {found['split']['p']:.2g}).",
    "",
    f"{'arm':<16}{'measure':<12}{'users':>8}{'mean':>12}  ahead of {names[0]}",
  ]
  for name in names:
    for metric in metrics:
      one = found["arms"][name][metric]
      lines.append(
        f"{name:<16}{metric:<12}{one['users']:>8}{_shown(one['mean']):>12}  {_interval(one)}"
      )
    late = found["arms"][name]["latency_ms"]
    quantiles = f"p50 {_shown(late['p50'])}, p99 {_shown(late['p99'])}"
    lines.append(f"{name:<16}{'latency, ms':<12}{late['answers']:>8}{'':>12}  {quantiles}")
  for name, tried in found["tried"].items():
    if tried:
      lines += ["", f"The place for trying of {name}, {tried['draws']} draws; money a draw:"]
      lines += [
        f"  by {rule:<10}"
        + ", ".join(f"{how} {_shown(v[how][0])} +- {_shown(v[how][1])}" for how in _HOW)
        + f", worth {v['effective']:.0f} draws of its own"
        for rule, v in tried["rules"].items()
      ]
  return "\n".join(lines)


_HOW = ("ips", "snips", "dr")


def _shown(value: float | None) -> str:
  return "-" if value is None else f"{value:.4g}"


def _interval(one: dict) -> str:
  if "ahead" not in one:
    return ""
  if one["low"] is None:
    return f"too few users (fewer than {sequence.LEAST} in an arm)"
  clear = one["low"] > 0 or one["high"] < 0
  return f"{one['ahead']:+.4g} [{one['low']:+.4g}, {one['high']:+.4g}]" + (" *" if clear else "")
