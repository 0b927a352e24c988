"""Server, learner, reward system and Redis on one stream, killed at random under load: what was
acknowledged is there and counts once, and the learner's parameters are those of an undisturbed one.
"""

import http.client
import itertools
import json
import os
import pathlib
import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from gr4ad_jax import checksums
from gr4ad_jax import config as config_lib
from gr4ad_jax.learning.in_use import ParamsInUse
from gr4ad_jax.learning.learner import Learner
from gr4ad_jax.live import proposer as proposer_lib
from gr4ad_jax.live.refits import Refits
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.streams.opening import open_stream
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training.checkpoint import Checkpointer
from gr4ad_jax.training.trainer import Trainer
from tests import tiny
from tests.learning import streams
from tests.streams import redis_server
from tests.test_serve import SETTINGS, serving

KILLS = int(os.environ.get("GR4AD_KILLS", "2"))  # of each
_ROOT = pathlib.Path(__file__).parents[1]
_PATIENCE = 180  # seconds
_SAMPLE, _PART, _HOURS = 4, 8, 2  # of the reward system
_USERS = 5  # of each writer, none of whom the run knows
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compile_cache")]


class Service:
  """A binary as a process that is started again whenever it has ended."""

  def __init__(self, log: pathlib.Path, binary: str, *flags: str):
    self._command = [sys.executable, "-m", f"experiments.{binary}", *flags]
    self._log = log
    self._over = threading.Event()
    self._start()
    self._watch = threading.Thread(target=self._run)
    self._watch.start()

  def _start(self):
    with open(self._log, "a", encoding="utf-8") as file:
      self.process = subprocess.Popen(self._command, cwd=_ROOT, stdout=file, stderr=file)

  def _run(self):
    while not self._over.wait(0.1):
      status = self.process.poll()
      # 2: a flag that is refused, which would be refused for ever.
      if status not in (None, 2):
        self._start()

  def stop(self):
    """Ends it for good."""
    self._over.set()
    self._watch.join()
    self.process.terminate()
    try:
      self.process.wait(60)
    finally:
      self.process.kill()
      self.process.wait()


class Load:
  """Writers that put ads, ask for recommendations and post visits; each asks until it is told that
  what it sent is kept.
  """

  def __init__(self, port: int, writers: int = 2):
    self._address = f"127.0.0.1:{port}"
    self._over = threading.Event()
    self._hour = itertools.count()
    self.events: list[str] = []  # acknowledged
    self.ads: list[str] = []  # likewise
    self.refused = None  # an answer that ended the load
    self._threads = [threading.Thread(target=self._run, args=(w,)) for w in range(writers)]
    for thread in self._threads:
      thread.start()

  def stop(self):
    """Ends it."""
    self._over.set()
    for thread in self._threads:
      thread.join()

  def _run(self, writer: int):
    for number in itertools.count():
      # A pause leaves the machine to those that start.
      if self._over.wait(0.05):
        return
      # A visit an hour, so that each is soon over.
      begin = streams.START + 3600 * next(self._hour)
      user = f"w{writer}-{number % _USERS}"
      ads = [f"ad{(number + n) % 24:02d}" for n in range(3)]
      if number % 10 == 0:
        new = f"new-{writer}-{number}"
        ads.append(new)
        if self._told("PUT", f"/v1/ads/{new}", {"text": "red tea cup", "account_id": "shop1"}):
          self.ads.append(new)
      self._ask("POST", "/v1/recommend", {"user": user, "k": 3, "cache": False})
      events = [
        {"event_id": f"{writer}-{number}-{ad}", "user_id": user, "ad_id": ad, "time": begin + n,
         "behavior": "purchase", "value": 2.0 + n, "request_id": f"{writer}-{number}"}
        for n, ad in enumerate(ads)
      ]  # fmt: skip
      answer = self._told("POST", "/v1/events", {"events": events})
      if answer:
        self.refused = answer["set_aside"] or self.refused
        self.events += [event["event_id"] for event in events]

  def _told(self, method: str, path: str, body):
    """Asks until it is done; None: it is over before."""
    while not self._over.is_set():
      status, answer = self._ask(method, path, body)
      if status in (200, 201, 202):
        return answer
      # What is refused for good would be asked for ever.
      if status not in (0, 503):
        self.refused = answer
        self._over.set()
      self._over.wait(0.1)
    return None

  def _ask(self, method: str, path: str, body):
    connection = http.client.HTTPConnection(self._address, timeout=60)
    try:
      connection.request(method, path, json.dumps(body), {"content-type": "application/json"})
      reply = connection.getresponse()
      return reply.status, json.loads(reply.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
      return 0, repr(error)
    finally:
      connection.close()


def prepared(small_run, folder):
  """A copy of the run whose reward model is fitted in no time."""
  workdir = streams.copied(small_run, folder)
  config = config_lib.load_config(str(workdir))
  knobs = {"round_groups": 2, "reward_epochs": 1, "reward_width": 8, "reward_ids": 0,
           "candidate_beams": 8, "policy_candidates": 4, "other_candidates": 2,
           "pipelines": ("recency", "popularity")}  # fmt: skip
  path = workdir / "config.json"
  path.write_text(config_lib.to_json(config_lib.with_knobs(config, knobs), summed=True))
  checksums.note(str(path), checksums.digest(str(path)), alone=True)
  return workdir


def wait_until(true, what):
  """Until something is true."""
  until = time.monotonic() + _PATIENCE
  while not true():
    assert time.monotonic() < until, what
    time.sleep(0.02)


def has_got_on(progress, load):
  """Whether something has changed since now, or the load has ended."""
  before = progress()
  return lambda: load.refused or progress() != before


class Reached(BaseException):
  """Ends a learner where it is compared."""


def under_kills(workdir, logs, redis, rng):
  """Runs all of it, kills each `KILLS` times, stops it, and returns the load."""
  port = tiny.free_port()
  about = f"--workdir={workdir}", f"--stream={redis.url}/shop"
  serve = [flag for flag in SETTINGS if not flag.startswith(("--port", "--checkpoint"))]
  services = {
    "server": Service(
      logs / "server", "serve", *about, *serve, f"--port={port}", "--checkpoint=promoted",
      "--snapshot_seconds=0.5",
    ),
    "learner": Service(logs / "learner", "learn", *about),
    "rewards": Service(
      logs / "rewards", "propose", *about, f"--part={_PART}", f"--sample={_SAMPLE}",
      f"--hours={_HOURS}", "--refit_events=0",
    ),
  }  # fmt: skip
  load = Load(port)
  stream = open_stream(f"{redis.url}/shop")
  learned = workdir / "live" / "learner" / "checkpoints"
  # What tells that one has got on: it is killed while it works, and not while it starts.
  progress = {
    "server": lambda: len(load.events),
    "learner": lambda: set(learned.glob("[0-9]*")),
    "rewards": lambda: stream.position(proposer_lib.IMPRESSIONS, proposer_lib.CONSUMER),
    "redis": lambda: len(load.events),
  }
  try:
    order = [name for name in progress for _ in range(KILLS)]
    rng.shuffle(order)
    for turn, name in enumerate(order):
      wait_until(has_got_on(progress[name], load), f"{name} does nothing; see {logs}")
      assert not load.refused
      time.sleep(rng.random())
      if name == "redis":
        redis.kill()
        time.sleep(0.3 * rng.random())
        redis.start()
      else:
        services[name].process.kill()
      print(f"{turn + 1}/{len(order)} {name}: {len(load.events)} events", flush=True)
    enough = len(load.events) + 100
    wait_until(lambda: len(load.events) > enough, "the server does nothing")
  finally:
    load.stop()
    for service in services.values():
      service.stop()
    stream.close()
  return load


def test_nothing_is_lost_and_nothing_counts_twice(small_run, tmp_path):
  workdir = prepared(small_run, tmp_path / "run")
  whole = streams.copied(workdir, tmp_path / "whole")
  with redis_server.running(tmp_path) as redis:
    load = under_kills(workdir, tmp_path, redis, random.Random(0))
    stream = open_stream(f"{redis.url}/shop")
    kept = [record.key for record in stream.read("events", 0, 10**6)]
    assert len(set(kept)) == len(kept) and set(load.events) <= set(kept)
    put = {record.value["ad_id"] for record in stream.read("ads", 0, 10**6)}
    assert load.ads and set(load.ads) <= put
    check_server(workdir, redis, load, kept)
    check_lists(workdir, stream)
    check_learner(workdir, whole, stream)
    stream.close()


def check_server(workdir, redis, load, kept):
  """A server that starts now knows each event once, and every ad."""
  with serving(workdir, f"--stream={redis.url}/shop") as server:
    wait_until(lambda: server.ask("GET", "/readyz")[0] == 200, "the server is not ready")
    counts = [server.ask("GET", f"/v1/users/w{writer}-{n}")[1]["events"]
              for writer in range(2) for n in range(_USERS)]  # fmt: skip
    assert sum(counts) == len(kept)
    for ad in load.ads:
      assert server.ask("GET", f"/v1/ads/{ad}")[0] == 200


def check_lists(workdir, stream):
  """Each answer has one list at most; some of the last parts, read once more, lack no list."""
  lists = [record.key for record in stream.read("lists", 0, 10**6)]
  assert lists and len(set(lists)) == len(lists)
  config = config_lib.load_config(str(workdir))
  inputs = inputs_lib.prepare_inputs(config, config.workdir)
  terms = proposer_lib.Terms(sample=_SAMPLE, part=_PART, hours=_HOURS, seed=config.training.seed)
  proposer = proposer_lib.Proposer(config, inputs, stream, terms)
  params = ParamsInUse(config, proposer.model).latest()
  reward, _ = Refits(config, str(workdir / proposer_lib.FOLDER), 0).newest()
  at = stream.position(proposer_lib.IMPRESSIONS, proposer_lib.CONSUMER)
  again = min(10, at // _PART)
  stream.commit(proposer_lib.IMPRESSIONS, proposer_lib.CONSUMER, at - again * _PART)
  made = [proposer.propose(params, reward) for _ in range(again)]
  assert sum(cycle.lists for cycle in made) > 0
  assert stream.position(proposer_lib.IMPRESSIONS, proposer_lib.CONSUMER) == at
  assert [record.key for record in stream.read("lists", 0, 10**6)] == lists


def check_learner(workdir, whole, stream):
  """The last checkpoint is the one of a learner that nothing has disturbed, bit for bit."""
  folder = str(workdir / "live" / "learner" / "checkpoints")
  task = streams.task_of(whole, stream)
  target = state_lib.abstract(Trainer(task).state)
  with Checkpointer(folder, read_only=True) as kept:
    found = kept.restore(target)
  last = int(found.state.step)
  assert last > task.first_step

  def told(one):
    if one.step >= last:
      raise Reached

  with pytest.raises(Reached):
    Learner(task, on_round=told).run(follow=False)
  with Checkpointer(task.checkpoints, read_only=True) as kept:
    alone = kept.restore(target, last)
  assert found.data == alone.data
  for one, other in zip(streams.leaves(found.state), streams.leaves(alone.state), strict=True):
    np.testing.assert_array_equal(one, other)
