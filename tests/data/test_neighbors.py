"""Co-visit neighbours against a loop over visits."""

import itertools
import math
import warnings

import numpy as np
import pytest

from gr4ad_jax.data import history, neighbors
from gr4ad_jax.data.history import build_lines
from gr4ad_jax.data.neighbors import Neighbors
from tests.data import logs

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
    found = Neighbors.fit(lines.request, lines.ad, ADS, number, shrink)
  expected = cosines(lines, shrink)
  assert found.ids.shape == found.cosine.shape == (ADS, number)
  for i in range(ADS):
    here = found.ids[i][found.ids[i] >= 0]
    assert len(here) == min(number, (expected[i] > 0).sum()) and len(set(here.tolist())) == len(here) and i not in here
    np.testing.assert_allclose(found.cosine[i, : len(here)], expected[i, here], rtol=1e-5)
    np.testing.assert_allclose(found.cosine[i, : len(here)], np.sort(expected[i])[::-1][: len(here)], rtol=1e-5)
    assert (found.cosine[i, len(here) :] == 0).all() and (found.ids[i, len(here) :] == -1).all()


def test_order_of_visits_does_not_matter(lines):
  shuffled = np.random.default_rng(0).permutation(len(lines.ad))
  one = Neighbors.fit(lines.request, lines.ad, ADS)
  other = Neighbors.fit(lines.request[shuffled] + 7, lines.ad[shuffled], ADS)
  np.testing.assert_allclose(one.cosine, other.cosine, rtol=1e-5)


@pytest.mark.parametrize("cells", [1, 8_000_000])
@pytest.mark.parametrize("slots", [2, ADS + 3])
def test_unseen_equals_a_loop_and_is_never_of_the_history(lines, slots, cells, monkeypatch):
  monkeypatch.setattr(neighbors, "_MAX_CELLS", cells)
  found = Neighbors.fit(lines.request, lines.ad, ADS, 3, 2.0)
  requests = np.arange(len(lines.request_time))
  rows = history.history_rows(lines, requests, 9)
  decay = np.random.default_rng(1).random(rows.shape)
  ids, scores = found.unseen(lines, requests, rows, decay, slots)
  assert ids.shape == scores.shape == (len(requests), slots) and ids.dtype == np.int32 and scores.dtype == np.float32
  for r in requests:
    score, past = np.zeros(ADS), set()
    for row, weight in zip(rows[r], decay[r], strict=True):
      if row >= 0:
        past.add(int(lines.ad[row]))
        for near, cosine in zip(found.ids[lines.ad[row]], found.cosine[lines.ad[row]], strict=True):
          score[near] += weight * cosine if near >= 0 else 0
    score[list(past)] = 0
    here = ids[r][ids[r] >= 0]
    assert not past & set(here.tolist()) and len(here) == min(slots, (score > 0).sum())
    np.testing.assert_allclose(scores[r, : len(here)], np.sort(score)[::-1][: len(here)], rtol=1e-5)
    np.testing.assert_allclose(scores[r, : len(here)], score[here], rtol=1e-5)
    assert (scores[r, len(here) :] == 0).all()


def test_no_line_at_all():
  none = Neighbors.fit(np.zeros(0, np.int32), np.zeros(0, np.int32), 4)
  assert (none.ids == -1).all() and (none.cosine == 0).all()


def test_file_round_trip(lines, tmp_path):
  found = Neighbors.fit(lines.request, lines.ad, ADS)
  found.save(str(tmp_path))
  back = Neighbors.load(str(tmp_path))
  np.testing.assert_array_equal(back.ids, found.ids)
  np.testing.assert_array_equal(back.cosine, found.cosine)
