"""What a durable event stream is: topics of JSON values that only grow, read from an offset on.

A *topic* is a list of records. A record's *offset* is its number in its topic: 1, 2, … A *consumer*
reads a topic in order and keeps the offset that it has come to, under its name. `opening` makes a
stream from a URL.
"""

import json
import re
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

TOPICS = ("impressions", "events", "ads", "lists")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class FellBehind(LookupError):
  """Records that a reader has not read are gone: retention has removed them.

  Attributes:
    topic: the topic.
    after: where the reader stood.
    first: the first offset that is kept.
  """

  def __init__(self, topic: str, after: int, first: int):
    self.topic = topic
    self.after = after
    self.first = first
    super().__init__(
      f"topic {topic!r}: offsets {after + 1} to {first - 1} are gone, a reader has fallen behind "
      "the retention: start from a snapshot"
    )


class Record(NamedTuple):
  """A record as it is read.

  Attributes:
    offset: its number in the topic.
    time: when it was appended, seconds since 1970; it never goes down in a topic, whatever the
      clock did.
    key: what makes it the same as a repeat; "" where it has none.
    value: the value.
  """

  offset: int
  time: float
  key: str
  value: dict[str, Any]


class Stream(Protocol):
  """Topics behind a URL. Safe for threads, and for several processes at once.

  Every method raises OSError where the disk or the other machine refuses, and DataError where
  something is not what was written.
  """

  def append(
    self, topic: str, values: Sequence[Mapping[str, Any]], keys: Sequence[str] | None = None
  ) -> list[int | None]:
    """Appends records, all or none. They are durable when this returns.

    Where it raises OSError it may have appended them all the same (the answer was lost). With keys
    it may be called again: what is there counts as a repeat.

    Args:
      topic: a word of a-z, 0-9 and _.
      values: what JSON can write.
      keys: one for each value, "" for none. A record whose key the topic has already is left out.

    Returns:
      Each record's offset; None for a repeat.

    Raises:
      ValueError: a value that JSON cannot write, or another number of keys. Nothing is written.
    """
    ...

  def read(self, topic: str, after: int, limit: int = 1000) -> list[Record]:
    """At most `limit` records behind an offset, in order.

    Raises:
      FellBehind: retention has removed some of them.
    """
    ...

  def wait(self, topic: str, after: int, timeout: float) -> bool:
    """Waits until there is something behind an offset, `timeout` seconds at most. Returns whether
    there is.
    """
    ...

  def end(self, topic: str) -> int:
    """The last offset that was given, of a record that may be gone by now; 0: none."""
    ...

  def position(self, topic: str, consumer: str) -> int:
    """The offset that a consumer has come to; 0 where it never committed one."""
    ...

  def commit(self, topic: str, consumer: str, offset: int) -> None:
    """Keeps the offset that a consumer has come to; durable when this returns."""
    ...

  def retain(self, topic: str, seconds: float | None = None, size: int | None = None) -> int:
    """Removes the oldest records: those older than `seconds`, and those that make the values more
    than `size` bytes. Their keys are forgotten. Returns how many went.
    """
    ...

  def erase(self, topic: str, field: str, value: str) -> int:
    """Deletes the records whose field (a path with dots) is a text, and their keys; the others'
    offsets stay. It reads all of the topic. Returns how many went. `compact` leaves none of their
    bytes.
    """
    ...

  def compact(self) -> bool:
    """Leaves no trace of what was erased on disk. Returns whether that is so: a reader may be in
    the way, and the next call tries again.
    """
    ...

  def close(self) -> None:
    """Lets go of files and connections."""
    ...


def read_kept(
  stream: Stream, topic: str, after: int, limit: int = 1000
) -> tuple[list[Record], int]:
  """As `Stream.read`, but from the first record that is kept on where retention has removed some.

  Returns:
    The records, and how many that stood before them are gone.
  """
  gone = 0
  # More may go while this reads.
  while True:
    try:
      return stream.read(topic, after + gone, limit), gone
    except FellBehind as behind:
      gone = behind.first - 1 - after


def check_topic(topic: str) -> None:
  """Raises ValueError for what is no name of a topic: names stand in statements as they are."""
  if not _NAME.fullmatch(topic):
    raise ValueError(f"topic {topic!r} is not allowed: a word of a-z, 0-9 and _")


def encoded(
  values: Sequence[Mapping[str, Any]], keys: Sequence[str] | None
) -> list[tuple[str, bytes]]:
  """(key, JSON in UTF-8) of each value. Raises ValueError as `Stream.append`."""
  keys = [""] * len(values) if keys is None else keys
  if len(keys) != len(values):
    raise ValueError(f"{len(keys)} keys for {len(values)} values")
  try:
    # Python would write NaN as it is, which is no JSON: other readers would stop there.
    texts = [json.dumps(v, separators=(",", ":"), allow_nan=False).encode() for v in values]
  except TypeError as error:
    raise ValueError(f"a value that JSON cannot write: {error}") from error
  return list(zip(keys, texts, strict=True))


def checksum(key: str, text: bytes, start: int = 0) -> int:
  """A CRC-32 of a record, going on from `start`."""
  # The zero byte keeps key and text apart.
  return zlib.crc32(text, zlib.crc32(f"{key}\0".encode(), start))


def field_of(value: Mapping[str, Any], path: str) -> Any:
  """What stands in a value at a path with dots; None where nothing does."""
  # A path leads through objects; anything else on the way is nothing.
  found: Any = value
  for name in path.split("."):
    found = found.get(name) if isinstance(found, Mapping) else None
  return found


Clock = Callable[[], float]
CLOCK: Clock = time.time
