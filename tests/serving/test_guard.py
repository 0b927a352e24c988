"""Refused at the door: tokens, by a comparison that tells nothing by its time, and control
characters in ids.
"""

import hmac
import urllib.parse

import pytest
from starlette.testclient import TestClient

from gr4ad_jax.serving.app import create_app
from tests.serving.fakes import FakeEngine

CONTROL = [*map(chr, range(32)), "\x7f"]


class Noting(FakeEngine):
  """Notes the ids that reach it."""

  def __init__(self):
    super().__init__()
    self.reached = []

  async def recommend_async(self, query):
    self.reached.append(query)
    return await super().recommend_async(query)

  def put_ad(self, ad_id, fields):
    self.reached.append(ad_id)
    return super().put_ad(ad_id, fields)

  def delete_ad(self, ad_id):
    self.reached.append(ad_id)
    return super().delete_ad(ad_id)

  def get_ad(self, ad_id):
    self.reached.append(ad_id)
    return super().get_ad(ad_id)

  def history(self, user, limit):
    self.reached.append(user)
    return super().history(user, limit)


@pytest.fixture(scope="module")
def guarded():
  engine = Noting()
  return TestClient(create_app(engine), "http://localhost", raise_server_exceptions=False), engine


def all_ways_in(client, name):
  """The answers to requests that name an ad or a user by `name`, one for each way that an id
  comes in.
  """
  path, ad = urllib.parse.quote(name, safe=""), {"text": "tea", "account_id": "shop"}
  bodies = ({"user": name}, {"history": [name]}, {"history": ["ad1", {"ad_id": name}]})
  return [
    client.put(f"/v1/ads/{path}", json=ad),
    client.get(f"/v1/ads/{path}"),
    client.delete(f"/v1/ads/{path}"),
    client.get(f"/v1/users/{path}/history"),
    *(client.post("/v1/recommend", json=body) for body in bodies),
  ]


@pytest.mark.parametrize("form", ["{}ad1", "ad1{}", "a{}d"])
def test_an_id_with_a_control_character_reaches_nothing(guarded, form):
  client, engine = guarded
  engine.reached.clear()
  for character in CONTROL if form == "ad1{}" else ("\0", "\n", "\x1b", "\x7f"):
    name = form.format(character)
    statuses = [answer.status_code for answer in all_ways_in(client, name)]
    assert (repr(name), statuses) == (repr(name), [422] * 7)
  assert engine.reached == []


@pytest.mark.parametrize("name", [" ", "~", "a b", "é", "a/b?c#d", "a\u0080"])
def test_any_other_id_comes_in(guarded, name):
  client, engine = guarded
  engine.reached.clear()
  statuses = [answer.status_code for answer in all_ways_in(client, name)]
  assert 422 not in statuses and statuses[:3] == [201, 200, 200] and len(engine.reached) == 7


@pytest.mark.parametrize("same", [True, False])
def test_the_token_is_compared_by_hmac_alone(monkeypatch, same):
  """Where it says yes, a wrong token is let in; where it says no, the right one is not."""
  asked = []

  def compare(*pair):
    asked.append(pair)
    return same

  client = TestClient(create_app(FakeEngine(), token="s3cret"), "http://localhost")
  monkeypatch.setattr(hmac, "compare_digest", compare)
  for given in ("Bearer s3cret", "Bearer s3creT", "s3cret", ""):
    status = client.get("/v1/stats", headers={"authorization": given}).status_code
    assert status == (200 if same else 401)
    assert {bytes(part) for part in asked.pop()} == {given.encode(), b"Bearer s3cret"} and not asked
