"""Whom lists give their places: by popularity, by account, by category, and how alike they are.

None of it looks at what was taken, so none has a target. docs/reference/metrics.md has the
formulas.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gr4ad_jax.data import schema
from gr4ad_jax.evaluation import protocols

SMALL = 0.2  # share of all lines that the small accounts have together, at most
TAIL = 0.2  # the same of the ads of the tail
# Share of the history in the list, so that a category that a list lacks has a logarithm.
_SMOOTHING = 0.01
_CHUNK = 1024  # lists whose vectors are held at a time


@dataclasses.dataclass(frozen=True)
class Facts:
  """What is known of N ads and R requests, beside the lists.

  Attributes:
    lines_N: lines of each ad in the history of everyone.
    account_N: its account, as a number from 0.
    category_N: its category, likewise; None where all ads have the same.
    vector_ND: its vector, of any length above 0; None: likeness of ads is not told.
    past_row: [E] request of each line of the requests' own histories, ascending.
    past_ad: [E] ad of that line.
    requests: R.
  """

  lines_N: np.ndarray
  account_N: np.ndarray
  category_N: np.ndarray | None
  vector_ND: np.ndarray | None
  past_row: np.ndarray
  past_ad: np.ndarray
  requests: int

  @classmethod
  def of(
    cls,
    dataset: schema.Dataset,
    requests: protocols.EvalRequests,
    vector_ND: np.ndarray | None = None,
  ) -> "Facts":
    """Of the requests of a split; history is what the protocol shows of their users."""
    events = dataset.events
    seen_E = protocols.history_events(dataset, requests.split)
    line, _ = protocols.lines(
      events.request[seen_E], events.ad[seen_E], events.value[seen_E], len(dataset.ads)
    )
    # (request, ad) of each line; the events of a visit have one user.
    first = np.searchsorted(events.request, line[:, 0])
    user_L = events.user[first]
    order = np.argsort(user_L, kind="stable")
    begin = np.searchsorted(user_L[order], requests.user)
    size = np.searchsorted(user_L[order], requests.user, side="right") - begin
    row = np.repeat(np.arange(len(requests)), size)
    # The number of each line within its user's run: a running count, less where the run began.
    nth = np.arange(len(row)) - np.repeat(np.cumsum(size) - size, size)
    past_ad = line[order[np.repeat(begin, size) + nth], 1]
    names, category_N = np.unique(dataset.ads.category.astype(str), return_inverse=True)
    return cls(
      np.bincount(line[:, 1], minlength=len(dataset.ads)),
      dataset.ads.account_N,
      category_N if len(names) > 1 else None,
      vector_ND,
      row,
      past_ad,
      len(requests),
    )


def small_accounts(account_N: np.ndarray, lines_N: np.ndarray) -> np.ndarray:
  """Whether the account of each ad is small, [N] bool.

  The accounts with the fewest lines are small, as many of them as have `SMALL` of all lines
  together at most. Of accounts with as many lines the lower number comes first.
  """
  # Decided by account, then gathered to the ads: (accounts,) -> (N,).
  return _least(np.bincount(account_N, weights=lines_N), SMALL)[account_N]


def tail_ads(lines_N: np.ndarray) -> np.ndarray:
  """Whether each ad is of the tail: those with the fewest lines, which have `TAIL` together."""
  return _least(lines_N.astype(np.float64), TAIL)


def _least(count_X: np.ndarray, share: float) -> np.ndarray:
  order = np.argsort(count_X, kind="stable")
  least_X = np.zeros(len(count_X), bool)
  # The least first: as many as stay below the share together.
  least_X[order] = np.cumsum(count_X[order]) <= share * count_X.sum()
  return least_X


def deciles(lines_N: np.ndarray) -> np.ndarray:
  """The popularity decile of each ad, [N], 0 the most popular tenth of the ads.

  Of ads with as many lines the lower row is the more popular one.
  """
  rank_N = np.empty(len(lines_N), np.int64)
  rank_N[np.argsort(-lines_N, kind="stable")] = np.arange(len(lines_N))
  # Ten groups of ranks, as even in size as whole numbers allow.
  return rank_N * 10 // len(lines_N)


def exposure(ranking_RK: np.ndarray, facts: Facts, k: int) -> dict[str, Any]:
  """Where the first k places of R lists go.

  Args:
    ranking_RK: ad rows, best first, -1 padding.
    facts: of the ads and of the requests.
    k: the cut.

  Returns:
    `deciles`: shares of the places by popularity decile, the most popular tenth of the ads first;
    `coverage`: share of the ads that some list has; `gini`: of the ads' counts of places, 0 is
    even; `small_accounts` and `tail_ads`: shares of the places; `overlap`: how much of a list
    another user's list has, mean over all pairs; `similarity`: mean cosine of two ads of a list;
    `calibration`: Kullback-Leibler divergence from a history's categories, or accounts where the
    categories are unknown, to a list's, nats, mean over the requests with a history (`groups` says
    which). What cannot be told is left out.
  """
  shown_RK = ranking_RK[:, :k]
  real_RK = shown_RK >= 0
  shown = shown_RK[real_RK]
  num_ads = len(facts.lines_N)
  count_N = np.bincount(shown, minlength=num_ads)
  total = max(int(count_N.sum()), 1)
  rank_N = np.arange(1, num_ads + 1)
  small_N = small_accounts(facts.account_N, facts.lines_N)
  found: dict[str, Any] = {
    "deciles": (
      np.bincount(deciles(facts.lines_N), weights=count_N, minlength=10) / total
    ).tolist(),
    "coverage": float((count_N > 0).mean()),
    "gini": float(((2 * rank_N - num_ads - 1) @ np.sort(count_N)) / (num_ads * total)),
    "small_accounts": float(count_N[small_N].sum() / total),
    "tail_ads": float(count_N[tail_ads(facts.lines_N)].sum() / total),
  }
  lists = len(ranking_RK)
  if lists > 1:
    # Ordered pairs of lists that share an ad, over places times other lists.
    found["overlap"] = float((count_N * (count_N - 1.0)).sum() / (total * (lists - 1)))
  if facts.vector_ND is not None:
    found["similarity"] = _similarity(shown_RK, facts.vector_ND)
  group_N = facts.account_N if facts.category_N is None else facts.category_N
  if len(facts.past_row):
    found["calibration"] = _calibration(shown_RK, group_N, facts)
    found["groups"] = "accounts" if facts.category_N is None else "categories"
  return found


def _similarity(shown_RK: np.ndarray, vector_ND: np.ndarray) -> float:
  """Mean cosine of two ads of a list, over the lists with two ads or more."""
  # A vector of length 0 stays 0: it is like no other.
  unit_ND = vector_ND / np.maximum(np.linalg.norm(vector_ND, axis=1, keepdims=True), 1e-12)
  means = []
  for begin in range(0, len(shown_RK), _CHUNK):
    some_RK = shown_RK[begin : begin + _CHUNK]
    real_RK = some_RK >= 0
    unit_RKD = np.where(real_RK[..., None], unit_ND[some_RK], 0)
    size_R = real_RK.sum(axis=1)
    # Over ordered pairs: |Σ u|² has every pair twice, and each ad with itself.
    both_R = (unit_RKD.sum(axis=1) ** 2).sum(axis=1) - (unit_RKD**2).sum(axis=(1, 2))
    some = size_R > 1
    means.append(both_R[some] / (size_R * (size_R - 1))[some])
  means = np.concatenate(means)
  return float(means.mean()) if len(means) else 0.0


def _calibration(shown_RK: np.ndarray, group_N: np.ndarray, facts: Facts) -> float:
  """Steck, "Calibrated Recommendations", RecSys 2018, equation 6: KL(p ‖ (1 - α) q + α p).

  p are the shares of the groups in a request's history, by lines, q those in its list.
  """
  groups = int(group_N.max()) + 1
  divergences = []
  for begin in range(0, len(shown_RK), _CHUNK):
    some_RK = shown_RK[begin : begin + _CHUNK]
    rows = len(some_RK)
    first, last = np.searchsorted(facts.past_row, [begin, begin + rows])
    # A request's row and a group in one number, so that one `bincount` makes the whole table.
    past = (facts.past_row[first:last] - begin) * groups + group_N[facts.past_ad[first:last]]
    row, _ = real = np.nonzero(some_RK >= 0)
    listed = row * groups + group_N[some_RK[real]]
    p_RG, q_RG = (
      np.bincount(pairs, minlength=rows * groups).reshape(rows, groups).astype(np.float64)
      for pairs in (past, listed)
    )
    some = (p_RG.sum(axis=1) > 0) & (q_RG.sum(axis=1) > 0)
    p_RG, q_RG = (x[some] / x[some].sum(axis=1, keepdims=True) for x in (p_RG, q_RG))
    mixed_RG = (1 - _SMOOTHING) * q_RG + _SMOOTHING * p_RG
    # 0 · log 0 counts as 0; where p is above 0, so is the mixture.
    ratio_RG = np.where(p_RG > 0, p_RG, 1) / np.where(p_RG > 0, mixed_RG, 1)
    divergences.append((p_RG * np.log(ratio_RG)).sum(axis=1))
  found = np.concatenate(divergences)
  return float(found.mean()) if len(found) else 0.0


def of_systems(
  systems: Mapping[str, Sequence[np.ndarray]], facts: Facts, k: int
) -> dict[str, dict[str, Any]]:
  """`exposure` of each system, mean over its seeds' lists."""
  found = {}
  for name, runs in systems.items():
    each = [exposure(np.asarray(run), facts, k) for run in runs]
    found[name] = {
      # What is told in words is the same for all seeds.
      key: value if isinstance(value, str) else np.mean([one[key] for one in each], axis=0).tolist()
      for key, value in each[0].items()
    }
  return found


def format_table(found: Mapping[str, Mapping[str, Any]], k: int) -> list[list[str]]:
  """Rows of a table of what `of_systems` found, the first its header."""
  names = [name for name in next(iter(found.values())) if name not in ("deciles", "groups")]
  rows = [[f"first {k} places", "top tenth of ads", "last half of ads", *map(_words, names)]]
  for system, row in found.items():
    shares = [row["deciles"][0], sum(row["deciles"][5:])]
    rows.append([system, *(f"{share:.3f}" for share in (*shares, *(row[n] for n in names)))])
  return rows


def _words(name: str) -> str:
  return name.replace("_", " ")
