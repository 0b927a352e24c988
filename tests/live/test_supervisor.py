"""The supervisor, with children that are small scripts: order, restarts, mistakes, kills."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from gr4ad_jax.live import supervisor
from gr4ad_jax.live.supervisor import Service, Supervisor

WAITS = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
FOREVER = WAITS + "print('up', flush=True)\nwhile True: time.sleep(0.05)"


def python(code):
  return (sys.executable, "-S", "-c", code)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
  monkeypatch.setattr(supervisor, "_FIRST_PAUSE", 0.05)
  monkeypatch.setattr(supervisor, "_LOOK", 0.01)


class Said(list):
  """Lines that were told; `until` waits for one."""

  def __init__(self):
    super().__init__()
    self._more = threading.Condition()

  def __call__(self, line):
    with self._more:
      self.append(line)
      self._more.notify_all()

  def until(self, words, count=1):
    with self._more:
      there = lambda: sum(words in line for line in self) >= count  # noqa: E731
      assert self._more.wait_for(there, 60), (words, list(self))


def running(*services):
  said = Said()
  made = Supervisor(services, said)
  status = []
  thread = threading.Thread(target=lambda: status.append(made.run()))
  thread.start()
  return said, made, status, thread


def test_starts_in_order_and_stops_in_the_other():
  """What has an end stops before all others: it is what keeps them busy."""
  is_open = threading.Event()
  first = Service("first", python(FOREVER), is_open.is_set)
  load = Service("load", python(FOREVER), once=True)
  said, made, status, thread = running(first, load, Service("second", python(FOREVER)))
  said.until("first: up")
  assert not any(line.startswith("second") for line in said)  # it waits for the first
  is_open.set()
  said.until("second: up")
  made.stop()
  thread.join()
  assert status == [0] and made.restarts == {"first": 0, "load": 0, "second": 0}
  assert said[-3:] == ["load: stopped", "second: stopped", "first: stopped"]


def test_what_dies_is_started_again_with_longer_pauses(tmp_path):
  file = tmp_path / "starts"
  code = f"f = open({str(file)!r}, 'a'); f.write('x'); f.close(); import sys; sys.exit(3)"
  said, made, status, thread = running(Service("weak", python(code)))
  said.until("weak: ended with status 3", 3)
  made.stop()
  thread.join()
  assert status == [0] and len(file.read_text()) >= 3 and made.restarts["weak"] >= 2
  pauses = [one for one in said if "starts again" in one]
  assert pauses[0].endswith("starts again in 0 s")


def test_pauses_double_up_to_a_minute_and_fall_back(monkeypatch):
  monkeypatch.setattr(supervisor, "_FIRST_PAUSE", 1.0)
  now = [0.0]
  said = Said()
  made = Supervisor([Service("weak", ("x",))], said, clock=lambda: now[0])
  one = made._running[0]
  pauses = []
  for lived in (0, 5, 5, 5, 5, 5, 5, 5, 61, 5):
    one.began = now[0]
    now[0] += lived
    made._ended(one, -9)
    pauses.append(one.again_at - now[0])
  assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 1, 2]
  assert said[0] == "weak: ended with SIGKILL; starts again in 1 s"


def test_a_mistake_stops_all():
  wrong = Service("wrong", python("print('error: --x=1 is not allowed'); raise SystemExit(2)"))
  said, made, status, thread = running(Service("good", python(FOREVER)), wrong)
  thread.join(60)
  assert status == [2] and not thread.is_alive()
  assert "wrong: error: --x=1 is not allowed" in said and said[-1] == "good: stopped"
  assert made.restarts == {"good": 0, "wrong": 0}


def test_what_is_done_is_not_started_again():
  said, made, status, thread = running(
    Service("feed", python("print('fed')"), once=True), Service("other", python(FOREVER))
  )
  said.until("feed: done")
  said.until("other: up")
  made.stop()
  thread.join()
  assert made.restarts["feed"] == 0 and "feed: fed" in said and status == [0]


def test_what_does_not_stop_is_killed(monkeypatch):
  monkeypatch.setattr(supervisor, "_GRACE", 0.2)
  deaf = FOREVER.replace("sys.exit(0)", "None")
  said, made, status, thread = running(Service("deaf", python(deaf)))
  said.until("deaf: up")
  made.stop()
  thread.join()
  assert said[-2:] == ["deaf: does not stop: killed", "deaf: stopped"] and status == [0]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux alone")
def test_a_killed_supervisor_leaves_nobody_behind(tmp_path):
  pid = tmp_path / "pid"
  child = f"import os\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\n" + FOREVER
  code = (
    "from gr4ad_jax.live.supervisor import Service, Supervisor\n"
    f"Supervisor([Service('child', {python(child)!r})], lambda line: print(line, flush=True)).run()"
  )
  parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
  with parent.stdout:
    line = ""
    # On a busy machine the child may be up before the supervisor says that it was started.
    while "up" not in line:
      line = parent.stdout.readline()
      assert line.startswith("child: "), line
    parent.send_signal(signal.SIGKILL)
    parent.wait()
  until = time.monotonic() + 60
  while time.monotonic() < until and os.path.exists(f"/proc/{pid.read_text()}/exe"):
    time.sleep(0.05)
  assert not os.path.exists(f"/proc/{pid.read_text()}/exe")
