"""The replay of a log: what it asks and posts, in which order, what refusals do, and going on."""

import numpy as np
import pytest

from gr4ad_jax.config import ConfigError
from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import AdTable, DataError, Dataset
from gr4ad_jax.live import player
from tests.live.shop import Shop

BEGIN = 1_000


@pytest.fixture
def log():
  """Ads a, b (of 900) and c, unheard of until 1,501; visits of anna (500, 1,200), bert (1,500)."""
  words = np.array(["a", "b", "c/1"], object)
  none = np.array(["", "", ""], object)
  price = np.array([1.0, np.nan, 3.0], np.float32)
  ads = AdTable(words, words, words, none, none, none, price, np.array([-1, 900, -1]))
  events = visits.ordered_log(
    np.array(["anna", "bert"]),
    user=np.array([0, 0, 0, 1, 1]),
    request=np.array([0, 1, 1, 2, 2]),
    ad=np.array([0, 0, 1, 0, 2]),
    time=np.array([500, 1_200, 1_300, 1_500, 1_501]),
    behavior=np.array([1, 0, 1, 1, 1]),
    value=np.array([1, 2, 3, 4, 5.5]),
    quantity=np.ones(5),
  )
  return Dataset("toy", ads, events, ("click", "purchase"))


@pytest.fixture
def shop():
  made = Shop()
  yield made
  made.close()


def played(log, shop, place, **more):
  told = []
  server = player.Server(shop.address, pause=lambda _: None)
  player.Player(log, BEGIN, server, str(place), told=told.append, **more).play()
  return told


def test_visits_and_ads_in_order(log, shop, tmp_path):
  told = played(log, shop, tmp_path / "replay.json", k=3)
  paths = [(method, path, status) for method, path, _, status in shop.heard]
  assert paths == [
    ("POST", "/v1/recommend", 200),
    ("POST", "/v1/events", 200),
    ("PUT", "/v1/ads/c%2F1", 200),  # first heard of within the visit that follows
    ("POST", "/v1/recommend", 404),  # bert is unknown: the same is asked for nobody
    ("POST", "/v1/recommend", 200),
    ("POST", "/v1/events", 200),
  ]
  bodies = [body for _, _, body, _ in shop.heard]
  assert bodies[0] == {"user": "anna", "k": 3, "now": 1_200, "cache": False}
  assert bodies[2] == {"text": "c/1", "account_id": "c/1", "price": 3.0} | dict.fromkeys(
    ("category", "conversion_type", "form"), ""
  )
  assert bodies[4] == {"history": [], "k": 3, "now": 1_500, "cache": False}
  assert bodies[1]["events"] == [
    {"event_id": "toy-1-0", "user_id": "anna", "ad_id": "a", "time": 1_200, "behavior": "click",
     "value": 2.0, "quantity": 1.0, "request_id": "toy-1"},
    {"event_id": "toy-1-1", "user_id": "anna", "ad_id": "b", "time": 1_300,
     "behavior": "purchase", "value": 3.0, "quantity": 1.0, "request_id": "toy-1"},
  ]  # fmt: skip
  assert [(one.done, one.total, one.time) for one in told] == [
    (1, 3, 1_200), (2, 3, 1_500), (3, 3, 1_500)
  ]  # fmt: skip


def test_a_replay_that_was_stopped_goes_on(log, shop, tmp_path):
  place = tmp_path / "replay.json"
  halts = iter([False] * 3 + [True] * 99)
  server = player.Server(shop.address, stopped=lambda: next(halts))
  with pytest.raises(InterruptedError):
    player.Player(log, BEGIN, server, str(place)).play()
  assert [path for _, path, _, _ in shop.heard] == [
    "/v1/recommend", "/v1/events", "/v1/ads/c%2F1"
  ]  # fmt: skip
  del shop.heard[:]
  played(log, shop, place)
  assert [path for _, path, _, _ in shop.heard] == [
    "/v1/recommend", "/v1/recommend", "/v1/events"
  ]  # fmt: skip
  del shop.heard[:]
  played(log, shop, place)
  assert shop.heard == []  # all is done


def test_too_much_load_is_waited_for(log, shop, tmp_path):
  shop.statuses = [503, 503, 503]
  played(log, shop, tmp_path / "replay.json")
  assert [status for _, _, _, status in shop.heard][:4] == [503, 503, 503, 200]


def test_a_server_that_is_not_there_is_waited_for(log, shop, tmp_path):
  pauses = []

  def pause(seconds):
    pauses.append(seconds)
    if len(pauses) == 3:
      server._port = there  # it has come back

  server = player.Server(shop.address, pause=pause)
  there, server._port = server._port, 1
  player.Player(log, BEGIN, server, str(tmp_path / "replay.json")).play()
  assert pauses == [0.1, 0.2, 0.4] and len(shop.heard) == 6


def test_what_the_server_refuses_is_told(log, shop, tmp_path):
  shop.statuses = [200, 422]
  with pytest.raises(DataError, match="POST /v1/events got status 422: so it is"):
    played(log, shop, tmp_path / "replay.json")


def test_speed_is_that_of_the_log(log, shop, tmp_path):
  now = [0.0]

  def pause(seconds):
    now[0] += seconds

  clock = {"clock": lambda: now[0], "pause": pause}
  played(log, shop, tmp_path / "replay.json", speed=100, **clock)
  assert now[0] == pytest.approx((1_500 - 1_200) / 100)


def test_another_replay_and_nothing_to_play_are_refused(log, shop, tmp_path):
  place = tmp_path / "replay.json"
  played(log, shop, place)
  server = player.Server(shop.address)
  with pytest.raises(DataError, match="belongs to another replay"):
    player.Player(log, BEGIN + 300, server, str(place))
  with pytest.raises(DataError, match="toy has no visit"):
    player.Player(log, 10_000, server, str(place))
  with pytest.raises(ConfigError, match="--address=ftp://x is not allowed"):
    player.Server("ftp://x")
