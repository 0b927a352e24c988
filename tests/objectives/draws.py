"""Random lists with everything that can happen to one: masks, ties, heavy tails, references that
were not recorded.
"""

import numpy as np


def draw(seed: int, B: int, M: int, dtype=np.float64, unknown: float = 0.0, signed: bool = False):
  """Policy, reference, reward and mask [B, M]; padding holds NaN, inf or numbers.

  Every fourth list has equal likelihoods, every fifth log-ratios beyond 20 (`unknown` lists and
  those of few have neither); half of the `signed` ones have rewards below zero, some of them no
  others.
  """
  rng = np.random.default_rng(seed)
  policy = rng.normal(-8, 3, (B, M))
  policy[3::4] = np.round(policy[3::4] / 3) * 3
  reference = policy + rng.normal(0.3, 1.5, (B, M))
  reference[4::5, ::3] += rng.choice([-30.0, 30.0], reference[4::5, ::3].shape)
  reference[rng.random((B, M)) < unknown] = -1e9
  reward = rng.pareto(1.2, (B, M))
  ties = rng.random((B, 1)) < 0.5
  reward = np.where(ties & (rng.random((B, M)) < 0.6), 0.0, reward)
  reward = np.where(rng.random((B, M)) < 0.2, np.round(reward), reward)
  if signed:
    reward[1::4] = np.where(rng.random(reward[1::4].shape) < 0.5, -reward[1::4], reward[1::4])
    reward[2::4] -= reward[2::4].max() + 0.5
  mask = rng.random((B, M)) < rng.random((B, 1)) * 1.2
  mask[0] = True
  for x in (policy, reference, reward):
    x[~mask] = rng.choice([0.0, -1e9, 3.0, np.nan, np.inf], (~mask).sum())
  return policy.astype(dtype), reference.astype(dtype), reward.astype(dtype), mask


def by_loop(function, policy, reference, reward, mask, *arguments, **settings):
  """[B] results of a loop version on the real candidates of each list, 0 where there is none."""
  rows = zip(policy, reference, reward, mask, strict=True)
  return np.array(
    [
      function(*(x[kept].tolist() for x in row), *arguments, **settings) if kept.any() else 0.0
      for *row, kept in rows
    ]
  )
