"""The reward system on a tiny run: answers, what followed them, lists and rewards, restarts, and
the log that has grown.
"""

import dataclasses
import os
import shutil

import numpy as np
import pytest

from gr4ad_jax.config import load_config
from gr4ad_jax.live import proposer as proposer_lib
from gr4ad_jax.live.grown import GrownLog, all_known
from gr4ad_jax.live.proposer import Proposer, Terms
from gr4ad_jax.live.refits import Refits
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.requests import request_task
from gr4ad_jax.streams.opening import open_stream

DAY = 86_400
TERMS = Terms(sample=3, part=4, hours=1.0)


@pytest.fixture(scope="module")
def run(small_run, tmp_path_factory):
  """(config, inputs) of a copy of the small run."""
  workdir = tmp_path_factory.mktemp("proposer") / "run"
  shutil.copytree(small_run, workdir)
  config = load_config(str(workdir))
  preference = dataclasses.replace(
    config.preference, candidate_beams=8, policy_candidates=4, other_candidates=2,
    pipelines=("recency", "popularity"),
  )  # fmt: skip
  reward = dataclasses.replace(config.reward, reward_epochs=1, reward_width=8, reward_ids=0)
  config = dataclasses.replace(config, preference=preference, reward=reward)
  return config, inputs_lib.prepare_inputs(config, config.workdir)


@pytest.fixture
def stream(tmp_path):
  made = open_stream(f"sqlite:{tmp_path}/s.sqlite")
  yield made
  made.close()


def _start(config, inputs):
  """A moment a day after the run's log."""
  del config
  return int(inputs.dataset.events.time.max()) + DAY


def _event(user, time, ad, **more):
  base = {"user_id": user, "ad_id": ad, "time": int(time), "behavior": "purchase", "value": 2.0}
  return base | {"quantity": 1.0, "request_id": None} | more


def _answer(number, user, moment):
  entries = [{"ad": ad, "log_p": -1.0, "ecpm": 1.0, "source": "model"} for ad in ("ad01", "ad02")]
  return {"request": f"r{number}", "user": user, "moment": int(moment), "arm": "", "checkpoint": 4,
          "list": entries}  # fmt: skip


def _play(stream, start):
  """Eight answers; the users of the first six come back within the hour, a day apart."""
  for number in range(8):
    moment = start + number * DAY
    user = f"u{number}" if number < 7 else None
    stream.append("impressions", [_answer(number, user, moment)])
    if number < 6:
      events = [_event(user, moment + 60, "ad01"), _event(user, moment + 70, "ad07")]
      stream.append("events", [*events, _event(user, moment + 80, "nobody's")])
  stream.append("events", [_event("new", start + 30 * DAY, "ad03")])


def test_a_grown_log_is_the_log_that_was_written_at_once(run, stream):
  config, inputs = run
  start = _start(config, inputs)
  _play(stream, start)
  log = GrownLog(inputs, 1800)
  assert log.read(stream) == 19 and log.passed_over == 6 and len(log) == 13
  grown = log.inputs()
  old = inputs.dataset.events
  assert len(grown.dataset.events) == len(old) + 13
  users = grown.dataset.events.user_id[grown.dataset.events.user]
  ads = grown.dataset.ads.ad_id[grown.dataset.events.ad]
  found = sorted(zip(users.tolist(), ads.tolist(), grown.dataset.events.time.tolist(), strict=True))
  before = zip(old.user_id[old.user].tolist(), inputs.dataset.ads.ad_id[old.ad].tolist(),
               old.time.tolist(), strict=True)  # fmt: skip
  new = [
    (f"u{n}", ad, start + n * DAY + at) for n in range(6) for ad, at in (("ad01", 60), ("ad07", 70))
  ]
  assert found == sorted([*before, *new, ("new", "ad03", start + 30 * DAY)])
  # Each user's two events of a day are one visit, and no visit of before has grown.
  assert len(grown.lines.request_user) == len(inputs.lines.request_user) + 7
  assert log.read(stream) == 0


def test_visits_of_one_user_keep_apart(run, stream):
  _, inputs = run
  start = _start(*run)
  events = [_event("u0", start, "ad01"), _event("u0", start + 100, "ad02"),
            _event("u0", start + 5_000, "ad03"), 
            _event("u0", start + 5_001, "ad04", request_id="x"),
            _event("u0", start + 9_000, "ad05", request_id="x")]  # fmt: skip
  stream.append("events", events[::-1])
  log = GrownLog(inputs, 1800)
  log.read(stream)
  lines = log.inputs().lines
  mine = lines.request_time[lines.request_user == 0]
  assert (mine[mine >= start] - start).tolist() == [0, 5_000, 5_001]


@pytest.fixture(scope="module")
def fitted(run, tmp_path_factory):
  """The folder of refits, with a first one."""
  config, inputs = run
  refits = Refits(config, str(tmp_path_factory.mktemp("fits")), 10)
  assert refits.newest() is None and refits.due(0)
  assert refits.fit(inputs, 0)
  return refits


def test_refits_come_when_due(run, fitted):
  config, known = fitted.newest()
  assert known == 0 and not fitted.due(9) and fitted.due(10)
  unfinished = os.path.join(os.path.dirname(config.workdir), "reward_000000007")
  os.makedirs(unfinished)
  assert fitted.newest() == (config, 0)  # what is not whole is not used


def _params(run):
  config, inputs = run
  task = request_task.make(config, inputs)
  return request_task.load_params(config, task.model)


def test_lists_of_live_requests(run, stream, fitted):
  config, inputs = run
  start = _start(config, inputs)
  _play(stream, start)
  proposer = Proposer(config, inputs, stream, TERMS)
  params = _params(run)
  first = proposer.propose(params, fitted.newest()[0])
  assert (first.offset, first.lists, first.unfollowed) == (4, 3, 0)
  records = [record.value for record in stream.read("lists", 0)]
  assert len(records) == 3 and all(record["user"] in "u0 u1 u2 u3" for record in records)
  for record in records:
    ads = [entry["ad"] for entry in record["list"]]
    assert len(set(ads)) == len(ads) >= 4
    assert record["began"] == record["moment"] + 60
    assert all(
      entry["codes"] == inputs.index.codes_NT[int(entry["ad"][2:])].tolist()
      for entry in record["list"]
    )
    # What was taken stands among the candidates, and rewards are in order.
    assert {entry["ad"] for entry in record["list"] if entry["taken"]} == {"ad01", "ad07"}
    rewards = [entry["reward"] for entry in record["list"]]
    assert rewards == sorted(rewards, reverse=True) and rewards[0] > 0
    assert any(entry["log_p"] is not None for entry in record["list"])
  assert first.calibration["pairs"] == 6 and first.calibration["taken"] == 3  # ad01 of each
  assert first.calibration["value"] == pytest.approx(6.0)
  assert first.calibration["ratio"] == pytest.approx(first.calibration["expected"] / 3)
  second = proposer.propose(params, fitted.newest()[0])
  # Of answers 4 to 7 the last is nobody's; nothing followed number 6.
  assert (second.offset, second.lists, second.unfollowed) == (8, 2, 1)
  assert proposer.propose(params, fitted.newest()[0]) is None and proposer.lag == 0


@pytest.mark.long
def test_a_kill_before_the_commit_changes_nothing(run, stream, fitted, monkeypatch):
  config, inputs = run
  _play(stream, _start(config, inputs))
  params = _params(run)
  reward = fitted.newest()[0]
  with monkeypatch.context() as patch:
    patch.setattr(stream, "commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      Proposer(config, inputs, stream, TERMS).propose(params, reward)
  before = stream.read("lists", 0)
  found = Proposer(config, inputs, stream, TERMS).propose(params, reward)
  assert found.offset == 4 and stream.read("lists", 0) == before


def test_what_is_not_over_waits(run, stream, fitted):
  config, inputs = run
  start = _start(config, inputs)
  stream.append("impressions", [_answer(n, "u1", start) for n in range(4)])
  stream.append("events", [_event("u2", start + 3_500, "ad01")])
  proposer = Proposer(config, inputs, stream, TERMS)
  assert proposer.next_part() is None  # the hour is not over
  stream.append("events", [_event("u2", start + 3_601, "ad01")])
  answers, offset = proposer.next_part()
  assert offset == 4 and len(answers) == 3


def test_calibration_equals_loops(run):
  config, inputs = run

  class Model:
    def estimate(self, requests, ads):
      p = np.where(ads >= 0, 0.1 + 0.01 * ads, 0)
      return type("Found", (), {"purchase_BC": p, "value_BC": np.full(ads.shape, 3.0)})

  requests = np.array([1, 4])
  ids = inputs.dataset.ads.ad_id
  answers = [{"list": [{"ad": str(ids[a])} for a in ads]} for ads in ([0, 5, 9], [2])]
  answers[1]["list"].append({"ad": "nobody's"})
  found = proposer_lib.calibration(inputs, Model(), requests, answers)
  outcomes = inputs.lines.outcomes
  own = {(int(r), int(a)): float(v) for r, a, v in
         zip(outcomes.request, outcomes.ad, outcomes.value, strict=True)}  # fmt: skip
  pairs = [(1, 0), (1, 5), (1, 9), (4, 2)]
  p = [0.1 + 0.01 * ad for _, ad in pairs]
  taken = [pair in own for pair in pairs]
  losses = [-np.log(q if t else 1 - q) for q, t in zip(p, taken, strict=True)]
  assert found["pairs"] == 4 and found["taken"] == sum(taken)
  assert found["expected"] == pytest.approx(sum(p))
  assert found["log_loss"] == pytest.approx(np.mean(losses))
  assert found["expected_value"] == pytest.approx(3 * sum(p))
  assert found["value"] == pytest.approx(sum(own.get(pair, 0.0) for pair in pairs))


def test_all_of_a_grown_log_counts(run):
  config, _ = run
  assert all_known(config).training.fitted == ("train", "valid", "test")
