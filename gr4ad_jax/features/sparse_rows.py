"""Sums of a sparse matrix, of which a few cells are read: what many weights make of few places."""

import numpy as np

_COLUMN = 42  # bits of a column
# A table tells which cells are read where it has at most so many, 16 MB of it, and at most so many
# for each weight: memory and time follow the weights, not the number of ads.
_CELLS = 1 << 22
_CELLS_PER_WEIGHT = 8


def _sorted(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The stable order of keys [n], and the keys in it.

  Row, column and number are packed into one integer where they fit: plain numbers sort in a third
  of the time or less.
  """
  column = key & ((1 << _COLUMN) - 1)
  number = len(key).bit_length()
  width = int(column.max(initial=0)).bit_length()
  # 63 bits are what a non-negative int64 holds.
  if int(key.max(initial=0) >> _COLUMN).bit_length() + width + number > 63:
    order = np.argsort(key, kind="stable")
    return order, key[order]
  packed = ((key >> _COLUMN << width | column) << number) | np.arange(len(key))
  packed.sort()
  order = packed & ((1 << number) - 1)
  # The number is cut off, so that row and column are left; then they move back to their own places.
  packed = packed >> number
  return order, (packed >> width << _COLUMN) | (packed & ((1 << width) - 1))


class SparseRows:
  """Sums of weights by (row, column): a matrix [B, columns] that is never made whole, read at some
  places.

  Weights of one cell are added up in their order, in whichever of two ways the cells are found: a
  table over all of them, where that is small, or a search among sorted keys.

  Args:
    row: [n] in [0, B), B below 2^21.
    column: [n] below 2^42; negative: left out.
    places: the columns that are read, at least 0: [B, C] of each row, or [m].
    of: [m] the rows that they are of; None: `places` is of all rows, in their order.
  """

  def __init__(
    self, row: np.ndarray, column: np.ndarray, places: np.ndarray, of: np.ndarray | None = None
  ):
    of = np.arange(len(places))[:, None] if of is None else of
    rows = 1 + int(max(of.max(initial=0), row.max(initial=0)))
    width = 1 + int(max(places.max(initial=0), column.max(initial=0)))
    if rows * width <= min(_CELLS, _CELLS_PER_WEIGHT * (len(row) + places.size)):
      self._by_table(row, column, of * width + places, rows, width)
    else:
      self._by_search(row, column, (of.astype(np.int64) << _COLUMN) + places)

  def _by_table(self, row, column, wanted, rows: int, width: int) -> None:
    # What is read is marked in a table of all cells, so that each weight finds its place by one
    # gather.
    place = np.full(rows * width, -1, np.int32)
    place[wanted.ravel()] = np.arange(wanted.size, dtype=np.int32)
    # A column that stands twice in a row has one place: that of the last.
    self._at = place[wanted]
    found = place[row * width + np.maximum(column, 0)]
    self._kept = ((found >= 0) & (column >= 0)).nonzero()[0]
    key = found[self._kept]
    # 16 bits hold all places.
    if wanted.size <= 1 << 16:
      # NumPy sorts 16 bits by radix.
      order = np.argsort(key.astype(np.uint16), kind="stable")
      key = key[order]
    else:
      order, key = _sorted(key.astype(np.int64))
    self._kept = self._kept[order]
    self._first = np.flatnonzero(np.append(True, key[1:] != key[:-1])[: len(key)])
    self._cell = key[self._first]
    self._size = wanted.size

  def _by_search(self, row, column, wanted) -> None:
    self._kept = np.flatnonzero(column >= 0)
    key = (row[self._kept].astype(np.int64) << _COLUMN) + column[self._kept]
    order, key = _sorted(key)
    self._kept = self._kept[order]
    self._first = np.flatnonzero(np.append(True, key[1:] != key[:-1])[: len(key)])
    key = key[self._first]
    self._cell = np.arange(len(key))
    self._size = len(key) + 1
    # The search may end past the last key. The cut keeps the gather in range, the comparison is
    # exact.
    at = np.minimum(np.searchsorted(key, wanted), max(len(key) - 1, 0))
    found = key[at] == wanted if len(key) else np.zeros(wanted.shape, bool)
    self._at = np.where(found, at, len(key))  # the last cell stays 0

  def sum(self, weight: np.ndarray) -> np.ndarray:
    """Sums of the weights [n], float32, as `places`; 0 where there is none."""
    return self._read(np.add, weight)

  def max(self, weight: np.ndarray) -> np.ndarray:
    """The largest of the weights [n], float32, as `places`; 0 where there is none."""
    return self._read(np.maximum, weight)

  def _read(self, ufunc: np.ufunc, weight: np.ndarray) -> np.ndarray:
    cells = np.zeros(self._size, np.float32)
    # `reduceat` refuses an empty list of bounds.
    if len(self._first):
      cells[self._cell] = ufunc.reduceat(weight[self._kept], self._first)
    return cells[self._at]
