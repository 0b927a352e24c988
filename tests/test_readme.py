"""The README's example of one's own data works as it stands there."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_README = (_ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.long
@pytest.mark.usefixtures("compile_cache")
def test_the_example_runs(tmp_path):
  block = re.search(r"<!-- example: begin -->\s*```sh\n(.*?)```\s*<!-- example: end -->", _README, re.DOTALL)[1]
  (tmp_path / "bin").mkdir()
  (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
  (tmp_path / "bin" / "python").chmod(0o755)
  environment = os.environ | {
    "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": f"{_ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    "XDG_CACHE_HOME": str(tmp_path / "cache"),
  }
  done = subprocess.run(
    ["bash", "-euc", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert [line.split()[0] for line in done.stdout.splitlines()[-4:]] == ["ad_id", "1", "2", "3"]
  assert (tmp_path / "runs" / "mine" / "eval" / "metrics.json").exists()


_PAGES = ["README.md", *(str(path.relative_to(_ROOT)) for path in sorted((_ROOT / "docs").rglob("*.md")))]


@pytest.mark.parametrize("page", _PAGES)
def test_what_it_names_is_there(page):
  text = (_ROOT / page).read_text(encoding="utf-8")
  for path in re.findall(r"`((?:experiments|launch|gr4ad_jax)/[\w./]+)`", text):
    assert (_ROOT / path).exists(), path
  from gr4ad_jax import config

  known = {name for section in config.SECTIONS.values() for name in section.__dataclass_fields__}
  known |= {"flagfile", "help", "verbosity"}
  for binary in (_ROOT / "experiments").glob("*.py"):
    known |= set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', binary.read_text(encoding="utf-8")))
  for script in (path for path in (_ROOT / "launch").iterdir() if path.is_file()):
    known |= set(re.findall(r"--([a-z][\w-]*)", script.read_text(encoding="utf-8")))
  for flag in set(re.findall(r"(?<=[\s`(])--([a-z][\w-]*)(?![/\w-])", text)):
    assert flag in known, flag
