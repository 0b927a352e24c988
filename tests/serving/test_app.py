"""The HTTP interface, over a fake engine: what it passes on, what it answers, what it refuses,
and in which words.
"""

import base64
import dataclasses
import hashlib
import json

import pytest
from starlette.testclient import TestClient

from gr4ad_jax.answering.messages import Query
from gr4ad_jax.config import Config, ServeConfig
from gr4ad_jax.engine.batcher import DeadlinePassed, Overloaded
from gr4ad_jax.reading.checks import LONGEST_ID
from gr4ad_jax.reading.times import MAX_TIME
from gr4ad_jax.serving.app import create_app
from tests.serving.fakes import FakeEngine

JSON = {"content-type": "application/json"}


@pytest.fixture
def engine():
  return FakeEngine(Config(serving=ServeConfig(max_body_kb=2, max_history=5, max_k=20)))


@pytest.fixture
def client(engine):
  return TestClient(create_app(engine), "http://localhost", raise_server_exceptions=False)


def ask(client, **body):
  return client.post("/v1/recommend", json=body)


def test_a_request_is_passed_on_whole(client, engine):
  event = {"ad_id": "ad2", "time": 5, "value": 1.5}
  answer = ask(
    client,
    history=["ad1", event],
    k=3,
    now=9,
    deadline_ms=50,
    cache=False,
    fallback=True,
    explain=True,
  )
  assert answer.status_code == 200
  assert engine.queries == [
    Query(
      history=("ad1", event), k=3, now=9, deadline_ms=50, cache=False, fallback=True, explain=True
    )
  ]
  body = answer.json()
  assert (body["source"], body["checkpoint"], body["beams"]) == ("model", 7, [8, 8, 8])
  assert [ad["ad_id"] for ad in body["ads"]] == ["ad0", "ad1", "ad2"] and len(body["tree"]) == 3
  assert body["latency_ms"] >= 0


def test_what_is_left_out_has_its_default(client, engine):
  assert "tree" not in ask(client, user="u1").json()
  assert engine.queries == [Query(user="u1")]


@pytest.mark.parametrize(
  ("body", "status", "words"),
  [
    ({}, 422, "exactly one of 'user' and 'history' is needed"),
    ({"user": "u1", "history": []}, 422, "exactly one of"),
    ({"user": "u1", "k": 0}, 422, "body.k: Input should be greater than or equal to 1"),
    ({"user": "u1", "k": 21}, 422, "less than or equal to 20"),
    ({"user": "u1", "k": True}, 422, "valid integer"),
    ({"user": "u1", "K": 3}, 422, "body.K: Extra inputs are not permitted"),
    ({"user": "u1", "now": -1}, 422, "body.now"),
    ({"user": "u1", "now": MAX_TIME + 1}, 422, "body.now"),
    ({"history": [{"ad_id": "ad1", "time": MAX_TIME}]}, 422, "time"),
    ({"user": "u" * LONGEST_ID}, 404, "there is no such user"),
    ({"user": "u" * (LONGEST_ID + 1)}, 422, "body.user"),
    ({"user": "u1", "deadline_ms": 0}, 422, "body.deadline_ms"),
    ({"user": "u1", "explain": "yes"}, 422, "body.explain: Input should be a valid boolean"),
    ({"user": "u1", "explain": 1}, 422, "body.explain"),
    ({"user": "u1", "explain": None}, 422, "body.explain"),
    ({"user": "a\x00b"}, 422, "body.user"),
    ({"user": ""}, 422, "body.user"),
    ({"history": ["ad1"] * 6}, 422, "at most 5 items"),
    ({"history": [{"ad_id": "ad1", "price": 3}]}, 422, "Extra inputs"),
    ({"history": [{"ad_id": "ad1", "time": 1e30}]}, 422, "time"),
    ({"history": ["nope"]}, 400, "history, entry 1: ad_id 'nope' is not in the ad table"),
    ({"user": "nobody"}, 404, "there is no such user"),
  ],
)
def test_faults_are_named(client, body, status, words):
  answer = ask(client, **body)
  assert (
    answer.status_code == status
    and words in answer.json()["error"]
    and set(answer.json()) == {"error"}
  )


def test_ids_and_moments_that_a_log_may_have_can_be_asked(client, engine):
  assert ask(client, user="u1", now=MAX_TIME).status_code == 200
  event = {"ad_id": "ad1", "time": MAX_TIME - 1, "request_id": "v" * LONGEST_ID}
  assert ask(client, history=[event]).status_code == 200
  long = "é" * LONGEST_ID
  engine.histories[long] = engine.histories["u1"]
  assert client.get(f"/v1/users/{long}/history").status_code == 200
  assert client.get("/v1/users", params={"prefix": long}).json() == {"users": [long]}
  fields = {"text": "a thing", "account_id": "shop"}
  assert client.put(f"/v1/ads/{long}", json=fields).status_code == 201


@pytest.mark.parametrize(
  "body",
  [
    b"", b"null", b"[]", b"{", b'"user"', b"\xff\xfe", b"[" * 2000, b'{"user":' * 200,
    b'{"user":"\\ud800"}',
    b'{"user":"u1","\\udfff":1}', b'{"user":"u1","k":NaN}', b'{"user":"u1","deadline_ms":Infinity}',
    b'{"user":"u1","k":' + b"9" * 1900 + b"}", b'{"user":"u1","deadline_ms":1e999}',
    b'{"user":"u1"}{}',
    b'{"history":[{"ad_id":"ad1","value":-1e400}]}', b'{"user":"\xed\xa0\x80"}',
  ],
)  # fmt: skip
def test_hostile_bodies_are_refused_in_json(client, body):
  for headers in (JSON, {}):
    answer = client.post("/v1/recommend", content=body, headers=headers)
    assert answer.status_code in (400, 422) and list(answer.json()) == ["error"]
    assert answer.headers["content-type"] == "application/json" and "Traceback" not in answer.text


def test_a_body_too_large_is_refused_with_or_without_its_length(client, engine):
  fits = json.dumps({"user": "u1"}).encode().ljust(2048)
  assert client.post("/v1/recommend", content=fits, headers=JSON).status_code == 200
  answers = [
    client.post("/v1/recommend", content=body, headers=JSON)
    for body in (fits + b" ", iter([fits, b" "]))
  ]
  answers.append(client.put("/v1/ads/x", content=iter([b" "] * 3000), headers=JSON))
  answers.append(
    client.post("/v1/recommend", content=b"{}", headers=JSON | {"content-length": "9" * 30})
  )
  for answer in answers:
    assert answer.status_code == 413 and answer.json() == {"error": "the body is larger than 2 KiB"}
    assert answer.headers["connection"] == "close"
  assert len(engine.queries) == 1


@pytest.mark.parametrize(
  "error", [Overloaded("9 requests are waiting", 2.3), DeadlinePassed("too late")]
)
def test_refusals_say_when_to_come_again(client, engine, error):
  engine.raises = error
  answer = ask(client, user="u1")
  assert answer.status_code == 503 and answer.json() == {"error": str(error)}
  assert answer.headers["retry-after"] == ("3" if isinstance(error, Overloaded) else "1")


def test_what_goes_wrong_inside_is_not_told(client, engine):
  engine.raises = RuntimeError("secret path")
  answer = ask(client, user="u1")
  assert answer.status_code == 500 and answer.json() == {"error": "internal error"}


def test_state_is_told(client, engine):
  assert client.get("/healthz").json() == {"status": "ok"}
  assert client.get("/readyz").status_code == 200
  engine.ready = False
  assert client.get("/readyz").status_code == 503 and client.get("/healthz").status_code == 200
  assert client.get("/v1/stats").json()["points"][0]["p99_ms"] == 20.5
  metrics = client.get("/metrics")
  assert metrics.headers["content-type"].startswith("text/plain") and metrics.text.startswith("#")


def test_the_page_may_load_nothing_from_outside(client):
  page = client.get("/")
  assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
  assert "default-src 'none'" in page.headers["content-security-policy"]


def test_unknown_paths_and_methods_are_json_too(client):
  for answer, status in ((client.get("/nope"), 404), (client.get("/v1/recommend"), 405)):
    assert answer.status_code == status and list(answer.json()) == ["error"]


def test_the_token_is_asked_for(engine):
  client = TestClient(create_app(engine, "s3cret"), "http://localhost")
  for path in ("/", "/healthz", "/readyz"):
    assert client.get(path).status_code == 200
  wrong = (
    {},
    {"authorization": "Bearer s3cre"},
    {"authorization": "s3cret"},
    {"authorization": b"Bearer \xff"},
  )
  for path in (
    "/v1/users",
    "/v1/stats",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/v1/ads/ad1",
    "/nope",
  ):
    for headers in wrong:
      answer = client.get(path, headers=headers)
      assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
      assert answer.json() == {"error": "a bearer token is needed"}
  assert (
    client.post("/v1/recommend", content=b"x" * 9999).status_code == 401
  )  # before the body is looked at
  right = {"authorization": "Bearer s3cret"}
  assert client.get("/v1/users", headers=right).status_code == 200
  document = client.get("/openapi.json", headers=right).json()
  assert (
    document["security"] == [{"token": []}] and document["components"]["securitySchemes"]["token"]
  )


def test_the_document_tells_every_status(client):
  document = client.get("/openapi.json").json()
  assert set(document["paths"]["/v1/recommend"]["post"]["responses"]) == {
    "200", "400", "401", "403", "404", "413", "422", "503"
  }  # fmt: skip
  request = document["components"]["schemas"]["LimitedRequest"]["properties"]
  assert request["k"]["maximum"] == 20 and request["history"]["anyOf"][0]["maxItems"] == 5
  assert dataclasses.fields(Query)[0].name in request


def test_the_docs_tell_every_operation_and_load_nothing(client):
  page = client.get("/docs")
  assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
  document = client.get("/openapi.json").json()
  for path, operations in document["paths"].items():
    for method, operation in operations.items():
      assert f"<code>{method.upper()} {path}</code>" in page.text
      assert all(f"<th>{status}</th>" in page.text for status in operation["responses"])
  for name in document["components"]["schemas"]:
    assert f'<h3 id="{name}">' in page.text
  assert "src=" not in page.text and "http" not in page.text.replace("HTTP", "")


def test_the_page_may_run_nothing_but_its_own_script(client):
  page = client.get("/")
  script = page.text.split("<script>")[1].split("</script>")[0]
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  policy = page.headers["content-security-policy"]
  assert f"script-src 'sha256-{digest}'" in policy and "unsafe" not in policy


@pytest.mark.parametrize(
  "host", ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "LOCALHOST"]
)
def test_this_machines_names_are_served(client, host):
  assert client.get("/v1/users", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
  "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "", "[::2]"]
)
def test_a_foreign_host_name_is_refused(client, engine, host):
  for method, path in (
    ("GET", "/"),
    ("GET", "/v1/stats"),
    ("PUT", "/v1/ads/new"),
    ("DELETE", "/v1/ads/ad1"),
  ):
    answer = client.request(method, path, headers={"host": host})
    assert answer.status_code == 403 and "host" in answer.json()["error"], (method, path)
  assert "ad1" in engine.ads and "new" not in engine.ads
  assert client.get("/healthz", headers={"host": host}).status_code == 200  # a prober's address


def test_named_hosts_are_served_and_no_others(engine):
  client = TestClient(create_app(engine, hosts=("ads.example",)), "http://ads.example:8080")
  assert client.get("/v1/users").status_code == 200
  assert client.get("/v1/users", headers={"host": "localhost"}).status_code == 403
  anywhere = TestClient(create_app(engine, "s3cret", hosts=()), "http://whatever")
  assert anywhere.get("/v1/users", headers={"authorization": "Bearer s3cret"}).status_code == 200


@pytest.mark.parametrize(
  "origin",
  ["http://evil.example", "null", "http://localhost:81", "http://localhost.evil.example", ""],
)
def test_a_page_of_another_origin_changes_nothing(client, engine, origin):
  fields = {"text": "a", "account_id": "b"}
  for method, path in (
    ("PUT", "/v1/ads/new"),
    ("DELETE", "/v1/ads/ad1"),
    ("POST", "/v1/recommend"),
  ):
    answer = client.request(method, path, headers={"origin": origin}, json=fields)
    assert answer.status_code == 403 and "origin" in answer.json()["error"]
  assert "ad1" in engine.ads and "new" not in engine.ads
  assert (
    client.get("/v1/stats", headers={"origin": origin}).status_code == 200
  )  # reading changes nothing
  own = client.put("/v1/ads/new", headers={"origin": "http://localhost"}, json=fields)
  assert own.status_code == 201


@pytest.mark.parametrize(("path", "status"), [("/v1/users/", 422), ("/v1/stats/", 404),
                                              ("/docs/", 404)])  # fmt: skip
def test_no_answer_redirects_to_the_host_that_a_client_claims(engine, path, status):
  client = TestClient(create_app(engine, hosts=()), "http://evil.example", follow_redirects=False)
  answer = client.get(path)
  assert "location" not in answer.headers and answer.status_code == status


def test_an_account_gets_a_budget(client, engine):
  answer = client.put("/v1/accounts/a%2Fb", json={"daily_budget": 12.5})
  assert (answer.status_code, engine.budgets) == (200, {"a/b": 12.5})
  told = {"account_id": "a/b", "daily_budget": 12.5, "spent_today": 0.0, "planned": 6.25}
  assert answer.json() == told == client.get("/v1/accounts/a%2Fb").json()
  assert client.put("/v1/accounts/x", json={"daily_budget": None}).json()["planned"] is None


@pytest.mark.parametrize("body", [{}, {"daily_budget": 0}, {"daily_budget": "1"}, {"budget": 1}])
def test_a_budget_is_an_amount_above_zero(client, engine, body):
  assert client.put("/v1/accounts/x", json=body).status_code == 422 and not engine.budgets
