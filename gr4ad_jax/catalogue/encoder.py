"""What the catalogue needs of whoever gives new ads their UA-SIDs."""

from collections.abc import Callable, Set
from typing import Protocol

import numpy as np

from gr4ad_jax.data.schema import AdTable


class Encoder(Protocol):
  """What the catalogue needs of a `Tokenizer`."""

  codebooks: tuple[int, ...]

  def encode(self, ads: AdTable, existing: Callable[[tuple[int, ...]], Set[int]]) -> np.ndarray:
    """[N, T] UA-SIDs of new ads; `existing` tells the last codes that are taken after a prefix."""
