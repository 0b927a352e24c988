"""The rooms of the library are those of WORKSPACE.md, and imports go down its list only."""

import ast
import pathlib
import re

_ROOT = pathlib.Path(__file__).parents[1]
_LIBRARY = _ROOT / "gr4ad_jax"


def listed() -> list[str]:
  """The rooms, top of the house first."""
  rows = re.findall(r"^\| `gr4ad_jax/(\w+)/` \|", (_ROOT / "WORKSPACE.md").read_text(), re.M)
  assert len(rows) == len(set(rows)) > 20
  return rows


def imported(path: pathlib.Path) -> set[str]:
  """The rooms that a file imports, wherever in it."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom):
      # `from gr4ad_jax import sid` names the room behind the import.
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    found |= {name.split(".")[1] for name in names if name.startswith("gr4ad_jax.")}
  return found


def test_every_package_is_listed():
  packages = {path.parent.name for path in _LIBRARY.glob("*/*.py")}
  packages.add("pretrained")  # data, no code
  # A link to the binaries, for the installed command.
  assert packages - {"experiments"} == set(listed())


def test_imports_go_down():
  rooms = listed()
  upwards = [
    f"{path.relative_to(_ROOT)} imports {there}"
    for path in sorted(_LIBRARY.glob("*/**/*.py"))
    if (here := path.relative_to(_LIBRARY).parts[0]) in rooms
    for there in imported(path)
    if there in rooms and rooms.index(there) < rooms.index(here)
  ]
  assert upwards == []


def test_an_import_is_seen_in_each_of_its_forms(tmp_path):
  path = tmp_path / "some.py"
  path.write_text(
    "import gr4ad_jax.sid.tower, gr4ad_jax.index\nfrom gr4ad_jax import models\n"
    "def later():\n  from gr4ad_jax.data.schema import DAY\n  import jax.numpy\n"
  )
  assert imported(path) == {"sid", "index", "models", "data"}


def _names_of(module: str) -> set[str] | None:
  """What can be imported from a module of the library by name; None: there is no such module."""
  place = _ROOT.joinpath(*module.split("."))
  path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
  if not path.exists():
    return None
  tree = ast.parse(path.read_text(encoding="utf-8"))
  names = {file.stem for file in place.glob("*.py")} | {file.name for file in place.glob("*/")}
  for node in ast.walk(tree):
    match node:
      case ast.FunctionDef() | ast.ClassDef():
        names.add(node.name)
      case ast.Name(ctx=ast.Store()):
        names.add(node.id)
      case ast.Import() | ast.ImportFrom():
        names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
  if path.name == "__init__.py":
    # A package may give what it has when it is first asked for, by name.
    names |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
  return names


def test_scripts_inside_of_texts_import_what_is_there():
  """Programs that tests and launchers start stand in strings, where no linter looks."""
  asked = set()
  for folder in ("tests", "launch", "docs", "experiments"):
    for path in (_ROOT / folder).rglob("*"):
      if path.suffix in (".py", ".sh", ".md", ".yaml", ".ipynb"):
        text = path.read_text(encoding="utf-8").replace("\\n", "\n")
        lines = re.findall(r"from (gr4ad_jax[\w.]*) import ([\w ,]+)", text)
        asked |= {(module, name.split()[0]) for module, names in lines
                  for name in names.split(",") if name.strip()}  # fmt: skip
  assert len(asked) > 500
  modules = {module: _names_of(module) for module, _ in asked}
  gone = {f"{module}: {name}" for module, name in asked if name not in (modules[module] or ())}
  assert gone == set()
