"""What was shown and what followed, read back from the streams and joined by user and moment.

All is in the time of the requests and events themselves, not of the machine's clock: a log that is
replayed gives the same numbers. What lies after the last of them is not known yet; the *end*.
"""

import bisect
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.streams.stream import Record, Stream, read_kept

_AT_ONCE = 1000  # records of a read


@dataclasses.dataclass(frozen=True)
class Trial:
  """The draw for one place.

  Attributes:
    ads: the candidates.
    propensity: the chance of each.
    log_p, ecpm: what the model said of each; natural log, and money.
    at: which of them was drawn.
  """

  ads: tuple[str, ...]
  propensity: tuple[float, ...]
  log_p: tuple[float, ...]
  ecpm: tuple[float, ...]
  at: int


@dataclasses.dataclass(frozen=True)
class Shown:
  """One answer of the server.

  Attributes:
    user: whom it was for.
    moment: unix seconds of the request.
    arm: who answered.
    ads: best first.
    latency_ms: how long it took; None: not told.
    trial: the draw for the last place; None: there was none.
  """

  user: str
  moment: float
  arm: str
  ads: tuple[str, ...]
  latency_ms: float | None
  trial: Trial | None


@dataclasses.dataclass(frozen=True)
class Taken:
  """One event: when (unix seconds), which ad, and money."""

  time: float
  ad: str
  value: float


@dataclasses.dataclass(frozen=True)
class Journal:
  """What was shown to whom, and what they took.

  Attributes:
    shown: user -> answers, in order of their moments.
    taken: user -> events, in order of their times.
    end: the latest moment or time of all; what came later is not known.
  """

  shown: Mapping[str, list[Shown]]
  taken: Mapping[str, list[Taken]]
  end: float

  @classmethod
  def read(cls, stream: Stream) -> "Journal":
    """Reads both topics from the first record that is kept. Memory grows with them.

    Raises:
      DataError: a record that misses a field; the message names topic, offset and field.
      OSError: as the stream.
    """
    # Grouped by user: what followed a request is a question about one user at a time.
    shown: dict[str, list[Shown]] = {}
    taken: dict[str, list[Taken]] = {}
    end = 0.0
    for record in records(stream, "impressions"):
      one = _checked("impressions", record, _shown)
      end = max(end, one.moment)
      # A request by a history alone is nobody's.
      if one.user:
        shown.setdefault(one.user, []).append(one)
    for record in records(stream, "events"):
      # A user left, and what there was of the user is gone.
      if "erased" in record.value:
        continue
      user, event = _checked("events", record, _taken)
      end = max(end, event.time)
      taken.setdefault(user, []).append(event)
    # Streams are in the order of arrival; joins need that of the events' own moments.
    for answers in shown.values():
      answers.sort(key=lambda one: one.moment)
    for events in taken.values():
      events.sort(key=lambda one: one.time)
    return cls(shown, taken, end)

  def between(self, user: str, begin: float, end: float) -> list[Taken]:
    """A user's events at `begin` or later, before `end`."""
    events = self.taken.get(user, [])
    # `begin` itself counts, and `end` does not: windows side by side share no event.
    first = bisect.bisect_left(events, begin, key=lambda one: one.time)
    last = bisect.bisect_left(events, end, key=lambda one: one.time)
    return events[first:last]


def records(stream: Stream, topic: str) -> Iterator[Record]:
  """All records of a topic that are there now, from the first that is kept."""
  after = 0
  # Read once: what is appended meanwhile would keep a reader going for ever.
  end = stream.end(topic)
  while after < end:
    found, _ = read_kept(stream, topic, after, _AT_ONCE)
    if not found:
      return
    yield from found
    after = found[-1].offset


def _checked(topic: str, record: Record, make: Any) -> Any:
  try:
    return make(record.value)
  except (KeyError, TypeError, ValueError) as error:
    what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
    raise DataError(f"topic {topic!r}, offset {record.offset}: {what}") from error


def _shown(value: Mapping[str, Any]) -> Shown:
  trial = value.get("trial")
  return Shown(
    user=value["user"] or "",
    moment=float(value["moment"]),
    arm=value.get("arm") or "",
    ads=tuple(entry["ad"] for entry in value["list"]),
    latency_ms=value.get("latency_ms"),
    trial=trial and Trial(
      *(tuple(trial[name]) for name in ("ads", "propensity", "log_p", "ecpm")), trial["at"]
    ),
  )  # fmt: skip


def _taken(value: Mapping[str, Any]) -> tuple[str, Taken]:
  return value["user_id"], Taken(
    float(value["time"]), value["ad_id"], float(value.get("value") or 0)
  )
