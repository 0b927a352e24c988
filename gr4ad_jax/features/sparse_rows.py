"""Sums of a sparse matrix, of which a few cells are read: what many weights make of few places."""

import numpy as np

_COLUMN = 42  # bits of a column


def _sorted(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The stable order of keys [n], and the keys in it.

  Row, column and number are packed into one integer where they fit: plain numbers sort in a third
  of the time or less.
  """
  column = key & ((1 << _COLUMN) - 1)
  number = len(key).bit_length()
  width = int(column.max(initial=0)).bit_length()
  if int(key.max(initial=0) >> _COLUMN).bit_length() + width + number > 63:
    order = np.argsort(key, kind="stable")
    return order, key[order]
  packed = ((key >> _COLUMN << width | column) << number) | np.arange(len(key))
  packed.sort()
  order = packed & ((1 << number) - 1)
  packed = packed >> number
  return order, (packed >> width << _COLUMN) | (packed & ((1 << width) - 1))


class SparseRows:
  """Sums of weights by (row, column): a matrix [B, columns] that is never made whole, read at some
  places.

  Args:
    row: [n] in [0, B), B below 2^21.
    column: [n] below 2^42; negative: left out.
    places_BC: the columns of each row that are read.
  """

  def __init__(self, row: np.ndarray, column: np.ndarray, places_BC: np.ndarray):
    self._kept = np.flatnonzero(column >= 0)
    key = (row[self._kept].astype(np.int64) << _COLUMN) + column[self._kept]
    order, key = _sorted(key)
    self._kept = self._kept[order]
    self._first = (
      np.flatnonzero(np.append(True, key[1:] != key[:-1])) if len(key) else np.zeros(0, np.int64)
    )
    key = key[self._first]
    wanted_BC = (np.arange(len(places_BC), dtype=np.int64)[:, None] << _COLUMN) + places_BC
    self._at_BC = np.minimum(np.searchsorted(key, wanted_BC), max(len(key) - 1, 0))
    self._found_BC = key[self._at_BC] == wanted_BC if len(key) else np.zeros(places_BC.shape, bool)

  def sum(self, weight: np.ndarray) -> np.ndarray:
    """Sums of the weights [n], [B, C] float32; 0 where there is none."""
    return self._read(np.add, weight)

  def max(self, weight: np.ndarray) -> np.ndarray:
    """The largest of the weights [n], [B, C] float32; 0 where there is none."""
    return self._read(np.maximum, weight)

  def _read(self, ufunc: np.ufunc, weight: np.ndarray) -> np.ndarray:
    if not len(self._first):
      return np.zeros(self._at_BC.shape, np.float32)
    values = ufunc.reduceat(weight[self._kept], self._first)
    return np.where(self._found_BC, values[self._at_BC], 0).astype(np.float32)
