"""What README and docs/ say: the example runs, names and links lead somewhere, tables are those
of the code.
"""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import pytest

import gr4ad_jax
from docs import flags_page
from gr4ad_jax import config

_ROOT = pathlib.Path(__file__).parents[1]
_DOCS = sorted(path for path in (_ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
_PAGES = [
  "README.md",
  "CONTRIBUTING.md",
  "SECURITY.md",
  "CHANGELOG.md",
  *(str(path.relative_to(_ROOT)) for path in _DOCS),
]


def _text(page: str) -> str:
  return (_ROOT / page).read_text(encoding="utf-8")


@pytest.mark.long
@pytest.mark.usefixtures("compile_cache")
def test_the_example_runs(tmp_path):
  page = _text("docs/guide/data.md")
  block = re.search(
    r"<!-- example: begin -->\s*```sh\n(.*?)```\s*<!-- example: end -->", page, re.DOTALL
  )[1]
  (tmp_path / "bin").mkdir()
  (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
  (tmp_path / "bin" / "python").chmod(0o755)
  environment = os.environ | {
    "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": f"{_ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    "XDG_CACHE_HOME": str(tmp_path / "cache"),
  }
  done = subprocess.run(
    ["bash", "-euc", block],
    cwd=tmp_path,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stderr) == (0, "")
  table = done.stdout[done.stdout.rindex("ad_id ") :].splitlines()[1:]  # new ads, then seen ones
  assert sorted(line.split()[0] for line in table) in [
    ["1", "2", "3", *titles] for titles in (["new"], ["taken"], ["new", "taken"])
  ]
  assert (tmp_path / "runs" / "mine" / "eval" / "metrics.json").exists()


@pytest.mark.parametrize("page", _PAGES)
def test_what_it_names_is_there(page):
  text = _text(page)
  for path in re.findall(r"`((?:experiments|launch|gr4ad_jax)/[\w./]+)`", text):
    assert (_ROOT / path).exists(), path
  known = {*config.all_fields(), "family"}
  known |= {"flagfile", "help", "verbosity"}
  known |= {"build", "build-arg", "strict"}  # of docker and twine
  for binary in (_ROOT / "experiments").glob("*.py"):
    known |= set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', binary.read_text(encoding="utf-8")))
  for script in (path for path in (_ROOT / "launch").iterdir() if path.is_file()):
    known |= set(re.findall(r"--([a-z][\w-]*)", script.read_text(encoding="utf-8")))
  for flag in set(re.findall(r"(?<=[\s`(])--([a-z][\w-]*)(?![/\w-])", text)):
    assert flag in known, flag


@pytest.mark.parametrize("page", ["WORKSPACE.md", *_PAGES])
def test_where_it_links_to_is_there(page):
  text = re.sub(r"```.*?```", "", _text(page), flags=re.DOTALL)
  for target in re.findall(r"\]\(([^)\s]+)\)", text):
    if not re.match(r"https?:|#", target):
      assert ((_ROOT / page).parent / target.partition("#")[0]).is_file(), target


def test_every_page_is_in_the_table_of_contents():
  listed = re.findall(r"^([a-z_]+/[a-z_]+)$", _text("docs/index.md"), re.MULTILINE)
  pages = [path.relative_to(_ROOT / "docs").with_suffix("").as_posix() for path in _DOCS]
  assert sorted(listed) == sorted(set(pages) - {"index"})


def test_the_readme_is_short():
  assert len(_text("README.md").split()) <= 700


def test_the_page_of_flags_has_every_knob():
  asked = re.findall(r"^```\{flags\} (\w+)$", _text("docs/reference/flags.md"), re.MULTILINE)
  assert asked == list(flags_page.kinds())
  for section, kind in flags_page.kinds().items():
    head, _, *rows = flags_page.table(section).splitlines()
    assert head == "| flag | default | allowed | what it does |"
    assert [row.split("`")[1] for row in rows] == [
      f"--{field.name}" for field in dataclasses.fields(kind)
    ]
    assert all(len(re.split(r"(?<!\\)\|", row)) == 6 for row in rows)  # four cells


def test_a_row_of_the_flags_tells_default_range_and_use():
  rows = flags_page.table("search").splitlines()
  assert rows[2] == (
    "| `--beams` | `128,128,128` | one or more, each a whole number, at least 1 | "
    "Beam width after each level, as 128,256,512 or 128-256-512. |"
  )
  power = (
    "| `--value_power` | `0.3` | a number, at least 0 | Weight of the predicted value with "
    "`--order=blend`. |"
  )
  assert power in rows
  assert (
    "| `--data_dir` | empty | text | Where prepared data sets lie; empty: a folder in the user's "
    "cache. |"
  ) in (flags_page.table("data"))
  assert r"p \* E\[value]" in flags_page.table("search")  # no mark of Markdown
  assert "| `--guided` | `true` | true or false |" in flags_page.table("search")
  with pytest.raises(ValueError, match="no section 'serve'; it has data, sid"):
    flags_page.table("serve")


def test_every_path_of_the_server_is_told():
  told = set(re.findall(r"`(?:GET|PUT|POST|DELETE) (/[^`?]*)", _text("docs/reference/http.md")))
  files = ("app", "event_routes")
  source = "".join(_text(f"gr4ad_jax/serving/{name}.py") for name in files)
  paths = set()
  for router in source.split("APIRouter(")[1:]:
    prefix = re.match(r'prefix="([^"]*)"', router)
    found = re.findall(r'@router\.(?:get|put|post|delete)\(\s*"([^"]*)"', router)
    paths |= {(prefix[1] if prefix else "") + path.replace(":path", "") for path in found}
  assert told == paths and len(paths) > 8


@pytest.mark.long
def test_the_pages_are_built_without_a_warning(tmp_path):
  pytest.importorskip("myst_parser")
  pytest.importorskip("furo")
  command = [
    sys.executable,
    "-m",
    "sphinx",
    "-W",
    "--keep-going",
    "-q",
    "-b",
    "html",
    "docs",
    str(tmp_path),
  ]
  done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
  assert (done.returncode, done.stderr) == (0, "")
  assert "--value_power" in (tmp_path / "reference" / "flags.html").read_text(encoding="utf-8")
  python = (tmp_path / "reference" / "api.html").read_text(encoding="utf-8")
  assert "from_pretrained" in python and "the user's history" in python  # of a docstring


def test_the_version_is_the_same_everywhere():
  cited = re.search(r"^version: (.+)$", _text("CITATION.cff"), re.MULTILINE)[1]
  newest = re.search(r"^## ([\d.]+)", _text("CHANGELOG.md"), re.MULTILINE)[1]
  assert cited == newest == gr4ad_jax.__version__
