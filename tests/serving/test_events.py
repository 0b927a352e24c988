"""From a posted event to its effect, through HTTP, on a tiny trained run."""

import pathlib
import shutil

import pytest
from starlette.testclient import TestClient

from gr4ad_jax.engine.engine import ServingEngine
from gr4ad_jax.people import events as events_lib
from gr4ad_jax.serving.app import create_app
from tests.serving.runs import config_of

pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.fixture(scope="module")
def engine(runs, tmp_path_factory):
  """An engine whose tests have users of their own."""
  workdir = shutil.copytree(runs / "first", tmp_path_factory.mktemp("events") / "run")
  with ServingEngine(str(workdir), config_of(workdir), "last") as engine:
    yield engine


def client_of(engine):
  """A client that knows its engine."""
  client = TestClient(create_app(engine, hosts=()))
  client.engine = engine
  return client


def event(number, user, ad="ad03", **fields):
  return {"event_id": f"{user}-{number}", "user_id": user, "ad_id": ad, "time": 1_750_000_000} | (
    fields
  )


def post(client, *events):
  """Posts events; returns the answer when the server knows them."""
  answer = client.post("/v1/events", json={"events": events})
  assert answer.status_code == 202, answer.text
  engine = client.engine
  assert engine.living.follower.wait_for(engine.living.stream.end("events"), 60)
  return answer.json()


@pytest.fixture
def shop(engine):
  return client_of(engine)


def seen(client, user, **more):
  """The ads of a user's recommendations that the history has."""
  answer = client.post("/v1/recommend", json={"user": user, "k": 20} | more)
  assert answer.status_code == 200, answer.text
  return {ad["ad_id"] for ad in answer.json()["ads"] if ad["seen"]}, answer.json()


def test_an_event_is_known_to_the_next_recommendation(shop):
  assert shop.post("/v1/recommend", json={"user": "new"}).status_code == 404
  assert shop.get("/v1/users/new").status_code == 404
  assert post(shop, event(1, "new")) == {"accepted": 1, "repeated": 0, "set_aside": []}
  assert seen(shop, "new")[0] == {"ad03"}
  assert seen(shop, "new")[1]["source"] == "cache"  # nothing has come since
  later = event(2, "new", "ad05", time=1_750_000_500, behavior="cart", value=2.5, quantity=3)
  assert post(shop, later, event(1, "new")) == {"accepted": 1, "repeated": 1, "set_aside": []}
  found, answer = seen(shop, "new")
  assert found == {"ad03", "ad05"} and answer["source"] == "model"
  known = shop.get("/v1/users/new").json()
  latest = known.pop("latest")
  assert known == {
    "user": "new", "events": 2, "visits": 1, "first_time": 1_750_000_000,
    "last_time": 1_750_000_500, "value": 2.5,
  }  # fmt: skip
  assert [e["ad_id"] for e in latest] == ["ad05", "ad03"]
  assert latest[0] | {"text": ""} == {
    "ad_id": "ad05", "text": "", "time": 1_750_000_500, "behavior": "cart", "value": 2.5,
    "quantity": 3.0,
  }  # fmt: skip
  assert shop.get("/v1/users/new/history").json()["events"] == latest
  assert shop.get("/v1/users", params={"prefix": "ne"}).json() == {"users": ["new"]}
  assert "gr4ad_events_waiting 0.0" in shop.get("/metrics").text
  assert shop.engine.stats()["users"] == shop.engine.living.num_users


def test_a_user_of_the_log_goes_on(shop):
  before = shop.get("/v1/users/u4").json()
  end = shop.engine.living.state.end
  post(shop, event(1, "u4", "ad11", time=end + 100))
  after = shop.get("/v1/users/u4").json()
  assert after["events"] == before["events"] + 1 and after["latest"][0]["ad_id"] == "ad11"
  assert after["visits"] == before["visits"] + 1
  # The moment of a request that names none goes on with the events, for everybody.
  _, answer = seen(shop, "u5")
  record = impression(shop, answer["request_id"])
  assert record["moment"] >= end + 101 and record["user"] == "u5"


def impression(shop, request):
  """The record of an answer."""
  impressions = shop.engine.living.impressions
  stream = shop.engine.living.stream
  for _ in range(600):
    for record in stream.read("impressions", 0, 100_000):
      if record.key == request:
        assert record.value["server"] == impressions.server
        return record.value
    stream.wait("impressions", stream.end("impressions"), 0.1)
  raise AssertionError(f"no impression {request}")


def test_a_return_means_the_same_posted_and_in_a_history(shop):
  bought = {"ad_id": "ad03", "time": 1_750_000_000, "value": 10.0, "quantity": 2}
  other = {"ad_id": "ad05", "time": 1_750_000_000, "value": 3.0}
  back = {"ad_id": "ad03", "time": 1_750_400_000, "value": -9.5, "quantity": -1}
  history = [bought, other, back]
  post(shop, *(event(number, "back", **fields, ad=fields.pop("ad_id"))
               for number, fields in enumerate(map(dict, history))))  # fmt: skip
  assert shop.get("/v1/users/back").json()["value"] == 3.5
  asked = {"k": 5, "now": 1_750_500_000, "cache": False}

  def scores(**whose):
    answer = shop.post("/v1/recommend", json=asked | whose)
    assert answer.status_code == 200, answer.text
    return [(ad["ad_id"], ad["score"], ad["ecpm"]) for ad in answer.json()["ads"]]

  assert scores(history=history) == scores(user="back")
  assert scores(history=[bought, other]) != scores(user="back")
  refused = shop.post(
    "/v1/recommend", json=asked | {"history": [back | {"behavior": "click", "quantity": 1}]}
  )
  assert refused.status_code == 400
  assert "value -9.5 is negative, and only a purchase can be" in refused.json()["error"]


def test_events_of_unknown_ads_wait_for_them(shop):
  wait = [{"event_id": "w-1", "reason": events_lib.WAITS}]
  given = event(1, "w", "brand-new"), event(2, "w")
  assert post(shop, *given) == {"accepted": 2, "repeated": 0, "set_aside": wait}
  assert shop.get("/v1/users/w").json()["events"] == 1
  assert "gr4ad_events_waiting 1.0" in shop.get("/metrics").text
  ad = {"text": "a brand new thing", "account_id": "shop1"}
  assert shop.put("/v1/ads/brand-new", json=ad).status_code == 201
  for _ in range(600):
    if not shop.engine.living.follower.num_waiting:
      break
    shop.engine.living.stream.wait("events", 10**9, 0.1)
  assert {e["ad_id"] for e in shop.get("/v1/users/w").json()["latest"]} == {"brand-new", "ad03"}


@pytest.mark.parametrize(
  ("events", "status", "told"),
  [
    ([], 422, "body.events: List should have at least 1 item"),
    ([event(n, "x") for n in range(1001)], 422, "at most 1000 items"),
    ([event(1, "x"), event(2, "x") | {"ad_id": ""}], 422, "body.events.1.ad_id"),
    ([{"event_id": "1", "user_id": "x", "time": 5}], 422, "body.events.0.ad_id: Field required"),
    ([event(1, "x", time=-1)], 422, "body.events.0.time"),
    ([event(1, "x", value=1e40)], 422, "body.events.0.value"),
    ([event(1, "x", value=-2.0, behavior="click")], 400,
     "events, entry 1: value -2.0 is negative, and only a purchase can be taken back"),
    ([event(1, "x", quantity=-2.0)], 400, "quantity -2.0 is negative, and nothing is taken back"),
    ([event(1, "x", colour="red")], 422, "body.events.0.colour: Extra inputs are not permitted"),
    ([event(1, "x"), event(2, "x", behavior="sniff")], 400,
     "events, entry 2: behavior 'sniff' is not known; allowed: "),
  ],
)  # fmt: skip
def test_bad_events_are_refused_as_a_whole(shop, events, status, told):
  answer = shop.post("/v1/events", json={"events": events})
  assert (answer.status_code, told in answer.json()["error"]) == (status, True), answer.text
  assert shop.get("/v1/users/x").status_code == 404


def test_events_of_the_future_are_set_aside(shop):
  late = event(1, "f", time=4_000_000_000)
  aside = [{"event_id": "f-1", "reason": events_lib.FUTURE}]
  assert post(shop, late, event(2, "f")) == {"accepted": 1, "repeated": 0, "set_aside": aside}
  assert shop.get("/v1/users/f").json()["events"] == 1


def test_a_disk_that_is_full_is_a_503_and_loses_nothing(shop):
  post(shop, event(1, "full"))
  writer = shop.engine.living.stream._writer
  pages = writer.execute("PRAGMA page_count").fetchone()[0]
  writer.execute(f"PRAGMA max_page_count={pages}")
  try:
    many = [event(n, "full", request_id="r" * 90) for n in range(2, 900)]
    answer = shop.post("/v1/events", json={"events": many})
  finally:
    writer.execute("PRAGMA max_page_count=1000000")
  assert answer.status_code == 503 and "retry-after" in answer.headers
  assert answer.json() == {"error": "the change could not be written"}
  assert shop.get("/v1/users/full").json()["events"] == 1
  assert post(shop, *many)["accepted"] == 898
  assert shop.get("/v1/users/full").json()["events"] == 899


def test_an_erased_user_is_nowhere(shop):
  engine, name = shop.engine, "Wanda Unspeakable"
  post(shop, event(1, name), event(2, name, "nowhere"), event(1, "u2"))
  record = impression(shop, seen(shop, name)[1]["request_id"])
  assert record["user"] == name
  users = engine.stats()["users"]
  assert shop.delete(f"/v1/users/{name}").json() == {"user": name, "records": 3}
  assert shop.delete(f"/v1/users/{name}").status_code == 404
  assert shop.delete("/v1/users/u3").json() == {"user": "u3", "records": 0}  # of the log
  for user in (name, "u3"):
    assert shop.get(f"/v1/users/{user}").status_code == 404
    assert shop.post("/v1/recommend", json={"user": user}).status_code == 404
  assert engine.stats()["users"] == users - 2
  assert "u3" not in engine.users("u", 99) and "u2" in engine.users("u", 99)
  live = pathlib.Path(engine.config.workdir) / "live"
  for _ in range(100):  # whoever reads meanwhile is in the way
    engine.living.tend()
    files = [path for path in live.rglob("*") if path.is_file()]
    if not any(name.encode() in path.read_bytes() for path in files):
      break
  else:
    pytest.fail("traces stay")
  assert {"people.sqlite", "stream.sqlite"} <= {path.name for path in files}
