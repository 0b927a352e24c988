"""Arms in the server, on a tiny run with two checkpoints: who answers whom, and what is noted."""

import json
import shutil

import numpy as np
import pytest
from starlette.testclient import TestClient

from gr4ad_jax.arms import arms_file
from gr4ad_jax.arms.journal import Journal
from gr4ad_jax.config import ConfigError, with_knobs
from gr4ad_jax.engine.arms import ArmsEngine
from gr4ad_jax.serving.app import create_app
from tests.serving.runs import FIRST, SECOND, config_of

pytestmark = pytest.mark.usefixtures("compile_cache")
USERS = [f"u{n}" for n in range(10)]


@pytest.fixture(scope="module")
def workdir(runs, tmp_path_factory):
  return shutil.copytree(runs / "second", tmp_path_factory.mktemp("arms") / "run")


def _arms(workdir, /, **trying):
  path = workdir.parent / "arms.json"
  arms = {
    "old": {"share": 0.5, "checkpoint": FIRST},
    "new": {"share": 0.5, "checkpoint": "last", "settings": {"explore": True}} | trying,
  }
  path.write_text(json.dumps({"salt": "s", "arms": arms}))
  return arms_file.load(str(path))


@pytest.fixture(scope="module")
def engine(workdir):
  config = config_of(workdir)
  with ArmsEngine(config, _arms(workdir)) as engine:
    yield engine


@pytest.fixture
def shop(engine):
  return TestClient(create_app(engine, hosts=()))


def test_users_stay_in_their_arms_and_it_is_noted(engine, shop):
  steps = {"old": FIRST, "new": SECOND}
  arm = {user: engine.arms.of(user) for user in USERS}
  assert set(arm.values()) == {"old", "new"}
  for user in USERS:
    for _ in range(2):
      answer = shop.post("/v1/recommend", json={"user": user, "k": 3, "cache": False}).json()
      assert answer["checkpoint"] == steps[arm[user]]
      drawn = [ad.get("propensity") for ad in answer["ads"]]
      assert (drawn[:2] == [1.0, 1.0]) == (arm[user] == "new")
  for one in engine.engines.values():
    one.living.impressions.close()
  journal = Journal.read(engine.first.living.stream)
  assert {user: {one.arm for one in shown} for user, shown in journal.shown.items()} == {
    user: {name} for user, name in arm.items()
  }
  for user, shown in journal.shown.items():
    for one in shown:
      assert (one.trial is not None) == (arm[user] == "new") and one.latency_ms > 0
      if one.trial:
        assert one.trial.ads[one.trial.at] == one.ads[2] and sum(
          one.trial.propensity
        ) == pytest.approx(1)
        assert np.argmax(one.trial.propensity) == 0 and len(one.trial.ads) > 10


def test_both_arms_hear_of_ads_and_events(engine, shop):
  assert (
    shop.put("/v1/ads/new1", json={"text": "red tea cup", "account_id": "shop1"}).status_code < 300
  )
  event = {"event_id": "e1", "user_id": "u1", "ad_id": "new1", "time": 1_750_000_000}
  assert shop.post("/v1/events", json={"events": [event]}).status_code == 202
  for one in engine.engines.values():
    living = one.living
    assert living.follower.wait_for(living.stream.end("events"), 60)
    for _ in range(600):
      if one.get_ad("new1"):
        break
      living.ads.catch_up()
    assert one.get_ad("new1")["codes"] == engine.first.get_ad("new1")["codes"]
  assert shop.get("/v1/users/u1").status_code == 200


def test_metrics_have_the_arm_and_stats_tell_of_both(engine, shop):
  text = shop.get("/metrics").text
  lines = [line for line in text.splitlines() if line.startswith("gr4ad_checkpoint_step{")]
  assert lines == [
    f'gr4ad_checkpoint_step{{arm="old"}} {FIRST}.0',
    f'gr4ad_checkpoint_step{{arm="new"}} {SECOND}.0',
  ]
  assert text.count("# TYPE gr4ad_requests_total counter") == 1
  assert text.count('gr4ad_requests_total{arm="new",outcome="model"}') == 1
  stats = shop.get("/v1/stats").json()
  assert stats["arms"] == {
    "old": {"share": 0.5, "checkpoint": FIRST}, "new": {"share": 0.5, "checkpoint": SECOND}
  }  # fmt: skip
  assert shop.get("/readyz").status_code == 200


def test_an_arm_of_other_codes_is_refused(workdir, tmp_path):
  other = shutil.copytree(workdir, tmp_path / "other")
  with open(other / "index" / "codes.npz", "ab") as file:
    file.write(b"x")
  arms = _arms(workdir, workdir=str(other))
  config = with_knobs(config_of(workdir), {"arms": "arms.json"})
  with pytest.raises(ConfigError, match="arm new: the run in .* has other UA-SIDs"):
    ArmsEngine(config, arms)
