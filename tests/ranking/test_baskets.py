"""A visit cut in two, what simple methods make of the given half, and a basket completed."""

import json
import shutil

import numpy as np
import pytest

from gr4ad_jax.answering.recommender import Recommender
from gr4ad_jax.config import load_config
from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.decoding.ranker import Ranking
from gr4ad_jax.evaluation import protocols
from gr4ad_jax.features.baskets import with_basket
from gr4ad_jax.ranking import basket_study, completion
from gr4ad_jax.requests import inputs as inputs_lib
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.fixture(scope="module")
def inputs(small_run):
  return inputs_lib.prepare_inputs(load_config(str(small_run)))


@pytest.fixture(scope="module")
def halves(inputs):
  return basket_study.Halves.of(inputs, protocols.eval_requests(inputs.dataset, "test"))


def test_half_of_each_visit_is_given_and_the_rest_is_to_be_found(inputs, halves):
  whole = protocols.eval_requests(inputs.dataset, "test")
  ads = {
    int(request): set(whole.target_ad[whole.target_start[r] : whole.target_start[r + 1]].tolist())
    for r, request in enumerate(whole.request)
  }
  sizes = []
  events = inputs.dataset.events
  for r, request in enumerate(halves.requests.request):
    start, end = halves.requests.target_start[r : r + 2]
    hidden = set(halves.requests.target_ad[start:end].tolist())
    given = set(halves.given.row_E[halves.given.request_E == r].tolist())
    assert not hidden & given and hidden | given == ads[int(request)]
    assert len(given) == len(ads[int(request)]) // 2
    log = halves.log_R[r]
    assert set(log.ad[log.request == log.request[-1]].tolist()) == given
    earlier = (events.user == halves.requests.user[r]) & (events.request < request)
    assert sorted(log.ad[log.request < log.request[-1]].tolist()) == sorted(
      events.ad[earlier].tolist()
    )
    assert log.time.max() == halves.now_R[r] == events.time[events.request == request].min()
    assert len(halves.before_R[r]) == earlier.sum() and (log.user == 0).all()
    sizes.append(len(given))
  assert len(set(sizes)) > 1  # visits of different lengths


def test_simple_methods_against_loops(inputs, halves):
  lists = basket_study.simple(inputs, "test", halves)
  events = inputs.dataset.events
  known = events.split < 2
  lines = sorted({(int(q), int(a)) for q, a in zip(events.request[known], events.ad[known],
                                                   strict=True)})  # fmt: skip
  popular = np.bincount([ad for _, ad in lines], minlength=24)
  user_of = dict(zip(events.request.tolist(), events.user.tolist(), strict=True))
  after = np.zeros((24, 24))
  for i, (q, a) in enumerate(lines):
    for d, (p, b) in enumerate(lines[i + 1 : i + 51]):
      if user_of[p] == user_of[q] and a != b:
        after[a, b] += 0.9**d
  for r in range(len(halves.requests)):
    given = set(halves.given.row_E[halves.given.request_E == r].tolist())
    late = np.zeros(24)
    for age, ad in enumerate(halves.log_R[r].ad[::-1]):
      late[ad] += 0.8**age
    counts = np.bincount(halves.before_R[r].ad, minlength=24)
    for name, score in (
      ("popularity", popular), ("frequency", counts), ("followers", late @ after)
    ):  # fmt: skip
      got = lists[name][r].tolist()
      assert not set(got) & given and len(set(got)) == 10
      order = [ad for ad in np.lexsort((-popular, -np.round(score, 5))) if ad not in given]
      expected = [(round(float(score[ad]), 4), popular[ad]) for ad in order[:10]]
      assert [(round(float(score[ad]), 4), popular[ad]) for ad in got] == expected
  assert set(lists) == {"popularity", "frequency", "followers", "ease_baskets"}


def test_a_basket_is_the_last_visit():
  log = visits.no_events()
  full = with_basket(log, np.array([3, 1]), 50, np.array([2.0, 4.0]), 2)
  more = with_basket(full, np.array([7]), 60, np.array([1.0]), 1)
  assert more.ad.tolist() == [3, 1, 7] and more.request.tolist() == [0, 0, 1]
  assert more.time.tolist() == [50, 50, 60] and more.behavior.tolist() == [2, 2, 1]
  assert more.value.tolist() == [2.0, 4.0, 1.0] and len(log) == 0


def test_a_basket_is_completed(small_run):
  recommender = Recommender.load(str(small_run))
  nobody = visits.no_events()
  found = recommender.complete(nobody, ["ad01", "ad02"], k=4)
  ids = [ad.ad_id for ad in found]
  assert len(set(ids)) == 4 and not {"ad01", "ad02"} & set(ids)
  assert found != recommender.complete(nobody, ["ad07", "ad08"], k=4)  # the basket counts
  one = recommender.complete(nobody, ["ad01", "ad02"], k=3, one_by_one=True)
  assert one[0] == found[0]
  assert one[1] == recommender.complete(nobody, ["ad01", "ad02", one[0].ad_id], k=1)[0]
  assert len({ad.ad_id for ad in one} | {"ad01", "ad02"}) == 5
  with pytest.raises(DataError, match="basket: ad_id 'ad99' is not in the ad table"):
    recommender.complete(nobody, ["ad01", "ad99"])


@pytest.mark.long
def test_baskets_by_the_binaries(small_run, tmp_path):
  done = tiny.run("recommend", f"--workdir={small_run}", "--basket=ad01,ad02", "--k=3", "--json")
  assert (done.status, done.err) == (0, "")
  assert not {"ad01", "ad02"} & {ad["ad_id"] for ad in json.loads(done.out)["ads"]}
  refused = tiny.run("recommend", f"--workdir={small_run}", "--user=u1", "--one_by_one")
  assert refused.status == 2 and refused.err.startswith("error: --one_by_one is not allowed")
  run = tmp_path / "run"
  shutil.copytree(small_run, run)
  done = tiny.run("risks", f"--workdir={run}", "--study=baskets")
  assert (done.status, done.err) == (0, "")
  found = json.loads((run / "eval" / "baskets.json").read_text())
  assert list(found["systems"])[:2] == ["gr4ad", "gr4ad, weight 0"]
  assert "gr4ad" not in found["ahead"] and "ease_baskets" in found["ahead"]


def test_the_basket_is_a_factor_of_the_score():
  found = Ranking(
    np.array([[4, 2, 9, -1]], np.int32),
    np.array([[-1.0, -2.0, -4.0, -np.inf]], np.float32),
    np.array([[5.0, 6.0, 7.0, 0.0]], np.float32),
    np.array([[-1.5, -2.5, -4.5, -np.inf]], np.float32),
  )
  near = np.array([[9, 7, 2, -1]], np.int32)
  cosine = completion.mean_cosine(np.array([[0.8, 0.6, 0.01, 0.0]]), np.array([[1, 3, -1]]))
  assert cosine.tolist() == [[0.4, 0.3, 0.005, 0.0]]
  given = completion.reordered(found, near, cosine, 3, 0.5)
  expected = {4: -1.5 + 0.5 * np.log(0.001), 2: -2.5 + 0.5 * np.log(0.006),
              9: -4.5 + 0.5 * np.log(0.401)}  # fmt: skip
  assert given.ad_RK.tolist() == [sorted(expected, key=lambda ad: -expected[ad])] == [[4, 9, 2]]
  np.testing.assert_allclose(given.score_RK[0], sorted(expected.values(), reverse=True), rtol=1e-5)
  assert given.logp_RK.tolist() == [[-1.0, -4.0, -2.0]] and given.value_RK[0].tolist() == [5, 7, 6]
  plain = completion.reordered(found, near, cosine, 4, 0.0)
  assert plain.ad_RK.tolist() == [[4, 2, 9, -1]]
