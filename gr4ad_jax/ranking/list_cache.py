"""Rankings that are made once and kept beside their run."""

import json
import os
from collections.abc import Callable, Mapping

import numpy as np

from gr4ad_jax import files
from gr4ad_jax.training.loop import FitResult


class Stopped(Exception):
  """A job of several runs was asked to stop; what was done is kept."""


def go_on(result: FitResult, where: str) -> None:
  """Raises Stopped, naming what was trained, where its training was asked to stop."""
  if result.status == "preempted":
    raise Stopped(f"stopped in {where}; the same command goes on from there")


def kept(folder: str, split: str, settings: Mapping, make: Callable[[], np.ndarray]) -> np.ndarray:
  """Top ads of each request of a split, [R, K]: read from `<folder>/ranking_<split>.npz`, or made
  and written there.

  Args:
    folder: of the run, or below it.
    split: whose requests.
    settings: what the ranking follows from (`scoring.shaping`); one that was made under others is
      made anew.
    make: makes it.
  """
  path = os.path.join(folder, f"ranking_{split}.npz")
  # As text with sorted keys: equal settings are equal strings.
  written = json.dumps(settings, sort_keys=True)
  if os.path.exists(path):
    saved = files.load_all(path)
    # Made with other settings: it is made anew and written over.
    if str(saved.get("settings")) == written:
      return saved["ad_RK"]
  ad_RK = make()
  files.save_arrays(path, compressed=True, ad_RK=ad_RK, settings=written)
  return ad_RK
