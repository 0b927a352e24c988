"""A confidence sequence: intervals of a mean that all hold at once, however often one looks.

A usual 95 % interval is wrong at one look in twenty. Whoever looks every day, and stops at the
first interval without 0, is wrong far more often. The intervals here hold together, at all times,
with the chance 1 - alpha. They need finite variance alone, and are asymptotic as the usual ones.

Source: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit theory and
asymptotic confidence sequences", Annals of Statistics 52(6), 2024 (arXiv:2103.06476), Theorem 2.2.
"""

import math

LEAST = 100  # observations before which no interval is told: the variance is not known yet


def rho_for(count: float, alpha: float) -> float:
  """The parameter rho for which the interval after `count` observations is narrowest.

  The square of the radius has the factor y / (y - 1) * log(y / alpha^2), with y = count rho^2 + 1.
  Its derivative is 0 where y = 1 + log(y) - 2 log(alpha). The right side grows slower than y, so
  to insert it again and again ends at the one solution above 1.

  Args:
    count: observations.
    alpha: chance of an error, in (0, 1).
  """
  # A fixed point of y = 1 + log(y / alpha^2), from where it converges fast.
  y = 1 - 2 * math.log(alpha)
  for _ in range(50):
    y = 1 + math.log(y) - 2 * math.log(alpha)
  return math.sqrt((y - 1) / count)


def radius(count: float, deviation: float, alpha: float, rho: float) -> float:
  """Half the width of the interval around the mean of `count` observations (Theorem 2.2).

  Args:
    count: observations so far.
    deviation: their estimated standard deviation.
    alpha: chance that one of all intervals, at whatever time, does not hold.
    rho: fixed before the first look, as by `rho_for` of a count that is aimed at.

  Returns:
    In units of the deviation's; infinite before `LEAST` observations.
  """
  if count < LEAST:
    return math.inf
  # In the source's terms, n rho^2 + 1. The logarithm's argument is its root over alpha.
  spread = count * rho**2 + 1
  return deviation * math.sqrt(
    2 * spread / (count * rho) ** 2 * math.log(math.sqrt(spread) / alpha)
  )
