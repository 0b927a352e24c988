"""launch/tpu_vm.sh: the commands of each step, and what the workers' shells do with them."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.launch import fakes

_PLACE = ("--name=pod", "--zone=us-west4-a", "--project=p")
_WHERE = "--zone=us-west4-a --project=p"
_TRAINING = ("--", "--workdir=/mnt/runs/r", "--mesh=data:-1,fsdp:4", "--note=it's")
_VM = "gcloud compute tpus tpu-vm"
_CREATE = f"{_VM} create pod --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite {_WHERE}"
_IDLE = """\
if kill -0 "$(cat train.pid 2>/dev/null)" 2>/dev/null; then \
echo '\\''error: a training runs already'\\'' >&2; exit 2; fi;"""
_LABEL = """sed -u "s/^/[${HOSTNAME##*-w-}] /\""""
_INSTALL = f"""\
tar --exclude=./.git --exclude=./.venv --exclude=./runs -czf TMP/gr4ad_jax.XXXXXX/gr4ad_jax.tgz .
{_VM} scp TMP/gr4ad_jax.XXXXXX/gr4ad_jax.tgz pod:gr4ad_jax.tgz --worker=all {_WHERE}
{_VM} ssh pod --worker=all '--command=mkdir -p gr4ad_jax && cd gr4ad_jax || exit 2; {_IDLE} \
rm -rf ../gr4ad_jax.new && mkdir ../gr4ad_jax.new && tar -xzf ../gr4ad_jax.tgz -C ../gr4ad_jax.new && \
ls -A ../gr4ad_jax.new | while IFS= read -r each; do \
rm -rf "./$each" && mv "../gr4ad_jax.new/$each" . || exit 1; done && \
python3 -m pip install --quiet --user --upgrade uv && python3 -m uv venv --quiet --clear --python=3.12 .venv && \
python3 -m uv pip install --quiet --python=.venv -e '\\''.[data,text,plots,log,gs]'\\'' \
'\\''jax[tpu]>=0.10.2,<0.12'\\''' {_WHERE}
"""
_NFS = f"""\
{_VM} ssh pod --worker=all '--command=sudo apt-get install -y -qq nfs-common && sudo mkdir -p /mnt/runs && \
{{ mountpoint -q /mnt/runs || sudo mount -t nfs 10.0.0.2:/share /mnt/runs; }} && sudo chmod 1777 /mnt/runs' {_WHERE}
"""
_LOGS = f"""\
{_VM} ssh pod --worker=0 '--command=cd gr4ad_jax && tail -n +1 -F --pid="$(cat train.pid)" train.log | {_LABEL}; \
status=$(sed -n '\\''$s/^ended with exit status //p'\\'' train.log); exit "${{status:-1}}"' {_WHERE}
"""
_RUN = f"""\
{_VM} ssh pod --worker=all '--command=cd gr4ad_jax || exit 2; \
{_IDLE} \
{{ trap '\\'''\\'' HUP; .venv/bin/python -m experiments.train --distributed=auto \
--workdir=/mnt/runs/r --mesh=data:-1,fsdp:4 '\\''--note=it'\\''\\'\\'''\\''s'\\''; \
echo "ended with exit status $?"; }} >train.log 2>&1 </dev/null & echo $! >train.pid' {_WHERE}
{_LOGS}"""
_STOP = f"""\
{_VM} ssh pod --worker=all '--command=cd gr4ad_jax || exit 2; {{ pid=$(cat train.pid 2>/dev/null); \
if kill -0 "$pid" 2>/dev/null; then pkill -TERM -P "$pid"; tail -f /dev/null --pid="$pid"; \
else echo '\\''no training runs'\\''; fi; [ ! -e train.log ] || tail -n 2 train.log; }} | {_LABEL}' {_WHERE}
"""
_FOLDER = re.compile(r"gr4ad_jax\.\w{6}/(?=gr4ad_jax\.tgz$)")
_STEPS = {
  "create": (("--type=v5litepod-16",), _CREATE + "\n"),
  "install": ((), _INSTALL),
  "run": (_TRAINING, _RUN),
  "logs": ((), _LOGS),
  "stop": ((), _STOP),
  "delete": (("--yes",), f"{_VM} delete pod --quiet {_WHERE}\n"),
  "up": (
    ("--type=v5litepod-16", "--nfs=10.0.0.2:/share", *_TRAINING),
    f"{_CREATE}\n{_INSTALL}{_NFS}{_RUN}",
  ),
}


@pytest.mark.parametrize("step", _STEPS)
def test_dry_run_and_what_is_run(step, tmp_path):
  for name in ("gcloud", "tar"):
    fakes.recorder(tmp_path, name)
  more, expected = _STEPS[step]
  temporary = tmp_path / "temporary"
  temporary.mkdir()
  expected = expected.replace("TMP/", f"{temporary}/")
  dry = fakes.launch(
    tmp_path, "tpu_vm.sh", step, *_PLACE, "--dry-run", *more, TMPDIR=str(temporary)
  )
  assert (dry.returncode, dry.stdout, dry.stderr) == (0, expected, "")
  assert fakes.calls(tmp_path) == []
  done = fakes.launch(tmp_path, "tpu_vm.sh", step, *_PLACE, *more, TMPDIR=str(temporary))
  assert done.returncode == 0, done.stderr
  called = [
    [_FOLDER.sub("gr4ad_jax.XXXXXX/", word) for word in call] for call in fakes.calls(tmp_path)
  ]
  assert called == fakes.printed(expected)
  assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
  ("kind", "software"),
  [("v6e-8", "v2-alpha-tpuv6e"), ("v5p-8", "v2-alpha-tpuv5"), ("v4-8", "tpu-ubuntu2204-base")],
)
def test_software_by_type(kind, software, tmp_path):
  done = fakes.launch(
    tmp_path, "tpu_vm.sh", "create", *_PLACE, f"--type={kind}", "--spot", "--dry-run"
  )
  assert f" --version={software} --spot " in done.stdout
  done = fakes.launch(
    tmp_path, "tpu_vm.sh", "create", *_PLACE, f"--type={kind}", "--version=mine", "--dry-run"
  )
  assert " --version=mine " in done.stdout


def test_a_step_that_fails_ends_the_rest(tmp_path):
  fakes.recorder(tmp_path, "gcloud", "exit 7")
  done = fakes.launch(tmp_path, "tpu_vm.sh", "up", *_PLACE, "--type=v4-8", *_TRAINING)
  assert done.returncode == 7 and len(fakes.calls(tmp_path)) == 1


@pytest.mark.parametrize(("answer", "deleted"), [("", False), ("n\n", False), ("yes\n", True)])
def test_delete_asks(answer, deleted, tmp_path):
  fakes.recorder(tmp_path, "gcloud")
  done = fakes.launch(tmp_path, "tpu_vm.sh", "delete", *_PLACE, stdin=answer)
  assert "delete the TPU VM pod in us-west4-a" in done.stderr
  assert (done.returncode == 0, len(fakes.calls(tmp_path)) == 1) == (deleted, deleted)


_GCLOUD = r"""
# Does on one machine what gcloud does on a worker: the command, by a shell of its own, in a home of its own.
for word in "$@"; do
  case $word in
    --command=*) cd "$HOME" && HOSTNAME=t1v-n-4711-w-0 exec bash -c "${word#*=}" ;;
    */gr4ad_jax.tgz) cp "$word" "$HOME" ;;
  esac
done
"""
_PYTHON = r"""#!/usr/bin/env bash
echo "args: $*"
trap 'echo saved; exit 0' TERM
[ "$5" != --note=short ] || exit 6
while :; do sleep 0.05; done
"""


_LINUX = pytest.mark.skipif(
  not sys.platform.startswith("linux"), reason="the workers run Linux: GNU tail, GNU sed"
)


@_LINUX
def test_the_commands_work_on_a_worker(tmp_path):
  home = tmp_path / "home"
  fakes.recorder(tmp_path, "gcloud", _GCLOUD)
  fakes.executable(home / "gr4ad_jax" / ".venv" / "bin" / "python", _PYTHON)

  def step(*words):
    return fakes.launch(tmp_path, "tpu_vm.sh", *words[:1], *_PLACE, *words[1:], HOME=str(home))

  done = step("stop")
  assert (done.returncode, done.stdout) == (0, "[0] no training runs\n")
  done = step("run", "--", "--workdir=w", "--note=short")
  assert done.returncode == 6 and not done.stderr  # as the training did
  args = "args: -m experiments.train --distributed=auto --workdir=w --note="
  assert done.stdout.splitlines() == [f"[0] {args}short", "[0] ended with exit status 6"]
  done = step("stop")
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout.splitlines() == [
    "[0] no training runs",
    f"[0] {args}short",
    "[0] ended with exit status 6",
  ]

  command = [
    "bash",
    str(fakes.ROOT / "launch" / "tpu_vm.sh"),
    "run",
    *_PLACE,
    "--",
    "--workdir=w",
    "--note=it's  so",
  ]
  follower = subprocess.Popen(
    command, env=fakes.environment(tmp_path, HOME=str(home)), stdout=subprocess.PIPE, text=True
  )
  assert follower.stdout.readline() == f"[0] {args}it's  so\n"
  again = step("run", "--", "--workdir=w")
  assert again.returncode == 2 and again.stderr == "error: a training runs already\n"
  again = step("install")
  assert again.returncode == 2 and again.stderr == "error: a training runs already\n"
  stopped = step("stop")
  assert stopped.returncode == 0 and "ended with exit status 0" in stopped.stdout
  out, _ = follower.communicate(
    timeout=30
  )  # the log is followed until the training ends, no longer
  assert out.splitlines() == ["[0] saved", "[0] ended with exit status 0"]


@_LINUX
def test_a_later_copy_takes_the_place_of_an_earlier_one(tmp_path):
  """A module that was deleted is gone; logs and runs are there still."""
  home, checkout = tmp_path / "home", tmp_path / "checkout"
  shutil.copytree(fakes.ROOT / "launch", checkout / "launch")
  for name in ("gr4ad_jax/__init__.py", "a file", ".hidden/x", "runs/mine", ".venv/mine"):
    (checkout / name).parent.mkdir(parents=True, exist_ok=True)
    (checkout / name).write_text("new")
  copy = home / "gr4ad_jax"
  for name in (
    "gr4ad_jax/deleted.py",
    "gr4ad_jax/__init__.py",
    "runs/r/events.jsonl",
    "train.log",
    ".venv/pyvenv.cfg",
  ):
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / name).write_text("old")
  fakes.recorder(tmp_path, "gcloud", _GCLOUD)
  fakes.recorder(tmp_path, "python3")
  done = subprocess.run(
    ["bash", str(checkout / "launch" / "tpu_vm.sh"), "install", *_PLACE],
    env=fakes.environment(tmp_path, HOME=str(home), TMPDIR=str(tmp_path)), capture_output=True,
    text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert sorted(path.name for path in home.iterdir()) == [
    "gr4ad_jax",
    "gr4ad_jax.new",
    "gr4ad_jax.tgz",
  ]
  assert list((home / "gr4ad_jax.new").iterdir()) == []
  for name in ("gr4ad_jax/deleted.py", "runs/mine", ".venv/mine"):
    assert not (copy / name).exists()
  for name in ("gr4ad_jax/__init__.py", "a file", ".hidden/x"):
    assert (copy / name).read_text() == "new"
  assert (copy / "launch" / "lib.sh").exists()
  for name in ("runs/r/events.jsonl", "train.log", ".venv/pyvenv.cfg"):
    assert (copy / name).read_text() == "old"
  assert [call[:3] for call in fakes.calls(tmp_path) if call[0] == "python3"][0] == [
    "python3",
    "-m",
    "pip",
  ]
  assert not list(tmp_path.glob("gr4ad_jax.*"))


@_LINUX
@pytest.mark.parametrize(("workdir", "status"), [("runs/r", 2), ("/mnt/runs/r", 6)])
def test_where_the_shared_disk_is_mounted_the_workdir_is_on_it(workdir, status, tmp_path):
  fakes.recorder(tmp_path, "gcloud", _GCLOUD)
  fakes.executable(tmp_path / "mountpoint", '#!/usr/bin/env bash\n[ "$*" = "-q /mnt/runs" ]\n')
  fakes.executable(tmp_path / "home" / "gr4ad_jax" / ".venv" / "bin" / "python", _PYTHON)
  words = ("run", *_PLACE, "--", f"--workdir={workdir}", "--note=short")
  done = fakes.launch(tmp_path, "tpu_vm.sh", *words, HOME=str(tmp_path / "home"))
  assert done.returncode == status
  assert ("error: --workdir is not below /mnt/runs" in done.stderr) == (status == 2)


def test_the_software_is_what_the_package_needs():
  """The JAX and the Python that install fetches are those of setup.cfg."""
  text = (fakes.ROOT / "setup.cfg").read_text()
  script = (pathlib.Path(fakes.ROOT) / "launch" / "tpu_vm.sh").read_text()
  assert f"jax[tpu]{re.search(r'^  jax(>=.*)$', text, re.MULTILINE)[1]}'" in script
  least = re.search(r"python_requires = >=3\.(\d+)", text)[1]
  assert int(re.search(r"--python=3\.(\d+)", script)[1]) >= int(least)
