"""The engine on a tiny trained run: exact answers, ads that come and go, overload, new
checkpoints, shutdown.
"""

import asyncio
import dataclasses
import threading
import time

import numpy as np
import pytest

from gr4ad_jax.answering.messages import Query, UnknownUser
from gr4ad_jax.answering.recommender import Recommender
from gr4ad_jax.catalogue.choice import Choice
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.engine.batcher import Closed, DeadlinePassed, Overloaded
from gr4ad_jax.engine.engine import ServingEngine
from tests.engine.engines import assert_same, held, ids
from tests.serving.runs import EVERYTHING, FIRST, config_of
from tests.timing import quickest

pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.fixture(scope="module")
def recommender(steady, runs):
  """The run of `steady`, searched as it does: its programs are traced once for all tests."""
  return Recommender.load(str(runs / "first"), "last", steady.config.search)


def test_a_history_gets_what_the_recommender_gives(steady, recommender):
  for events in ([], ["ad03", "ad05"], [{"ad_id": "ad07", "value": 3.0, "behavior": "cart"}]):
    answer = steady.recommend(Query(history=tuple(events), k=5, cache=False))
    assert_same(answer, recommender.recommend(events, k=5))
    assert (answer.source, answer.checkpoint, answer.beams) == ("model", FIRST, EVERYTHING)


def test_users_in_one_batch_get_what_each_gets_alone(steady):
  queries = [Query(user=f"u{n}", k=4, cache=False) for n in range(10)]
  alone = [steady.recommend(query) for query in queries]
  together = [future.result(20) for future in [steady.submit(query) for query in queries]]
  for one, other in zip(alone, together, strict=True):
    assert ids(one) == ids(other)
    np.testing.assert_allclose(
      [ad["score"] for ad in one.ads], [ad["score"] for ad in other.ads], rtol=1e-4
    )


def test_a_users_history_is_the_logs(steady):
  events = steady.history("u3", 1000)
  assert (
    events == sorted(events, key=lambda event: -event["time"])
    and steady.history("u3", 2) == events[:2]
  )
  given = tuple(
    {k: event[k] for k in ("ad_id", "time", "behavior", "value", "quantity")}
    for event in events[::-1]
  )
  assert ids(steady.recommend(Query(history=given, k=9))) == ids(
    steady.recommend(Query(user="u3", k=9))
  )
  assert (
    steady.users("u", 3) == ["u0", "u1", "u2"]
    and steady.users("u7", 9) == ["u7"]
    and steady.users("x", 9) == []
  )


def test_cached_equals_uncached(steady):
  query = Query(user="u1", k=6, explain=True)
  fresh, kept = steady.recommend(query), steady.recommend(query)
  assert (fresh.source, kept.source) == ("model", "cache")
  assert kept == dataclasses.replace(fresh, source="cache", request=kept.request)
  assert len({fresh.request, kept.request, ""}) == 3  # each is an impression of its own
  bypassed = steady.recommend(dataclasses.replace(query, cache=False))
  assert bypassed.source == "model" and ids(bypassed) == ids(kept)
  for other in ({"k": 5}, {"user": "u2"}, {"explain": False}, {"now": 1_800_000_000}):
    assert steady.recommend(dataclasses.replace(query, **other)).source == "model"


def test_the_tree_adds_up(steady):
  answer = steady.recommend(Query(user="u2", k=100, explain=True, cache=False))
  assert [sum(node["beams"] for node in level) for level in answer.tree] == 3 * [
    len(answer.tree[2])
  ]
  for above, below in zip(answer.tree, answer.tree[1:], strict=False):
    logp = {tuple(node["codes"]): node["log_p"] for node in above}
    assert all(node["log_p"] <= logp[tuple(node["codes"][:-1])] + 1e-4 for node in below)
  assert {tuple(node["codes"]) for node in answer.tree[2]} == {
    tuple(ad["codes"]) for ad in answer.ads
  }
  assert all(node["ecpm"] >= 0 for node in answer.tree[2])


@pytest.mark.parametrize(
  ("query", "error"),
  [
    (Query(user="nobody"), UnknownUser),
    (Query(history=("ad99",)), DataError),
    (Query(history=({"ad_id": "ad01", "time": 2_000},), now=1_000), DataError),
  ],
)
def test_faults_are_raised(steady, query, error):
  with pytest.raises(error):
    steady.recommend(query)
  with pytest.raises(error):
    asyncio.run(steady.recommend_async(query))


def test_before_all_events_of_a_user_there_is_no_history(steady):
  early = steady.recommend(Query(user="u1", now=1_000, k=24, cache=False))
  none = steady.recommend(Query(history=(), now=1_000, k=24, cache=False))
  assert ids(early) == ids(none) and not any(ad["seen"] for ad in early.ads)


def test_ads_come_and_go_with_the_next_batch(engine):
  query = Query(user="u1", k=100)
  late = dataclasses.replace(query, deadline_ms=1e-3, cache=False)
  before = ids(engine.recommend(query))
  assert "ad05" in ids(engine.recommend(late))
  assert len(before) == 24 and engine.recommend(query).source == "cache"
  assert (
    engine.put_ad("new", {"text": "green tea mug", "account_id": "shop1", "price": 3.0})
    == "created"
  )
  assert set(ids(engine.recommend(dataclasses.replace(query, cache=False)))) == {*before, "new"}
  assert engine.delete_ad("ad05") and not engine.delete_ad("nope")
  after = engine.recommend(query)  # the kept answer named ad05
  assert after.source == "model" and set(ids(after)) == {*before, "new"} - {"ad05"}
  popular = engine.recommend(late)
  assert popular.source == "fallback" and popular.ads and "ad05" not in ids(popular)
  engine.put_ad("ad06", {"status": "paused"})
  assert set(ids(engine.recommend(query))) == {*before, "new"} - {"ad05", "ad06"}
  engine.put_ad("ad06", {"status": "active"})
  assert set(ids(engine.recommend(dataclasses.replace(query, cache=False)))) == {*before, "new"} - {
    "ad05"
  }
  recent = engine.recommend(Query(history=("new", "ad05"), k=3))  # both may stand in histories
  assert len(recent.ads) == 3


def test_a_change_that_the_disk_has_no_room_for_is_refused(steady, monkeypatch):
  def full(changes):
    raise OSError(28, "database or disk is full")

  before = ids(steady.recommend(Query(user="u1", k=100)))
  monkeypatch.setattr(steady.catalog._topic, "append", full)
  for change in (steady.delete_ad, lambda ad_id: steady.put_ad(ad_id, {"status": "paused"})):
    with pytest.raises(Overloaded, match="the change could not be written"):
      change("ad05")
  assert steady.get_ad("ad05")["status"] == "active"
  answer = steady.recommend(Query(user="u1", k=100))  # nobody told the cache either
  assert ids(answer) == before and answer.source == "cache"


@pytest.mark.long
def test_changes_outlive_the_engine(workdir):
  with ServingEngine(str(workdir), config_of(workdir), "last") as engine:
    engine.put_ad("new", {"text": "green tea mug", "account_id": "shop1"})
    engine.delete_ad("ad05")
  with ServingEngine(str(workdir), config_of(workdir), "last") as engine:
    assert engine.get_ad("new")["text"] == "green tea mug" and engine.get_ad("ad05") is None
    found = set(ids(engine.recommend(Query(user="u1", k=100))))
    assert "new" in found and "ad05" not in found


@pytest.mark.long
def test_seen_ads_are_masked_by_the_model_and_in_the_fallback(workdir, runs):
  config = config_of(workdir)
  config = dataclasses.replace(config, search=dataclasses.replace(config.search, seen_ads="masked"))
  recommender = Recommender.load(str(runs / "first"), "last", config.search)
  with ServingEngine(str(workdir), config, "last") as masked:
    short, long = ["ad03"], ["ad03", "ad05", "ad07"]
    queries = [Query(history=tuple(events), k=4, cache=False) for events in (short, long)]
    answers = [future.result(20) for future in [masked.submit(query) for query in queries]]
    for events, answer in zip((short, long), answers, strict=True):
      assert_same(answer, recommender.recommend(events, k=4))
      assert len(answer.ads) == 4 and not set(ids(answer)) & set(events)
    seen = {event["ad_id"] for event in masked.history("u1", 1000)}
    late = masked.recommend(Query(user="u1", k=24, deadline_ms=1e-3, cache=False))
    assert late.source == "fallback" and late.ads and not seen & set(ids(late))


def test_each_request_of_a_batch_leaves_out_what_it_names(steady, recommender):
  free = steady.recommend(Query(history=("ad03",), k=24, cache=False))
  account = free.ads[-1]["account_id"]
  choices = [
    Choice(),
    Choice(not_ads=tuple(ids(free)[:5])),
    Choice(only_accounts=(account,)),
    Choice(only_accounts=(account,), seen_ads="masked", not_ads=(ids(free)[-1],)),
  ]
  wanted = [dict(vars(choice), k=6, cache=False) for choice in choices]
  queries = [Query(history=("ad03",), **fields) for fields in wanted]
  answers = [future.result(20) for future in [steady.submit(query) for query in queries]]
  for choice, answer in zip(choices, answers, strict=True):
    assert_same(answer, recommender.recommend(["ad03"], k=6, choice=choice))
    assert not set(ids(answer)) & set(choice.not_ads)
  assert ids(answers[1]) == ids(free)[5:11]
  assert {ad["account_id"] for ad in answers[2].ads} == {account}
  late = steady.recommend(dataclasses.replace(queries[3], deadline_ms=1e-3, k=24))
  assert late.source == "fallback" and {ad["account_id"] for ad in late.ads} == {account}
  assert not set(ids(late)) & {"ad03", ids(free)[-1]}


def test_a_choice_is_part_of_what_an_answer_is_kept_under(steady):
  query = Query(history=("ad04",), k=4)
  first = steady.recommend(query)
  other = steady.recommend(dataclasses.replace(query, not_ads=(ids(first)[0],)))
  assert steady.recommend(query).source == "cache" and other.source == "model"
  with pytest.raises(DataError, match="not_ads: 'nothing' is no ad"):
    steady.recommend(dataclasses.replace(query, not_ads=("nothing",)))


def test_past_the_deadline_there_is_a_popular_list(steady, monkeypatch):
  query = Query(user="u1", k=4, deadline_ms=50, cache=False)

  def ask():
    for answer in (steady.recommend(query), asyncio.run(steady.recommend_async(query))):
      assert answer.source == "fallback" and len(answer.ads) == 4 and answer.beams == ()

  with held(steady, monkeypatch):
    assert quickest(ask) < 0.3
    with pytest.raises(DeadlinePassed):
      steady.recommend(dataclasses.replace(query, fallback=False))


@pytest.mark.long
def test_overload_is_refused_unless_the_list_will_do(workdir, monkeypatch):
  config = config_of(workdir, queue_size=2)
  with ServingEngine(str(workdir), config, "last") as engine:
    queries = [Query(user=f"u{n}", cache=False) for n in range(9)]
    refused = 0

    def ask():
      with pytest.raises(Overloaded):
        engine.recommend(queries[0])
      assert engine.recommend(dataclasses.replace(queries[0], fallback=True)).source == "fallback"

    with held(engine, monkeypatch) as begun:
      waiting = [engine.submit(queries[0])]
      assert begun.wait(60)
      for query in queries[1:]:
        try:
          waiting.append(engine.submit(query))
        except Overloaded:
          refused += 1
      assert refused == 6  # one is computed, two wait
      assert quickest(ask) < 0.2
    assert all(future.result(20).source == "model" for future in waiting)
    assert (
      'gr4ad_requests_total{outcome="refused"} 3.0' in engine.metrics.text().decode()
    )  # a try each


def test_a_model_that_fails_is_replaced_by_the_list(steady, monkeypatch):
  def broken(*_):
    raise RuntimeError("no number")

  monkeypatch.setattr(steady._computer, "compute", broken)
  query = Query(user="u1", k=3, cache=False)
  with pytest.raises(Overloaded, match="the model failed"):
    steady.recommend(query)
  assert steady.recommend(dataclasses.replace(query, fallback=True)).source == "fallback"


@pytest.mark.long
def test_the_fallback_shows_active_ads_only(engine, monkeypatch):
  popular = ids(engine.recommend(Query(user="u1", k=24, deadline_ms=1e-3, cache=False)))
  engine.delete_ad(popular[0])
  with held(engine, monkeypatch):
    answer = engine.recommend(Query(user="u1", k=24, deadline_ms=1, cache=False))
  assert answer.source == "fallback" and popular[0] not in ids(answer)


def test_no_search_is_compiled_while_serving(steady):
  programs = len(steady._computer._searcher._programs)
  for size in (1, 2, 3, 4, 9):
    for future in [steady.submit(Query(user="u1", k=size + 1, cache=False)) for _ in range(size)]:
      future.result(20)
  assert len(steady._computer._searcher._programs) == programs == 1


@pytest.mark.long
def test_many_changes_outgrow_the_arrays_and_are_generable_all_the_same(workdir):
  with ServingEngine(str(workdir), config_of(workdir, overlay=16), "last") as engine:
    names = [f"new{n}" for n in range(20)]
    for n, name in enumerate(names):
      engine.put_ad(name, {"text": f"thing number {n}", "account_id": f"account{n}"})
    wanted, until = {*names}, time.monotonic() + 60
    while not wanted <= set(ids(engine.recommend(Query(user="u1", k=100, cache=False)))):
      assert time.monotonic() < until
      time.sleep(0.1)


def test_close_answers_what_waits(workdir):
  before = set(threading.enumerate())
  engine = ServingEngine(str(workdir), config_of(workdir), "last")
  futures = [engine.submit(Query(user=f"u{n}", cache=False)) for n in range(10)]
  engine.close()
  assert all(len(future.result(0).ads) == 10 for future in futures) and not engine.ready
  with pytest.raises(Closed):
    engine.recommend(Query(user="u1", cache=False))
  engine.close()
  ours = ("batcher", "reloader", "ticker", "compiler", "catalogue")
  assert not [thread for thread in set(threading.enumerate()) - before if thread.name in ours]


def test_the_state_is_told(steady):
  steady.recommend(Query(user="u1"))
  time.sleep(2.1)
  stats = steady.stats()
  assert (
    stats["beams"] == EVERYTHING and stats["ads"] == 24 and stats["users"] == 10 and stats["points"]
  )
  assert {"time", "requests", "p99_ms", "queued", "utilisation", "beams"} <= set(
    stats["points"][-1]
  )
  text = steady.metrics.text().decode()
  assert (
    "gr4ad_ads 24.0" in text
    and f"gr4ad_checkpoint_step {FIRST:.1f}" in text
    and "gr4ad_beam_width 72.0" in text
  )
