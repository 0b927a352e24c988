"""`experiments.live` with stand-ins for the binaries: what is started, how, and how all ends."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest

from gr4ad_jax.live import loop
from tests import tiny
from tests.live.shop import Shop

_ROOT = pathlib.Path(__file__).parents[2]

# Stands in for `python -m experiments.<name>`: says its flags, answers /readyz, waits for SIGTERM.
_STAND_IN = """
import http.server, os, signal, sys, threading
name, flags = sys.argv[2].removeprefix("experiments."), sys.argv[3:]
print("flags", *flags, flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if name == "play":
  sys.exit(0)
if name == "serve":
  class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      self.send_response(200)
      self.end_headers()
    def log_message(self, *_): pass
  port = next(int(flag[7:]) for flag in flags if flag.startswith("--port="))
  server = http.server.HTTPServer(("127.0.0.1", port), Ready)
  threading.Thread(target=server.serve_forever, daemon=True).start()
once = os.path.join(os.path.dirname(__file__), "dies_once")
if name == "learn" and not os.path.exists(once):
  open(once, "w").close()
  sys.exit(3)
while True: signal.pause()
"""


@pytest.fixture
def python(tmp_path):
  """An interpreter that runs the stand-in, whatever module it is asked for."""
  code = tmp_path / "stand_in.py"
  code.write_text(textwrap.dedent(_STAND_IN))
  path = tmp_path / "python"
  path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {code} "$@"\n')
  path.chmod(0o755)
  return str(path)


@pytest.fixture
def workdir(tmp_path):
  """What counts as a trained run."""
  os.makedirs(tmp_path / "run" / "checkpoints" / "4")
  return str(tmp_path / "run")


def _live(python, workdir, port, *flags):
  """Starts the binary, its children being stand-ins."""
  code = (
    "import sys\nfrom gr4ad_jax.live import supervisor\nsupervisor._FIRST_PAUSE = 0.05\n"
    f"import gr4ad_jax.live.loop as loop\nloop.services.__kwdefaults__['python'] = {python!r}\n"
    "import runpy\nsys.argv = ['live', *sys.argv[1:]]\n"
    "runpy.run_module('experiments.live', run_name='__main__')\n"
  )
  command = [sys.executable, "-c", code, f"--workdir={workdir}", f"--port={port}", *flags]
  return subprocess.Popen(
    command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def _until(process, *wanted):
  """Reads lines until all that is wanted stood in one. Returns them."""
  lines = []
  left = set(wanted)
  while left:
    line = process.stdout.readline()
    assert line, (left, lines)
    lines.append(line.strip())
    left = {words for words in left if words not in line}
  return lines


def test_the_loop_starts_restarts_and_stops_in_order(python, workdir):
  port = tiny.free_port()
  process = _live(python, workdir, port, "--replay=2010-12-01", "--speed=60")
  with process.stdout:
    lines = _until(
      process, "rewards: started", "replay: done", "learner: ended with status 3; starts again"
    )
    lines += _until(process, "learner: flags")
    process.send_signal(signal.SIGINT)
    end = process.stdout.read().split("\n")
    assert process.wait(60) == 0
  stream = f"--stream=sqlite:{workdir}/live/stream.sqlite"
  assert lines[0] == f"the page: http://127.0.0.1:{port}/"
  serve = f"server: flags --workdir={workdir} --port={port} {stream} --checkpoint=promoted"
  play = f"--workdir={workdir} --address=http://127.0.0.1:{port} --from=2010-12-01 --speed=60.0"
  assert serve in lines and f"replay: flags {play}" in lines
  assert f"rewards: flags --workdir={workdir} {stream} --part=64 --sample=16" in lines
  assert lines.index("server: ready") < lines.index(f"replay: flags {play}")
  stopped = [line for line in end if line.endswith(": stopped")]
  assert stopped == ["rewards: stopped", "learner: stopped", "server: stopped"]


def test_ready_is_asked_of_the_server():
  shop = Shop()
  assert not loop.is_ready(shop.address)  # it answers, but not this
  shop.close()
  assert not loop.is_ready(shop.address)


@pytest.mark.long
def test_no_workdir_and_a_training_that_fails(tmp_path):
  done = tiny.run("live")
  assert done.status == 2 and "--workdir= is not allowed" in done.err
  flagfile = tmp_path / "wrong.flags"
  flagfile.write_text("--width=-1\n")
  command = [sys.executable, "-m", "experiments.live", f"--workdir={tmp_path}/run"]
  done = subprocess.run(
    [*command, f"--train_flagfile={flagfile}"], capture_output=True, text=True, cwd=_ROOT,
    check=False,
  )  # fmt: skip
  assert done.returncode == 2 and "--width=-1 is not allowed" in done.stderr
  assert "training one first" in done.stdout and not os.path.exists(tmp_path / "run")
