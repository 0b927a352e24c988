"""launch/slurm.sbatch: what it submits, what the job runs, and what it does near the time limit."""

import re
import signal
import subprocess

import pytest

from tests.launch import fakes

_SRUN = (
  "srun --kill-on-bad-exit=1 --label --unbuffered .venv/bin/python -m experiments.train --distributed=auto "
  "--flagfile=f --workdir=/shared/r '--note=a b'"
)
_TRAINING = ("--flagfile=f", "--workdir=/shared/r", "--note=a b")
_JOB = {"SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": str(fakes.ROOT)}


def test_lines_for_sbatch():
  text = (fakes.ROOT / "launch" / "slurm.sbatch").read_text()
  head = text[: text.index("set -euo pipefail")].splitlines()  # sbatch reads options up to the first command
  options = dict(re.fullmatch(r"#SBATCH --([\w-]+)(?:=(.*))?", line).groups() for line in head if "#SBATCH " in line)
  assert options["requeue"] is None and options["signal"] == "B:USR1@120" and options["open-mode"] == "append"
  assert options["ntasks-per-node"] == "1" and text.count("#SBATCH ") == len(options)


def test_dry_run(tmp_path):
  done = fakes.launch(tmp_path, "slurm.sbatch", "--dry-run", "--nodes=2", "--gpus-per-node=4", "--", *_TRAINING)
  assert done.returncode == 0
  submission = "sbatch --nodes=2 --gpus-per-node=4 launch/slurm.sbatch --flagfile=f --workdir=/shared/r '--note=a b'"
  assert done.stdout == f"{submission}\n{_SRUN}\n"


def test_it_submits_what_the_dry_run_prints(tmp_path):
  fakes.recorder(tmp_path, "sbatch")
  dry = fakes.launch(tmp_path, "slurm.sbatch", "--dry-run", "--time=1:00:00", "--", *_TRAINING)
  assert fakes.launch(tmp_path, "slurm.sbatch", "--time=1:00:00", "--", *_TRAINING).returncode == 0
  assert fakes.calls(tmp_path) == fakes.printed(dry.stdout)[:1]


@pytest.mark.parametrize("status", [0, 5])
def test_the_job_runs_what_the_dry_run_prints(status, tmp_path):
  fakes.recorder(tmp_path, "srun", f"exit {status}")
  fakes.recorder(tmp_path, "scontrol")
  copied = fakes.executable(tmp_path / "spool" / "slurm_script", (fakes.ROOT / "launch" / "slurm.sbatch").read_text())
  done = subprocess.run(
    ["bash", str(copied), *_TRAINING],
    env=fakes.environment(tmp_path, **_JOB), capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert (done.returncode, done.stdout) == (status, _SRUN + "\n"), done.stderr
  assert fakes.calls(tmp_path) == fakes.printed(_SRUN)


def test_the_job_needs_a_workdir(tmp_path):
  done = fakes.launch(tmp_path, "slurm.sbatch", "--flagfile=f", **_JOB)
  assert done.returncode == 2 and done.stderr.startswith("error: no --workdir=")


@pytest.mark.parametrize(
  ("number", "status", "requeued"),
  [(signal.SIGUSR1, 0, True), (signal.SIGUSR1, 1, False), (signal.SIGTERM, 0, False)],
  ids=["time limit", "time limit, not saved", "scancel"],
)
def test_it_saves_near_the_time_limit(number, status, requeued, tmp_path):
  fakes.recorder(tmp_path, "srun", f"trap 'echo saved; exit {status}' TERM; echo runs; while :; do sleep 0.05; done")
  fakes.recorder(tmp_path, "scontrol")
  job = subprocess.Popen(
    ["bash", str(fakes.ROOT / "launch" / "slurm.sbatch"), *_TRAINING],
    env=fakes.environment(tmp_path, **_JOB), stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  assert [job.stdout.readline() for _ in range(2)] == [_SRUN + "\n", "runs\n"]
  job.send_signal(number)
  out, _ = job.communicate(timeout=30)
  assert (job.returncode, out.splitlines()[0]) == (status, "saved")
  assert ("queued again" in out) == requeued
  assert fakes.calls(tmp_path)[1:] == ([["scontrol", "requeue", "77"]] if requeued else [])
