"""The ads that a learner knows: those of its run, and those that came in the topic `ads` since."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gr4ad_jax.catalogue.ad_columns import GrowingColumns
from gr4ad_jax.catalogue.ad_records import ACTIVE, FIELDS, REMOVED, AdRecord
from gr4ad_jax.catalogue.ad_rows import AdRows
from gr4ad_jax.catalogue.encoder import Encoder
from gr4ad_jax.data.schema import AdTable
from gr4ad_jax.index.live_index import IndexFull, LiveIndex


class KnownAds:
  """Ads by row, with UA-SIDs and prices: an `AdColumns` of contexts, and an index for searches.

  The same records in the same order give the same rows and UA-SIDs.

  Args:
    ads: the run's N ads.
    codes_NT: their UA-SIDs.
    tokenizer: makes those of others.
    overlay: see `LiveIndex`.

  Attributes:
    index: rows <-> UA-SIDs of the ads that may be recommended.
  """

  def __init__(self, ads: AdTable, codes_NT: np.ndarray, tokenizer: Encoder, overlay: int = 1024):
    self._base = ads
    self._tokenizer = tokenizer
    self._rows = AdRows(ads.ad_id)
    self._columns = GrowingColumns(ads, codes_NT)
    self._later: dict[int, AdRecord] = {}
    # The index copies the codes into keys of its own.
    self.index = LiveIndex(self.codes_NT, tokenizer.codebooks, overlay=overlay)

  def __len__(self):
    return len(self._rows)

  @property
  def codes_NT(self) -> np.ndarray:
    """See `GrowingColumns`."""
    return self._columns.codes_NT

  @property
  def price_N(self) -> np.ndarray:
    """See `GrowingColumns`."""
    return self._columns.price_N

  @property
  def created_N(self) -> np.ndarray:
    """See `GrowingColumns`."""
    return self._columns.created_N

  def row(self, ad_id: str) -> int | None:
    """The row of an ad, None where there is none."""
    return self._rows.row(ad_id)

  def later(self, size: int) -> list[str]:
    """Ids of those of the first `size` rows that the run does not know, in order."""
    return self._rows.later[: size - len(self._base)]

  def put(self, ad_id: str, fields: Mapping[str, Any]) -> int:
    """Adds or changes an ad.

    Args:
      ad_id: its id.
      fields: any of `ad_records.FIELDS`; those that are left out stay. With `codes` the UA-SID is
        the one that a catalogue gave; else the tokenizer makes one.

    Returns:
      Its row.

    Raises:
      DataError: a field that is not allowed.
    """
    row = self.row(ad_id)
    # What an ad was before: a later change, or the row of the run's table.
    before = None if row is None else self._later.get(row) or AdRecord.of_row(self._base, row)
    removed = fields.get("status") == REMOVED
    known = {name: fields[name] for name in FIELDS if name in fields and not removed}
    if removed and before is not None:
      ad = before.removed()
    else:  # one that comes back is a new ad, in its old row
      gone = before is not None and before.status == REMOVED
      ad = AdRecord.made(ad_id, known, None if gone else before)
    codes = fields.get("codes")
    # Its text changed, or it is new: then its UA-SID is made again.
    if codes is None and ad.status == ACTIVE and (before is None or not _same(ad, before)):
      if row is not None:
        # While it is looked for, the ad's own UA-SID counts as free.
        self._set(row, None)
      codes = self._tokenizer.encode(ad.table(), self.index.codes_below)[0]
    if codes is None:
      # A removed ad keeps its codes here: histories still name it. One that was never active has
      # none yet.
      codes = np.zeros_like(self.codes_NT[0]) if row is None else self.codes_NT[row]
    if row is None:
      row = self._rows.add(ad_id)
    self._later[row] = ad
    self._columns.put(row, ad, codes)
    # After the columns, since readers see rows up to this size.
    self._columns.size = len(self._rows)
    self._set(row, self.codes_NT[row] if ad.status == ACTIVE else None)
    return row

  def _set(self, row: int, codes: np.ndarray | None) -> None:
    try:
      self.index.set(row, codes)
    except IndexFull:
      # The overlay is full: the merge makes room, and then the change fits.
      self.index.merge()
      self.index.set(row, codes)


def _same(ad: AdRecord, before: AdRecord) -> bool:
  """Whether the tokenizer reads the same of both, and so gives the same UA-SID."""
  return ad.fingerprint() == before.fingerprint()
