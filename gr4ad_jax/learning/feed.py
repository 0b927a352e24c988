"""Events and ads of a stream, in one order, as visits."""

import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.learning.known_ads import KnownAds
from gr4ad_jax.learning.visits import Event, Visits
from gr4ad_jax.reading.checks import MAX_NUMBER
from gr4ad_jax.reading.times import MAX_TIME
from gr4ad_jax.streams.stream import FellBehind, Record, Stream

EVENTS = "events"
ADS = "ads"
_CHUNK = 1000  # records that are read at once
_log = logging.getLogger(__name__)


class Feed:
  """Reads a stream event by event. The same records give the same visits, whenever they are read.

  Before an event all changes of ads are made that were appended until then. An event of an ad that
  is not known waits for it.

  Args:
    stream: topics `events` and `ads`.
    visits: takes the events.
    ads: takes the ads.
    behaviors: names, shallowest first.

  Attributes:
    offset: of the last event that was taken; 0: none.
    newest: when that event was appended, unix seconds.
    taken: events so far.
    digest: a checksum of them.
    bad: records that hold nothing that could be learned from.
  """

  def __init__(self, stream: Stream, visits: Visits, ads: KnownAds, behaviors: Sequence[str]):
    self.visits = visits
    self.offset = 0
    self.newest = 0.0
    self.taken = 0
    self.digest = 0
    self.bad = 0
    self._stream = stream
    self._ads = ads
    self._behaviors = tuple(behaviors)
    self._ads_offset = 0
    self._read: list[Record] = []  # events, read and not taken, the next one last
    self._read_ads: list[Record] = []
    self._waiting: dict[str, list[Mapping[str, Any]]] = {}

  @property
  def waiting(self) -> int:
    """Events whose ads are not known."""
    return sum(map(len, self._waiting.values()))

  @property
  def lag(self) -> int:
    """Events that were appended and not taken."""
    return self._stream.end(EVENTS) - self.offset

  def take(self) -> bool:
    """Takes the next event. Returns whether there was one.

    Raises:
      DataError: retention has removed events that were not read.
    """
    try:
      # What was read comes first; the stream is asked when nothing of it is left.
      if not self._read and not self._look():
        return False
    except FellBehind as error:
      raise DataError(f"the stream no longer holds what a learner starts from: {error}") from error
    # Taken before it is looked at: an event that is refused is passed over, and not met again.
    record = self._read.pop()
    # Of ads of the same moment more may come, and would be read too late: they wait, and so do
    # their events. Then what is read again is in the same order.
    while self._read_ads and self._read_ads[-1].time < record.time:
      self._put(self._read_ads.pop())
    self._event(record.value, record.offset)
    text = json.dumps(record.value, sort_keys=True)
    # A chain: the digest of all events so far, in their order.
    self.digest = zlib.crc32(text.encode(), self.digest)
    self.taken += 1
    self.offset = record.offset
    self.newest = record.time
    return True

  def wait(self, seconds: float) -> bool:
    """Waits for an event, `seconds` at most. Returns whether there is one."""
    return bool(self._read) or self._stream.wait(EVENTS, self.offset, seconds)

  def _look(self) -> bool:
    """Reads on."""
    found = self._stream.read(EVENTS, self.offset, _CHUNK)
    # Turned round, so that `pop` takes the oldest from the end.
    self._read = found[::-1]
    # After the events: of every ad that was appended before one of them there is a record by now.
    while found and (more := self._stream.read(ADS, self._ads_offset, _CHUNK)):
      self._read_ads = [*more[::-1], *self._read_ads]
      self._ads_offset = more[-1].offset
    return bool(found)

  def _put(self, record: Record) -> None:
    ad_id = str(record.value.get("ad_id"))
    try:
      self._ads.put(ad_id, record.value)
    except DataError as error:
      self._refuse(ADS, record.offset, error)
      return
    # In the order in which they came. Their offsets were told when they began to wait.
    for value in self._waiting.pop(ad_id, ()):
      self._event(value, 0)

  def _event(self, value: Mapping[str, Any], offset: int) -> None:
    ad_id = value.get("ad_id")
    if isinstance(ad_id, str) and self._ads.row(ad_id) is None:
      # The event waits with its own fields; its moment stays the one that it had.
      self._waiting.setdefault(ad_id, []).append(value)
      return
    try:
      self.visits.add(self._checked(value))
    except DataError as error:
      self._refuse(EVENTS, offset, error)

  def _checked(self, value: Mapping[str, Any]) -> Event:
    """An event of a known ad. What wrote it has looked at it; a stream may have been written by
    anybody.
    """
    user_id = value.get("user_id")
    if not isinstance(user_id, str):
      raise DataError(f"user_id {user_id!r} is not allowed: text")
    row = self._ads.row(value.get("ad_id"))
    if row is None:
      raise DataError(f"ad_id {value.get('ad_id')!r} is not allowed: text")
    name = value.get("behavior")
    if name is not None and name not in self._behaviors:
      raise DataError(f"behavior {name!r} is not known; allowed: {', '.join(self._behaviors)}")
    # Without a behaviour it is the deepest one, such as a purchase.
    behavior = len(self._behaviors) - 1 if name is None else self._behaviors.index(name)
    time = _number(value, "time", None, 0, MAX_TIME)
    amount = _number(value, "value", 0.0, -MAX_NUMBER, MAX_NUMBER)
    quantity = _number(value, "quantity", 1.0, -MAX_NUMBER, MAX_NUMBER)
    request = value.get("request_id")
    visit_id = None if request is None else str(request)
    return Event(user_id, row, int(time), behavior, float(amount), float(quantity), visit_id)

  def _refuse(self, topic: str, offset: int, error: Exception) -> None:
    self.bad += 1
    # The first, the tenth, the hundredth: a broken source must not fill the log.
    if self.bad in (1, 10, 100) or self.bad % 1000 == 0:
      _log.warning("topic %s, offset %d is passed over (%d so far): %s", topic, offset, self.bad,
                   error)  # fmt: skip


def _number(
  value: Mapping[str, Any], field: str, default: float | None, low: float, high: float
) -> float:
  """A field of an event. Raises DataError where it is no number of the range."""
  found = value.get(field)
  found = default if found is None else found
  # A bool is an int to Python. NaN is in no range, and refused by the comparison.
  if isinstance(found, bool) or not isinstance(found, (int, float)) or not low <= found <= high:
    raise DataError(f"{field} {found!r} is not allowed: a number, {low:.0f} to {high:.0f}")
  return found
