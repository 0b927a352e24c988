"""A live index whose ads come and go."""

import numpy as np

from gr4ad_jax.index.live_index import LiveIndex


def change(
  index: LiveIndex,
  active: dict[int, tuple[int, ...]],
  rng: np.random.Generator,
  codebooks: tuple[int, ...],
  rows: int,
  leaving: float,
) -> None:
  """Takes a row away, or gives one a UA-SID at random.

  Args:
    index: is changed.
    active: UA-SID of each row that is there; is changed alike.
    rng: draws.
    codebooks: codes of each level.
    rows: the row is one of so many.
    leaving: the share of the rows drawn that leave, of those that are there.
  """
  row = int(rng.integers(0, rows))
  if row in active and rng.random() < leaving:
    index.set(row, None)
    del active[row]
  else:
    codes = tuple(int(rng.integers(0, size)) for size in codebooks)
    index.set(row, codes)
    active[row] = codes
