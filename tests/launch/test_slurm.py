"""launch/slurm.sbatch: what it submits, what the job runs, and what it does near the time limit."""

import re
import signal
import subprocess

import pytest

from gr4ad_jax.parallel import distributed
from tests.launch import fakes

_SRUN = (
  "srun --cpus-per-task=8 --kill-on-bad-exit=1 --label --unbuffered .venv/bin/python -m "
  "experiments.train "
  "--distributed=auto --flagfile=f --workdir=/shared/r '--note=a b'"
)
_TRAINING = ("--flagfile=f", "--workdir=/shared/r", "--note=a b")
_JOB = {"SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": str(fakes.ROOT), "SLURM_CPUS_PER_TASK": "8"}


def _spooled(folder):
  """The copy that SLURM runs."""
  return fakes.executable(
    folder / "spool" / "slurm_script", (fakes.ROOT / "launch" / "slurm.sbatch").read_text()
  )


def _run_job(folder, *flags, **more):
  return subprocess.run(
    ["bash", str(_spooled(folder)), *flags], env=fakes.environment(folder, **_JOB | more),
    capture_output=True, text=True, timeout=60, check=False,
  )  # fmt: skip


def test_lines_for_sbatch():
  text = (fakes.ROOT / "launch" / "slurm.sbatch").read_text()
  head = text[
    : text.index("set -euo pipefail")
  ].splitlines()  # sbatch reads options up to the first command
  options = dict(
    re.fullmatch(r"#SBATCH --([\w-]+)(?:=(.*))?", line).groups()
    for line in head
    if "#SBATCH " in line
  )
  assert (
    options["requeue"] is None
    and options["signal"] == "B:USR1@120"
    and options["open-mode"] == "append"
  )
  assert (options["ntasks-per-node"], options["cpus-per-task"]) == ("1", "8")
  assert text.count("\n#SBATCH ") == len(options)


def test_dry_run(tmp_path):
  done = fakes.launch(
    tmp_path, "slurm.sbatch", "--dry-run", "--nodes=2", "--gpus-per-node=4", "--", *_TRAINING
  )
  assert done.returncode == 0
  submission = (
    "sbatch --nodes=2 --gpus-per-node=4 launch/slurm.sbatch --flagfile=f "
    "--workdir=/shared/r '--note=a b'"
  )
  assert done.stdout == f"{submission}\n{_SRUN}\n"


@pytest.mark.parametrize("option", ["--cpus-per-task=3", "-c3"])
def test_the_cpus_of_a_task_reach_srun(option, tmp_path):
  """Since SLURM 22.05 srun does not take them from the job."""
  done = fakes.launch(tmp_path, "slurm.sbatch", "--dry-run", option, "--", *_TRAINING)
  srun = _SRUN.replace("--cpus-per-task=8", "--cpus-per-task=3")
  assert done.stdout == (
    f"sbatch {option} launch/slurm.sbatch --flagfile=f --workdir=/shared/r '--note=a b'\n{srun}\n"
  )
  fakes.recorder(tmp_path, "srun")
  assert _run_job(tmp_path, *_TRAINING, SLURM_CPUS_PER_TASK="3").stdout == f"{srun}\n"
  assert fakes.calls(tmp_path) == fakes.printed(srun)


def test_inside_an_allocation(tmp_path):
  """In the shell that salloc starts SLURM_JOB_ID is set, and this is no job yet."""
  for name in ("srun", "sbatch"):
    fakes.recorder(tmp_path, name)
  allocation = _JOB | {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_CPUS_PER_TASK": "5"}
  submission = "sbatch launch/slurm.sbatch --flagfile=f --workdir=/shared/r '--note=a b'"
  dry = fakes.launch(tmp_path, "slurm.sbatch", "--dry-run", "--", *_TRAINING, **allocation)
  assert (dry.returncode, dry.stdout, dry.stderr) == (0, f"{submission}\n{_SRUN}\n", "")
  assert fakes.calls(tmp_path) == []
  done = fakes.launch(tmp_path, "slurm.sbatch", "--", *_TRAINING, **allocation)
  assert done.returncode == 0 and fakes.calls(tmp_path) == fakes.printed(submission)


def test_it_submits_what_the_dry_run_prints(tmp_path):
  fakes.recorder(tmp_path, "sbatch")
  dry = fakes.launch(tmp_path, "slurm.sbatch", "--dry-run", "--time=1:00:00", "--", *_TRAINING)
  assert fakes.launch(tmp_path, "slurm.sbatch", "--time=1:00:00", "--", *_TRAINING).returncode == 0
  assert fakes.calls(tmp_path) == fakes.printed(dry.stdout)[:1]


@pytest.mark.parametrize("status", [0, 5])
def test_the_job_runs_what_the_dry_run_prints(status, tmp_path):
  fakes.recorder(tmp_path, "srun", f"exit {status}")
  fakes.recorder(tmp_path, "scontrol")
  done = _run_job(tmp_path, *_TRAINING)
  assert (done.returncode, done.stdout) == (status, _SRUN + "\n"), done.stderr
  assert fakes.calls(tmp_path) == fakes.printed(_SRUN)


@pytest.mark.parametrize(("given", "devices"), [(None, (1,)), ("0,1,2,3", (0, 1, 2, 3))])
def test_the_gpus_of_a_task(given, devices, monkeypatch):
  """The one of its own number, or those that JAX_LOCAL_DEVICE_IDS names: one task a node has
  all.
  """
  task = {
    "STEP_NODELIST": "n[07-08]",
    "NTASKS": "4",
    "PROCID": "3",
    "LOCALID": "1",
    "STEP_NUM_NODES": "2",
  }
  for name, value in ({"JOB_ID": "77"} | task).items():
    monkeypatch.setenv(f"SLURM_{name}", value)
  monkeypatch.delenv("JAX_LOCAL_DEVICE_IDS", raising=False)
  if given:
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", given)
  job = distributed.detect(1.0)
  assert (job.coordinator.partition(":")[0], job.processes, job.process, job.local_devices) == (
    "n07",
    4,
    3,
    devices,
  )


def test_the_job_needs_a_workdir(tmp_path):
  done = _run_job(tmp_path, "--flagfile=f")
  assert done.returncode == 2 and done.stderr.startswith("error: no --workdir=")


@pytest.mark.parametrize(
  ("number", "status", "requeued"),
  [
    (signal.SIGUSR1, 0, True),
    (signal.SIGUSR1, 143, True),
    (signal.SIGUSR1, 1, False),
    (signal.SIGTERM, 0, False),
    (signal.SIGTERM, 143, False),
  ],
  ids=[
    "time limit",
    "time limit, outside the loop",
    "time limit, failed",
    "scancel",
    "scancel, outside the loop",
  ],
)
def test_it_saves_near_the_time_limit(number, status, requeued, tmp_path):
  fakes.recorder(
    tmp_path,
    "srun",
    f"trap 'echo asked; exit {status}' TERM; echo runs; while :; do sleep 0.05; done",
  )
  fakes.recorder(tmp_path, "scontrol")
  job = subprocess.Popen(
    ["bash", str(_spooled(tmp_path)), *_TRAINING],
    env=fakes.environment(tmp_path, **_JOB), stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  assert [job.stdout.readline() for _ in range(2)] == [_SRUN + "\n", "runs\n"]
  job.send_signal(number)
  out, _ = job.communicate(timeout=30)
  assert (job.returncode, out.splitlines()[0]) == (status, "asked")
  how = "saved" if status == 0 else f"ended with exit status {status} before it could save"
  assert out.splitlines()[1:] == (
    [f"the time limit is near: {how}, and queued again"] if requeued else []
  )
  assert fakes.calls(tmp_path)[1:] == ([["scontrol", "requeue", "77"]] if requeued else [])
