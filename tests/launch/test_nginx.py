"""Two servers on one Redis behind nginx: killed, and rolled one after the other, under load."""

import http.client
import itertools
import json
import pathlib
import shutil
import signal
import subprocess
import threading
import time

import pytest

from gr4ad_jax.streams.opening import open_stream
from tests import tiny
from tests.launch import fakes
from tests.serving.runs import FIRST, SECOND, add_checkpoint, make
from tests.streams import redis_server
from tests.test_serve import Server

_CONF = fakes.ROOT / "launch" / "nginx" / "gr4ad.conf"
_PATIENCE = 300  # seconds
pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="there is no nginx")


def configured(folder: pathlib.Path, ports) -> pathlib.Path:
  """The configuration with other ports: of nginx, then of the servers."""
  text = _CONF.read_text(encoding="utf-8")
  for number, port in zip(("8080", "8081", "8082"), ports, strict=True):
    assert text.count(f"127.0.0.1:{number}") == 1
    text = text.replace(f"127.0.0.1:{number}", f"127.0.0.1:{port}")
  path = folder / "gr4ad.conf"
  path.write_text(text, encoding="utf-8")
  return path


def test_nginx_reads_it(tmp_path):
  path = configured(tmp_path, (tiny.free_port(), 1, 2))
  done = subprocess.run(
    ["nginx", "-t", "-p", str(tmp_path), "-c", str(path)], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  broken = path.read_text(encoding="utf-8").replace("least_conn;", "most_conn;")
  path.write_text(broken, encoding="utf-8")
  done = subprocess.run(
    ["nginx", "-t", "-p", str(tmp_path), "-c", str(path)], capture_output=True, text=True
  )
  assert done.returncode == 1 and 'unknown directive "most_conn"' in done.stderr


class Load:
  """Threads that ask and post through an address until they are stopped."""

  def __init__(self, port, threads=3):
    self._address = f"127.0.0.1:{port}"
    self._stop = threading.Event()
    self._lock = threading.Lock()
    self.answers = []  # (path, status, checkpoint)
    self.acknowledged = set()
    self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]

  def __enter__(self):
    for thread in self._threads:
      thread.start()
    return self

  def __exit__(self, *_):
    self._stop.set()
    for thread in self._threads:
      thread.join()

  def taken(self):
    """What was answered since the last time."""
    with self._lock:
      found, self.answers = self.answers, []
    return found

  def wait(self, enough):
    """Until what was answered since the last time is enough."""
    until = time.monotonic() + _PATIENCE
    while not enough(list(self.answers)):
      assert time.monotonic() < until, self.answers[-5:]
      time.sleep(0.05)

  def _run(self, thread):
    for number in itertools.count():
      # A pause leaves the machine to the server that starts.
      if self._stop.wait(0.02):
        return
      key = f"{thread}-{number}"
      event = {"event_id": key, "user_id": f"user{thread}", "ad_id": f"ad{number % 20:02d}",
               "time": 1_750_000_000 + number}  # fmt: skip
      asked = {"user": "u1", "k": 3, "cache": False}
      status, _ = self._ask("/v1/events", {"events": [event]})
      if status == 202:
        self.acknowledged.add(key)
      self._ask("/v1/recommend", asked)

  def _ask(self, path, body):
    """A request on a connection of its own, so that no kept one hides what nginx does."""
    connection = http.client.HTTPConnection(self._address, timeout=_PATIENCE)
    try:
      connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
      reply = connection.getresponse()
      status, content = reply.status, json.loads(reply.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
      status, content = 0, {"error": repr(error)}
    finally:
      connection.close()
    with self._lock:
      self.answers.append((path, status, content.get("checkpoint"), content.get("error")))
    return status, content


def statuses(answers):
  return {status for _, status, *_ in answers}


@pytest.mark.long
def test_neither_a_kill_nor_rolling_costs_an_answer(shared_folder, trained_run, tmp_path):
  runs = make(trained_run, shared_folder / "served")
  workdir = shutil.copytree(runs / "first", tmp_path / "run")
  ports = [tiny.free_port() for _ in range(3)]
  path = configured(tmp_path, ports)
  servers = {}
  with redis_server.running(tmp_path) as redis:
    stream = f"{redis.url}/shop"

    def start(number):
      servers[number] = Server(
        workdir, f"--stream={stream}", f"--state_dir={tmp_path}/state{number}",
        f"--port={ports[1 + number]}",
      )  # fmt: skip
      until = time.monotonic() + _PATIENCE
      while servers[number].ask("GET", "/readyz")[0] != 200:
        assert time.monotonic() < until
        time.sleep(0.05)

    for number in range(2):
      start(number)
    nginx = subprocess.Popen(["nginx", "-p", str(tmp_path), "-c", str(path)])
    try:
      _wait_for(ports[0])
      with Load(ports[0]) as load:
        load.wait(lambda found: len(found) >= 20)
        assert statuses(load.taken()) == {200, 202}

        servers[1].process.kill()
        servers[1].process.communicate()
        load.wait(lambda found: len(found) >= 60)
        start(1)
        load.wait(lambda found: len(found) >= 80)
        assert statuses(load.taken()) == {200, 202}

        add_checkpoint(runs, workdir)
        load.wait(lambda found: sum(one[2] == SECOND for one in found) >= 20)
        rolled = load.taken()
        assert statuses(rolled) == {200, 202}, rolled
        assert {one[2] for one in rolled} == {None, FIRST, SECOND}
        both = {one.recommend(user="u1", k=3)["checkpoint"] for one in servers.values()}
        assert both == {SECOND}

        for number in range(2):
          assert servers[number].end(signal.SIGTERM) == (0, "")
          load.wait(lambda found: len(found) >= 20)
          start(number)
          load.wait(lambda found: len(found) >= 40)
          found = load.taken()
          assert statuses(found) == {200, 202}, [one for one in found if one[1] not in (200, 202)]
      kept = [record.key for record in open_stream(stream).read("events", 0, 10**6)]
      assert len(set(kept)) == len(kept) and load.acknowledged <= set(kept)
    finally:
      nginx.send_signal(signal.SIGQUIT)
      nginx.wait()
      for server in servers.values():
        server.process.kill()
        server.process.communicate()


def _wait_for(port):
  """Until nginx answers."""
  until = time.monotonic() + _PATIENCE
  while time.monotonic() < until:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    try:
      connection.request("GET", "/healthz")
      assert connection.getresponse().status == 200
      return
    except OSError:
      time.sleep(0.05)
    finally:
      connection.close()
  raise AssertionError("nginx does not answer")
