"""What all launchers have in common: shellcheck finds nothing, mistakes are told in one line,
--help is there.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.launch import fakes

_LAUNCH = fakes.ROOT / "launch"
_SCRIPTS = sorted(path.name for path in _LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))
_RUN = [name for name in _SCRIPTS if name != "lib.sh"]


def test_all_are_here():
  assert _SCRIPTS == [
    "accelerator_check.sh",
    "gke.sh",
    "lib.sh",
    "local.sh",
    "slurm.sbatch",
    "tpu_vm.sh",
  ]
  assert all(os.access(_LAUNCH / name, os.X_OK) for name in _RUN if name.endswith(".sh"))


@pytest.mark.parametrize("name", _SCRIPTS)
def test_shellcheck_finds_nothing(name):
  path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
  shellcheck = shutil.which("shellcheck", path=path)
  if not shellcheck:
    pytest.skip("no shellcheck here: it comes with the dev extra")
  done = subprocess.run(
    [shellcheck, "--external-sources", f"launch/{name}"],
    cwd=fakes.ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", _RUN)
def test_help(name, tmp_path):
  done = fakes.launch(tmp_path, name, "--help")
  assert done.returncode == 0 and done.stdout.startswith("usage: ") and not done.stderr


_TPU = ("tpu_vm.sh", "run", "--name=pod", "--zone=z")
_GKE = ("gke.sh", "run", "--name=job", "--image=i", "--claim=c")
_LONG = ("gke.sh", "run", f"--name={53 * 'n'}", "--image=i", "--claim=c", "--gpu=g")
_MISTAKES = [
  (("local.sh", "3"), "'3' is not a flag"),
  (("local.sh", "-n"), "-n needs a number"),
  (("local.sh", "-n", "two"), "-n=two is not allowed: a whole number of at least 1"),
  (("local.sh", "-n", "0"), "-n=0 is not allowed"),
  (
    ("local.sh", "-n", "08"),
    "-n=08 is not allowed: a whole number of at least 1, without a leading zero",
  ),
  (
    ("local.sh", "-n", "2", "--port=65536"),
    "--port=65536 is not allowed: a whole number from 1 to 65535",
  ),
  (("local.sh", "--devices="), "--devices= is not allowed"),
  (("local.sh", "--restarts=1"), "--restarts needs -n"),
  (("tpu_vm.sh",), "no command"),
  (("tpu_vm.sh", "build"), "'build' is not a command"),
  (("tpu_vm.sh", "run", "stop"), "one command at a time"),
  (("tpu_vm.sh", "run", "--zone=z"), "--name= is not allowed"),
  (("tpu_vm.sh", "run", "--name=n"), "--zone= is not allowed"),
  ((*_TPU, "--typ=v4-8"), "--typ=v4-8 is not a flag"),
  (_TPU, "no --workdir="),
  ((*_TPU, "--", "--epochs=1"), "no --workdir="),
  ((*_TPU, "--", "--workdir="), "no --workdir="),
  ((*_TPU, "--", "--note=as --workdir=w"), "no --workdir="),
  (
    (*_TPU, "--nfs=s:/e", "--", "--workdir=runs/r"),
    "--workdir=runs/r is not allowed: with --nfs it lies below",
  ),
  ((*_TPU, "--worker=first", "--", "--workdir=w"), "--worker=first is not allowed"),
  (
    ("tpu_vm.sh", "stop", "--name=n", "--zone=z", "--", "--workdir=w"),
    "stop takes no flags of the training",
  ),
  (("tpu_vm.sh", "create", "--name=n", "--zone=z"), "--type= is not allowed"),
  (("tpu_vm.sh", "create", "--name=n", "--zone=z", "--type=v9-8"), "name it with --version"),
  (("tpu_vm.sh", "install", "--name=n", "--zone=z", "--nfs=disk"), "--nfs=disk is not allowed"),
  (("slurm.sbatch", "--nodes=2"), "no --workdir="),
  (("slurm.sbatch", "nodes=2"), "'nodes=2' is not a flag"),
  (("slurm.sbatch", "--workdir=w"), "these go after --"),
  (("gke.sh", "run", "--name=Job"), "--name=Job is not allowed"),
  ((*_GKE, "--chips=4"), "--chips=4 is not a flag"),
  (_GKE, "no --workdir="),
  ((*_GKE, "--tpu=t", "--", "--workdir=w"), "--devices= is not allowed"),
  (
    (*_GKE, "--tpu=t", "--topology=4by4", "--devices=4", "--", "--workdir=w"),
    "--topology=4by4 is not allowed",
  ),
  (
    (*_GKE, "--tpu=t", "--topology=2x3", "--devices=4", "--", "--workdir=w"),
    "a slice of 2x3 has 6 chips",
  ),
  ((*_GKE, "--tpu=a'b", "--devices=4", "--", "--workdir=w"), "--tpu=a'b is not allowed"),
  ((*_GKE, "--gpu=g", "--devices=8", "--", "--workdir=w"), "--hosts= is not allowed"),
  ((*_GKE, "--gpu=g", "--devices=08", "--", "--workdir=w"), "--devices=08 is not allowed"),
  (
    (*_GKE, "--gpu=g", "--devices=8", "--hosts=2", "--", "--workdir=w"),
    "with --claim it lies below /mnt/runs",
  ),
  (
    (*_GKE, "--gpu=g", "--devices=8", "--hosts=2", "--", "--workdir=/mnt/runs/"),
    "--workdir=/mnt/runs/ is not allowed",
  ),
  ((*_LONG, "--devices=8", "--hosts=11", "--", "--workdir=/mnt/runs/r"), "has 64 characters"),
  (
    (*_GKE, "--claim=", "--gpu=g", "--devices=8", "--hosts=2", "--", "--workdir=w"),
    "2 hosts need a shared disk",
  ),
  ((*_GKE, "--xpk", "--", "--workdir=w"), "--cluster= is not allowed"),
  ((*_GKE, "--zone=z", "--", "--workdir=w"), "are for --xpk"),
  (("gke.sh", "stop", "--name=job", "--xpk", "--cluster=c", "--zone=z"), "stop is not for --xpk"),
]


@pytest.mark.parametrize(
  ("words", "message"), _MISTAKES, ids=[" ".join(words) for words, _ in _MISTAKES]
)
def test_a_mistake_is_one_line(words, message, tmp_path):
  for name in ("gcloud", "kubectl", "xpk", "sbatch"):
    fakes.recorder(tmp_path, name)
  done = fakes.launch(tmp_path, *words)
  assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
  assert done.stderr.startswith("error: ") and message in done.stderr
  assert fakes.calls(tmp_path) == []


@pytest.mark.parametrize(
  ("words", "program"),
  [
    (("local.sh",), ".venv/bin/python"),
    (("tpu_vm.sh", "logs", "--name=n", "--zone=z"), "gcloud"),
    (("slurm.sbatch", "--", "--workdir=w"), "sbatch"),
    (("gke.sh", "logs", "--name=n"), "kubectl"),
  ],
)
def test_a_missing_program_is_named(words, program, tmp_path):
  (tmp_path / "launch").mkdir()
  for path in _LAUNCH.iterdir():
    if path.is_file():
      shutil.copy(path, tmp_path / "launch")
  for name in ("bash", "dirname", "cat"):
    (tmp_path / name).symlink_to(shutil.which(name))
  done = subprocess.run(
    [str(tmp_path / "bash"), str(tmp_path / "launch" / words[0]), *words[1:]],
    env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
  assert done.stderr.startswith(f"error: {program} is missing: ")
