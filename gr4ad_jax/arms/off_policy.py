"""What another rule would have brought in the place for trying, from the draws that were made.

The place's ad is drawn with a known chance, its propensity. So the outcome of a draw, weighted by
how much likelier another rule takes that ad, is an unbiased estimate of what the rule would bring
there. Nothing is said of the other places, which were not drawn.

Sources: inverse propensity scores (IPS), Horvitz and Thompson 1952; self-normalised (SNIPS),
Swaminathan and Joachims, NeurIPS 2015, equation 8; doubly robust (DR), Dudik, Langford, Li, ICML
2011, equation 2.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Estimate:
  """The mean outcome of a rule.

  Attributes:
    value: the estimate, in the outcome's unit.
    error: its standard error.
  """

  value: float
  error: float


def _mean(x_R: np.ndarray) -> Estimate:
  # One draw alone says nothing about its spread.
  error = x_R.std(ddof=1) / np.sqrt(len(x_R)) if len(x_R) > 1 else np.inf
  return Estimate(float(x_R.mean()), float(error))


def _weights(target_R: np.ndarray, propensity_R: np.ndarray) -> np.ndarray:
  """How much likelier the rule takes what was drawn. Raises ValueError."""
  if not len(propensity_R):
    raise ValueError("there is no draw to estimate from")
  if not ((propensity_R > 0) & (propensity_R <= 1)).all():
    raise ValueError("a propensity is not in (0, 1]")
  return target_R / propensity_R


def ips(target_R: np.ndarray, propensity_R: np.ndarray, reward_R: np.ndarray) -> Estimate:
  """Inverse propensity scores: unbiased, of wide spread.

  Args:
    target_R: the chance that the rule takes the drawn ad, of every draw.
    propensity_R: the chance that it had, in (0, 1].
    reward_R: what followed it.

  Raises:
    ValueError: no draw, or a propensity out of range.
  """
  return _mean(_weights(target_R, propensity_R) * reward_R)


def snips(target_R: np.ndarray, propensity_R: np.ndarray, reward_R: np.ndarray) -> Estimate:
  """Self-normalised: IPS divided by the mean weight, whose expectation is 1.

  A little bias, which goes with 1 / R, for less spread, and the same for rewards moved by a
  constant. The error is that of a ratio of means (delta method).

  Args, raises:
    As `ips`.
  """
  weight_R = _weights(target_R, propensity_R)
  total = weight_R.mean()
  if total == 0:
    # The rule takes nothing that was ever drawn, so the draws say nothing of it.
    return Estimate(np.nan, np.inf)
  value = (weight_R * reward_R).mean() / total
  # The delta method: a ratio's error is that of its residuals, over the mean weight.
  return Estimate(float(value), _mean(weight_R * (reward_R - value)).error / float(total))


def doubly_robust(
  target_R: np.ndarray, propensity_R: np.ndarray, reward_R: np.ndarray,
  predicted_R: np.ndarray, predicted_target_R: np.ndarray,
) -> Estimate:  # fmt: skip
  """A model's prediction for the rule, mended by the weighted errors that it made on the draws.

  Unbiased whatever the model predicts, as the propensities are known; the better it predicts, the
  less spread.

  Args:
    target_R, propensity_R, reward_R: as in `ips`.
    predicted_R: the model's reward of the drawn ad, from data that are not these draws.
    predicted_target_R: its mean over what the rule would take.

  Raises:
    As `ips`.
  """
  weight_R = _weights(target_R, propensity_R)
  return _mean(predicted_target_R + weight_R * (reward_R - predicted_R))


def effective_draws(target_R: np.ndarray, propensity_R: np.ndarray) -> float:
  """How many draws of the rule itself would say as much (Kish): (sum w)^2 / sum w^2."""
  weight_R = _weights(target_R, propensity_R)
  squares = float((weight_R**2).sum())
  return float(weight_R.sum()) ** 2 / squares if squares else 0.0
