"""The ads of a run under live change: by id, with fields, UA-SIDs and state; what was acknowledged survives a crash.

The run's ad table is the base and never changes. Beside it stand the ads that were added or changed since, in memory
and in a `ChangeLog`.
"""

import contextlib
import dataclasses
import hashlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Protocol

import numpy as np

from gr4ad_jax.data.schema import AdTable, DataError
from gr4ad_jax.serving.ad_records import ACTIVE, REMOVED, AdRecord
from gr4ad_jax.serving.ad_rows import AdRows
from gr4ad_jax.serving.change_log import ChangeLog
from gr4ad_jax.sid.live_index import IndexFull, LiveIndex, TrieArrays

MERGE_FILL = 0.5  # share of the index's overlay from which it is merged in the background
SNAPSHOT_BYTES = 1 << 26  # journal from which a snapshot is made, if the journal is longer than the last one
_TICK = 1.0  # seconds between two looks of the background thread
_log = logging.getLogger(__name__)


class Encoder(Protocol):
  """What the catalogue needs of a `Tokenizer`."""

  codebooks: tuple[int, ...]

  def encode(self, ads: AdTable, existing: Callable[[tuple[int, ...]], Set[int]]) -> np.ndarray:
    """[N, T] UA-SIDs of new ads; `existing` tells the last codes that are taken after a prefix."""


class AdCatalog:
  """The ads, by row and by id. Make one with `open`. Safe for threads: changes wait for each other, readers for none.

  Attributes:
    index: rows <-> UA-SIDs; its active rows are the ads with status 'active'.
    before_merge: called with a merged index's trie before it is used, see `LiveIndex.merge`.
    on_removed: called with the row of an ad that was updated, paused or removed, before the change is acknowledged.
    version: counts changes.
  """

  def __init__(self, ads: AdTable, codes_NT: np.ndarray, tokenizer: Encoder, changes: ChangeLog, overlay: int):
    self._base, self._tokenizer, self._changes = ads, tokenizer, changes
    self._rows, self._ads = AdRows(ads.ad_id), {}
    self._codes_NT, self._price_N = np.array(codes_NT, np.int32), np.array(ads.price, np.float32)
    self._size = len(ads)
    for payload in changes.replay():
      ad, row, codes = AdRecord.decoded(payload)
      known = self._rows.row(ad.ad_id)
      if row != (len(self._rows) if known is None else known):
        raise DataError(f"the catalogue's journal gives ad {ad.ad_id!r} row {row}, which is not its row")
      self._keep(row, ad, codes)
    active_N = np.ones(self._size, bool)
    active_N[[row for row, ad in self._ads.items() if ad.status != ACTIVE]] = False
    self.index = LiveIndex(self.codes_NT, tokenizer.codebooks, active_N, overlay)
    self.on_removed: list[Callable[[int], None]] = []
    self.before_merge: Callable[[TrieArrays], None] = lambda trie: None
    self.version = 0
    self._lock, self._snapshotting = threading.RLock(), threading.Lock()
    self._wake, self._closing, self._thread = threading.Event(), False, None

  @classmethod
  def open(
    cls, directory: str, ads: AdTable, codes_NT: np.ndarray, tokenizer: Encoder, *, overlay: int = 1024
  ) -> "AdCatalog":
    """Opens the catalogue of a run, with all changes that its directory holds.

    Args:
      directory: where changes are kept; made where it is missing.
      ads: the run's N ads.
      codes_NT: their UA-SIDs.
      tokenizer: makes those of others.
      overlay: see `LiveIndex`.

    Raises:
      DataError: the directory holds changes of another index, is damaged, or is in use.
    """
    changes = ChangeLog(directory, _digest(ads, codes_NT, tokenizer.codebooks))
    try:
      return cls(ads, codes_NT, tokenizer, changes, overlay)
    except BaseException:
      changes.close()
      raise

  def __len__(self):
    return self._size

  @property
  def codes_NT(self) -> np.ndarray:
    """[N, T] int32 UA-SIDs of all rows, those of removed ads too. A view: a later update of an ad shows in it."""
    return self._codes_NT[: self._size]

  @property
  def price_N(self) -> np.ndarray:
    """[N] float32 prices of all rows, money, NaN where unknown. A view as `codes_NT`."""
    return self._price_N[: self._size]

  def row(self, ad_id: str) -> int | None:
    """The row of an ad, removed ones too, as histories name them; None for an ad that never was."""
    return self._rows.row(ad_id)

  def ad(self, row: int) -> AdRecord:
    """The ad of a row, removed ones too."""
    return self._ads.get(row) or AdRecord.of_row(self._base, row)

  def is_active(self, row: int) -> bool:
    """Whether the ad of a row may be shown."""
    ad = self._ads.get(row)
    return ad.status == ACTIVE if ad else 0 <= row < len(self._base)

  def get(self, ad_id: str) -> dict[str, Any] | None:
    """An ad's fields (the vector aside), status and codes; None where there is none or it was removed."""
    row = self.row(ad_id)
    if row is None or (ad := self.ad(row)).status == REMOVED:
      return None
    names = ("ad_id", "text", "account_id", "category", "conversion_type", "form", "price", "status")
    return {name: getattr(ad, name) for name in names} | {"codes": self._codes_NT[row].tolist()}

  def put(self, ad_id: str, fields: Mapping[str, Any]) -> str:
    """Adds or changes an ad. On disk when this returns; what is active can be generated from the next batch on.

    The UA-SID stays as long as the content does. The change shows before it is on disk, but is acknowledged after.

    Args:
      ad_id: its id.
      fields: any of text, account_id, category, conversion_type, form, price (None: unknown), vector, status ('active'
        or 'paused'); the others stay. A new ad, or one that was removed, needs text and account_id.

    Returns:
      'created' or 'updated'.

    Raises:
      DataError: a field that is not allowed, or an ad that the tokenizer cannot encode.
      OSError: the change could not be written: it shows, but a crash may undo it.
    """
    with self._lock:
      row = self.row(ad_id)
      known = None if row is None else self.ad(row)
      before = None if known is None or known.status == REMOVED else known
      ad = AdRecord.made(ad_id, fields, before)
      result = "updated" if before else "created"
      if ad == before:
        return self._acknowledged(None, self._changes.flush, result)
      codes = self._codes_NT[row].tolist() if known and ad.same_content(known) else self._encode(ad, row)
      written = self._change(len(self._rows) if row is None else row, ad, codes)
    return self._acknowledged(row, written, result)

  def delete(self, ad_id: str) -> bool:
    """Removes an ad. On disk when this returns. The row stays, for histories, and `put` brings the ad back.

    Returns:
      Whether there was one.

    Raises:
      OSError: as `put`.
    """
    with self._lock:
      row = self.row(ad_id)
      if row is None or (ad := self.ad(row)).status == REMOVED:
        return self._acknowledged(None, self._changes.flush, False)
      written = self._change(row, dataclasses.replace(ad, status=REMOVED), self._codes_NT[row].tolist())
    return self._acknowledged(row, written, True)

  def merge_if_needed(self) -> bool:
    """Merges the index's overlay where it is half full. Returns whether it was."""
    if self.index.fill <= MERGE_FILL:
      return False
    self.index.merge(self.before_merge)
    return True

  def snapshot(self) -> None:
    """Writes the changed ads as a snapshot; the journal starts anew. Changes go on meanwhile."""
    with self._snapshotting:
      with self._lock:
        self._changes.rotate()
        ads = sorted(self._ads.items())
        codes_CT = self._codes_NT[[row for row, _ in ads]]
      records = (ad.encoded(row, codes) for (row, ad), codes in zip(ads, codes_CT, strict=True))
      self._changes.snapshot(records, len(ads))

  def start(self) -> None:
    """Starts the thread that merges and makes snapshots; `close` ends it.

    One ad is encoded first, since the first takes the tokenizer a second or two.
    """
    with contextlib.suppress(DataError, OSError, ImportError):  # a run whose vectors came from elsewhere; `put` tells
      self._tokenizer.encode(self.ad(0).table(), lambda prefix: set())
    self._thread = threading.Thread(target=self._tend, name="catalogue", daemon=True)
    self._thread.start()

  def close(self) -> None:
    """Ends the thread and closes the files; no change may follow."""
    with self._lock:
      if self._closing:
        return
      self._closing = True
    self._wake.set()
    if self._thread is not None:
      self._thread.join()
    with self._lock:
      self._changes.close()

  def _encode(self, ad: AdRecord, row: int | None) -> list[int]:
    own = None if row is None else tuple(self._codes_NT[row].tolist())

    def taken(prefix: Sequence[int]) -> Set[int]:
      alone = own is not None and own[:-1] == tuple(prefix) and self.index.rows_of(own).tolist() == [row]
      return self.index.codes_below(prefix) - {own[-1]} if alone else self.index.codes_below(prefix)

    return self._tokenizer.encode(ad.table(), taken)[0].tolist()

  def _change(self, row: int, ad: AdRecord, codes: Sequence[int]) -> Callable[[], None]:
    """Takes a change into journal, memory and index; returns what waits until it is on disk."""
    if self._closing:
      raise RuntimeError("the catalogue is closed")
    self._changes.check()
    written = self._changes.append(ad.encoded(row, codes))
    self._keep(row, ad, codes)
    while True:
      try:
        self.index.set(row, codes if ad.status == ACTIVE else None)
        break
      except IndexFull:
        self.index.merge(self.before_merge)
    self.version += 1
    return written

  def _keep(self, row: int, ad: AdRecord, codes: Sequence[int]) -> None:
    """Takes an ad into memory; a reader that sees the new size finds all of it."""
    if row >= len(self._codes_NT):
      room = max(row + 1, len(self._codes_NT) + len(self._codes_NT) // 8) - len(self._codes_NT)
      self._codes_NT = np.concatenate([self._codes_NT, np.zeros((room, self._codes_NT.shape[1]), np.int32)])
      self._price_N = np.append(self._price_N, np.full(room, np.nan, np.float32))
    self._codes_NT[row] = codes
    self._price_N[row] = np.nan if ad.price is None else ad.price
    self._ads[row] = ad
    if self._rows.row(ad.ad_id) is None:
      self._rows.add(ad.ad_id)
    self._size = len(self._rows)

  def _acknowledged(self, row: int | None, written: Callable[[], None], result: Any) -> Any:
    """Tells who must know of a row that changed (None: nobody must), and waits for the disk."""
    for told in self.on_removed if row is not None else ():
      told(row)
    if self.index.fill > MERGE_FILL:
      self._wake.set()
    written()
    return result

  def _tend(self) -> None:
    while not self._closing:
      self._wake.wait(_TICK)
      self._wake.clear()
      try:
        self.merge_if_needed()
        if self._changes.size > max(SNAPSHOT_BYTES, self._changes.snapshot_size):
          self.snapshot()
      except Exception:  # for example a full disk: the thread lives on, and tries again
        _log.exception("the catalogue could not be merged or written")


def _digest(ads: AdTable, codes_NT: np.ndarray, codebooks: Sequence[int]) -> str:
  """SHA-256 of what rows and UA-SIDs mean."""
  made = hashlib.sha256(repr((len(ads), tuple(map(int, codebooks)))).encode())
  made.update(np.ascontiguousarray(codes_NT, np.int32).tobytes())
  for begin in range(0, len(ads), 1 << 16):
    made.update("\0".join(map(str, ads.ad_id[begin : begin + (1 << 16)])).encode() + b"\0")
  return made.hexdigest()
