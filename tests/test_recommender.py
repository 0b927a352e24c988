"""The recommender in Python: no history, short histories, bad entries, many users at once; and a
request drawn.
"""

import dataclasses
import json

import numpy as np
import pytest

from gr4ad_jax.answering.recommender import Recommender
from gr4ad_jax.config import ConfigError, SearchConfig
from gr4ad_jax.data.schema import DataError, EventLog
from gr4ad_jax.delivery import request_plot
from gr4ad_jax.evaluation import exposure
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.fixture(scope="module")
def recommender(small_run):
  return Recommender.load(str(small_run))


def test_without_a_history_there_is_still_a_list(recommender):
  found = recommender.recommend([], k=5)
  assert len(found) == 5 and len({ad.ad_id for ad in found}) == 5
  assert all(np.isfinite(ad.score) and ad.ecpm >= 0 for ad in found)
  assert len(recommender.recommend([], k=50)) == 8  # what the last beam width holds


def test_the_history_counts(recommender):
  lists = {
    tuple(ad.score for ad in recommender.recommend(events))
    for events in ([], ["ad01"], ["ad07", "ad08"])
  }
  assert len(lists) == 3


def test_masked_ads_leave_room_for_the_next(recommender, small_run):
  masked = Recommender.load(
    str(small_run), search=dataclasses.replace(recommender.config.search, seen_ads="masked")
  )
  everything = recommender.recommend(["ad01"], k=50)
  seen = ["ad01", everything[0].ad_id, everything[2].ad_id]
  left = recommender.recommend(seen, k=50)
  expected = [ad for ad in left if ad.ad_id not in seen]
  assert len(expected) < len(left)
  assert masked.recommend(seen, k=3) == expected[:3]
  full = masked.recommend(seen, k=50)  # left out inside the search: as many as the beams hold
  assert len(full) == len(left) and not {ad.ad_id for ad in full} & set(seen)
  assert masked.recommend([], k=4) == recommender.recommend([], k=4)


def test_an_id_is_short_for_an_event(recommender):
  assert recommender.recommend(["ad03", "ad05"]) == recommender.recommend(
    [{"ad_id": "ad03"}, {"ad_id": "ad05"}]
  )


def test_the_order_of_entries_is_that_of_their_times(recommender):
  events = [
    {"ad_id": f"ad{n:02d}", "time": 1_704_000_000 + 86_400 * n, "value": float(n)} for n in range(4)
  ]
  assert recommender.recommend(events) == recommender.recommend(events[::-1])


@pytest.mark.parametrize(
  ("event", "message"),
  [
    ("ad99", "entry 2: ad_id 'ad99' is not in the ad table"),
    ({"time": 3}, "entry 2: ad_id None is not in the ad table"),
    (
      {"ad_id": "ad01", "behavior": "look"},
      "entry 2: behavior 'look' is not known; allowed: click, cart, purchase",
    ),
    ({"ad_id": "ad01", "value": -2e12}, "entry 2: value -2000000000000.0 is not allowed"),
    ({"ad_id": "ad01", "time": "now"}, "entry 2: time 'now' is not allowed"),
    ({"ad_id": "ad01", "price": 3}, "entry 2: field 'price' is not known"),
  ],
)
def test_bad_entries_are_named(recommender, event, message):
  with pytest.raises(DataError, match=message):
    recommender.recommend(["ad00", event])


def test_an_event_after_now_is_refused(recommender):
  with pytest.raises(DataError, match="now=1000 is not allowed: the history goes on to 2000"):
    recommender.recommend([{"ad_id": "ad01", "time": 2000}], now=1000)
  with pytest.raises(ValueError, match="k=0"):
    recommender.recommend([], k=0)


@pytest.mark.long  # so do the lists of all users: `delivery/test_batch_lists.py`
def test_many_users_get_what_each_gets_alone(recommender):
  now = 1_800_000_000
  histories = [["ad01"], ["ad02", "ad04"]]
  logs = [
    recommender.log_of([{"ad_id": ad, "time": now - 99} for ad in ads], now) for ads in histories
  ]
  columns = {
    f.name: np.concatenate([getattr(log, f.name) for log in logs])
    for f in dataclasses.fields(EventLog)
  }
  columns["user"] = np.repeat(np.arange(2, dtype=np.int32), [1, 2])
  columns["request"] = columns["user"].copy()
  columns["user_id"] = np.array(["a", "b"])
  together = recommender.recommend_log(EventLog(**columns), 5, now)
  for found, log in zip(together, logs, strict=True):
    alone = recommender.recommend_log(log, 5, now)[0]
    assert [ad.ad_id for ad in found] == [ad.ad_id for ad in alone]
    np.testing.assert_allclose([ad.score for ad in found], [ad.score for ad in alone], rtol=1e-4)


def test_beams_of_a_call_are_checked(small_run):
  with pytest.raises(ConfigError, match="--beams=2,2 is not allowed"):
    Recommender.load(str(small_run), search=SearchConfig(beams=(2, 2)))


@pytest.mark.long  # other settings of the search are given by call in the tests above and below
def test_the_search_of_a_call_wins_over_the_runs(small_run):
  narrow = Recommender.load(
    str(small_run), search=SearchConfig(beams=(2, 3, 4)), compute_dtype="float32"
  )
  assert len(narrow.recommend([], k=50)) == 4


@pytest.mark.long
def test_the_binary_takes_flags_of_the_search(small_run, tmp_path):
  (tmp_path / "search.flags").write_text("--beams=2-3-4\n--order=blend\n")
  arguments = (
    f"--workdir={small_run}",
    f"--flagfile={tmp_path}/search.flags",
    "--user=u1",
    "--k=50",
    "--json",
  )
  done = tiny.run("recommend", *arguments)
  assert (done.status, done.err) == (0, "") and len(json.loads(done.out)["ads"]) == 4
  done = tiny.run("recommend", *arguments, "--seed=9")
  assert done.status == 2 and "--seed=9 is not allowed" in done.err and done.err.count("\n") == 1


def test_a_run_without_a_checkpoint_is_told(small_run, tmp_path):
  with pytest.raises(FileNotFoundError, match="config.json"):
    Recommender.load(str(tmp_path))
  for name in ("config.json", "SHA256SUMS"):
    (tmp_path / name).write_bytes((small_run / name).read_bytes())
  with pytest.raises(FileNotFoundError, match="holds no whole checkpoint"):
    Recommender.load(str(tmp_path))


def test_a_users_last_visit_is_drawn(small_run, monkeypatch, tmp_path):
  seen = []
  monkeypatch.setattr(
    request_plot, "plot_request", lambda request, path: seen.append((request, path))
  )
  done = tiny.run(
    "draw_request", f"--workdir={small_run}", "--user=u3", "--k=4", f"--out={tmp_path}/a.png"
  )
  assert (done.status, done.err) == (0, "")
  ((request, path),) = seen
  assert path == f"{tmp_path}/a.png" and done.out == f"written to {path}\n"
  table, events = tiny.rows()
  last = [row for row in events if row[5] == "3-4"]
  assert request.taken == {row[1] for row in last}
  text = {ad[0]: ad[1] for ad in table}
  before = [row for row in events if row[0] == "u3" and row[5] != "3-4"]
  latest = {text[row[1]] for row in before if row[5] == "3-3"}
  assert set(request.history[: len(latest)]) == latest and len(request.history) <= 7
  assert request.title == "user u3, 2024-01-13: visit 5, predicted from those before"
  assert len(request.ads) == 4 and [len(level) for level in request.tree][-1] == 8
  # the same beams: an ad's codes are one of the last level's prefixes, with the ad's score and
  # value
  leaves = {tuple(node["codes"]): node for node in request.tree[-1]}
  for ad in request.ads:
    assert leaves[ad.codes]["log_p"] == pytest.approx(ad.log_p, abs=1e-5)
    assert leaves[ad.codes]["ecpm"] == pytest.approx(ad.ecpm, abs=1e-5)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      ["--user=nobody"],
      "error: --user=nobody is not allowed: the event log has no such user_id; one that it has is",
    ),
    ([], "error: --user= is not allowed"),
  ],
)
def test_an_unknown_user_is_told_in_one_line(small_run, arguments, message):
  done = tiny.run("draw_request", f"--workdir={small_run}", *arguments)
  assert done.status == 2 and done.err.startswith(message) and done.err.count("\n") == 1


def test_a_model_of_single_ads_has_no_beams(recommender, monkeypatch):
  monkeypatch.setattr(recommender, "_ranker", object())
  with pytest.raises(ValueError, match="--model=gr4ad scores single ads: it has no beams"):
    recommender.beam_tree(EventLog(*[np.zeros(0)] * 9), 0)


def test_lists_are_steered_as_asked(recommender, small_run):
  search = dataclasses.replace(recommender.config.search, quota_share=0.5, quota_group="tail_ads")
  steered = Recommender.load(str(small_run), search=search)
  lines = steered._trends.seen_before(steered._trends.bucket_of(np.array(steered._trends.end)))
  _, events = tiny.rows()
  taken = {(row[5], row[1]) for row in events}
  assert lines.tolist() == [sum(ad == f"ad{n:02d}" for _, ad in taken) for n in range(24)]
  plain = recommender.recommend(["ad01"], k=24)
  found = steered.recommend(["ad01"], k=4)
  tail = {f"ad{n:02d}" for n in np.flatnonzero(exposure.tail_ads(lines))}
  # The beams are too narrow for two of the tail, which has a search of its own then.
  assert sum(ad.ad_id in tail for ad in plain) < 2 <= sum(ad.ad_id in tail for ad in found)
  score = {ad.ad_id: ad.score for ad in plain}
  both = [ad for ad in found if ad.ad_id in score]
  assert len(both) >= 2
  assert all(ad.score == pytest.approx(score[ad.ad_id], abs=1e-4) for ad in both)
