"""What was shown, as the topic `impressions`: written behind the answers, counted by the ledger.

A record's key is the answer's id, `request`. Its value:
  request, user (null: nobody knows who), time (when it was answered), moment (that was asked
  about), server (who answered), arm, checkpoint, source (of the answer: model, cache, fallback),
  latency_ms, and list, in order of the places: ad, log_p, ecpm, source (as the answer's, or
  `explore` of one that was drawn) and, with --explore, propensity. Times are unix seconds.
"""

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from gr4ad_jax.answering.messages import Answer, Query
from gr4ad_jax.answering.terms import Ledger
from gr4ad_jax.streams.stream import FellBehind, Stream, read_kept

TOPIC = "impressions"
_MOST = 20_000  # impressions that may wait to be written; more are given up, and counted
_PART = 1_000
_EVERY = 0.05  # seconds between two writes
_LOOK = 1.0  # seconds between two looks at what other servers have shown
_AGAIN = 1.0  # seconds until a stream that refused is tried again
_log = logging.getLogger(__name__)


class Impressions:
  """Writes what is shown, and reads what others have shown.

  Args:
    stream: has the topic.
    ledger: counts; what has a receipt it has counted already.
    row_of: the row of an ad; None where there is none.
    clock: unix seconds.

  Attributes:
    server: a name of this server, another one after each start.
    lost: impressions that were given up.
  """

  def __init__(
    self,
    stream: Stream,
    ledger: Ledger,
    row_of: Callable[[str], int | None],
    clock: Callable[[], float] = time.time,
  ):
    self._stream = stream
    self._ledger = ledger
    self._row_of = row_of
    self._clock = clock
    self.server = uuid.uuid4().hex[:12]
    self.lost = 0
    self._queue: queue.Queue[dict[str, Any]] = queue.Queue(_MOST)
    self._unwritten: list[dict[str, Any]] = []
    self._offset = 0
    self._looked = -_LOOK
    self._closing = threading.Event()
    self._thread = threading.Thread(target=self._run, name="impressions", daemon=True)

  def start(self) -> None:
    """Counts what was shown before, then starts the thread; `close` ends it. Raises OSError."""
    self._offset = first_since(self._stream, TOPIC, self._ledger.reaches_back())
    self.count_others()
    self._thread.start()

  def add(self, query: Query, answer: Answer, seconds: float, arm: str = "", **more: Any) -> None:
    """Takes an answer that is given. It is written soon; nothing waits for it.

    Args:
      query: what was asked.
      answer: what is shown.
      seconds: how long it took.
      arm: whose answer it is.
      more: further fields of the record.
    """
    value = self.value_of(query, answer, seconds, arm) | more
    # Nothing was limited, and nothing was counted yet. A budget that is set from now on finds all
    # that was spent.
    if answer.receipt is None:
      # With a receipt the ledger counted it already.
      self._count(value)
    try:
      self._queue.put_nowait(value)
    except queue.Full:
      self.lost += 1

  def value_of(self, query: Query, answer: Answer, seconds: float, arm: str = "") -> dict[str, Any]:
    """The value of an answer's record."""
    return {
      "request": answer.request,
      "user": query.user,
      "time": self._clock(),
      "moment": answer.now,
      "server": self.server,
      "arm": arm,
      "checkpoint": answer.checkpoint,
      "source": answer.source,
      "latency_ms": round(1e3 * seconds, 3),
      "list": [_shown(ad, answer.source) for ad in answer.ads],
    }

  def write(self) -> int:
    """Writes what waits; returns how many. Raises OSError, and keeps them for the next call."""
    # What could not be written stays in `_unwritten` for the next call.
    while len(self._unwritten) < _PART:
      try:
        self._unwritten.append(self._queue.get_nowait())
      except queue.Empty:
        break
    some = self._unwritten
    if some:
      # With keys: where an answer of the stream was lost, writing once more does no harm.
      self._stream.append(TOPIC, some, [value["request"] for value in some])
    # Only now, since an append that raised keeps them.
    self._unwritten = []
    return len(some)

  def count_others(self) -> None:
    """Counts what other servers have shown since the last call. Raises OSError."""
    while True:
      records, gone = read_kept(self._stream, TOPIC, self._offset, _PART)
      # What retention took away is passed over, and counted by nobody.
      self._offset += gone
      for record in records:
        # The server's own were counted when they were given.
        if record.value["server"] != self.server:
          self._count(record.value)
        self._offset = record.offset
      # A part that is not full says that there is no more.
      if len(records) < _PART:
        return

  def close(self) -> None:
    """Writes what waits, and ends the thread."""
    self._closing.set()
    if self._thread.ident is not None:
      self._thread.join()

  def _count(self, value: Mapping[str, Any]) -> None:
    rows = [(self._row_of(ad["ad"]), ad["ecpm"]) for ad in value["list"]]
    entries = [(row, cost) for row, cost in rows if row is not None]
    # Ads that are unknown here belong to no account of this server.
    self._ledger.shown_elsewhere(value["user"], entries, value["time"])

  def _run(self) -> None:
    while True:
      # The last round writes what is left.
      closing = self._closing.wait(_EVERY)
      try:
        while self.write() == _PART:
          pass
        if time.monotonic() - self._looked >= _LOOK and not closing:
          self._looked = time.monotonic()
          self.count_others()
      except OSError as error:
        _log.error("impressions could not be written, trying again: %s", error)
        self._closing.wait(_AGAIN)
      except Exception:
        # A record of another form. What is shown is written all the same.
        _log.exception("impressions could not be read")
      if closing:
        return


def first_since(stream: Stream, topic: str, moment: float) -> int:
  """The offset behind which the records of a moment and later stand.

  Times ascend with offsets, so it is looked for by halves: about twenty reads of a million.
  """
  # Behind `low` stand all records that are late enough, and more may.
  low = 0
  high = stream.end(topic)
  try:
    stream.read(topic, 0, 1)
  except FellBehind as behind:
    low = behind.first - 1
  while low < high:
    # By halves of offsets, not of times: those are not known before reading.
    middle = (low + high) // 2
    found = stream.read(topic, middle, 1)
    # Offsets that were erased are passed over: what is found may lie behind `high`.
    if not found or found[0].time >= moment:
      high = middle
    else:
      low = found[0].offset
  return low


def _shown(ad: Mapping[str, Any], source: str) -> dict[str, Any]:
  """An ad of an answer as a record has it."""
  chance = ad.get("propensity")
  # Places that are certain have a propensity of 1, and were not tried.
  drawn = chance is not None and chance < 1
  found = {"ad": ad["ad_id"], "log_p": ad["log_p"], "ecpm": ad["ecpm"]}
  found["source"] = "explore" if drawn else source
  return found if chance is None else found | {"propensity": chance}
