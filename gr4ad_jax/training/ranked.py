"""Rankings that are made once and kept beside their run."""

import os
from collections.abc import Callable

import numpy as np


class Stopped(Exception):
  """A job of several runs was asked to stop; what was done is kept."""


def kept(folder: str, split: str, make: Callable[[], np.ndarray]) -> np.ndarray:
  """Top ads of each request of a split, [R, K]: read from `<folder>/ranking_<split>.npz`, or made and written there."""
  path = os.path.join(folder, f"ranking_{split}.npz")
  if os.path.exists(path):
    with np.load(path) as saved:
      return saved["ad_RK"]
  ad_RK = make()
  os.makedirs(folder, exist_ok=True)
  part = path.removesuffix(".npz") + ".part.npz"
  np.savez_compressed(part, ad_RK=ad_RK)
  os.replace(part, path)
  return ad_RK
