"""Sums of a sparse matrix, of which a few cells are read: what many weights make of few places."""

import numpy as np

COLUMN = 42  # bits of a column
# A table tells which cells are read where it has at most so many, 16 MB of it, and at most so many
# for each cell that is read or looked for: memory and time follow these, not the number of ads.
_CELLS = 1 << 22
_CELLS_EACH = 32


def sorted_keys(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The stable order of keys [n], and the keys in it.

  Row, column and number are packed into one integer where they fit: plain numbers sort in a third
  of the time or less.
  """
  column = key & ((1 << COLUMN) - 1)
  number = len(key).bit_length()
  width = int(column.max(initial=0)).bit_length()
  # 63 bits are what a non-negative int64 holds.
  if int(key.max(initial=0) >> COLUMN).bit_length() + width + number > 63:
    order = np.argsort(key, kind="stable")
    return order, key[order]
  packed = ((key >> COLUMN << width | column) << number) | np.arange(len(key))
  packed.sort()
  order = packed & ((1 << number) - 1)
  # The number is cut off, so that row and column are left; then they move back to their own places.
  packed = packed >> number
  return order, (packed >> width << COLUMN) | (packed & ((1 << width) - 1))


class Places:
  """Cells (row, column) that are read; tells which of them others are.

  Args:
    of: [n] rows in [0, `rows`).
    column: [n] columns in [0, `columns`).
    rows: B, at most 2^21.
    columns: above every column that is looked for; at most 2^42.
    asked: about how many cells will be looked for.

  Attributes:
    size: n.
    at: [n] the place of each: where cells are equal, that of one of them.
    by_table: whether they are found without a search.
  """

  def __init__(self, of: np.ndarray, column: np.ndarray, rows: int, columns: int, asked: int):
    self.size = len(of)
    self._numbers = None
    # A row's first cell is that of column -1, which nobody reads.
    self._stride = columns + 1
    most = min(_CELLS, _CELLS_EACH * (asked + len(of)))
    if rows * self._stride > most and self._stride <= most:
      # A table of all columns says which few are read: they are numbered from 1 on, the others 0.
      used = np.unique(column)
      self._numbers = np.zeros(self._stride, np.int32)
      self._numbers[used + 1] = np.arange(1, len(used) + 1)
      self._stride = len(used) + 1
    self.by_table = rows * self._stride <= most
    if self.by_table:
      cell = self._cell(of, column)
      # The narrower, the more of the table stays in the cache.
      kind = np.int16 if self.size <= 1 << 15 else np.int32
      self._table = np.full(rows * self._stride, -1, kind)
      self._table[cell] = np.arange(self.size, dtype=kind)
      self.at = self._table.take(cell)
    else:
      about = np.unique(_keys(of, column), return_index=True, return_inverse=True)
      self.key, self._first, self.of_key = about
      self.at = self._first[self.of_key]

  def _cell(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    if self._numbers is None:
      return (row * self._stride + 1) + column
    return row * self._stride + self._numbers.take(column + 1)

  def find(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """The places of cells, -1 where nobody reads them; rows [m] or [m, 1], columns [m] or [m, k],
    -1 for none.
    """
    if self.by_table:
      return self._table.take(self._cell(row, column))
    key = _keys(row, column)
    if not len(self.key):
      return np.full(key.shape, -1)
    at = np.minimum(np.searchsorted(self.key, key), len(self.key) - 1)
    return np.where(self.key[at] == key, self._first[at], -1)


def _keys(row: np.ndarray, column: np.ndarray) -> np.ndarray:
  """Cells as integers that ascend with row, then column; negative columns give no cell."""
  return np.where(column >= 0, (row.astype(np.int64) << COLUMN) + column, -1)


class SparseRows:
  """Sums of weights by (row, column): a matrix [B, columns] that is never made whole, read at some
  places.

  Weights of one cell are added up in their order, in whichever of two ways the cells are found: a
  table over all of them, where that is small, or a search among sorted keys.

  Args:
    places: the n cells that are read.
    row: [m] or [m, 1] in [0, B).
    column: [m] or [m, k] below 2^42; -1: left out.

  Attributes:
    kept: [q] numbers of the weights that are read, of those [m] or [m · k] that there are.
  """

  def __init__(self, places: Places, row: np.ndarray, column: np.ndarray):
    if places.by_table:
      self._by_table(places, row, column)
    else:
      self._by_search(places, row, column)

  def _by_table(self, places: Places, row, column) -> None:
    found = places.find(row, column).ravel()
    self.kept = (found >= 0).nonzero()[0]
    key = found.take(self.kept)
    # 16 bits hold all places.
    if places.size <= 1 << 16:
      # NumPy sorts 16 bits by radix.
      order = np.argsort(key.astype(np.uint16), kind="stable")
      key = key.take(order)
    else:
      order, key = sorted_keys(key.astype(np.int64))
    self.kept = self.kept.take(order)
    self._first = np.flatnonzero(np.append(True, key[1:] != key[:-1])[: len(key)])
    self._cell = key.take(self._first)
    self._size = places.size
    self._at = places.at

  def _by_search(self, places: Places, row, column) -> None:
    key = _keys(row, column).ravel()
    self.kept = np.flatnonzero(key >= 0)
    order, key = sorted_keys(key[self.kept])
    self.kept = self.kept[order]
    self._first = np.flatnonzero(np.append(True, key[1:] != key[:-1])[: len(key)])
    key = key[self._first]
    self._cell = np.arange(len(key))
    self._size = len(key) + 1
    # The search may end past the last key. The cut keeps the gather in range, the comparison is
    # exact.
    at = np.minimum(np.searchsorted(key, places.key), max(len(key) - 1, 0))
    found = key[at] == places.key if len(key) else np.zeros(len(at), bool)
    # The last cell stays 0.
    self._at = np.where(found, at, len(key))[places.of_key]

  def sum(self, weight_q: np.ndarray) -> np.ndarray:
    """Sums of the weights of `kept`, float32, at the places [n]; 0 where there is none."""
    return self._read(np.add, weight_q)

  def max(self, weight_q: np.ndarray) -> np.ndarray:
    """The largest of the weights, as `sum`."""
    return self._read(np.maximum, weight_q)

  def _read(self, ufunc: np.ufunc, weight_q: np.ndarray) -> np.ndarray:
    cells = np.zeros(self._size, np.float32)
    # `reduceat` refuses an empty list of bounds.
    if len(self._first):
      cells[self._cell] = ufunc.reduceat(weight_q, self._first)
    return cells.take(self._at)
