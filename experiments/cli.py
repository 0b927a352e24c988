"""`gr4ad`, the command that an installation has: the binaries as subcommands.

`gr4ad train --flagfile=online_retail` is `python -m experiments.train --flagfile=…` of a checkout.
"""

import ast
import pathlib
import runpy
import sys

import gr4ad_jax

_FOLDER = pathlib.Path(__file__).parent
_MAIN = '\nif __name__ == "__main__":\n'
_HELP = ("help", "--help", "-help", "-h")


def commands() -> dict[str, str]:
  """Subcommand -> what its file says about it."""
  # Read, not imported: JAX takes seconds. What has no main part is what the binaries share.
  texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(_FOLDER.glob("*.py"))}
  binaries = (name for name, text in texts.items() if _MAIN in text and name != "cli")
  return {name: _about(texts[name]) for name in binaries}


def _about(text: str) -> str:
  """The docstring of a file's text, with the command that an installation has."""
  about = ast.get_docstring(ast.parse(text)) or ""
  return about.replace("python -m experiments.", "gr4ad ")


def usage() -> str:
  """A line a subcommand: the first sentence of its file."""
  found = commands()
  width = max(map(len, found))
  rows = (f"  {name:{width}}  {_first_sentence(about)}" for name, about in found.items())
  return "\n".join(
    (
      "usage: gr4ad COMMAND [--flag=value ...]",
      "",
      *rows,
      "",
      "gr4ad COMMAND --help lists the flags of a command, --helpfull those of the model, too.",
    )
  )


def _first_sentence(about: str) -> str:
  words = " ".join(about.split("\n\n")[0].split())
  return words.split(". ")[0].split("; ")[0].rstrip(".")


def main() -> int:
  """Runs the subcommand that the first argument names. Returns an exit status."""
  if not sys.argv[1:]:
    print(usage(), file=sys.stderr)
    return 2
  name, *rest = sys.argv[1:]
  if name in _HELP:
    print(usage())
    return 0
  if name == "--version":
    print(f"gr4ad_jax {gr4ad_jax.__version__}")
    return 0
  known = commands()
  command = name.replace("-", "_")
  if command not in known:
    there = f"there is {', '.join(known)}"
    print(f"error: {name!r} is no command of gr4ad; {there}", file=sys.stderr)
    return 2
  # absl takes the name of the program from here, and the text of --help from the main module.
  sys.argv = [f"gr4ad {command}", *rest]
  sys.modules["__main__"].__doc__ = known[command]
  runpy.run_module(f"{__package__}.{command}", run_name="__main__")
  return 0


if __name__ == "__main__":
  sys.exit(main())
