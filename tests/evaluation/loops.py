"""The protocol, the metrics and the bootstrap once more: plain loops from their definitions, no
library code.
"""

import math

import numpy as np

SPLITS = ("train", "valid", "test")


def lines(dataset, splits, depth=0):
  """(user, request, ad) -> value of the events of these splits, at least so deep; by request,
  then ad.
  """
  events, found = dataset.events, {}
  for i in range(len(events.ad)):
    if SPLITS[events.split[i]] in splits and events.behavior[i] >= depth:
      key = int(events.user[i]), int(events.request[i]), int(events.ad[i])
      found[key] = found.get(key, 0.0) + float(events.value[i])
  return dict(sorted(found.items(), key=lambda item: (item[0][1], item[0][2])))


def history(dataset, split):
  """Lines before a split: train for valid, train and valid for test."""
  return lines(dataset, {"valid": ("train",), "test": ("train", "valid")}[split])


def percentile_99(values):
  """The 99th percentile, linear between the two nearest ranks."""
  ordered = sorted(values)
  at = 0.99 * (len(ordered) - 1)
  low = math.floor(at)
  high = min(low + 1, len(ordered) - 1)
  return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def baskets(dataset, split, depth=0):
  """Request -> (user, {ad: value clipped at the split's 99th percentile}), in order of request."""
  found = lines(dataset, (split,), depth)
  clip = percentile_99(found.values())
  by_request = {}
  for (user, request, ad), value in found.items():
    by_request.setdefault(request, (user, {}))[1][ad] = min(value, clip)
  return by_request


def parts(ranking, basket, k):
  """Metric -> (numerator, denominator) of one request."""
  if not basket:  # of a request without a target in the part that is told
    return {f"{name}@{k}": (0, 0) for name in ("recall", "ndcg", "revenue", "value_ndcg")}
  hits, gain, money = 0, 0.0, 0.0
  for rank, ad in enumerate([int(ad) for ad in ranking][:k], 1):
    if ad in basket:
      hits += 1
      gain += 1 / math.log2(rank + 1)
      money += basket[ad]
  reachable = min(k, len(basket))
  best = sum(1 / math.log2(rank + 1) for rank in range(1, reachable + 1))
  found = {
    f"recall@{k}": (hits / reachable, 1),
    f"ndcg@{k}": (gain / best, 1),
    f"revenue@{k}": (money, sum(basket.values())),
  }
  worth = sorted(basket.values(), reverse=True)[:k]
  best_worth = sum(value / math.log2(rank + 1) for rank, value in enumerate(worth, 1))
  shown = [basket.get(int(ad), 0.0) for ad in ranking][:k]
  got = sum(value / math.log2(rank + 1) for rank, value in enumerate(shown, 1))
  found[f"value_ndcg@{k}"] = (got / best_worth, 1) if best_worth > 0 else (0, 0)
  return found


def bootstrap(numerators_FR, denominators_FR, users_R, resamples=1000, seed=0):
  """[S, F] ratios of sums over users drawn with replacement, by NumPy's generator; NaN where
  nothing is below.
  """
  names = sorted(set(int(user) for user in users_R))
  own = {name: [r for r, user in enumerate(users_R) if user == name] for name in names}
  drawn_SU = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
  sums = np.array(
    [
      [[sum(x[r] for r in own[name]) for name in names] for x in (numerator, denominator)]
      for numerator, denominator in zip(numerators_FR, denominators_FR, strict=True)
    ]
  )  # [F, 2, U]
  out = np.full((resamples, len(sums)), np.nan)
  for s, drawn in enumerate(drawn_SU):
    for f, (above, below) in enumerate(sums):
      if below[drawn].sum() > 0:
        out[s, f] = above[drawn].sum() / below[drawn].sum()
  return out


def quantile(values, share):
  """Linear between the two nearest ranks, of the values that are numbers."""
  ordered = sorted(value for value in values if not math.isnan(value))
  at = share * (len(ordered) - 1)
  low = math.floor(at)
  high = min(low + 1, len(ordered) - 1)
  return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def mean(dataset, split, rankings, metric):
  """A metric of one run over all requests: sum over sum."""
  k = int(metric.split("@")[1])
  found = [parts(row, basket, k)[metric] for row, (_, basket) in
           zip(rankings, baskets(dataset, split).values(), strict=True)]  # fmt: skip
  return sum(above for above, _ in found) / sum(below for _, below in found)


def known(dataset, days=0.0):
  """Request -> ads that its user has in an event of an earlier request, of the last days alone."""
  events, found = dataset.events, {}
  for i in range(len(events.ad)):
    request, user = int(events.request[i]), int(events.user[i])
    if request not in found:
      found[request] = {
        int(events.ad[j])
        for j in range(len(events.ad))
        if int(events.user[j]) == user
        and int(events.request[j]) < request
        and (not days or events.time[i] - events.time[j] <= days * 86_400)
      }
  return found


def scored(dataset, split, rankings_by_system, ks, seed=0, counts=lambda request, ad: True):
  """Means with intervals of systems, seeds averaged, and of the first system minus each other
  one; of the targets that `counts` says.
  """
  wanted = {
    request: (user, {ad: value for ad, value in basket.items() if counts(request, ad)})
    for request, (user, basket) in baskets(dataset, split).items()
  }
  users = [user for user, _ in wanted.values()]
  above, below = {}, {}
  for system, runs in rankings_by_system.items():
    for k in ks:
      found = [
        [parts(run[r], basket, k) for r, (_, basket) in enumerate(wanted.values())] for run in runs
      ]
      for metric in found[0][0]:
        above[system, metric] = [
          sum(one[r][metric][0] for one in found) / len(found) for r in range(len(users))
        ]
        below[system, metric] = [one[metric][1] for one in found[0]]
  keys = list(above)
  samples = bootstrap([above[key] for key in keys], [below[key] for key in keys], users, seed=seed)
  mean = {key: sum(above[key]) / sum(below[key]) for key in keys}
  drawn = {key: samples[:, f] for f, key in enumerate(keys)}
  interval = lambda value, x: {"mean": value, "low": quantile(x, 0.025), "high": quantile(x, 0.975)}  # noqa: E731
  alone = {key: interval(mean[key], drawn[key]) for key in keys}

  def minus(first, other, metric):
    """A system's lead over another, on the same draws."""
    lead = mean[first, metric] - mean[other, metric]
    return interval(lead, drawn[first, metric] - drawn[other, metric])

  return alone, minus


def spread(rankings, popularity, k):
  """coverage, top_decile and gini of the ads of lists cut at k."""
  count = [0] * len(popularity)
  for ranking in rankings:
    for ad in ranking[:k]:
      if ad >= 0:
        count[ad] += 1
  total = sum(count)
  order = sorted(range(len(count)), key=lambda ad: (-popularity[ad], ad))
  top = order[: math.ceil(len(count) / 10)]
  apart = sum(
    abs(a - b) for a in count for b in count
  )  # mean absolute difference over twice the mean
  return {
    f"coverage@{k}": sum(c > 0 for c in count) / len(count),
    f"top_decile@{k}": sum(count[ad] for ad in top) / max(total, 1),
    f"gini@{k}": apart / (2 * len(count) * total) if total else 0.0,
  }


def random_rankings(seed, requests, num_ads, k):
  """[R, k] lists in random order, -1 where the catalogue is shorter than k or by chance."""
  rng = np.random.default_rng(seed)
  out = np.full((requests, k), -1, np.int32)
  for row in out:
    length = int(rng.integers(min(num_ads, k) // 2, min(num_ads, k) + 1))
    row[:length] = rng.permutation(num_ads)[:length]
  return out
