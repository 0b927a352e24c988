"""Launchers run with executables of the test's own on PATH, which record how they are called."""

import os
import pathlib
import shlex
import stat
import subprocess

ROOT = pathlib.Path(__file__).parents[2]

_RECORD = """#!/usr/bin/env bash
# Appends its name and arguments to $CALLS, each ended by NUL, then an empty line.
printf '%s\\0' "$(basename "$0")" "$@" >>"$CALLS"
printf '\\n\\n' >>"$CALLS"
"""


def executable(path: pathlib.Path, text: str) -> pathlib.Path:
  """Writes a script that can be run, and returns its path."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(path.stat().st_mode | stat.S_IXUSR)
  return path


def recorder(folder: pathlib.Path, name: str, then: str = "") -> None:
  """Puts an executable into a folder that records its call, then does what `then` says, in bash."""
  executable(folder / name, _RECORD + then)


def environment(folder: pathlib.Path, **more: str) -> dict[str, str]:
  """The test's environment with a folder first on PATH; calls are recorded in <folder>/calls."""
  kept = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("SLURM_", "XLA_FLAGS", "PYTHON"))
  }
  return (
    kept
    | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "CALLS": str(folder / "calls")}
    | more
  )


def launch(folder: pathlib.Path, script: str, *arguments: str, stdin: str = "", **more: str):
  """Runs launch/<script> with bash, to its end; the answer has returncode, stdout and stderr."""
  command = ["bash", str(ROOT / "launch" / script), *map(str, arguments)]
  return subprocess.run(
    command,
    env=environment(folder, **more),
    input=stdin,
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )


def calls(folder: pathlib.Path) -> list[list[str]]:
  """The recorded calls, each a list of words."""
  path = folder / "calls"
  return (
    [call.split("\0")[:-1] for call in path.read_text().split("\n\n")[:-1]] if path.exists() else []
  )


def printed(text: str) -> list[list[str]]:
  """The commands that a dry run printed, each a list of words."""
  return [shlex.split(line) for line in text.splitlines()]
