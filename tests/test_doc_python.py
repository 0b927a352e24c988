"""The Python of README and docs/: what it imports is there, and every block runs as it stands."""

import ast
import importlib
import pathlib
import re
import shutil

import pytest

from gr4ad_jax.runs import published

_ROOT = pathlib.Path(__file__).parents[1]
_PAGES = ("README.md", *sorted(str(p.relative_to(_ROOT)) for p in (_ROOT / "docs").rglob("*.md")))
# Its block needs a run of the other family: tests/segmentation/test_run.py has one, and runs it.
_ELSEWHERE = "docs/guide/segment.md"
# What a page's blocks print: an ad a line, a list of ads, nothing of an empty stream.
_LINES = {
  "README.md": 10,
  "docs/guide/install.md": 1,
  "docs/guide/serve.md": 1,
  "docs/guide/start.md": 10,
  "docs/reference/streams.md": 0,
}


def _blocks(page: str) -> list[str]:
  text = (_ROOT / page).read_text(encoding="utf-8")
  return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


_WITH_PYTHON = [page for page in _PAGES if _blocks(page)]


@pytest.mark.parametrize("page", _WITH_PYTHON)
def test_what_it_imports_is_there(page):
  found = [node for code in _blocks(page) for node in ast.walk(ast.parse(code))]
  imports = [node for node in found if isinstance(node, ast.ImportFrom)]
  assert imports
  for node in imports:
    module = importlib.import_module(node.module)
    assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_all_of_it_is_run_by_a_test():
  assert set(_WITH_PYTHON) == {*_LINES, _ELSEWHERE}
  for page in _PAGES:
    text = (_ROOT / page).read_text(encoding="utf-8")
    assert len(re.findall(r"```(?:python|py)\b", text)) == len(_blocks(page)), page
  elsewhere = (_ROOT / "tests/segmentation/test_run.py").read_text(encoding="utf-8")
  assert f'/ "{_ELSEWHERE}"' in elsewhere


@pytest.mark.long
@pytest.mark.usefixtures("compile_cache")
@pytest.mark.parametrize("page", _LINES)
def test_it_runs_as_it_stands(page, tmp_path, monkeypatch, capsys):
  """The shipped run stands for that of the default flagfile, in a folder of its own."""
  run = tmp_path / "runs" / "online_retail"
  shutil.copytree(published.SHIPPED / "online_retail", run)
  (run / "live").mkdir()
  monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.chdir(tmp_path)
  for code in _blocks(page):
    exec(compile(code, page, "exec"), {"__name__": "block"})
  assert len(capsys.readouterr().out.splitlines()) == _LINES[page]
