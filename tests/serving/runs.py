"""The tiny run with both its checkpoints, and settings to serve it: every ad in every answer, so
that none can hide.
"""

import dataclasses
import os
import pathlib
import shutil

from gr4ad_jax.config import Config, load_config
from gr4ad_jax.locks import Lock

EVERYTHING = (4, 12, 72)  # beams that hold every UA-SID of the tiny codebooks
FIRST, SECOND = 2, 4  # steps of the checkpoints


def make(trained: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """Copies `trained_run` twice into a folder; whichever worker asks first does it, the others wait.

  Returns the folder: `second` in it is the run, `first` as it was half-way.
  """
  with Lock(f"{folder}.lock", wait=True):
    if (folder / "whole").exists():
      return folder
    shutil.copytree(trained, folder / "second")
    shutil.copytree(trained, folder / "first")
    shutil.rmtree(folder / "first" / "checkpoints" / str(SECOND))
    (folder / "whole").touch()
  return folder


def add_checkpoint(runs: pathlib.Path, workdir: pathlib.Path) -> None:
  """Puts the second checkpoint beside the first, whole at once, as a training does."""
  folder = workdir / "checkpoints"
  shutil.copytree(runs / "second" / "checkpoints" / str(SECOND), folder / "copy.tmp")
  os.rename(folder / "copy.tmp", folder / str(SECOND))


def config_of(workdir: pathlib.Path, **serving) -> Config:
  """A run's config with all ads in the beams, one bucket and limits that a busy machine keeps."""
  config = load_config(str(workdir))
  settings = {
    "buckets": (2,),
    "tabs": False,
    "reload_seconds": 0.0,
    "deadline_ms": 20_000.0,
    "target_ms": 10_000.0,
    "explained_ads": 0,  # nothing is compiled behind a test that looks at something else
  }
  return dataclasses.replace(
    config,
    search=dataclasses.replace(config.search, beams=EVERYTHING),
    serving=dataclasses.replace(config.serving, **(settings | serving)),
  )
