"""The ads of a run under live change: by id, with fields, UA-SIDs and state; what was acknowledged
survives a crash.

The run's ad table is the base and never changes. Beside it stand the ads that were added or changed
since, in memory and on disk (`AdTopic`). A change goes to the disk, then to memory and index, then
to those who must know of it; then it is acknowledged. Changes that arrive together share one
commit.
"""

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from gr4ad_jax.catalogue import ad_topic
from gr4ad_jax.catalogue.ad_columns import GrowingColumns
from gr4ad_jax.catalogue.ad_records import ACTIVE, REMOVED, WORDS, AdRecord, check_codes
from gr4ad_jax.catalogue.ad_rows import AdRows
from gr4ad_jax.catalogue.choice import AdSets
from gr4ad_jax.catalogue.encoder import Encoder
from gr4ad_jax.catalogue.tending import Tending
from gr4ad_jax.data.schema import AdTable, DataError
from gr4ad_jax.index.live_index import IndexFull, LiveIndex, TrieArrays
from gr4ad_jax.streams.group_commit import GroupCommit, Waiting

MERGE_FILL = 0.5  # share of the index's overlay from which it is merged in the background
_log = logging.getLogger(__name__)


class _Change(NamedTuple):
  """An ad as it shall be."""

  ad: AdRecord
  row: int
  codes: tuple[int, ...]


class AdCatalog:
  """The ads, by row and by id. Make one with `open`. Safe for threads: changes wait for each other,
  readers for none.

  Attributes:
    index: rows <-> UA-SIDs; its active rows are the ads with status 'active'.
    sets: the ads by account and category.
    before_merge: called with a merged index's trie before it is used, see `LiveIndex.merge`.
    on_removed: called with the row of an ad that was updated, paused or removed, before the change
      is acknowledged.
    version: counts changes.
  """

  def __init__(
    self,
    ads: AdTable,
    codes_NT: np.ndarray,
    tokenizer: Encoder,
    topic: ad_topic.AdTopic,
    overlay: int,
  ):
    self._base = ads
    self._tokenizer = tokenizer
    self._topic = topic
    self._rows = AdRows(ads.ad_id)
    self._ads = {}
    self._columns = GrowingColumns(ads, codes_NT)
    self.sets = AdSets(ads.account_id, ads.category)
    for ad, row, codes in topic.states():
      known = self._rows.row(ad.ad_id)
      # A known ad keeps its row, and a new one has the row behind all others.
      if row != (len(self._rows) if known is None else known):
        raise DataError(
          f"the catalogue's file gives ad {ad.ad_id!r} row {row}, which is not its row"
        )
      self._keep(row, ad, codes)
    active_N = np.ones(len(self), bool)
    # All ads are active but those whose last change says otherwise.
    active_N[[row for row, ad in self._ads.items() if ad.status != ACTIVE]] = False
    self.index = LiveIndex(self.codes_NT, tokenizer.codebooks, active_N, overlay)
    self.on_removed: list[Callable[[int], None]] = []
    self.before_merge: Callable[[TrieArrays], None] = lambda trie: None
    self.version = 0
    self._lock = threading.RLock()
    self._commits = GroupCommit(self._lock, self._write, self._apply)
    self._closing = False
    self._tending = Tending(self.merge_if_needed, self.compact, lambda: self.version)

  @classmethod
  def open(
    cls,
    directory: str,
    ads: AdTable,
    codes_NT: np.ndarray,
    tokenizer: Encoder,
    *,
    overlay: int = 1024,
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
    topic = ad_topic.AdTopic(directory, ad_topic.rows_digest(ads, codes_NT, tokenizer.codebooks))
    try:
      return cls(ads, codes_NT, tokenizer, topic, overlay)
    except BaseException:
      topic.close()
      raise

  def __len__(self):
    return self._columns.size

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
    """The row of an ad, removed ones too, as histories name them; None for an ad that never was."""
    return self._rows.row(ad_id)

  def ad(self, row: int) -> AdRecord:
    """The ad of a row, removed ones too, of which only those of the run's table still have
    words.
    """
    ad = self._ads.get(row)
    if ad is None:
      return AdRecord.of_row(self._base, row)
    if ad.status == REMOVED and row < len(self._base):
      kept = {"price": ad.price, "created": ad.created, "status": REMOVED}
      return dataclasses.replace(AdRecord.of_row(self._base, row), **kept)
    return ad

  def is_active(self, row: int) -> bool:
    """Whether the ad of a row may be shown."""
    ad = self._ads.get(row)
    return ad.status == ACTIVE if ad else 0 <= row < len(self._base)

  def get(self, ad_id: str) -> dict[str, Any] | None:
    """An ad's fields (the vector aside), status and codes; None where there is none or it was
    removed.
    """
    row = self.row(ad_id)
    if row is None or (ad := self.ad(row)).status == REMOVED:
      return None
    names = ("ad_id", *WORDS, "price", "created", "status")
    return {name: getattr(ad, name) for name in names} | {"codes": self.codes_NT[row].tolist()}

  def put(self, ad_id: str, fields: Mapping[str, Any], codes: tuple[int, ...] | None = None) -> str:
    """Adds or changes an ad. On disk when this returns; what is active can be generated from the
    next batch on.

    The UA-SID stays as long as the content does.

    Args:
      ad_id: its id.
      fields: any of text, account_id, category, conversion_type, form, price (None: unknown),
        created (unix seconds; of a new ad left out: this moment), vector, status ('active' or
        'paused'); the others stay. A new ad, or a removed one, needs text and account_id.
      codes: its UA-SID, as another server gave it; None: it stays with the content, and the
        tokenizer makes that of new content.

    Returns:
      'created' or 'updated'.

    Raises:
      DataError: a field that is not allowed, or an ad that the tokenizer cannot encode.
      OSError: the change could not be written. Nothing of it shows; a crash now may still bring it.
    """
    with self._lock:
      # What is waiting for the disk counts as the ad's state: two changes in a row
      # must not undo each other.
      before, waiting = self._latest(ad_id)
      known = None if before is None or before.ad.status == REMOVED else before.ad
      ad = AdRecord.made(ad_id, fields, known, int(time.time()))
      changed = ad != known or (codes is not None and codes != before.codes)
      if changed:
        if codes is not None:
          check_codes(ad_id, codes, self._tokenizer.codebooks)
        # The content is as it was, or a removed ad comes back: it keeps its UA-SID.
        elif before is not None and before.ad.fingerprint() == ad.fingerprint():
          codes = before.codes
        else:
          codes = self._encode(ad, before)
        waiting = self._added(ad, before, codes)
    # Outside the lock, so that changes that arrive together share one commit.
    self._acknowledge(waiting, told=before is not None and changed)
    return "updated" if known else "created"

  def delete(self, ad_id: str) -> bool:
    """Removes an ad. On disk when this returns. The row stays, for histories, and `put` brings the
    ad back.

    Its words and vector are gone from the disk after the next `compact`.

    Returns:
      Whether there was one.

    Raises:
      OSError: as `put`.
    """
    with self._lock:
      before, waiting = self._latest(ad_id)
      there = before is not None and before.ad.status != REMOVED
      if there:
        waiting = self._added(before.ad.removed(), before, before.codes)
    self._acknowledge(waiting, told=there)
    return there

  def merge_if_needed(self) -> bool:
    """Merges the index's overlay where it is half full. Returns whether it was."""
    if self.index.fill <= MERGE_FILL:
      return False
    self.index.merge(self.before_merge)
    return True

  def compact(self) -> None:
    """Leaves nothing of removed ads on disk, and gives their room back. Changes wait meanwhile.

    Raises:
      OSError: it could not be written; nothing is lost.
    """
    self._topic.compact()

  def start(self) -> None:
    """Starts the thread that merges and compacts; `close` ends it.

    One ad is encoded first, since the first takes the tokenizer a second or two.
    """
    # A run whose vectors came from elsewhere cannot encode; `put` tells.
    with contextlib.suppress(DataError, OSError, ImportError):
      self._tokenizer.encode(self.ad(0).table(), lambda prefix: set())
    self._tending.start()

  def close(self) -> None:
    """Ends the thread and closes the files; no change may follow."""
    with self._lock:
      if self._closing:
        return
      self._closing = True
    self._tending.close()
    # What was acknowledged is on disk already; this waits for those that were on their way.
    self._commits.flush()
    try:
      self._topic.compact()
    except OSError as error:
      # The disk is full, for example. The next server does it.
      _log.error("traces of removed ads stay on disk until the next start: %s", error)
    self._topic.close()

  def _latest(self, ad_id: str) -> tuple[_Change | None, Waiting | None]:
    """An ad as the changes that wait leave it, None where there never was one; and the last of
    them.
    """
    for waiting in reversed(self._commits.waiting):
      if waiting.value.ad.ad_id == ad_id:
        return waiting.value, waiting
    row = self.row(ad_id)
    if row is None:
      return None, None
    ad = self._ads.get(row) or AdRecord.of_row(self._base, row)
    return _Change(ad, row, tuple(self.codes_NT[row].tolist())), None

  def _encode(self, ad: AdRecord, before: _Change | None) -> tuple[int, ...]:
    """A UA-SID beside those of the index and of changes that wait; an ad's own counts as free."""
    # The ad's last code is free again where no other ad has the UA-SID.
    own = () if before is None else before.codes
    alone = before is not None and self.index.rows_of(own).tolist() == [before.row]
    soon = {waiting.value for waiting in self._commits.waiting if waiting.value.ad.status == ACTIVE}
    others = [other.codes for other in soon if other.ad.ad_id != ad.ad_id]

    def taken(prefix: Sequence[int]) -> Set[int]:
      free = {own[-1]} if alone and own[:-1] == tuple(prefix) else set()
      # Of changes on their way, which the index does not know yet.
      waits = {codes[-1] for codes in others if codes[:-1] == tuple(prefix)}
      return (self.index.codes_below(prefix) - free) | waits

    return tuple(self._tokenizer.encode(ad.table(), taken)[0].tolist())

  def _added(self, ad: AdRecord, before: _Change | None, codes: tuple[int, ...]) -> Waiting:
    """Takes a change to be written; a new ad gets the row behind all those that wait for theirs."""
    if self._closing:
      raise RuntimeError("the catalogue is closed")
    if before is not None:
      return self._commits.add(_Change(ad, before.row, codes))
    size = len(self._rows)
    rows = [waiting.value.row for waiting in self._commits.waiting]
    return self._commits.add(_Change(ad, max([size, *(row + 1 for row in rows)]), codes))

  def _write(self, changes: Sequence[_Change]) -> None:
    self._topic.append([ad_topic.change(*change) for change in changes])

  def _apply(self, change: _Change) -> None:
    """Takes a change that is on disk into memory and index."""
    ad, row, codes = change
    self._keep(row, ad, codes)
    while True:
      try:
        self.index.set(row, codes if ad.status == ACTIVE else None)
        break
      # Merged here and now: the change was acknowledged by the disk, and must show.
      except IndexFull:
        self.index.merge(self.before_merge)
    self.version += 1

  def _keep(self, row: int, ad: AdRecord, codes: Sequence[int]) -> None:
    """Takes an ad into memory; a reader that sees the new size finds all of it."""
    self._columns.put(row, ad, codes)
    self._ads[row] = ad
    self.sets.set(row, ad.account_id, ad.category)
    if self._rows.row(ad.ad_id) is None:
      self._rows.add(ad.ad_id)
    # Last, since readers see rows up to this size.
    self._columns.size = len(self._rows)

  def _acknowledge(self, waiting: Waiting | None, *, told: bool) -> None:
    """Waits for disk and memory, then tells those who must know that an ad is no longer what it
    was.
    """
    if waiting is None:
      return
    self._commits.wait(waiting)
    # After the change shows: an answer that is computed from here on cannot hold the old ad.
    for hears in self.on_removed if told else ():
      hears(waiting.value.row)
    if self.index.fill > MERGE_FILL:
      self._tending.wake()
