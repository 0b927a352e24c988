"""One place of a list for trying: its ad is drawn, and the chance that it had is told.

A list that is always the same says nothing of what another one would have brought. With one place
drawn, and the propensity of the draw kept, estimates of other lists are possible: inverse
propensity scores (Horvitz and Thompson, 1952; Bottou et al., JMLR 2013).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gr4ad_jax.answering.terms import Entry

NEXT = 50  # candidates of the place


def propensities(entries: Sequence[Entry], k: int) -> np.ndarray:
  """The chances of the candidates for the last of k places: a softmax of their scores.

  Args:
    entries: a ranked list, best first.
    k: places; the candidates are the ads of ranks k to k + 49.

  Returns:
    [C] float64 that sum to 1; empty where the list is shorter than k.
  """
  # The place's own ad and those behind it: `k - 1` is the last place, counted from 0.
  score_C = np.array([score for _, _, score, _ in entries[k - 1 : k - 1 + NEXT]])
  if not len(score_C):
    return score_C
  # The greatest score is taken off, so that exp cannot overflow.
  weight_C = np.exp(score_C - score_C.max())
  return weight_C / weight_C.sum()


def trial(
  entries: Sequence[Entry], k: int, chosen: Sequence[Entry], ad_id: Callable[[int], str]
) -> dict[str, Any] | None:
  """What is noted of a draw, so that other rules for the place can be judged by it.

  Args:
    entries: the ranked list that was drawn from.
    k: places.
    chosen: what `drawn` made of it.
    ad_id: the id of an ad's row.

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
    "propensity": propensities(entries, k).tolist(),
    "log_p": [round(entry[1], 6) for entry in candidates],
    "ecpm": [round(entry[3], 6) for entry in candidates],
    "at": [entry[0] for entry in candidates].index(chosen[k - 1][0]),
  }


def drawn(
  entries: Sequence[Entry], k: int, rng: np.random.Generator
) -> tuple[list[Entry], list[float]]:
  """The best k - 1 ads, and behind them one that is drawn from the next 50.

  Returns:
    The list, and the propensity of each of its ads: 1 of those that always stand there.
  """
  # The first k - 1 ads are certain, and have a propensity of 1.
  chance_C = propensities(entries, k)
  fixed = list(entries[: k - 1])
  if not len(chance_C):
    return fixed, [1.0] * len(fixed)
  at = int(rng.choice(len(chance_C), p=chance_C))
  return [*fixed, entries[k - 1 + at]], [1.0] * len(fixed) + [float(chance_C[at])]
