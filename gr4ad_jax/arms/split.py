"""Whether users come to the arms in the shares that were meant.

A split that is off (sample ratio mismatch) says that users of one arm were lost on the way, and
that the arms cannot be compared. The test may be looked at after every user.

Source: Lindon, Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022. The
Bayes factor of a Dirichlet prior around the shares against the shares themselves is a martingale
if the shares are true. By Ville's inequality it ever passes 1 / alpha with a chance of at most
alpha.
"""

import math
from collections.abc import Mapping, Sequence

STRENGTH = 100.0  # users that the prior counts as: how near to the shares a mismatch is expected


def log_bayes_factor(counts: Mapping[str, int], shares: Mapping[str, float]) -> float:
  """Natural log of the evidence against the shares.

  Args:
    counts: arm -> users.
    shares: arm -> share that was meant; they sum to 1.
  """
  total = sum(counts.get(name, 0) for name in shares)
  # Dirichlet-multinomial against the meant shares, as logarithms of gamma functions.
  found = math.lgamma(STRENGTH) - math.lgamma(STRENGTH + total)
  for name, share in shares.items():
    # Prior counts in the meant shares, whose sum is STRENGTH.
    prior = STRENGTH * share
    count = counts.get(name, 0)
    found += math.lgamma(prior + count) - math.lgamma(prior) - count * math.log(share)
  return found


def mismatch_p(counts: Sequence[Mapping[str, int]], shares: Mapping[str, float]) -> float:
  """The p-value that holds at all times: of all looks so far the smallest.

  Args:
    counts: arm -> users at every look, in order of time.
    shares: arm -> share that was meant.
  """
  # The strongest evidence so far; it never goes back.
  most = max((log_bayes_factor(look, shares) for look in counts), default=0.0)
  # Without evidence the p-value is 1, and not more.
  return math.exp(-max(most, 0.0))
