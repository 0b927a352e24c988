"""Ad id -> row, for tables of millions: sorted hashes of the table's ids, and a dict of those
that came later.
"""

import numpy as np


class AdRows:
  """The rows of ad ids. A table's ad costs 12 bytes. Reading is safe while another thread adds.

  Args:
    ad_id_N: [N] str, the ids of the rows 0 … N-1.
  """

  def __init__(self, ad_id_N: np.ndarray):
    self._ad_id_N = ad_id_N
    # Python's hash of a text differs between processes; these live in one, and are never written.
    hash_N = np.fromiter((hash(str(ad_id)) for ad_id in ad_id_N), np.int64, len(ad_id_N))
    order = np.argsort(hash_N)
    self._hash_N = hash_N[order]
    self._row_N = order.astype(np.int32)
    self._later: dict[str, int] = {}

  def __len__(self):
    return len(self._ad_id_N) + len(self._later)

  def row(self, ad_id: str) -> int | None:
    """The row of an ad, None where there is none."""
    if not isinstance(ad_id, str):
      return None
    if (row := self._later.get(ad_id)) is not None:
      return row
    # Few ads come later, so a dict has those; the table's are found by bisection.
    number = hash(ad_id)
    at = int(np.searchsorted(self._hash_N, number))
    # Ids may share a hash: the id itself decides.
    while at < len(self._hash_N) and self._hash_N[at] == number:
      if self._ad_id_N[self._row_N[at]] == ad_id:
        return int(self._row_N[at])
      at += 1
    return None

  def add(self, ad_id: str) -> int:
    """Gives a new ad the next row."""
    row = self._later[ad_id] = len(self)
    return row

  @property
  def later(self) -> list[str]:
    """Ids that were added, in order of their rows."""
    return list(self._later)
