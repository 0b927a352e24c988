"""By HTTP, on a trained run: reasons as the recommender gives them, and an ad that just came."""

import dataclasses

import numpy as np
import pytest
from starlette.testclient import TestClient

from gr4ad_jax.answering.messages import Query
from gr4ad_jax.answering.recommender import Recommendation, Recommender
from gr4ad_jax.engine import plans
from gr4ad_jax.engine.explaining import Explaining
from gr4ad_jax.serving import reason_schemas
from gr4ad_jax.serving.app import create_app

pytestmark = pytest.mark.usefixtures("compile_cache")
ASKED = {"k": 4, "explain": True}


@pytest.fixture
def client(steady):
  return TestClient(create_app(steady), "http://localhost")


@pytest.fixture
def explaining(steady, monkeypatch):
  """Gives the engine reasons for a list's first two ads. Their compiler does not wait for a moment
  when nothing else runs: a test waits for it.
  """
  monkeypatch.setattr(plans, "yield_to_others", lambda: None)
  of_two = Explaining(steady._computer, lambda: steady._runner.loaded, 2)
  monkeypatch.setattr(steady, "_explaining", of_two)
  return of_two


def ask(client, **body):
  answer = client.post("/v1/recommend", json=body)
  assert answer.status_code == 200
  return answer.json()


def numbers(reasons):
  """What is compared with a tolerance."""
  slots = [slot[name] for slot in reasons["slots"] for name in ("log_p", "ecpm")]
  codes = [code[name] for code in reasons["codes"] for name in ("log_p", "lift")]
  value = [reasons["value"][name] for name in ("chance", "expected", "low", "high")]
  return [*slots, *codes, *value, reasons["copied"], reasons["log_p_without_context"]]


@pytest.mark.long  # some of the server below, the recommender's in `reasons/test_reasoner.py`
def test_the_servers_reasons_are_the_recommenders(steady, client, runs, explaining):
  first = ask(client, user="u1", **ASKED)
  assert len(first["ads"]) == 4  # whether or not the compiler was quicker
  assert explaining.wait()
  ask(client, user="u1", **ASKED)
  told = ask(client, user="u1", **ASKED)
  assert told["source"] == "cache"  # kept without reasons, given with them
  assert ["reasons" in ad for ad in told["ads"]] == [True, True, False, False]
  assert not any("reasons" in ad for ad in ask(client, user="u1", k=4)["ads"])
  fresh = ask(client, user="u1", **ASKED, cache=False)
  recommender = Recommender.load(str(runs / "first"), "last", steady.config.search)
  log, now = steady._computer.log_of(Query(user="u1"))
  names = [field.name for field in dataclasses.fields(Recommendation) if field.name != "reasons"]
  found = [Recommendation(**{name: ad[name] for name in names}) for ad in fresh["ads"][:2]]
  expected = recommender.explained(log, now, found)
  for answer in (told, fresh):
    for ad, other in zip(answer["ads"][:2], expected, strict=True):
      reasons = ad["reasons"]
      assert reason_schemas.Reasons.model_validate(reasons).model_dump() == reasons
      assert ad["ad_id"] == other.ad_id
      for name in ("ad_id", "text", "kind"):
        assert [s[name] for s in reasons["slots"]] == [s[name] for s in other.reasons["slots"]]
      np.testing.assert_allclose(numbers(reasons), numbers(other.reasons), rtol=1e-3, atol=2e-5)
      assert reasons["sentence"] == other.reasons["sentence"]
  early = ask(client, user="u1", **ASKED, now=1_000)  # before all their events
  assert {s["kind"] for ad in early["ads"][:2] for s in ad["reasons"]["slots"]} <= {"rising"}


def test_a_new_ad_is_found_with_the_next_request(client, explaining):
  def places():
    asked = [ask(client, user=f"u{n}", k=25, cache=False)["ads"] for n in range(4)]
    lists = [[ad["ad_id"] for ad in ads] for ads in asked]
    assert min(map(len, lists)) >= 24  # all ads there are
    return [found.index("fresh") for found in lists if "fresh" in found]

  assert places() == []
  new = {"text": "red tea cup", "account_id": "shop1", "price": 3.0}
  assert client.put("/v1/ads/fresh", json=new).status_code == 201
  found = places()  # without any event
  assert len(found) == 4 and min(found) < 24  # and it does not just stand behind all others
  others = [f"ad{n:02}" for n in range(24) if n != 3]
  two = {"user": "u1", "not_ads": others, "k": 2, "explain": True, "cache": False}
  ask(client, **two)
  assert explaining.wait()
  told = {ad["ad_id"]: ad.get("reasons") for ad in ask(client, **two)["ads"]}
  assert set(told) == {"fresh", "ad03"} and all(why["sentence"] for why in told.values())
  assert client.delete("/v1/ads/fresh").status_code == 200
  assert places() == []
