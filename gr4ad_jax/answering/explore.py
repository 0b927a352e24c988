"""One place of a list for trying: its ad is drawn, and the chance that it had is told.

An ad whose value is uncertain may be worth more than its mean says. The draw can favour it, by an
upper confidence bound (UCB; Auer, Cesa-Bianchi, Fischer, Machine Learning 2002) on the eCPM head's
distribution: in place of the mean value m it stands with m + c · s, for a spread s.

A list that is always the same says nothing of what another one would have brought. With one place
drawn, and the propensity of the draw kept, estimates of other lists are possible: inverse
propensity scores (Horvitz and Thompson, 1952; Bottou et al., JMLR 2013).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gr4ad_jax.answering.terms import Entry
from gr4ad_jax.data.ecpm import LEAST_VALUE

NEXT = 50  # candidates of the place
_NONE: Mapping[int, float] = {}


def optimism(value_K: np.ndarray, spread_K: np.ndarray, weight: float) -> np.ndarray:
  """What a score, a logarithm, gains where m + weight · s takes the place of the mean m: [K].

  Args:
    value_K: mean values, money.
    spread_K: their standard deviations, money.
    weight: of the spread, 0 or more.
  """
  return np.log1p(weight * spread_K / np.maximum(value_K, LEAST_VALUE))


def propensities(
  entries: Sequence[Entry], k: int, bonus: Mapping[int, float] = _NONE
) -> np.ndarray:
  """The chances of the candidates for the last of k places: a softmax of their scores.

  Args:
    entries: a ranked list, best first.
    k: places; the candidates are the ads of ranks k to k + 49.
    bonus: by an ad's row what its score gains here; an ad that is not in it gains nothing.

  Returns:
    [C] float64 that sum to 1; empty where the list is shorter than k.
  """
  # The place's own ad and those behind it: `k - 1` is the last place, counted from 0.
  candidates = entries[k - 1 : k - 1 + NEXT]
  score_C = np.array([score + bonus.get(row, 0.0) for row, _, score, _ in candidates])
  if not len(score_C):
    return score_C
  # The greatest score is taken off, so that exp cannot overflow.
  weight_C = np.exp(score_C - score_C.max())
  return weight_C / weight_C.sum()


def trial(
  entries: Sequence[Entry], k: int, chosen: Sequence[Entry], ad_id: Callable[[int], str],
  bonus: Mapping[int, float] = _NONE,
) -> dict[str, Any] | None:  # fmt: skip
  """What is noted of a draw, so that other rules for the place can be judged by it.

  Args:
    entries: the ranked list that was drawn from.
    k: places.
    chosen: what `drawn` made of it.
    ad_id: the id of an ad's row.
    bonus: by which it was drawn.

  Returns:
    ads, propensity, log_p and ecpm of the candidates, and `at`, which of them it was; None where
    there was nothing to draw.
  """
  candidates = entries[k - 1 : k - 1 + NEXT]
  if not candidates or len(chosen) < k:
    return None
  return {
    "ads": [ad_id(entry[0]) for entry in candidates],
    # Computed anew from the same entries: the same bits as those that were drawn by.
    "propensity": propensities(entries, k, bonus).tolist(),
    "log_p": [round(entry[1], 6) for entry in candidates],
    "ecpm": [round(entry[3], 6) for entry in candidates],
    "at": [entry[0] for entry in candidates].index(chosen[k - 1][0]),
  }


def drawn(
  entries: Sequence[Entry], k: int, rng: np.random.Generator, bonus: Mapping[int, float] = _NONE
) -> tuple[list[Entry], list[float]]:
  """The best k - 1 ads, and behind them one that is drawn from the next 50.

  Returns:
    The list, and the propensity of each of its ads: 1 of those that always stand there.
  """
  # The first k - 1 ads are certain, and have a propensity of 1.
  chance_C = propensities(entries, k, bonus)
  fixed = list(entries[: k - 1])
  if not len(chance_C):
    return fixed, [1.0] * len(fixed)
  at = int(rng.choice(len(chance_C), p=chance_C))
  return [*fixed, entries[k - 1 + at]], [1.0] * len(fixed) + [float(chance_C[at])]
