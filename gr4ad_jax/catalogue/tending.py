"""The thread that keeps a catalogue in order: it merges the index's overlay, and clears the disk of
what removed ads left.
"""

import logging
import threading
import time
from collections.abc import Callable

# Changes wait for a compaction: the share of the time that it may take while they arrive, and else.
COMPACT_BUSY = 0.01
COMPACT_IDLE = 0.1
_TICK = 1.0  # seconds between two looks
_log = logging.getLogger(__name__)


class Tending:
  """A thread that looks every second, or when `wake` is called, until `close`.

  Args:
    merge: merges where that is due.
    compact: clears the disk.
    version: counts changes.
  """

  def __init__(
    self, merge: Callable[[], object], compact: Callable[[], None], version: Callable[[], int]
  ):
    self._merge = merge
    self._compact = compact
    self._version = version
    self._compact_seconds = 0.0  # that the last one took
    self._compact_end = 0.0  # of the last one, by the monotonic clock
    self._wake = threading.Event()
    self._closing = False
    self._thread: threading.Thread | None = None

  def start(self) -> None:
    """Starts the thread."""
    self._thread = threading.Thread(target=self._tend, name="catalogue", daemon=True)
    self._thread.start()

  def wake(self) -> None:
    """Lets it look now."""
    self._wake.set()

  def close(self) -> None:
    """Ends the thread, where it was started."""
    self._closing = True
    self._wake.set()
    if self._thread is not None:
      self._thread.join()

  def _tend(self) -> None:
    seen = 0
    while not self._closing:
      self._wake.wait(_TICK)
      # Cleared before the look: who wakes it during one gets another.
      self._wake.clear()
      try:
        self._merge()
        # A share: so long as changes come, a compaction may take little of the time.
        share = COMPACT_IDLE if self._version() == seen else COMPACT_BUSY
        seen = self._version()
        begin = time.monotonic()
        # A compaction of two seconds comes no sooner than 20 seconds after the last, or 200.
        if begin - self._compact_end >= self._compact_seconds / share:
          self._compact()
          self._compact_end = time.monotonic()
          self._compact_seconds = self._compact_end - begin
      except Exception:
        # The disk is full, for example. The thread lives on, and tries again.
        _log.exception("the catalogue could not be merged or written")
