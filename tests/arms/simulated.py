"""Experiments with a known truth, drawn day by day, and what theory says of them."""

import numpy as np

from gr4ad_jax.arms import comparison, sequence

DAYS = 28
ALPHA = 0.05
MEAN = 10.0  # of the outcome of the first arm, money


def outcomes(rng, users, lift):
  """(arm, y, x) of users in the order in which their windows end; most bring nothing.

  What a user brought before, x, goes with what the user brings, y. A lift multiplies y.
  """
  arm_U = rng.integers(2, size=users)
  habit_U = rng.gamma(3, 1 / 3, size=users)  # mean 1
  x_U = habit_U * rng.gamma(4, 0.25, size=users)
  buys_U = rng.random(users) < 0.8
  y_U = MEAN / 0.8 * buys_U * habit_U * rng.gamma(6, 1 / 6, size=users)
  return arm_U, np.where(arm_U == 1, y_U * (1 + lift), y_U), x_U


def looks(arm_U, y_U, x_U, days=DAYS):
  """The moments of both arms at the end of each day, as a server adds them up."""
  sums = [comparison.Moments(), comparison.Moments()]
  found = []
  for day in np.array_split(np.arange(len(arm_U)), days):
    for arm in (0, 1):
      mine = day[arm_U[day] == arm]
      sums[arm] = sums[arm] + comparison.Moments.of(y_U[mine], x_U[mine])
    found.append(tuple(sums))
  return found


def is_found(rng, users, lift):
  """Whether any daily look at the confidence sequence leaves out 0."""
  rho = sequence.rho_for(users, ALPHA)
  days = looks(*outcomes(rng, users, lift))
  return any(comparison.compare(*arms, ALPHA, rho).is_clear for arms in days)


def is_found_naively(rng, users, lift):
  """Whether any daily look at a usual interval of 95 % leaves out 0."""
  for first, other in looks(*outcomes(rng, users, lift)):
    error = np.sqrt(sum(arm.covariances()[0] / arm.count for arm in (first, other)))
    if abs(other.y / other.count - first.y / first.count) > 1.96 * error:
      return True
  return False


def crossing_chance(drift, counts, alpha, points=401):
  """The chance that a Brownian motion with a drift a user leaves the boundary at one of the looks.

  By the recursion of Armitage, McPherson and Rowe (1969) on a grid: the density of the sum that has
  not crossed yet is convolved with what one day adds, and cut off at the boundary.

  Args:
    drift: difference of the arms, in standard deviations of one observation of the sequence.
    counts: users at each look.
    alpha: of the sequence; it is narrowest at the last look.
  """
  rho = sequence.rho_for(counts[-1], alpha)
  within = 1.0
  before = 0
  grid = np.zeros(1)
  mass = np.ones(1)
  for count in counts:
    bound = count * sequence.radius(count, 1.0, alpha, rho)
    scale = np.sqrt(count - before)
    new = np.linspace(-bound, bound, points)
    # (points, 1) - (1, points of before) -> what one day has to add
    step = new[:, None] - grid[None, :] - drift * (count - before)
    density = np.exp(-((step / scale) ** 2) / 2) / (scale * np.sqrt(2 * np.pi)) @ mass
    mass = density * (new[1] - new[0])
    mass[[0, -1]] /= 2  # the trapezoidal rule
    within = mass.sum()
    grid = new
    before = count
  return 1 - within


def drift_of(lift, users=200_000):
  """The drift of `crossing_chance` for a lift: by a large draw, and least squares for the slope."""
  arm_U, y_U, x_U = outcomes(np.random.default_rng(99), users, lift)
  spread = 0.0
  for arm in (0, 1):
    y = y_U[arm_U == arm]
    x = x_U[arm_U == arm]
    slope = np.polyfit(x, y, 1)[0]
    spread += 2 * np.var(y - slope * x)  # each arm is half of the users
  return lift * MEAN / np.sqrt(spread)
