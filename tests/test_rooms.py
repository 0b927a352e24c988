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
