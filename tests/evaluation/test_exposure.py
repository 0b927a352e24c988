"""Exposure of lists against loops in NumPy: with padding, ties, and users without a past."""

import itertools
import math

import numpy as np
import pytest

from gr4ad_jax.evaluation import exposure, protocols
from gr4ad_jax.evaluation.exposure import Facts

ADS = 23
K = 4


@pytest.fixture(scope="module")
def drawn():
  rng = np.random.default_rng(0)
  lists_RK = np.stack([rng.permutation(ADS)[:6] for _ in range(9)])
  lists_RK[3, 2:] = -1
  lists_RK[5, :] = -1
  lists_RK[6, 1:] = -1
  past = np.sort(rng.integers(0, 9, 60))
  past = past[past != 2]  # one user without a history
  facts = Facts(
    lines_N=rng.integers(0, 5, ADS),
    account_N=rng.integers(0, 6, ADS),
    category_N=rng.integers(0, 4, ADS),
    vector_ND=rng.normal(size=(ADS, 3)),
    past_row=past,
    past_ad=rng.integers(0, ADS, len(past)),
    requests=9,
  )
  return lists_RK, facts, exposure.exposure(lists_RK, facts, K)


def shown(lists_RK):
  return [[int(ad) for ad in row[:K] if ad >= 0] for row in lists_RK]


def test_places_by_decile_coverage_and_gini(drawn):
  lists_RK, facts, found = drawn
  order = sorted(range(ADS), key=lambda ad: (-facts.lines_N[ad], ad))
  decile = {ad: place * 10 // ADS for place, ad in enumerate(order)}
  places = [ad for row in shown(lists_RK) for ad in row]
  share = [sum(decile[ad] == d for ad in places) / len(places) for d in range(10)]
  np.testing.assert_allclose(found["deciles"], share)
  assert len(set(share)) > 4 and math.isclose(sum(found["deciles"]), 1)
  assert found["coverage"] == pytest.approx(len(set(places)) / ADS)
  count = [places.count(ad) for ad in range(ADS)]
  apart = sum(abs(a - b) for a in count for b in count)
  assert found["gini"] == pytest.approx(apart / (2 * ADS * sum(count)))


def test_small_accounts_and_tail(drawn):
  lists_RK, facts, found = drawn
  places = [ad for row in shown(lists_RK) for ad in row]

  def least(count):
    small, total = set(), 0
    for one in sorted(count, key=lambda one: (count[one], one)):
      total += count[one]
      if total > 0.2 * sum(count.values()):
        break
      small.add(one)
    return small

  of_account = {a: sum(facts.lines_N[facts.account_N == a]) for a in range(6)}
  small = least(of_account)
  assert 0 < len(small) < 6
  share = sum(facts.account_N[ad] in small for ad in places) / len(places)
  assert found["small_accounts"] == pytest.approx(share)
  tail = least(dict(enumerate(facts.lines_N.tolist())))
  assert found["tail_ads"] == pytest.approx(sum(ad in tail for ad in places) / len(places))


def test_lists_against_each_other_and_within(drawn):
  lists_RK, facts, found = drawn
  lists = shown(lists_RK)
  pairs = [len(set(a) & set(b)) for a, b in itertools.permutations(lists, 2)]
  assert found["overlap"] == pytest.approx(sum(pairs) / (sum(map(len, lists)) * 8))
  unit = facts.vector_ND / np.linalg.norm(facts.vector_ND, axis=1)[:, None]
  each = [
    np.mean([unit[a] @ unit[b] for a, b in itertools.combinations(row, 2)])
    for row in lists
    if len(row) > 1
  ]
  assert found["similarity"] == pytest.approx(np.mean(each))


@pytest.mark.parametrize("known", [True, False])
def test_calibration_is_the_divergence_from_the_past(drawn, known):
  lists_RK, facts, _ = drawn
  if not known:
    facts = Facts(**(vars(facts) | {"category_N": None}))
  group = facts.category_N if known else facts.account_N
  divergences = []
  for r, row in enumerate(shown(lists_RK)):
    past = facts.past_ad[facts.past_row == r]
    if not len(past) or not row:
      continue
    total = 0.0
    for g in range(6):
      p = np.mean(group[past] == g)
      q = np.mean(group[row] == g)
      if p > 0:
        total += p * math.log(p / (0.99 * q + 0.01 * p))
    divergences.append(total)
  assert len(divergences) == 7  # one list is empty, one user has no past
  found = exposure.exposure(lists_RK, facts, K)
  assert found["calibration"] == pytest.approx(np.mean(divergences))
  assert found["groups"] == ("categories" if known else "accounts")


def test_facts_are_of_what_the_protocol_shows(bazaar):
  dataset = bazaar
  requests = protocols.eval_requests(dataset, "test")
  facts = Facts.of(dataset, requests)
  events = dataset.events
  for r, user in enumerate(requests.user):
    lines = {
      (int(q), int(a))
      for q, a, u, s in zip(events.request, events.ad, events.user, events.split, strict=True)
      if u == user and s < 2
    }
    expected = sorted(ad for _, ad in lines)
    assert sorted(facts.past_ad[facts.past_row == r].tolist()) == expected
  np.testing.assert_array_equal(facts.lines_N, protocols.line_counts(dataset, "test"))


def test_seeds_are_averaged(drawn):
  lists_RK, facts, found = drawn
  other = exposure.exposure(lists_RK[::-1], facts, K)
  both = exposure.of_systems({"a": [lists_RK, lists_RK[::-1]]}, facts, K)["a"]
  assert both["calibration"] == pytest.approx((found["calibration"] + other["calibration"]) / 2)
  assert both["calibration"] != found["calibration"] and both["groups"] == "categories"
  rows = exposure.format_table({"a": both}, K)
  assert rows[0][:3] == ["first 4 places", "top tenth of ads", "last half of ads"]
  assert rows[1][1] == f"{both['deciles'][0]:.3f}" and len(rows[0]) == len(rows[1])
