"""Lists of the topic `lists`, until they are learned from.

Which of them are due follows from the records and from what is known beside them, never from when
they were read.
"""

import collections
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.preference import list_records
from gr4ad_jax.preference.list_records import RewardedList
from gr4ad_jax.streams.stream import Record, Stream, read_kept

LISTS = "lists"
_CHUNK = 200  # records that are read at once
_MOST = 1024  # lists that wait
_log = logging.getLogger(__name__)


class Ads(Protocol):
  """Ads by row, with UA-SIDs."""

  codes_NT: Any

  def row(self, ad_id: str) -> int | None:
    """The row of an ad, None where there is none."""
    ...


class Visit(Protocol):
  """A visit of a user; moments of its first and last event, unix seconds."""

  user_id: str
  begin: int
  last: int


class Due(NamedTuple):
  """A list that is due, the visit that it is of, and the group of visits that this one is in."""

  of: RewardedList
  visit: Any
  group: int


class WaitingLists:
  """Reads lists on from where it was, and says which can be learned from.

  A list waits for its ads and its visit. It is put aside where an ad has another UA-SID by now
  (`outgrown`: its log p are of something else), where its visit is no longer remembered or too many
  wait (`late`), and where the record cannot be read (`unreadable`). Retention may have taken some
  before they were read (`gone`).

  Args:
    stream: has the topic.
    ads: those that are known; more may come.
    codebooks: codes of each level of a UA-SID.

  Attributes:
    offset: of the last record that was taken.
  """

  def __init__(self, stream: Stream, ads: Ads, codebooks: Sequence[int]):
    self.offset = 0
    self._stream = stream
    self._ads = ads
    self._codebooks = tuple(codebooks)
    self._waiting: dict[int, RewardedList] = {}  # by offset, ascending
    self._counts = dict.fromkeys(("learned", "outgrown", "late", "unreadable", "gone"), 0)
    self._ahead: collections.deque[Record] = collections.deque()  # read and not taken

  @property
  def counts(self) -> dict[str, int]:
    """Lists so far, by what became of them, and those that wait."""
    return self._counts | {"waiting": len(self._waiting)}

  def read(self, until: float) -> None:
    """Takes the records that were appended up to a moment. Raises OSError as the stream."""
    while True:
      if not self._ahead and not self._look():
        return
      while self._ahead:
        if self._ahead[0].time > until:
          return
        self._take(self._ahead.popleft())

  def due(
    self, visits: Iterable[tuple[int, Sequence[Visit]]], rows: int, batches: int
  ) -> tuple[Due, ...]:
    """Takes lists that can be learned from, the oldest first: whole batches of them.

    Args:
      visits: (group, its visits) of those that are remembered.
      rows: lists of a batch.
      batches: most of them.
    """
    if not self._waiting:
      return ()
    by_user: dict[str, list[tuple[int, Visit]]] = {}
    for group, some in visits:
      for visit in some:
        by_user.setdefault(visit.user_id, []).append((group, visit))
    oldest = min((one.begin for of_user in by_user.values() for _, one in of_user), default=0)
    found: dict[int, Due] = {}
    for offset, of in list(self._waiting.items()):
      row_C = [self._ads.row(ad) for ad in of.ads]
      if None in row_C:
        continue
      if (self._ads.codes_NT[row_C] != of.codes_CT).any():
        self._put_aside(offset, "outgrown")
        continue
      own = [
        (group, visit)
        for group, visit in by_user.get(of.user_id, ())
        if visit.begin <= of.began <= visit.last
      ]
      if own:
        # Visits of one user may overlap where they have names: the one that had begun last.
        group, visit = max(own, key=lambda one: one[1].begin)
        found[offset] = Due(of, visit, group)
      elif of.began < oldest:
        self._put_aside(offset, "late")
    # Batches have one shape: what makes none waits for more.
    taken = list(found)[: min(len(found) // rows, batches) * rows]
    self._counts["learned"] += len(taken)
    for offset in taken:
      del self._waiting[offset]
    return tuple(found[offset] for offset in taken)

  def state(self) -> dict[str, Any]:
    """Where it stands, as JSON: offsets and counts; the lists are in the stream."""
    return {"offset": self.offset, "waiting": list(self._waiting), "counts": dict(self._counts)}

  def restore(self, state: Mapping[str, Any]) -> None:
    """Goes on from a state. Lists that waited and are gone from the stream are told and counted."""
    self.offset = state["offset"]
    self._counts = dict(state["counts"])
    self._waiting = {}
    self._ahead.clear()
    wanted = set(state["waiting"])
    after = min(wanted, default=1) - 1
    while after < max(wanted, default=0):
      # Those that are gone are counted below, as far as they waited.
      records, _ = read_kept(self._stream, LISTS, after, _CHUNK)
      for record in records:
        if record.offset in wanted:
          self._waiting[record.offset] = list_records.parse(record.value, self._codebooks)
      if not records:
        break
      after = records[-1].offset
    missing = len(wanted) - len(self._waiting)
    if missing:
      self._counts["gone"] += missing
      _log.warning("%d lists that waited are gone from the stream", missing)

  def _look(self) -> bool:
    records, gone = read_kept(self._stream, LISTS, self.offset, _CHUNK)
    self._counts["gone"] += gone
    self.offset += gone
    self._ahead.extend(records)
    return bool(records)

  def _take(self, record: Record) -> None:
    self.offset = record.offset
    try:
      self._waiting[record.offset] = list_records.parse(record.value, self._codebooks)
    except DataError as error:
      self._counts["unreadable"] += 1
      many = self._counts["unreadable"]
      # The first, the tenth, the hundredth: a broken source must not fill the log.
      if many in (1, 10, 100) or many % 1000 == 0:
        _log.warning("topic %s, offset %d is passed over (%d so far): %s", LISTS, record.offset,
                     many, error)  # fmt: skip
      return
    if len(self._waiting) > _MOST:
      self._put_aside(next(iter(self._waiting)), "late")

  def _put_aside(self, offset: int, why: str) -> None:
    del self._waiting[offset]
    self._counts[why] += 1


def columns_of(lists: Sequence[RewardedList], ads: Ads, width: int) -> tuple[np.ndarray, ...]:
  """B lists, whose ads are known, as columns of at least `width` places.

  Returns:
    Rows of the ads [B, C], -1 in padding; their UA-SIDs [B, C, T]; reference log p [B, C],
    NO_REFERENCE in padding; rewards [B, C], 0 there.
  """
  width = max(width, *(len(one.ads) for one in lists))

  def padded(column: np.ndarray, fill: float) -> np.ndarray:
    missing = [(0, width - len(column)), *[(0, 0)] * (column.ndim - 1)]
    return np.pad(column, missing, constant_values=fill)

  rows = [np.array([ads.row(ad) for ad in one.ads], np.int32) for one in lists]
  return (
    np.stack([padded(row_C, -1) for row_C in rows]),
    np.stack([padded(one.codes_CT, 0) for one in lists]),
    np.stack([padded(one.reference_logp_C, list_records.NO_REFERENCE) for one in lists]),
    np.stack([padded(one.reward_C, 0) for one in lists]),
  )
