"""The server as a process: start, answer, SIGTERM; kill -9 while it serves, writes or reloads,
and start again.
"""

import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

import pytest

from tests import tiny
from tests.serving.runs import FIRST, SECOND, add_checkpoint, make

pytestmark = pytest.mark.usefixtures("compile_cache")
_ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = (
  "--port=0",
  "--buckets=2",
  "--notabs",
  "--reload_seconds=0.1",
  "--checkpoint=last",
  "--deadline_ms=20000",
  "--target_ms=10000",
  "--explained_ads=0",  # no test here asks for reasons: their program would be compiled behind it
)


def unhurried(err):
  """Standard error without the lines that tell how far a start is, which a busy machine has more
  of.
  """
  return "".join(
    line for line in err.splitlines(keepends=True) if not line.startswith("starting, ")
  )


@pytest.fixture(scope="module")
def runs(shared_folder, trained_run):
  return make(trained_run, shared_folder / "served")


@pytest.fixture
def workdir(runs, tmp_path):
  return shutil.copytree(runs / "first", tmp_path / "run")


class Server:
  """`python -m experiments.serve` as a process, up to the line that tells its address."""

  def __init__(self, workdir, *arguments):
    command = [
      sys.executable,
      "-m",
      "experiments.serve",
      f"--workdir={workdir}",
      *SETTINGS,
      *arguments,
    ]
    self.process = subprocess.Popen(
      command, cwd=_ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    line = self.process.stdout.readline()
    if not line.startswith("serving on "):
      self.process.kill()
      pytest.fail(f"ended without serving: {line}{self.process.communicate()[1]}")
    self.address = urllib.parse.urlsplit(line.split()[-1]).netloc

  def ask(self, method, path, body=None, headers=None):
    """(status, JSON) of one request."""
    connection = http.client.HTTPConnection(self.address, timeout=60)
    with contextlib.closing(connection):
      sent = None if body is None else json.dumps(body)
      connection.request(method, path, sent, {"content-type": "application/json"} | (headers or {}))
      answer = connection.getresponse()
      return answer.status, json.loads(answer.read())

  def recommend(self, **body):
    """The answer to a request, which must be good."""
    status, answer = self.ask("POST", "/v1/recommend", {"cache": False} | body)
    assert status == 200, answer
    return answer

  def end(self, number):
    """Sends a signal and waits; returns the exit status and what was said on standard error."""
    self.process.send_signal(number)
    _, err = self.process.communicate(timeout=60)
    return self.process.returncode, unhurried(err)


@contextlib.contextmanager
def serving(workdir, *arguments):
  server = Server(workdir, *arguments)
  try:
    yield server
  finally:
    server.process.kill()
    server.process.communicate(timeout=60)


def test_start_answer_and_stop(workdir, tmp_path):
  (tmp_path / "token").write_text("s3cret\n")
  with serving(workdir, f"--token_file={tmp_path}/token") as server:
    token = {"authorization": "Bearer s3cret"}
    assert server.ask("GET", "/readyz")[0] == 200 and server.ask("GET", "/v1/users")[0] == 401
    assert server.ask("GET", "/v1/users?limit=2", headers=token) == (200, {"users": ["u0", "u1"]})
    status, answer = server.ask("POST", "/v1/recommend", {"user": "u1", "k": 3}, token)
    assert status == 200 and len(answer["ads"]) == 3 and answer["source"] == "model"
    assert server.end(signal.SIGTERM) == (0, "")


def test_an_address_of_no_machine_is_told(workdir, tmp_path):
  (tmp_path / "token").write_text("s3cret")
  done = tiny.run(
    "serve", f"--workdir={workdir}", "--host=999.1.1.1", f"--token_file={tmp_path}/token"
  )
  assert done.status == 2 and "--host=999.1.1.1" in done.err and done.err.count("\n") == 1


@pytest.mark.long
def test_it_says_that_it_lives_before_it_can_serve(workdir, tmp_path):
  (tmp_path / "go").mkdir()
  slow = (
    "import sys, time, pathlib; from gr4ad_jax.decoding.searcher import Searcher; prepare = "
    "Searcher.prepare\n"
    "def held(*arguments):\n"
    f"  while not pathlib.Path({str(tmp_path / 'go' / 'on')!r}).exists(): time.sleep(.02)\n"
    "  return prepare(*arguments)\n"
    "Searcher.prepare = held\n"
    "import experiments.serve as serve; from experiments import flags; flags.define_flags(); "
    "flags.run(serve.main)\n"
  )
  port = tiny.free_port()
  command = [sys.executable, "-c", slow, f"--workdir={workdir}", *SETTINGS, f"--port={port}"]
  process = subprocess.Popen(
    command, cwd=_ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE,
    stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  server = Server.__new__(Server)
  server.process = process
  server.address = f"127.0.0.1:{port}"
  try:
    until = time.monotonic() + 60
    while time.monotonic() < until:
      with contextlib.suppress(OSError):
        assert server.ask("GET", "/healthz") == (200, {"status": "ok"})
        break
      time.sleep(0.05)
    for path in ("/readyz", "/", "/v1/stats"):
      status, answer = server.ask("GET", path)
      assert status == 503 and answer["error"].startswith("starting: "), path
    line = process.stderr.readline()  # told every few seconds where stderr is no terminal
    assert line.startswith("starting, ") and line.endswith(
      ("opening the run\n", "searches, 0 s\n")
    ), line
    (tmp_path / "go" / "on").touch()
    assert process.stdout.readline().startswith("serving on ")
    assert server.ask("GET", "/readyz")[0] == 200 and server.recommend(user="u1", k=2)["ads"]
    assert server.end(signal.SIGTERM) == (0, "")
  finally:
    process.kill()


@pytest.mark.long
def test_compiling_alone_fills_the_cache_and_ends(workdir):
  done = tiny.run("serve", f"--workdir={workdir}", *SETTINGS, "--compile_only")
  assert done.status == 0 and "compiled 1 of 1 searches" in done.out, done.err


@pytest.mark.long
def test_half_an_upload_does_not_hold_the_end(workdir):
  with serving(workdir) as server:
    host, _, port = server.address.partition(":")
    half = socket.create_connection((host, int(port)), timeout=20)
    head = (
      b"PUT /v1/ads/a HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
      b"content-length: 99\r\n\r\n{"
    )
    half.sendall(head)
    time.sleep(0.2)
    begin = time.monotonic()
    assert server.end(signal.SIGTERM) == (0, "")
    assert time.monotonic() - begin < 10
    half.close()


@pytest.mark.long
def test_what_was_begun_is_answered_at_the_end(workdir):
  with serving(workdir) as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
    begun = [pool.submit(server.recommend, user=f"u{n}") for n in range(8)]
    time.sleep(0.02)
    status, err = server.end(signal.SIGTERM)
    assert (status, err) == (0, "")
    finished = [future for future in begun if future.exception() is None]
    lost = [future.exception() for future in begun if future.exception() is not None]
    assert finished and all(future.result()["ads"] for future in finished)
    assert all(isinstance(error, ConnectionError) for error in lost)  # came too late to be taken
    with pytest.raises(ConnectionError):
      server.recommend(user="u1")


@pytest.mark.long
def test_sigterm_before_it_serves_is_no_error(workdir):
  command = [sys.executable, "-m", "experiments.serve", f"--workdir={workdir}", *SETTINGS]
  process = subprocess.Popen(
    command, cwd=_ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stderr=subprocess.PIPE
  )
  try:
    while not (workdir / "live" / "lock").exists():
      assert process.poll() is None
      time.sleep(0.01)
    process.terminate()
    assert unhurried(process.communicate(timeout=60)[1].decode()) == "" and process.returncode == 0
  finally:
    process.kill()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("--host=0.0.0.0",), "--host=0.0.0.0 is not allowed without --token_file"),
    (("--token_file=absent",), "absent"),
    (("--checkpoint=99",), "no checkpoint 99"),
    (("--buckets=0",), "--buckets"),
  ],
)
def test_mistakes_are_one_line(workdir, arguments, message):
  done = tiny.run("serve", f"--workdir={workdir}", "--port=0", *arguments)
  err = unhurried(done.err)
  assert done.status == 2 and err.count("\n") == 1
  assert err.startswith("error: ") and message in err


@pytest.mark.long
def test_a_second_server_on_one_run_is_refused(workdir):
  with serving(workdir) as server:
    port = server.address.rpartition(":")[2]
    for arguments, message in (
      (("--port=0",), "in use by another process"),
      ((f"--port={port}",), f"--port={port}"),
    ):
      done = tiny.run("serve", f"--workdir={workdir}", *arguments)
      err = unhurried(done.err)
      assert done.status == 2 and message in err and err.count("\n") == 1


def put_until_it_dies(server, prefix, acknowledged):
  """Adds ads, and deletes every third again, until the connection breaks; notes what was
  acknowledged.
  """
  for n in range(10_000):
    name = f"{prefix}{n}"
    try:
      assert (
        server.ask("PUT", f"/v1/ads/{name}", {"text": f"thing {n}", "account_id": prefix})[0] == 201
      )
      acknowledged[name] = True
      if n % 3 == 0:
        acknowledged.pop(name)  # neither there nor gone, until the answer comes
        assert server.ask("DELETE", f"/v1/ads/{name}")[0] == 200
        acknowledged[name] = False
    except (OSError, http.client.HTTPException):
      return


@pytest.mark.long
@pytest.mark.parametrize("turns", [2, 10])
def test_kill_9_during_load_loses_nothing_acknowledged(workdir, turns):
  acknowledged = {}
  for turn in range(turns):
    with serving(workdir) as server, concurrent.futures.ThreadPoolExecutor(4) as pool:
      for name, there in acknowledged.items():
        assert server.ask("GET", f"/v1/ads/{name}")[0] == (200 if there else 404), name
      stop = threading.Event()

      def recommend(server=server, stop=stop):
        while not stop.is_set():
          try:
            server.recommend(user="u1")
          except (OSError, http.client.HTTPException):
            return

      writers = [
        pool.submit(put_until_it_dies, server, f"{turn}-{w}-", acknowledged) for w in range(2)
      ]
      readers = [pool.submit(recommend) for _ in range(2)]
      until = time.monotonic() + 30
      while len(acknowledged) < 25 * (turn + 1) and time.monotonic() < until:
        time.sleep(0.005)
      server.process.kill()
      stop.set()
      for future in (*writers, *readers):
        future.result(60)
  assert len(acknowledged) >= 25 * turns
  with serving(workdir) as server:
    assert all(
      server.ask("GET", f"/v1/ads/{name}")[0] == (200 if there else 404)
      for name, there in acknowledged.items()
    )
    assert server.recommend(user="u1", k=5)["ads"]


@pytest.mark.long
def test_kill_9_during_a_reload_does_no_harm(runs, workdir):
  with serving(workdir) as server:
    assert server.ask("PUT", "/v1/ads/kept", {"text": "tea", "account_id": "shop"})[0] == 201
    assert server.recommend(user="u1")["checkpoint"] == FIRST
    add_checkpoint(runs, workdir)
    time.sleep(0.12)  # it looks ten times a second
    server.process.kill()
  with serving(workdir) as server:
    assert server.recommend(user="u1")["checkpoint"] == SECOND
    assert server.ask("GET", "/v1/ads/kept")[1]["text"] == "tea"


@pytest.mark.long
def test_a_newer_checkpoint_comes_into_use_under_load(runs, workdir):
  with serving(workdir) as server, concurrent.futures.ThreadPoolExecutor(2) as pool:
    stop = threading.Event()

    def steps():
      found = []
      while not stop.is_set():
        found.append(server.recommend(user="u1", fallback=False)["checkpoint"])
      return found

    loads = [pool.submit(steps) for _ in range(2)]
    time.sleep(0.2)
    add_checkpoint(runs, workdir)
    until = time.monotonic() + 30
    while server.ask("GET", "/v1/stats")[1]["checkpoint"] == FIRST and time.monotonic() < until:
      time.sleep(0.02)
    time.sleep(0.2)
    stop.set()
    for future in loads:
      found = future.result(60)
      assert found == sorted(found) and {FIRST, SECOND} == set(found)
