"""launch/local.sh: what it runs, output by process, failures, signals, restarts, and that
nothing is left behind.
"""

import os
import re
import signal
import subprocess
import time

import pytest

from tests.launch import fakes

# What stands in for python -m experiments.train: does what --mode says, and writes its number down.
_PYTHON = r"""#!/usr/bin/env bash
for word in "$@"; do
  case $word in
    --process_id=*) me=${word#*=} ;;
    --mode=*) mode=${word#*=} ;;
  esac
done
echo "$$" >>"$FOLDER/pids.$me"
echo "out of $me"
echo "err of $me" >&2
starts=$(wc -l <"$FOLDER/pids.$me")
case $mode in
  fine) printf 'no newline at the end' ;;
  fail) [ "$me" = 0 ] || exit 3; sleep 0.5; exit 1 ;;
  killed) [ "$me" = 0 ] || kill -9 $$; sleep 0.5; exit 1 ;;
  wrong) exit 2 ;;
  once) [ "$me" = 0 ] || [ "$starts" -gt 1 ] || exit 4 ;;
  patient) trap 'echo "saved $me"; exit 0' TERM; : >"$FOLDER/ready.$me"; while :; do sleep 0.05; done ;;
  stuck)
    if [ "$me" = 1 ]; then until [ -e "$FOLDER/ready.0" ]; do sleep 0.05; done; exit 3; fi
    trap 'echo "asked $me"; exit 9' TERM; : >"$FOLDER/ready.$me"; while :; do sleep 0.05; done
    ;;
  deaf) trap '' TERM; sleep 300 & echo $! >"$FOLDER/child.$me"; : >"$FOLDER/ready.$me"; while :; do sleep 0.05; done ;;
esac
"""


@pytest.fixture
def fake(tmp_path):
  """Environment under which the launcher runs the fake."""
  fakes.executable(tmp_path / "python", _PYTHON)
  return {"PYTHON": str(tmp_path / "python"), "FOLDER": str(tmp_path), "TMPDIR": str(tmp_path)}


def _catchable():
  """What nohup or a shell's background makes ignored, bash could not catch."""
  for number in (signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_DFL)


def _start(folder, fake, *arguments):
  """The launcher in the background, with a process group of its own."""
  return subprocess.Popen(
    ["bash", str(fakes.ROOT / "launch" / "local.sh"), *arguments],
    env=fakes.environment(folder, **fake), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    text=True, start_new_session=True, preexec_fn=_catchable,
  )  # fmt: skip


def _wait_for(condition, seconds=30.0):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.05)


def _alive(pid):
  try:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
      return file.read().rpartition(")")[2].split()[0] != "Z"  # a zombie is nobody's work any more
  except FileNotFoundError:
    if os.path.exists("/proc/self/stat"):
      return False
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  return True


def _left(folder):
  """Processes of the job that still run, and what it left in the folder of temporary files."""
  pids = [
    int(line)
    for pattern in ("pids.*", "child.*")
    for path in folder.glob(pattern)
    for line in open(path)
  ]
  return [pid for pid in pids if _alive(pid)], list(folder.glob("gr4ad_launch*"))


def test_dry_run_of_one_process(tmp_path):
  done = fakes.launch(tmp_path, "local.sh", "--dry-run")
  assert done.stdout == ".venv/bin/python -m experiments.train --workdir=runs/local\n"
  done = fakes.launch(
    tmp_path, "local.sh", "--dry-run", "--workdir=a b", "--flagfile=it's", "--x=$y", PYTHON="py"
  )
  assert done.stdout == "py -m experiments.train '--workdir=a b' '--flagfile=it'\\''s' '--x=$y'\n"
  assert fakes.printed(done.stdout) == [
    ["py", "-m", "experiments.train", "--workdir=a b", "--flagfile=it's", "--x=$y"]
  ]


def test_dry_run_of_a_job(tmp_path):
  done = fakes.launch(
    tmp_path, "local.sh", "-n", "2", "--devices=4", "--port=2345", "--dry-run",
    "--mesh=data:-1,fsdp:4", "--workdir=w", XLA_FLAGS="--xla_a --xla_b",
  )  # fmt: skip
  common = (
    "env JAX_PLATFORMS=cpu 'XLA_FLAGS=--xla_a --xla_b --xla_force_host_platform_device_count=4' "
    ".venv/bin/python "
    "-m experiments.train --workdir=w --mesh=data:-1,fsdp:4 --coordinator=127.0.0.1:2345 "
    "--num_processes=2"
  )
  assert (done.stdout, done.stderr) == (f"{common} --process_id=0\n{common} --process_id=1\n", "")


@pytest.mark.parametrize("job", [("-n", "2", "--port=2345"), ()])
def test_it_runs_what_the_dry_run_prints(job, tmp_path):
  words = """printf '%s\\0' env "JAX_PLATFORMS=$JAX_PLATFORMS" "XLA_FLAGS=$XLA_FLAGS" "$0" "$@"; printf '\\n\\n'"""
  whole = 'cat "$CALLS.$$" >>"$CALLS"'  # in one write: two processes call at once
  python = fakes.executable(
    tmp_path / "python", f'#!/usr/bin/env bash\n{{ {words}; }} >"$CALLS.$$"\n{whole}\n'
  )
  arguments = (*job, "--devices=2", "--a=b  c", "--workdir=w w")
  dry = fakes.launch(
    tmp_path, "local.sh", "--dry-run", *arguments, PYTHON=str(python), XLA_FLAGS="--xla_a"
  )
  assert fakes.calls(tmp_path) == []
  done = fakes.launch(tmp_path, "local.sh", *arguments, PYTHON=str(python), XLA_FLAGS="--xla_a")
  assert done.returncode == 0, done.stderr
  assert sorted(fakes.calls(tmp_path)) == fakes.printed(dry.stdout)
  assert len(fakes.calls(tmp_path)) == (2 if job else 1)


def test_output_by_process(tmp_path, fake):
  done = fakes.launch(tmp_path, "local.sh", "-n", "2", "--mode=fine", **fake)
  assert done.returncode == 0
  assert sorted(done.stdout.splitlines()) == [
    "[0] no newline at the end", "[0] out of 0", "[1] no newline at the end", "[1] out of 1",
  ]  # fmt: skip
  told = done.stderr.splitlines()
  assert re.fullmatch(
    r"\[launch\] starts 2 processes; process 0 listens at 127\.0\.0\.1:\d+", told[0]
  )
  assert sorted(told[1:]) == ["[0] err of 0", "[1] err of 1"]
  assert _left(tmp_path) == ([], [])


@pytest.mark.parametrize(
  ("mode", "status", "how"),
  [("fail", 3, "ended with exit status 3"), ("killed", 137, "was ended by signal 9 (KILL)")],
)
def test_a_process_that_fails(mode, status, how, tmp_path, fake):
  done = fakes.launch(tmp_path, "local.sh", "-n", "2", f"--mode={mode}", **fake)
  assert all(line.startswith("[") for line in done.stderr.splitlines()), (
    done.stderr
  )  # no word of bash's own
  told = [line for line in done.stderr.splitlines() if line.startswith("[launch]")][1:]
  assert told == [f"[launch] process 1 {how}", "[launch] process 0 ended with exit status 1"]
  assert done.returncode == status
  assert _left(tmp_path) == ([], [])


def test_the_others_are_ended_after_the_grace(tmp_path, fake):
  done = fakes.launch(tmp_path, "local.sh", "-n", "2", "--mode=stuck", "--grace=0", **fake)
  told = [line for line in done.stderr.splitlines() if line.startswith("[launch]")]
  assert "[launch] still running: 0; sends SIGTERM" in told
  assert "[launch] process 0 ended with exit status 9" in told and "[0] asked 0" in done.stdout
  assert done.returncode == 3
  assert _left(tmp_path) == ([], [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_and_waited_for(number, tmp_path, fake):
  job = _start(tmp_path, fake, "-n", "2", "--mode=patient", "--restarts=3")
  _wait_for(lambda: len(list(tmp_path.glob("ready.*"))) == 2)
  if number == signal.SIGINT:
    os.killpg(job.pid, number)  # as a terminal does: to all of the foreground group
  else:
    job.send_signal(number)
  out, err = job.communicate(timeout=30)
  assert (job.returncode, "[0] saved 0" in out, "[1] saved 1" in out) == (0, True, True), err
  assert (
    "[launch] stops: sends SIGTERM to all processes, and waits for them" in err
    and "starts again" not in err
  )
  assert _left(tmp_path) == ([], [])


def test_a_second_signal_kills(tmp_path, fake):
  job = _start(tmp_path, fake, "-n", "2", "--mode=deaf")
  _wait_for(lambda: len(list(tmp_path.glob("ready.*"))) == 2)
  job.send_signal(signal.SIGTERM)
  _wait_for(lambda: "SIGTERM" in job.stderr.readline())
  assert len(_left(tmp_path)[0]) == 4  # they are deaf to it, and waited for
  job.send_signal(signal.SIGTERM)
  _, err = job.communicate(timeout=30)
  assert job.returncode == 137 and "process 0 was ended by signal 9 (KILL)" in err
  assert _left(tmp_path) == ([], [])  # what a process started is ended with it


def test_restarts(tmp_path, fake):
  done = fakes.launch(tmp_path, "local.sh", "-n", "2", "--mode=once", "--restarts=2", **fake)
  assert done.returncode == 0
  assert done.stderr.count("starts again (1 of 2)") == 1 and "(2 of 2)" not in done.stderr
  assert done.stdout.count("[1] out of 1") == 2


def test_restarts_end(tmp_path, fake):
  done = fakes.launch(
    tmp_path, "local.sh", "-n", "2", "--mode=fail", "--restarts=1", "--grace=0", **fake
  )
  assert done.returncode == 3 and done.stdout.count("[1] out of 1") == 2


def test_a_mistake_is_not_started_again(tmp_path, fake):
  done = fakes.launch(tmp_path, "local.sh", "-n", "2", "--mode=wrong", "--restarts=1", **fake)
  assert done.returncode == 2 and "starts again" not in done.stderr


def test_a_killed_launcher_leaves_nobody(tmp_path, fake):
  job = _start(tmp_path, fake, "-n", "2", "--mode=patient")
  _wait_for(lambda: len(list(tmp_path.glob("ready.*"))) == 2)
  job.kill()
  out, _ = job.communicate(timeout=60)  # until the last of those that write has ended
  assert "[0] saved 0" in out and "[1] saved 1" in out
  _wait_for(lambda: _left(tmp_path)[0] == [])
