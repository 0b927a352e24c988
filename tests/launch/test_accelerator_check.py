"""The script for a borrowed accelerator: in its order, until its time is over, keeping what it has."""

import json
import signal
import subprocess
import time

import pytest

from tests.launch import fakes

# Stands in for Python: writes what --out names, and is slow or fails where it is told to.
_PYTHON = """#!/usr/bin/env bash
case "$*" in *'import fastapi'*) exit 1 ;; esac
for word in "$@"; do case $word in --out=*) out=${word#*=} ;; esac; done
name=$(basename "$out" .json)
echo "$name" >>"$CALLS"
[ "$name" != "$FAILS" ] || { echo "error: no memory" >&2; exit 2; }
[ "$name" != "$SLOW" ] || sleep 30
echo "figures of $name"
echo '{}' >"$out"
"""


def check(folder, *arguments, fails="", slow=""):
  python = fakes.executable(folder / "python", _PYTHON)
  more = {"PYTHON": str(python), "FAILS": fails, "SLOW": slow}
  return fakes.launch(folder, "accelerator_check.sh", f"--out={folder}/out", *arguments, **more)


def called(folder):
  return (folder / "calls").read_text().split()


def test_what_is_most_wanted_comes_first_and_each_part_is_kept(tmp_path):
  done = check(tmp_path)
  assert (done.returncode, done.stderr) == (0, "")
  names = called(tmp_path)
  assert names[:4] == ["kernels", "step", "step_products", "search"]
  assert sorted(path.stem for path in (tmp_path / "out").glob("*.json")) == sorted(names)
  assert "server: not measured, it needs the extras" in done.stdout
  words = (tmp_path / "out" / "summary.txt").read_text()
  assert words.startswith("== kernels\nfigures of kernels\n== step\n")
  # A second call measures nothing again.
  again = check(tmp_path)
  assert "kernels: is there" in again.stdout and called(tmp_path) == names


def test_when_the_time_is_over_what_was_measured_stays(tmp_path):
  begin = time.monotonic()
  done = check(tmp_path, "--seconds=3", slow="step_products")
  assert done.returncode == 0 and time.monotonic() - begin < 25
  assert sorted(path.stem for path in (tmp_path / "out").glob("*.json")) == ["kernels", "step"]
  assert "step_products: not measured, the time was over" in done.stdout
  assert "search: not measured, no time was left" in done.stdout


def test_a_part_that_fails_is_told_and_the_next_one_begins(tmp_path):
  done = check(tmp_path, fails="kernels")
  assert done.returncode == 1
  assert "kernels: failed with 2, see " in done.stdout and "error: no memory" in done.stdout
  assert "step: measured" in done.stdout
  assert not (tmp_path / "out" / "kernels.json").exists()


def test_a_signal_ends_it_and_what_it_runs(tmp_path):
  python = fakes.executable(tmp_path / "python", _PYTHON)
  environment = fakes.environment(tmp_path, PYTHON=str(python), FAILS="", SLOW="step")
  script = subprocess.Popen(
    ["bash", str(fakes.ROOT / "launch" / "accelerator_check.sh"), f"--out={tmp_path}/out"],
    env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  while not (tmp_path / "calls").exists() or called(tmp_path)[-1] != "step":
    time.sleep(0.05)
  script.send_signal(signal.SIGTERM)
  _, words = script.communicate(timeout=20)
  assert script.returncode == 130 and words.startswith("stopped: what was measured is in ")
  assert [path.stem for path in (tmp_path / "out").glob("*.json")] == ["kernels"]


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (("--out=",), "--out= is not allowed: name a folder"),
    (("--seconds=0",), "--seconds=0 is not allowed"),
    (("--minutes=6",), "'--minutes=6' is not a flag"),
  ],
)
def test_a_mistake_is_one_line(words, message, tmp_path):
  done = fakes.launch(tmp_path, "accelerator_check.sh", *words)
  assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
  assert done.stderr.startswith("error: ") and message in done.stderr


@pytest.mark.long
def test_it_runs_to_its_end_on_a_cpu(tmp_path):
  command = ["bash", str(fakes.ROOT / "launch" / "accelerator_check.sh"), "--small"]
  done = subprocess.run(
    [*command, f"--out={tmp_path}/out", "--seconds=3000"],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout
  made = {path.stem for path in (tmp_path / "out").glob("*.json")}
  assert {"kernels", "step", "step_products", "search", "search_fp8", "step_double"} <= made
  figures = json.loads((tmp_path / "out" / "step.json").read_text())
  assert figures["requests_per_second"] > 0
