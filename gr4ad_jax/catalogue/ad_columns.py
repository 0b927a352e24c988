"""Columns of ads that come while they are read: UA-SIDs, prices and dates, by row."""

from collections.abc import Sequence

import numpy as np

from gr4ad_jax.catalogue.ad_records import AdRecord
from gr4ad_jax.data.schema import AdTable


class GrowingColumns:
  """What contexts read of ads (`features.contexts.AdColumns`). One thread writes; others may read.

  Args:
    ads: the run's N ads.
    codes_NT: their UA-SIDs.

  Attributes:
    size: rows that readers see. Whoever writes a new row moves it on, when all of the ad is known.
  """

  def __init__(self, ads: AdTable, codes_NT: np.ndarray):
    self.size = len(ads)
    # Copies: rows are written to, and the run's own arrays stay as they are.
    self._codes_NT = np.array(codes_NT, np.int32)
    self._price_N = np.array(ads.price, np.float32)
    self._created_N = np.array(ads.created, np.int64)

  @property
  def codes_NT(self) -> np.ndarray:
    """[N, T] int32 UA-SIDs of all rows, those of removed ads too. A view: a later update of an
    ad shows in it.
    """
    return self._codes_NT[: self.size]

  @property
  def price_N(self) -> np.ndarray:
    """[N] float32 prices of all rows, money, NaN where unknown. A view as `codes_NT`."""
    return self._price_N[: self.size]

  @property
  def created_N(self) -> np.ndarray:
    """[N] int64 unix seconds at which each row was created, -1 where unknown. A view likewise."""
    return self._created_N[: self.size]

  def put(self, row: int, ad: AdRecord, codes: Sequence[int]) -> None:
    """Writes a row, a known one or one behind them all."""
    if row >= len(self._codes_NT):
      self._make_room(row)
    self._codes_NT[row] = codes
    self._price_N[row] = np.nan if ad.price is None else ad.price
    self._created_N[row] = -1 if ad.created is None else ad.created

  def _make_room(self, row: int) -> None:
    """Rows come one by one: an eighth more each time, so that they are not all copied each time."""
    here = len(self._codes_NT)
    more = max(row + 1, here + here // 8) - here
    codes_NT = np.zeros((more, self._codes_NT.shape[1]), np.int32)
    # New arrays, not larger old ones: a reader that holds a view goes on with the
    # array that it has.
    self._codes_NT = np.concatenate([self._codes_NT, codes_NT])
    self._price_N = np.append(self._price_N, np.full(more, np.nan, np.float32))
    self._created_N = np.append(self._created_N, np.full(more, -1))
