"""What docs/guide/launch.md says that a dry run prints is what it prints."""

import re
import shlex

import pytest

from tests.launch import fakes

_PAGE = fakes.ROOT / "docs" / "guide" / "launch.md"
_TEXT = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:0", _PAGE.read_text(encoding="utf-8"))
_COMMANDS = [
  line
  for block in re.findall(r"```sh\n(.*?)```", _TEXT, re.DOTALL)
  for line in block.replace("\\\n", " ").splitlines()
  if not line.startswith("sbatch ")
]
# What `up` begins with.
_CREATE = "launch/tpu_vm.sh create --name=gr4ad --zone=us-west4-a --type=v5litepod-16 --dry-run"


def test_all_launchers_have_one():
  named = {re.search(r"launch/(\S+)", command)[1] for command in _COMMANDS}
  assert named == {"gke.sh", "local.sh", "slurm.sbatch", "tpu_vm.sh"}


@pytest.mark.parametrize("command", [*_COMMANDS, _CREATE])
def test_an_example(command, tmp_path):
  words = shlex.split(command.removeprefix("bash "))
  arguments = [word for word in words[1:] if word != "--dry-run"]
  done = fakes.launch(tmp_path, words[0].removeprefix("launch/"), "--dry-run", *arguments)
  assert (done.returncode, done.stderr) == (0, "")
  if "--dry-run" in words or "run" in words:  # those whose output stands in the page
    output = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:0", done.stdout).removesuffix(
      "kubectl apply -f -\n"
    )
    assert f"\n{output}```" in _TEXT
