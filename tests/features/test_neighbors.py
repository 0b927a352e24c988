"""Co-visit neighbours against a loop over visits."""

import dataclasses
import itertools
import math
import warnings

import numpy as np
import pytest

from gr4ad_jax.features import history, neighbors
from gr4ad_jax.features.lines import build_lines
from gr4ad_jax.features.neighbors import CoVisitNeighbors, NeighborFolds
from tests.features import logs
from tests.whole_files import assert_replaced_whole

ADS = logs.ADS + 2  # two ads that nobody takes


def cosines(lines, shrink):
  common = np.zeros((ADS, ADS))
  for r in np.unique(lines.request):
    ads = lines.ad[lines.request == r]
    for i, j in itertools.product(ads, ads):
      common[i, j] += 1 / math.log2(2 + len(ads))
  mass = common.diagonal() + shrink
  cosine = common / np.sqrt(np.outer(mass, mass))
  np.fill_diagonal(cosine, 0)
  return cosine


@pytest.fixture(params=range(2))
def lines(request):
  return build_lines(logs.make_log(request.param, users=8), ADS)


@pytest.mark.parametrize(("number", "shrink"), [(3, 10.0), (ADS, 0.5)])
def test_fit_equals_a_loop(lines, number, shrink):
  with warnings.catch_warnings(action="error"):
    found = CoVisitNeighbors.fit(lines.request, lines.ad, ADS, number, shrink)
  expected = cosines(lines, shrink)
  assert found.ids.shape == found.cosine.shape == (ADS, number)
  for i in range(ADS):
    here = found.ids[i][found.ids[i] >= 0]
    assert (
      len(here) == min(number, (expected[i] > 0).sum())
      and len(set(here.tolist())) == len(here)
      and i not in here
    )
    np.testing.assert_allclose(found.cosine[i, : len(here)], expected[i, here], rtol=1e-5)
    np.testing.assert_allclose(
      found.cosine[i, : len(here)], np.sort(expected[i])[::-1][: len(here)], rtol=1e-5
    )
    assert (found.cosine[i, len(here) :] == 0).all() and (found.ids[i, len(here) :] == -1).all()


def test_order_of_visits_does_not_matter(lines):
  shuffled = np.random.default_rng(0).permutation(len(lines.ad))
  one = CoVisitNeighbors.fit(lines.request, lines.ad, ADS)
  other = CoVisitNeighbors.fit(lines.request[shuffled] + 7, lines.ad[shuffled], ADS)
  np.testing.assert_allclose(one.cosine, other.cosine, rtol=1e-5)


@pytest.fixture
def histories(lines):
  """Ads and weights of every request's history: distinct ads, padding in between too."""
  rows = history.history_rows(lines, np.arange(len(lines.request_time)), 9)
  rng = np.random.default_rng(1)
  return np.where(
    (rows >= 0) & (rng.random(rows.shape) < 0.8), lines.ad[rows], -1
  ), 0.1 + rng.random(rows.shape)


@pytest.mark.parametrize("chunk", [1, 16])
@pytest.mark.parametrize("slots", [1, 2, ADS + 3])
def test_unseen_equals_a_loop_and_is_never_of_the_history(
  lines, histories, slots, chunk, monkeypatch
):
  monkeypatch.setattr(neighbors, "_CHUNK", chunk)
  found = CoVisitNeighbors.fit(lines.request, lines.ad, ADS, 3, 2.0)
  ids, scores = found.unseen(*histories, slots)
  assert ids.shape == scores.shape == (len(histories[0]), slots)
  assert ids.dtype == np.int32 and scores.dtype == np.float32
  for r, (ads, weights) in enumerate(zip(*histories, strict=True)):
    score, past = np.zeros(ADS), set(ads[ads >= 0].tolist())
    for ad, weight in zip(ads, weights, strict=True):
      if ad >= 0:
        for near, cosine in zip(found.ids[ad], found.cosine[ad], strict=True):
          score[near] += weight * cosine if near >= 0 else 0
    score[list(past)] = 0
    here = ids[r][ids[r] >= 0]
    assert not past & set(here.tolist()) and len(here) == min(slots, (score > 0).sum())
    np.testing.assert_allclose(scores[r, : len(here)], np.sort(score)[::-1][: len(here)], rtol=1e-5)
    np.testing.assert_allclose(scores[r, : len(here)], score[here], rtol=1e-5)
    assert (scores[r, len(here) :] == 0).all() and (ids[r, len(here) :] == -1).all()


def test_a_history_gets_the_same_alone_and_among_others(lines, histories):
  found = CoVisitNeighbors.fit(lines.request, lines.ad, ADS, 3, 2.0)
  together = found.unseen(*histories, 3)
  for r in range(len(histories[0])):
    for one, all_of_them in zip(
      found.unseen(*(x[r : r + 1] for x in histories), 3), together, strict=True
    ):
      np.testing.assert_array_equal(one[0], all_of_them[r])


def test_of_equal_scores_the_lower_row_comes_first():
  same = CoVisitNeighbors(
    np.tile([3, 1, 0, 2], (70_000, 1)).astype(np.int32), np.ones((70_000, 4), np.float32)
  )
  far = dataclasses.replace(same, ids=same.ids + 69_990)  # rows beyond 16 bits
  ads, weight = np.array([[9, 69_999, -1], [-1, -1, -1]]), np.ones((2, 3))
  for found, shift in ((same, 0), (far, 69_990)):
    ids, scores = found.unseen(ads, weight, 3)
    np.testing.assert_array_equal(ids, [[shift, shift + 1, shift + 2], [-1, -1, -1]])
    np.testing.assert_array_equal(scores, [[2, 2, 2], [0, 0, 0]])


def test_an_ad_that_came_later_has_no_neighbours(lines, histories):
  found = CoVisitNeighbors.fit(lines.request, lines.ad, ADS, 3, 2.0)
  ads, weight = histories
  later = np.where(ads >= 0, ads, ADS + 5)
  for one, other in zip(found.unseen(later, weight, 4), found.unseen(ads, weight, 4), strict=True):
    np.testing.assert_array_equal(one, other)


def test_no_line_at_all():
  none = CoVisitNeighbors.fit(np.zeros(0, np.int32), np.zeros(0, np.int32), 4)
  assert (none.ids == -1).all() and (none.cosine == 0).all()
  ids, scores = none.unseen(np.array([[1, 2]]), np.ones((1, 2)), 3)
  assert (ids == -1).all() and (scores == 0).all()


def test_file_round_trip(lines, tmp_path):
  found = CoVisitNeighbors.fit(lines.request, lines.ad, ADS)
  found.save(str(tmp_path))
  back = CoVisitNeighbors.load(str(tmp_path))
  np.testing.assert_array_equal(back.ids, found.ids)
  np.testing.assert_array_equal(back.cosine, found.cosine)


def test_without_further_words_an_ad_has_32_neighbours_shrunk_by_10(lines):
  found = CoVisitNeighbors.fit(lines.request, lines.ad, ADS)
  assert found.ids.shape == (ADS, 32)
  expected = cosines(lines, 10.0)
  for i in range(ADS):
    here = found.ids[i][found.ids[i] >= 0]
    np.testing.assert_allclose(found.cosine[i, : len(here)], expected[i, here], rtol=1e-5)


@pytest.mark.parametrize("number", [1, 3])
def test_each_fold_leaves_its_users_out_and_the_last_nobody(lines, number):
  user = lines.request_user[lines.request]
  folds = NeighborFolds.fit(lines.request, user, lines.ad, ADS, number)
  assert folds.ids.shape == folds.cosine.shape == (number + 1, ADS, 32)
  for fold in range(number + 1):
    kept = np.array([fold == number or who % number != fold for who in user])
    part = folds.part(fold)
    alone = CoVisitNeighbors.fit(lines.request[kept], lines.ad[kept], ADS)
    np.testing.assert_array_equal(part.ids, alone.ids)
    np.testing.assert_array_equal(part.cosine, alone.cosine)
  np.testing.assert_array_equal(folds.part(-1).ids, folds.part(number).ids)
  users = np.arange(7)
  assert folds.fold_of(users, False).tolist() == [who % number for who in users]
  assert folds.fold_of(users, True).tolist() == [number] * 7


def test_files_are_replaced_whole(lines, tmp_path):
  user = lines.request_user[lines.request]
  one, other = (NeighborFolds.fit(lines.request, who, lines.ad, ADS, 2) for who in (user, user + 1))
  other = dataclasses.replace(other, cosine=other.cosine / 2)
  for name in ("folds.npz", "neighbors.npz"):
    folder = tmp_path / name.removesuffix(".npz")
    folder.mkdir()
    write, again = (lambda x=x, folder=folder: x.save(str(folder)) for x in (one, other))
    assert_replaced_whole(str(folder / name), write, again)


def test_more_ads_than_slots_keep_the_lower_rows_of_a_tie():
  found = CoVisitNeighbors(
    np.array([[5, 2, 4, 1]], np.int32).repeat(6, 0), np.full((6, 4), 0.5, np.float32)
  )
  ids, scores = found.unseen(np.array([[0, -1], [0, 4]]), np.array([[2.0, 9.0], [2.0, 1.0]]), 2)
  assert ids.tolist() == [[1, 2], [1, 2]] and scores.tolist() == [[1, 1], [1.5, 1.5]]
