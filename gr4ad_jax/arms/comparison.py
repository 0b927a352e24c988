"""What one arm's users bring more than another's, with an interval that may be looked at any time.

A user counts once, when the window after the first request is over: then users are independent, and
the confidence sequence's assumption holds. Sums that are read off every day, of users who are still
in their windows, do not have it.

Variance is lowered by what is known of a user from before the first request (CUPED): Deng, Xu,
Kohavi, Walker, "Improving the sensitivity of online controlled experiments by utilizing
pre-experiment data", WSDM 2013, equations 4 and 5.
"""

import dataclasses

import numpy as np

from gr4ad_jax.arms import sequence


@dataclasses.dataclass(frozen=True)
class Moments:
  """Sums over the users of an arm. They add up, over days and over servers.

  Attributes:
    count: users.
    y, x: sums of the outcome and of what was known before.
    yy, xx, xy: sums of products.
  """

  count: float = 0.0
  y: float = 0.0
  x: float = 0.0
  yy: float = 0.0
  xx: float = 0.0
  xy: float = 0.0

  @classmethod
  def of(cls, y_U: np.ndarray, x_U: np.ndarray) -> "Moments":
    """Of the users' outcomes and of what was known of each before, both [U]."""
    y_U = np.asarray(y_U, np.float64)
    x_U = np.asarray(x_U, np.float64)
    sums = (y_U.sum(), x_U.sum(), (y_U**2).sum(), (x_U**2).sum(), (x_U * y_U).sum())
    return cls(float(len(y_U)), *map(float, sums))

  def __add__(self, other: "Moments") -> "Moments":
    mine = dataclasses.astuple(self)
    return Moments(*(a + b for a, b in zip(mine, dataclasses.astuple(other), strict=True)))

  def covariances(self) -> tuple[float, float, float]:
    """Of y with y, x with x, and x with y; without bias. Needs two users."""
    n = self.count
    pairs = ((self.yy, self.y, self.y), (self.xx, self.x, self.x), (self.xy, self.x, self.y))
    # Sums of products less the product of sums over n; n - 1, as the mean is estimated too.
    yy, xx, xy = ((ab - a * b / n) / (n - 1) for ab, a, b in pairs)
    return max(yy, 0.0), max(xx, 0.0), xy  # below 0 by rounding alone


@dataclasses.dataclass(frozen=True)
class Difference:
  """Another arm's mean outcome minus the first arm's.

  Attributes:
    value: the difference, adjusted for what was known before; in the outcome's unit.
    low, high: its confidence sequence at this look.
    first, other: means of the two arms, not adjusted.
    explained: share of the outcome's variance that was known before.
  """

  value: float
  low: float
  high: float
  first: float
  other: float
  explained: float

  @property
  def is_clear(self) -> bool:
    """Whether the interval leaves out 0."""
    return self.low > 0 or self.high < 0


def slope(arms: list[Moments]) -> float:
  """CUPED's theta, pooled within the arms: cov(x, y) / var(x); 0 where x does not vary."""
  # Weighted by users, and within arms, so that a true difference does not shift the slope.
  spread = [(max(arm.count - 1, 0), *arm.covariances()) for arm in arms if arm.count > 1]
  xx = sum(n * xx for n, _, xx, _ in spread)
  xy = sum(n * xy for n, _, _, xy in spread)
  scale = sum(arm.xx for arm in arms)
  # Rounding leaves a little where x is the same for all.
  return xy / xx if xx > 1e-12 * scale else 0.0


def compare(first: Moments, other: Moments, alpha: float, rho: float) -> Difference:
  """Compares an arm with the first one.

  The adjusted outcome of a user is y - theta * x. The variance of the difference of its means is
  s^2 / n of the one arm plus that of the other; times all users, it is that of one observation of
  the sequence, the difference of outcomes that are weighted by 1 / share (Theorem 3.1 of the source
  of `sequence`, for shares that are known).

  Args:
    first, other: of the users whose window is over.
    alpha: chance of an error at any time.
    rho: as in `sequence.radius`.

  Returns:
    The difference; its interval has no ends while one arm has fewer than `sequence.LEAST` users.
  """
  if min(first.count, other.count) < sequence.LEAST:
    means = [arm.y / arm.count if arm.count else np.nan for arm in (first, other)]
    return Difference(means[1] - means[0], -np.inf, np.inf, *means, 0.0)
  theta = slope([first, other])
  mean = []
  variance = []
  plain = []
  for arm in (first, other):
    yy, xx, xy = arm.covariances()
    # Theta times the common mean of x would be added to both arms, and drops out of their
    # difference.
    mean.append((arm.y - theta * arm.x) / arm.count)
    variance.append(max(yy - 2 * theta * xy + theta**2 * xx, 0.0) / arm.count)
    plain.append(yy / arm.count)
  users = first.count + other.count
  value = mean[1] - mean[0]
  # The radius is of a mean of `users` numbers, so the variance is put on that scale.
  wide = sequence.radius(users, np.sqrt(sum(variance) * users), alpha, rho)
  explained = 1 - sum(variance) / sum(plain) if sum(plain) else 0.0
  y = [arm.y / arm.count for arm in (first, other)]
  return Difference(value, value - wide, value + wide, *y, explained)
