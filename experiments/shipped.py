"""Flagfiles that come with the package: found by name from any directory.

`--flagfile=online_retail`, `--flagfile=zoo/online_retail/sasrec`; a path that leads to a file wins.
A flagfile may name others, by path or by name.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

FOLDER = pathlib.Path(__file__).parent / "flagfiles"
_IN_CHECKOUT = "experiments/flagfiles/"  # how the pages and the flagfiles themselves name them
_ENDING = ".flags"


def names() -> list[str]:
  """Names of the flagfiles that are shipped, as --flagfile takes them."""
  found = sorted(FOLDER.rglob(f"*{_ENDING}"))
  return [path.relative_to(FOLDER).as_posix().removesuffix(_ENDING) for path in found]


def find(name: str) -> pathlib.Path:
  """Where a flagfile lies.

  Args:
    name: a path, or the name of a shipped one, its ending left out or not.

  Raises:
    flags.Error: there is neither.
  """
  path = pathlib.Path(name).expanduser()
  if path.exists():
    return path
  asked = name.removeprefix(_IN_CHECKOUT)
  for candidate in (FOLDER / asked, FOLDER / f"{asked}{_ENDING}"):
    if candidate.is_file() and candidate.resolve().is_relative_to(FOLDER.resolve()):
      return candidate
  raise flags.Error(
    f"--flagfile={name} is not allowed: there is no such file, and none of that name is shipped; "
    f"there is {', '.join(names())}"
  )


def expanded(argv: Sequence[str], within: Sequence[pathlib.Path] = ()) -> list[str]:
  """Arguments with the lines of each flagfile in the place of its flag, as absl does it, but with
  flagfiles found by `find`.

  Args:
    argv: arguments, the program's name left out.
    within: flagfiles that are being read, the outermost first.

  Raises:
    flags.Error: a flagfile that is missing, cannot be read, or names itself.
  """
  found = []
  rest = iter(argv)
  for argument in rest:
    name, equals, value = argument.partition("=")
    if argument == "--":  # what follows are no flags
      return [*found, argument, *rest]
    if name not in ("--flagfile", "-flagfile"):
      found.append(argument)
      continue
    value = value if equals else next(rest, "")
    path = find(value).resolve()
    if path in within:
      raise flags.Error(f"--flagfile={value} is not allowed: the file names itself")
    found += expanded(_lines(value, path), (*within, path))
  return found


def _lines(name: str, path: pathlib.Path) -> list[str]:
  """The flags in a flagfile: a line each, comments and empty lines left out."""
  try:
    text = path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or "no text"
    raise flags.Error(f"--flagfile={name} cannot be read: {reason}") from error
  lines = (line.strip() for line in text.splitlines())
  return [line for line in lines if line and not line.startswith(("#", "//"))]
