"""Work follows what is asked for: rows touched, arrays shipped, programs compiled, values
sorted; results by loops.
"""

import jax
import numpy as np
import pytest

from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.index.live_index import LiveIndex
from gr4ad_jax.sid import assignment, kmeans, nearest, report, rows, rqvae, tokenizer
from gr4ad_jax.swing import swing


class Counted(np.ndarray):
  """An array that counts the entries that are gathered from it."""

  touched = 0

  def __getitem__(self, where):
    found = np.asarray(self)[where]
    Counted.touched += np.size(found)
    return found


def expanded(ads_of_leaf, leaves_RW, limit):
  """Ads of ranked leaves, one after the other."""
  out = np.full((len(leaves_RW), limit), -1)
  for row, leaves in enumerate(leaves_RW):
    listed = [ad for leaf in leaves if leaf >= 0 for ad in ads_of_leaf[leaf]][:limit]
    out[row, : len(listed)] = listed
  return out


def one_large_leaf():
  """5,000 ads: 4,990 of one UA-SID, the others of four."""
  codes_NT = np.zeros((5000, 2), np.int32)
  codes_NT[[3, 9, 20, 30, 31, 32, 33, 70, 80, 90]] = [
    [1, 0],
    [1, 0],
    [0, 1],
    *[[1, 2]] * 4,
    *[[1, 1]] * 3,
  ]
  return codes_NT


@pytest.mark.parametrize("limit", [0, 1, 6, 10])
def test_expansion_touches_as_many_ads_as_it_returns(limit):
  codes_NT = one_large_leaf()
  index = SidIndex.build(codes_NT, (2, 3))
  distinct = np.unique(codes_NT, axis=0)
  ads_of_leaf = [np.flatnonzero((codes_NT == codes).all(axis=1)) for codes in distinct]
  leaves_RW = np.array([[0, 1, 2], [2, -1, 0], [3, 4, 0], [-1, -1, -1], [1, 3, 4]])
  object.__setattr__(index, "leaf_ads", index.leaf_ads.view(Counted))
  Counted.touched = 0
  found = index.expand(leaves_RW, limit)
  np.testing.assert_array_equal(found, expanded(ads_of_leaf, leaves_RW, limit))
  assert found.dtype == np.int32 and found.shape == (5, limit)
  assert Counted.touched == (found >= 0).sum()


def test_live_expansion_does_not_follow_the_largest_leaf():
  codes_NT = one_large_leaf()
  index = LiveIndex(codes_NT, (2, 3))
  for row in (0, 1, 2, 4, 5, 6):
    index.set(row, (1, 1) if row % 2 else None)  # of the large leaf's first rows most are gone
  index.set(5, (0, 0))  # back
  index.set(4999, None)
  index.set(6000, (0, 0))
  object.__setattr__(index._main, "leaf_rows", index._main.leaf_rows.view(Counted))
  Counted.touched = 0
  beams_BWT = np.array([[[0, 0], [1, 1]], [[1, 1], [0, 0]]])
  rows_BK, beam_BK = index.expand(beams_BWT, np.ones((2, 2), bool), 7)
  assert rows_BK.tolist() == [[5, 7, 8, 10, 11, 12, 13], [1, 70, 80, 90, 5, 7, 8]]
  assert beam_BK.tolist() == [[0] * 7, [0] * 4 + [1] * 3]
  assert Counted.touched <= 2 * (7 + 6 + 3)  # twice the limit and what is gone, and the small leaf
  everything = index.expand(beams_BWT[:1], np.ones((1, 2), bool), 5000)[0][0]
  large = sorted(set(np.flatnonzero((codes_NT == 0).all(axis=1))) - {0, 1, 2, 4, 6, 4999}) + [6000]
  assert (
    everything[: len(large) + 4].tolist() == [*large, 1, 70, 80, 90]
    and everything[len(large) + 4] == -1
  )


def test_rows_that_come_and_go_are_counted_once():
  index = LiveIndex(np.zeros((40, 2), int), (2, 2))
  for _ in range(3):
    for row in range(8):
      index.set(row, None)
      index.set(row, (1, 1))
      index.set(row, (0, 0))
  for row in range(4):
    index.set(row, (1, 0))
  object.__setattr__(index._main, "leaf_rows", index._main.leaf_rows.view(Counted))
  Counted.touched = 0
  found = index.expand(np.zeros((1, 1, 2), int), np.ones((1, 1), bool), 3)[0]
  assert found.tolist() == [[4, 5, 6]] and Counted.touched == 3 + 4
  index.merge()
  assert index.expand(np.zeros((1, 1, 2), int), np.ones((1, 1), bool), 3)[0].tolist() == [[4, 5, 6]]


def recall_by_sorting(vectors_ND, truth_NK, known_NK, cut):
  """recall@cut by a stable sort of all ads for each query."""
  recalls = []
  for query, wanted in enumerate(truth_NK):
    wanted = wanted[wanted >= 0]
    if len(wanted):
      score_N = [float(vectors_ND[query] @ other) for other in vectors_ND]
      for left_out in [query, *known_NK[query][known_NK[query] >= 0]]:
        score_N[left_out] = -np.inf
      ranked = sorted(range(len(score_N)), key=lambda ad: (-score_N[ad], ad))
      recalls.append(len(set(ranked[:cut]) & set(wanted.tolist())) / min(cut, len(wanted)))
  return np.mean(recalls)


@pytest.mark.parametrize("num", [7, 40])
def test_recall_sorts_only_the_best_and_keeps_ties_by_row(monkeypatch, num):
  rng = np.random.default_rng(num)
  vectors_ND = rng.integers(-1, 2, (num, 3)).astype(
    np.float32
  )  # whole numbers: many equal scores, exact in float32
  truth_NK = rng.integers(-1, num, (num, 4))
  known_NK = rng.integers(-1, num, (num, 6))
  monkeypatch.setattr(report, "PART", 16)
  real, widest = np.argsort, []

  def noted(values, *arguments, **more):
    widest.append(np.shape(values)[-1])
    return real(values, *arguments, **more)

  monkeypatch.setattr(np, "argsort", noted)
  truth, known = (swing.Neighbors(ads_NK, np.ones(ads_NK.shape)) for ads_NK in (truth_NK, known_NK))
  found = report.item_recall(vectors_ND, truth, known)
  assert max(widest) <= 10
  for cut in (1, 5, 10):
    expected = recall_by_sorting(vectors_ND, truth_NK, known_NK, cut)
    np.testing.assert_allclose(found[f"recall@{cut}"], expected, rtol=1e-12)


def test_best_are_those_of_a_stable_sort():
  rng = np.random.default_rng(0)
  scores = [
    rng.normal(size=(5, 30)),
    rng.integers(0, 3, (50, 30)),
    np.zeros((2, 30)),
    rng.integers(0, 9, (9, 4)),
  ]
  hidden = rng.normal(size=(6, 30))
  hidden[:, 3:] = -np.inf  # fewer candidates than places: those that are left out follow by row
  for score_QN in (*scores, hidden):
    score_QN = score_QN.astype(np.float32)
    for most in (1, 10):
      expected = [
        sorted(range(len(row)), key=lambda ad, row=row: (-row[ad], ad))[:most] for row in score_QN
      ]
      assert report._best(score_QN, most).tolist() == expected


def spied(monkeypatch, name, seen):
  """Notes what the compiled programs of `rows` are called with."""
  real = getattr(rows, name)

  def program_on(*made):
    run = real(*made)

    def noted(*arguments):
      seen.append(arguments)
      return run(*arguments)

    return noted

  monkeypatch.setattr(rows, name, program_on)


def test_centroids_are_shipped_once_for_all_steps_and_rounds(monkeypatch):
  monkeypatch.setattr(rows, "STEP", 512)
  rng = np.random.default_rng(0)
  points_ND = np.repeat(rng.normal(size=(300, 4)), 8, axis=0).astype(
    np.float32
  )  # alike: several rounds of bids
  nearest, sums = [], []
  spied(monkeypatch, "_nearest_on", nearest)
  spied(monkeypatch, "_sums_on", sums)
  kmeans.balanced_kmeans(points_ND, 40, iterations=2, seed=0)
  assert len(nearest) >= 15 and len(sums) == 10  # three assignments and two means, of five steps
  assert len({id(centroids_CD) for _, centroids_CD, _ in nearest}) == 3
  assert len({id(units_D) for *_, units_D in sums}) == 2
  for value in [value for call in (*nearest, *sums) for value in call]:
    assert isinstance(value, jax.Array)  # what is not would be shipped by the call


def test_rounds_of_an_auction_share_one_shipment(monkeypatch):
  seen = []
  spied(monkeypatch, "_nearest_on", seen)
  centroids_CD = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
  assignment.assign_rows(
    rows.Rows(np.zeros((300, 2), np.float32)), centroids_CD, 3
  )  # all want the same 32 clusters
  assert len(seen) >= 4 and len({id(shipped) for _, shipped, _ in seen}) == 1


def test_new_ads_are_encoded_with_centroids_shipped_once(monkeypatch, make):
  ads, events = (
    make[0](40, vectors=np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)),
    make[1]([[0, 1]]),
  )
  sid = tokenizer.settings.SidConfig(codebooks=(4, 3, 16), tower_steps=0, kmeans_iterations=1)
  fitted, _ = tokenizer.fit(ads, events, sid, seed=0)
  expected = fitted.encode(ads)
  shipped, seen = [], []
  real_ship, real_nearest = nearest.ship, nearest._nearest_alone
  monkeypatch.setattr(tokenizer, "ship", lambda table: (shipped.append(table), real_ship(table))[1])
  monkeypatch.setattr(
    nearest,
    "_nearest_alone",
    lambda *arguments: (seen.append(arguments), real_nearest(*arguments))[1],
  )
  monkeypatch.setattr(tokenizer, "STEP", 8)
  again = tokenizer.Tokenizer(fitted.config, 0, fitted.centroids, None)
  for _ in range(2):
    np.testing.assert_array_equal(again.encode(ads), expected)
  assert len(shipped) == 2 and len(seen) == 2 * 2 * 5
  assert all(isinstance(value, jax.Array) for _, *values, _ in seen for value in values)


@pytest.mark.long
def test_an_rqvae_compiles_no_more_for_more_restarts_and_brings_no_codes_to_the_host(monkeypatch):
  monkeypatch.setattr(rqvae, "RESTART", 3)
  rng = np.random.default_rng(0)
  x_ND = rng.normal(size=(30, 6)).astype(np.float32)
  real_step, real_restart = rqvae._train_step, rqvae._restarted
  calls = {"step": 0, "restart": 0}

  def guarded(name, run):
    def call(*arguments):
      calls[name] += 1
      assert all(isinstance(used_C, jax.Array) for used_C in arguments[4 if name == "step" else 1])
      with jax.transfer_guard_device_to_host("disallow"):
        return run(*arguments)

    return call

  monkeypatch.setattr(rqvae, "_train_step", guarded("step", real_step))
  monkeypatch.setattr(rqvae, "_restarted", guarded("restart", real_restart))
  before = real_step._cache_size(), real_restart._cache_size()
  rqvae.fit(
    x_ND, (40, 8), width=3, steps=20, seed=0
  )  # more codes than ads: their idle ones differ by restart
  assert calls == {"step": 20, "restart": 5}
  assert (real_step._cache_size() - before[0], real_restart._cache_size() - before[1]) == (1, 1)
