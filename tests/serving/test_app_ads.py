"""Ads and users by HTTP."""

import pytest
from starlette.testclient import TestClient

from gr4ad_jax.config import Config, ServeConfig
from gr4ad_jax.engine.batcher import Overloaded
from gr4ad_jax.serving.app import create_app
from tests.serving.fakes import FakeEngine


@pytest.fixture
def engine():
  return FakeEngine(Config(serving=ServeConfig(max_body_kb=2, max_history=5, max_k=20)))


@pytest.fixture
def client(engine):
  return TestClient(create_app(engine), "http://localhost", raise_server_exceptions=False)


def test_an_ad_comes_changes_and_goes(client, engine):
  path = "/v1/ads/shoes%2F4"
  assert client.get(path).status_code == 404
  created = client.put(path, json={"text": "shoes", "account_id": "shop", "price": 3})
  assert (created.status_code, created.json()) == (201, {"ad_id": "shoes/4", "result": "created"})
  updated = client.put(path, json={"status": "paused"})
  assert (updated.status_code, updated.json()["result"]) == (200, "updated")
  stored = client.get(path).json()
  assert (stored["ad_id"], stored["text"], stored["status"], stored["price"]) == (
    "shoes/4",
    "shoes",
    "paused",
    3,
  )
  assert client.delete(path).json() == {"ad_id": "shoes/4", "result": "deleted"}
  assert client.delete(path).status_code == 404


@pytest.mark.parametrize(
  "body",
  [
    {"txt": "a"},
    {"price": -1},
    {"price": "3"},
    {"status": "gone"},
    {"text": "a\x00"},
    {"vector": ["1"]},
    [],
  ],
)
def test_bad_fields_of_an_ad_are_refused(client, body):
  answer = client.put("/v1/ads/x", json=body)
  assert answer.status_code == 422 and client.get("/v1/ads/x").status_code == 404


def test_a_full_index_is_a_503(client, engine, monkeypatch):
  def full(*_):
    raise Overloaded("the index is full")

  monkeypatch.setattr(engine, "put_ad", full)
  monkeypatch.setattr(engine, "delete_ad", full)
  answers = client.put("/v1/ads/x", json={"text": "a"}), client.delete("/v1/ads/x")
  assert [(answer.status_code, answer.headers["retry-after"]) for answer in answers] == [
    (503, "1")
  ] * 2


def test_users_and_their_histories(client):
  assert client.get("/v1/users").json() == {"users": ["u0", "u1", "u2"]}
  assert client.get("/v1/users", params={"prefix": "u1", "limit": 5}).json() == {"users": ["u1"]}
  assert client.get("/v1/users", params={"limit": 0}).status_code == 422
  found = client.get("/v1/users/u2/history", params={"limit": 2}).json()
  assert found["user"] == "u2" and [event["ad_id"] for event in found["events"]] == ["ad0", "ad1"]
  assert client.get("/v1/users/nobody/history").json() == {"error": "there is no such user"}
