"""A wheel and a source distribution as users get them: README's example in an empty directory."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
import zipfile

import pyarrow.parquet as pq
import pytest

from tests import tiny

_ROOT = pathlib.Path(__file__).parents[1]
_LEFT = (".git", ".venv", "runs", "build", "dist")  # at the root alone: there is gr4ad_jax/runs


def _left(folder, names):
  """What of a folder is not copied."""
  made = {name for name in names if name.endswith(".egg-info") or name == "__pycache__"}
  return made | ({*names} & {*_LEFT} if pathlib.Path(folder) == _ROOT else set())


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
  """The folder of what `python -m build` makes of a copy of the checkout."""
  pytest.importorskip("build")
  source = tmp_path_factory.mktemp("source") / "checkout"
  shutil.copytree(_ROOT, source, ignore=_left, symlinks=True)
  _run([sys.executable, "-m", "build", "."], source)
  return source / "dist"


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
  """The wheel in a folder of its own, with this environment's other packages; the environment.

  By `-S` no .pth file is read: that of an editable installation would find in the checkout whatever
  module the wheel lacks.
  """
  site = tmp_path_factory.mktemp("site")
  (wheel,) = dist.glob("*.whl")
  pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", f"--target={site}", str(wheel)]
  _run(pip, site)
  gr4ad = (site / "bin" / "gr4ad").read_text().partition("\n")[2]
  (site / "bin" / "gr4ad").write_text(f"#!{sys.executable} -S\n{gr4ad}")
  (site / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
  (site / "bin" / "python").chmod(0o755)
  return os.environ | {
    "PATH": f"{site / 'bin'}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": f"{site}{os.pathsep}{sysconfig.get_path('purelib')}",
    "XDG_CACHE_HOME": str(site / "cache"),
    "XDG_STATE_HOME": str(site / "state"),
  }


def _site(installed) -> pathlib.Path:
  return pathlib.Path(installed["PYTHONPATH"].partition(os.pathsep)[0])


def _run(command, cwd, **settings) -> subprocess.CompletedProcess:
  done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, **settings)
  assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
  return done


def test_both_distributions_are_what_an_index_takes(dist):
  pytest.importorskip("twine")
  names = sorted(path.name for path in dist.iterdir())
  assert [re.sub(r"\d[\d.]*\d", "V", name) for name in names] == [
    "gr4ad_jax-V-py3-none-any.whl", "gr4ad_jax-V.tar.gz"
  ]  # fmt: skip
  checked = _run([sys.executable, "-m", "twine", "check", "--strict", *names], dist)
  assert checked.stdout.count("PASSED") == 2
  with tarfile.open(dist / names[1]) as packed:
    inside = {name.partition("/")[2] for name in packed.getnames()}
  wanted = {"setup.py", "README.md", "LICENSE", "CHANGELOG.md", "tests/test_cli.py"}
  wanted |= {"docs/index.md", "experiments/flagfiles/online_retail.flags", "launch/local.sh"}
  assert wanted <= inside
  code = {path.relative_to(_ROOT).as_posix() for path in (_ROOT / "gr4ad_jax").rglob("*.py")}
  assert code <= inside and len(code) > 300
  with zipfile.ZipFile(dist / names[0]) as wheel:
    assert code <= {*wheel.namelist()}
  assert not [name for name in inside if "__pycache__" in name or "/_build/" in name]


def test_the_readme_s_example_runs_from_an_empty_directory(installed, tmp_path):
  asked = "import gr4ad_jax.runs.run; print(gr4ad_jax.__file__, gr4ad_jax.runs.run.__file__)"
  where = _run(["python", "-c", asked], tmp_path, env=installed)
  assert all(path.startswith(str(_site(installed))) for path in where.stdout.split())
  page = (_ROOT / "README.md").read_text(encoding="utf-8")
  example = re.search(
    r"<!-- example: begin -->\s*```sh\n(.*?)```\s*<!-- example: end -->", page, re.DOTALL
  )[1]
  done = _run(["bash", "-euc", example], tmp_path, env=installed)
  assert done.stderr == ""
  assert (tmp_path / "runs" / "mine" / "eval" / "metrics.json").exists()
  pretrained = done.stdout.rindex("ad_id ")
  mine = done.stdout[done.stdout.rindex("ad_id ", 0, pretrained) : pretrained]
  assert {"lamp", "tea", "mug", "pen"} & set(mine.split())
  assert len(done.stdout[pretrained:].splitlines()) >= 10
  batch = ["gr4ad", "batch_recommend", "--workdir=runs/mine", "--out=lists", "--k=3"]
  _run(batch, tmp_path, env=installed)
  lists = {}
  for row in pq.read_table(tmp_path / "lists").to_pylist():
    lists.setdefault(row["user_id"], []).append(row["ad_id"])
  assert set(lists) == {"ann", "bob"}
  with _served(["gr4ad", "serve", "--workdir=runs/mine"], tmp_path, installed) as ask:
    found = ask("/v1/recommend", {"user": "ann", "k": 3})
  assert [ad["ad_id"] for ad in found["ads"]] == lists["ann"] and len(lists["ann"]) == 3


def test_the_shipped_run_is_served_from_an_installation_that_is_only_read(installed, tmp_path):
  site = _site(installed)
  card = json.loads((site / "gr4ad_jax/pretrained/online_retail/card.json").read_text())
  before = {path: path.stat().st_mtime_ns for path in (site / "gr4ad_jax").rglob("*.*")}
  command = ["gr4ad", "serve", "--workdir=pretrained:online_retail", "--log_format=json"]
  command += ["--notabs", "--deadline_ms=60000", "--target_ms=60000"]  # however slow the machine
  with _served(command, tmp_path, installed) as ask:
    ask("/v1/ads/new-1", {"text": "white hanging heart", "account_id": "UK"}, "PUT")
    ask("/v1/ads/new-1", None, "DELETE")
    found = ask("/v1/recommend", {"history": ["85123A"], "k": 10, "fallback": False})
  assert [ad["ad_id"] for ad in found["ads"]] == [ad["ad_id"] for ad in card["examples"][0]["ads"]]
  (state,) = (site / "state" / "gr4ad_jax").iterdir()
  assert (state / "live" / "ads.sqlite").exists() and state.name.startswith("online_retail-")
  after = {path: path.stat().st_mtime_ns for path in (site / "gr4ad_jax").rglob("*.*")}
  assert {path for path in after if path.suffix != ".pyc"} == {
    path for path in before if path.suffix != ".pyc"
  }


@contextlib.contextmanager
def _served(command, cwd, env):
  """A server on a free port; gives what asks it."""
  port = tiny.free_port()
  server = subprocess.Popen(
    [*command, f"--port={port}"], cwd=cwd, env=env, stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip
  lines = []
  for line in server.stdout:
    lines.append(line)
    if "serving on" in line:
      break

  def ask(path, content, method="POST"):
    request = urllib.request.Request(
      f"http://127.0.0.1:{port}{path}",
      None if content is None else json.dumps(content).encode(),
      {"content-type": "application/json"},
      method=method,
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
      text = answer.read()
    return json.loads(text) if text else None

  try:
    assert server.poll() is None and lines, "".join(lines)
    yield ask
  finally:
    server.terminate()
    server.communicate(timeout=60)
  assert server.returncode == 0
