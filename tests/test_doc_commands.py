"""Every command that README and docs/ give is run by a test, or its page says that it was not."""

import pathlib
import re
import shlex

import pytest
from absl import flags

from experiments import cli
from experiments import flags as flags_lib

_ROOT = pathlib.Path(__file__).parents[1]
_PAGES = ("README.md", *sorted(str(p.relative_to(_ROOT)) for p in (_ROOT / "docs").rglob("*.md")))
# Binaries that a test runs whole, at a smaller size than a page does.
_TESTS = "".join(p.read_text(encoding="utf-8") for p in (_ROOT / "tests").rglob("test_*.py"))
_RUN = {
  *re.findall(r'run\(\s*"(\w+)"', _TESTS),
  *re.findall(r'"experiments\.(\w+)"', _TESTS),
}
# What the binaries share has flags, too.
_SHARED = "".join(
  path.read_text(encoding="utf-8")
  for path in (_ROOT / "experiments").glob("*.py")
  if path.stem not in cli.commands()
)
_MARK = "<!-- not run here: "


def _blocks(page: str) -> list[tuple[str, str]]:
  """(the line before, the commands) of each block of shell of a page."""
  text = (_ROOT / page).read_text(encoding="utf-8")
  found = re.findall(r"([^\n]*)\n *```sh\n(.*?)```", text, re.DOTALL)
  return [(before, block.replace("\\\n", " ")) for before, block in found]


def _commands(block: str) -> list[list[str]]:
  """The words of each simple command, variables before it and comments left out."""
  found = []
  pending = ""
  for line in re.split(r"[;\n]", block):
    pending = f"{pending};{line}" if pending else line
    try:
      words = shlex.split(pending.strip(), comments=True)
    except ValueError:  # a quote that is still open: the mark stood in a text
      continue
    pending = ""
    while words and (re.fullmatch(r"\w+=.*", words[0]) or words[0] in ("do", "exec")):
      words.pop(0)
    if words:
      found.append(words)
  return found


def _binary(words: list[str]) -> tuple[str, list[str]] | None:
  """The binary that a command runs, and its arguments."""
  if words[0] == "gr4ad" and words[1] != "--help":  # which tests/test_cli.py asks for
    return words[1], words[2:]
  for at, word in enumerate(words[:3]):
    if word.startswith("experiments.") and words[at - 1] == "-m":
      return word.removeprefix("experiments."), words[at + 1 :]
  return None


_OURS = [
  (page, *found)
  for page in _PAGES
  for _, block in _blocks(page)
  for words in _commands(block)
  if (found := _binary(words))
]


def test_there_are_many():
  assert len(_OURS) > 40 and {"train", "serve", "publish"} <= {name for _, name, _ in _OURS}


@pytest.mark.parametrize("page", _PAGES)
def test_no_block_is_overlooked(page):
  """What is commands stands as `sh`; a block without a language is what a program says."""
  text = (_ROOT / page).read_text(encoding="utf-8")
  languages = set(re.findall(r"^ *```([^\s`]+)", text, re.MULTILINE))
  known = {"sh", "python", "json", "yaml", "dockerfile", "bibtex"}  # and directives, of the pages
  assert {name for name in languages if not name.startswith("{")} <= known
  for said in re.findall(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
    assert not re.match(r"(\$ )?(python|pip|gr4ad|make) ", said), said


@pytest.mark.parametrize("page", sorted({page for page, *_ in _OURS}))
def test_their_flags_are_those_of_the_binary_and_their_values_are_allowed(page):
  for _, name, given in (one for one in _OURS if one[0] == page):
    assert name in cli.commands(), name
    source = (_ROOT / "experiments" / f"{name}.py").read_text(encoding="utf-8")
    source += _SHARED
    own = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)) | {"log_format", "flagfile", "help"}
    knobs = []
    for word in given:
      if not word.startswith("--") or "..." in word or "$" in word:
        continue  # a place for the reader's own
      if word[2:].partition("=")[0] not in own:
        knobs.append(word)
    values = flags.FlagValues()
    flags_lib.define_flags(values)
    values(["binary", *knobs])  # raises for a flag or a value that there is not


@pytest.mark.parametrize("page", _PAGES)
def test_each_is_run_by_a_test_or_marked(page):
  for before, block in _blocks(page):
    if before.startswith(("<!-- example: begin", _MARK)):
      continue
    for words in _commands(block):
      found = _binary(words)
      if found:
        assert found[0] in _RUN, f"{page}: no test runs experiments.{found[0]}"
      elif words[0] == "python":  # a program that a binary made, such as an exported model's
        assert f'"{words[1].rpartition("/")[2]}"' in _TESTS, words
      elif words[:2] == ["pip", "install"]:  # of this package alone, with extras that it has
        extras = re.search(r"(?:gr4ad_jax|\.whl\))(?:\[([\w,]+)\])?$", words[2])
        setup = (_ROOT / "setup.cfg").read_text(encoding="utf-8")
        assert all(f"\n{extra} =\n" in setup for extra in (extras[1] or "all").split(","))
      else:
        launched = any(word.startswith("launch/") for word in words)
        assert launched or words[0] in ("for", "done") or words == ["gr4ad", "--help"], (
          f"{page}: {shlex.join(words)!r} is run by no test: run it, or write {_MARK}why --> before"
        )
