"""Columns as files that are mapped into memory: whoever reads them holds what he touches."""

import json
import os
from typing import Any

import numpy as np

from gr4ad_jax import files


def create(folder: str, name: str, kind: type | str, *shape: int) -> None:
  """Makes a column of zeros, on disk."""
  # The file is as long as it will be; its pages are written where a stage puts something.
  path = _path(folder, name)
  os.makedirs(os.path.dirname(path), exist_ok=True)
  np.lib.format.open_memmap(path, "w+", np.dtype(kind), shape).flush()


def save(folder: str, name: str, column: np.ndarray) -> None:
  """Writes a column that is in memory."""
  path = _path(folder, name)
  os.makedirs(os.path.dirname(path), exist_ok=True)
  np.save(path, column)


def load(folder: str, name: str, write: bool = False) -> np.ndarray:
  """A column, mapped."""
  # Never a pickle, which could run code when it is read.
  mode = "r+" if write else "r"
  # As a plain array: `memmap` does more at each look, and its parts are maps again.
  return np.load(_path(folder, name), mmap_mode=mode, allow_pickle=False).view(np.ndarray)


def write_note(path: str, content: Any) -> None:
  """Writes JSON, whole or not at all; without a checksum, as nobody else reads it."""
  files.write_json(path, content, summed=False)


def read_note(path: str) -> Any:
  """What `write_note` wrote."""
  with open(path, encoding="utf-8") as file:
    return json.load(file)


def _path(folder: str, name: str) -> str:
  return os.path.join(folder, f"{name}.npy")
