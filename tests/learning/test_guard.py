"""The guard's verdict, against a loop over requests."""

import numpy as np
import pytest

from gr4ad_jax.evaluation.protocols import EvalRequests
from gr4ad_jax.learning import guard

ADS = 30


def requests_of(targets):
  start = np.append(0, np.cumsum([len(some) for some in targets]))
  flat = np.concatenate([np.sort(some) for some in targets])
  rows = np.arange(len(targets), dtype=np.int32)
  return EvalRequests("live", rows, rows, start, flat, np.ones(len(flat), np.float32))


def recall(lists, targets):
  shares = []
  for ads, wanted in zip(lists, targets, strict=True):
    hits = sum(ad in set(wanted) for ad in ads[:10])
    shares.append(hits / min(10, len(wanted)))
  return sum(shares) / len(shares)


@pytest.fixture
def made():
  rng = np.random.default_rng(0)
  targets = [rng.choice(ADS, rng.integers(1, 14), replace=False) for _ in range(40)]
  lists = {
    name: np.stack([rng.permutation(ADS)[:12] for _ in targets]) for name in ("candidate", "start")
  }
  # The one in use knows the first target of each.
  lists["in_use"] = lists["start"].copy()
  for row, wanted in enumerate(targets):
    rest = [ad for ad in lists["start"][row] if ad != wanted[0]]
    lists["in_use"][row] = [wanted[0], *rest][:12]
  return lists, targets


def test_the_verdict_is_on_the_best_of_the_others(made):
  lists, targets = made
  wanted = {name: recall(some, targets) for name, some in lists.items()}
  fall = wanted["candidate"] - max(wanted["start"], wanted["in_use"])
  assert fall < -0.01 < wanted["candidate"] - wanted["start"] + 0.05
  strict = guard.judge(lists, requests_of(targets), ADS, bound=-fall - 0.001)
  assert strict.recall == pytest.approx(wanted)
  assert strict.worst == pytest.approx(fall)
  assert (strict.promote, strict.requests) == (False, 40)
  assert guard.judge(lists, requests_of(targets), ADS, bound=-fall + 0.001).promote


def test_small_steps_down_cannot_add_up(made):
  """Level with the one in use, and below the start by more than the bound: refused."""
  lists, targets = made
  three = {
    "candidate": lists["candidate"], "in_use": lists["candidate"], "start": lists["in_use"],
  }  # fmt: skip
  assert guard.judge(
    {name: three[name] for name in ("candidate", "in_use")}, requests_of(targets), ADS, 0.0
  ).promote
  assert not guard.judge(three, requests_of(targets), ADS, 0.01).promote


def test_no_request_promotes_nothing():
  none = np.zeros(0, np.int32)
  empty = EvalRequests("live", none, none, np.zeros(1, int), none, none.astype(np.float32))
  lists = {"candidate": np.zeros((0, 10), int), "start": np.zeros((0, 10), int)}
  assert guard.judge(lists, empty, ADS, 1.0) == guard.Verdict(False, {}, 0.0, 0)
