"""Caps, budgets and the place for trying, by the engine on a tiny trained run."""

import dataclasses
import shutil
import time

import numpy as np
import pytest

from gr4ad_jax.answering import explore
from gr4ad_jax.answering.messages import Query
from gr4ad_jax.answering.terms import DayPlan
from gr4ad_jax.config import ConfigError
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.engine.batcher import DeadlinePassed
from gr4ad_jax.engine.engine import ServingEngine
from gr4ad_jax.models.gr4ad import GR4AD
from tests.engine.engines import Clock, held, ids
from tests.serving.runs import config_of

pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.fixture(scope="module")
def capped(runs, tmp_path_factory):
  """An engine that shows an ad to a user once in two days."""
  workdir = shutil.copytree(runs / "first", tmp_path_factory.mktemp("capped") / "run")
  config = config_of(workdir, cap_times=1, cap_days=2.0)
  with ServingEngine(str(workdir), config, "last") as engine:
    yield engine


def test_no_user_is_shown_an_ad_more_often_than_the_cap(capped, monkeypatch):
  engine, clock = capped, Clock()
  monkeypatch.setattr(engine._ledger, "_clock", clock)
  shown = ids(engine.recommend(Query(user="u1", k=4)))
  late = engine.recommend(Query(user="u1", k=4, deadline_ms=1e-3, cache=False))
  assert late.source == "fallback"
  shown += ids(late)
  # What is kept may not be shown again, and of one batch no two answers may share an ad.
  queries = [Query(user="u1", k=3, cache=number < 2) for number in range(4)]
  for future in [engine.submit(query) for query in queries]:
    shown += ids(future.result(20))
  assert len(shown) == 20 == len(set(shown))
  assert len(ids(engine.recommend(Query(user="u1", k=24)))) == 4  # all 24 by now
  assert not engine.recommend(Query(user="u1", k=24)).ads
  assert len(ids(engine.recommend(Query(user="u2", k=24)))) == 24
  free = ids(engine.recommend(Query(history=(), k=5)))
  assert free == ids(engine.recommend(Query(history=(), k=5)))  # nobody knows whose it is
  clock.now += 2 * 86_400 + 1
  assert len(ids(engine.recommend(Query(user="u1", k=24, cache=False)))) == 24


@pytest.mark.long
def test_an_account_that_has_spent_its_budget_is_left_out(workdir):
  query, config = Query(history=("ad03",), k=24, cache=False), config_of(workdir)
  with ServingEngine(str(workdir), config, "last") as engine:
    engine._ledger._clock = clock = Clock()
    everything = engine.recommend(query)
    account = everything.ads[0]["account_id"]
    own = [ad["ecpm"] for ad in everything.ads if ad["account_id"] == account]
    told = engine.put_account(account, 1.99 * sum(own))
    assert told == engine.account(account) and told["spent_today"] == 0
    assert 0 < told["planned"] < told["daily_budget"]  # as the log's traffic is
    engine._ledger._plan = DayPlan()
    kept = dataclasses.replace(query, cache=True)
    for number in range(3):  # at noon half is planned: one answer with all of its ads
      answer = engine.recommend(kept)
      left = [ad for ad in answer.ads if ad["account_id"] == account]
      assert bool(left) == (number == 0) and answer.ads
      clock.now += 2
    assert engine.account(account)["spent_today"] == pytest.approx(sum(own), rel=1e-4)
    late = engine.recommend(dataclasses.replace(query, deadline_ms=1e-3))
    assert late.source == "fallback" and account not in {ad["account_id"] for ad in late.ads}
    with pytest.raises(DataError, match="only_accounts: no ad has 'nobody'"):
      engine.recommend(dataclasses.replace(query, only_accounts=("nobody",)))
    engine.put_account("nobody", 5.0)  # an account may come before its ads
    engine.recommend(query)
    spent = engine.account(account)["spent_today"]
  with ServingEngine(str(workdir), config, "last") as engine:  # budgets and counts are kept
    told = engine.account(account)
    assert told["daily_budget"] == pytest.approx(1.99 * sum(own))
    # The first answer too, which nobody counted while there was no budget.
    assert told["spent_today"] == pytest.approx(spent + sum(own), rel=1e-4)
    assert engine.account("nobody")["daily_budget"] == 5.0
    engine.put_account(account, None)
    assert engine.account(account)["daily_budget"] is None


def test_an_answer_that_comes_too_late_is_not_counted(capped, monkeypatch):
  engine = capped
  query = Query(user="u7", k=4, deadline_ms=50, cache=False)
  with held(engine, monkeypatch) as begun:
    with pytest.raises(DeadlinePassed):
      engine.recommend(dataclasses.replace(query, fallback=False))
    assert begun.is_set()
  for _ in range(200):  # until the held batch has been counted, and taken back
    if not engine._batcher.load().queued and len(engine._ledger.capped("u7")) == 0:
      break
    time.sleep(0.01)
  engine.recommend(Query(user="u8", k=1))  # after it in the queue
  assert engine._ledger.capped("u7").tolist() == []


def test_a_spread_moves_the_chances(workdir):
  config = config_of(workdir, explore=True, explore_spread=4.0)
  with ServingEngine(str(workdir), config, "last") as engine:
    plain = engine.recommend(Query(user="u1", k=3)).trial
    scores = {ad["ad_id"]: ad["score"] for ad in engine.recommend(Query(user="u1", k=24)).ads}
  by_score = np.exp([scores[ad] for ad in plain["ads"] if ad in scores])
  chance = np.array([c for ad, c in zip(plain["ads"], plain["propensity"], strict=True)
                     if ad in scores])  # fmt: skip
  gain = np.log(chance / by_score)
  assert gain.max() - gain.min() > 0.01  # an even gain would move nothing


def test_the_last_place_is_drawn_and_its_propensity_told(workdir):
  config = config_of(workdir, explore=True)
  with ServingEngine(str(workdir), config, "last") as engine:
    engine._computer._rng = np.random.default_rng(0)
    ranked = engine.recommend(Query(user="u1", k=24)).ads
    answers = [engine.recommend(Query(user="u1", k=3)) for _ in range(30)]
    assert {answer.source for answer in answers} == {"model"}  # what was drawn is not kept
    entries = [(n, ad["log_p"], ad["score"], ad["ecpm"]) for n, ad in enumerate(ranked)]
    chance = explore.propensities(entries, 3)
    place = {ad["ad_id"]: n for n, ad in enumerate(ranked)}
    drawn = set()
    for answer in answers:
      assert ids(answer)[:2] == [ad["ad_id"] for ad in ranked[:2]]
      assert [ad["propensity"] for ad in answer.ads[:2]] == [1.0, 1.0]
      last = answer.ads[2]
      assert last["propensity"] == pytest.approx(chance[place[last["ad_id"]] - 2], rel=1e-3)
      drawn.add(last["ad_id"])
    assert len(drawn) > 3


def test_a_spread_of_a_model_without_values_is_refused(workdir, monkeypatch):
  monkeypatch.setattr(GR4AD, "predicts_value", False)
  config = config_of(workdir, explore=True, explore_spread=1.0)
  with pytest.raises(ConfigError, match="--explore_spread=1 is not allowed: --model=gr4ad"):
    ServingEngine(str(workdir), config, "last")
