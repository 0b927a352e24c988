"""The list objectives once more, for one list without padding, in plain loops of float64.

Source: docs/design/method.md §3.2 to 3.4.
"""

import math

import numpy as np

NO_REFERENCE = -1e8


def softplus(x):
  return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def order(policy, reward):
  """Positions, highest reward first; of equal rewards the likelier, then the earlier."""
  return sorted(range(len(policy)), key=lambda i: (-reward[i], -policy[i], i))


def places(sequence):
  found = [0] * len(sequence)
  for place, i in enumerate(sequence):
    found[i] = place
  return found


def weights(policy, reward, gain="linear", ranks="reward", row_norm=False):
  """M [n, n]: M_ij for j in E_i, 0 elsewhere."""
  n = len(policy)
  value = [v if gain == "linear" else 2.0**v - 1 for v in reward]
  value = [v - min(*value, 0) for v in value]
  ideal = order(policy, reward)
  best = sum(value[i] / math.log2(2 + place) for place, i in enumerate(ideal))
  rank = (
    places(ideal) if ranks == "reward" else places(sorted(range(n), key=lambda i: (-policy[i], i)))
  )
  found = np.zeros((n, n))
  for i in range(n):
    for j in range(n):
      if reward[j] < reward[i]:
        apart = abs(rank[i] - rank[j])
        found[i, j] = (
          (1 / math.log2(1 + apart) - 1 / math.log2(2 + apart)) * abs(value[i] - value[j]) / best
        )
    total = found[i].sum()
    if row_norm and total > 0:
      found[i] /= total
    elif ranks == "model" and total > 1:
      found[i] /= total
  return found


def gate(i, policy, reference, reward, delta):
  """C_i."""
  members = [k for k in range(len(policy)) if reward[k] < reward[i] or k == i]
  return 1.0 if sum(policy[k] - reference[k] for k in members) / len(members) < delta else 0.0


def rspo_terms(policy, reference, reward, beta, delta, **pairs):
  """{i: L_RSPO,i} of the candidates that contribute."""
  found, M = {}, weights(policy, reward, **pairs)
  for i in range(len(policy)):
    below = [j for j in range(len(policy)) if reward[j] < reward[i]]
    if not below:
      continue
    c = gate(i, policy, reference, reward, delta)
    score = [p - c * r for p, r in zip(policy, reference, strict=True)]
    terms = [math.log(M[i, j]) + beta * (score[j] - score[i]) for j in below if M[i, j] > 0]
    top = max(terms)
    found[i] = softplus(top + math.log(sum(math.exp(t - top) for t in terms))) / math.log(2)
  return found


def rspo(*arguments, **settings):
  terms = rspo_terms(*arguments, **settings)
  return sum(terms.values()) / len(terms) if terms else 0.0


def ndcg_cost(policy, reference, reward, delta, **pairs):
  found, M = [], weights(policy, reward, **pairs)
  for i in range(len(policy)):
    below = [j for j in range(len(policy)) if reward[j] < reward[i]]
    if below:
      c = gate(i, policy, reference, reward, delta)
      score = [p - c * r for p, r in zip(policy, reference, strict=True)]
      found.append(sum(M[i, j] for j in below if score[j] - score[i] > 0))
  return sum(found) / len(found) if found else 0.0


def _gap(policy, reference, members, i, j):
  known = all(reference[k] > NO_REFERENCE for k in members)
  gap = policy[j] - policy[i]
  return gap - (reference[j] - reference[i]) if known else gap


def dpo(policy, reference, reward, beta):
  best = order(policy, reward)[0]
  worst = order(policy, [-v for v in reward])[0]
  if reward[worst] == reward[best]:
    return 0.0
  return softplus(beta * _gap(policy, reference, (best, worst), best, worst))


def sdpo(policy, reference, reward, beta):
  best = order(policy, reward)[0]
  worse = [j for j in range(len(policy)) if reward[j] < reward[best]]
  if not worse:
    return 0.0
  gaps = [beta * _gap(policy, reference, [best, *worse], best, j) for j in worse]
  top = max(gaps)
  return softplus(top + math.log(sum(math.exp(g - top) for g in gaps)))


def grpo(policy, reference, reward, clip, kl, smallest_std=1e-8):
  known = [i for i in range(len(policy)) if reference[i] > NO_REFERENCE]
  if not known:
    return 0.0
  mean, std = np.mean([reward[i] for i in known]), np.std([reward[i] for i in known])
  total = 0.0
  for i in known:
    advantage = (reward[i] - mean) / std if std > smallest_std else 0.0
    log_ratio = min(max(policy[i] - reference[i], -20.0), 20.0)
    ratio = math.exp(log_ratio)
    total += min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage)
    total -= kl * (math.exp(-log_ratio) - 1 + log_ratio)
  return -total / len(known)


def cross_entropy(policy, reward):
  reward = np.maximum(reward, 0)
  if reward.sum() == 0:
    return 0.0
  top = max(policy)
  log_total = top + math.log(sum(math.exp(p - top) for p in policy))
  return -sum(
    v / reward.sum() * (p - log_total) for p, v in zip(policy, reward, strict=True) if v > 0
  )


def unified(policy, reward, w0, z_max):
  n = len(policy)
  by_model = places(sorted(range(n), key=lambda i: (-policy[i], i)))
  by_reward = places(order(policy, reward))
  apart = [abs(a - b) / max(n - 1, 1) for a, b in zip(by_model, by_reward, strict=True)]
  imitate = [w0 * math.exp(a * math.log1p(max(v, 0))) for a, v in zip(apart, reward, strict=True)]
  return imitate, [w0 * z_max * (1 - a) for a in apart]
