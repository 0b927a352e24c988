"""`experiments.live` on a tiny log, as a person meets it: one command, and a page of the loop."""

import pathlib
import signal
import subprocess
import sys

import pytest

from gr4ad_jax.arms.journal import Journal
from gr4ad_jax.streams.opening import open_stream
from tests import tiny
from tests.serving.browser import Visit, chromium

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compile_cache")]
_ROOT = pathlib.Path(__file__).parents[1]
_DAY = "2024-01-07"
_PATIENCE = 1_800  # seconds


@pytest.fixture(scope="module")
def driver():
  with chromium() as driver:
    yield driver


@pytest.fixture(scope="module")
def flagfile(driver, tmp_path_factory):
  """How the run is trained; asks for the driver so that nothing is trained where there is none."""
  folder = tiny.write_log(tmp_path_factory.mktemp("log"), users=30)
  more = ("--max_steps=2", "--layers=1", "--lazy_layers=0", "--round_groups=1", "--reward_epochs=1",
          "--reward_width=8", "--candidate_beams=8", "--reload_seconds=1")  # fmt: skip
  path = folder / "tiny.flags"
  path.write_text("\n".join((*tiny.source_flags(folder), *tiny.SETTINGS, *more)) + "\n")
  return path


def test_one_command_and_the_page_shows_the_loop(driver, flagfile, tmp_path):
  port = tiny.free_port()
  workdir = tmp_path / "run"
  command = (sys.executable, "-m", "experiments.live", f"--workdir={workdir}", f"--port={port}",
             f"--replay={_DAY}", f"--train_flagfile={flagfile}")  # fmt: skip
  log = tmp_path / "lines.txt"
  with open(log, "w", encoding="utf-8") as file:
    process = subprocess.Popen(command, cwd=_ROOT, stdout=file, stderr=subprocess.STDOUT)
  try:
    _wait(process, log, "server: ready")
    visit = Visit(driver, f"http://127.0.0.1:{port}")
    visit.wait("#status", "Ready")
    _wait(process, log, "replay: done")
    _wait(process, log, "lists, ")  # the reward system
    _wait(process, log, "learner: ", "visits")
    for _ in range(20):
      if visit.find("#loop").is_displayed() and visit.all("#days path.line"):
        break
      visit.wait("#status", "Ready")
    assert "behind" in visit.wait("#loop-facts", "promoted")
    assert "learning" in visit.all("#days figure")[0]
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0
  finally:
    process.kill()
    process.wait()
  lines = log.read_text()
  stopped = [line for line in lines.splitlines() if line.endswith(": stopped")]
  assert stopped == ["rewards: stopped", "learner: stopped", "server: stopped"]
  stream = open_stream(f"sqlite:{workdir}/live/stream.sqlite")
  journal = Journal.read(stream)
  stream.close()
  _, rows = tiny.rows(users=30)
  posted = [row for row in rows if row[2] >= _DAY]
  assert sum(map(len, journal.taken.values())) == len(posted)
  assert set(journal.shown) == {row[0] for row in posted}


def _wait(process, log, *words):
  """Until one of the lines has all words; fails where the process ends, or after very long."""
  for _ in range(_PATIENCE):
    if any(all(word in line for word in words) for line in log.read_text().splitlines()):
      return
    try:
      process.wait(1.0)
    except subprocess.TimeoutExpired:
      continue
    break
  raise AssertionError((words, log.read_text()[-4000:]))
