"""A user's history as a request brings it: checked entry by entry, then put in order as an event
log.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import DataError, EventLog
from gr4ad_jax.reading import returns
from gr4ad_jax.reading.checks import MAX_NUMBER
from gr4ad_jax.reading.times import MAX_TIME

EVENT_FIELDS = ("ad_id", "time", "behavior", "value", "quantity", "request_id")
# A request may come right after the last event that a log may have.
_LATEST_NOW = MAX_TIME
_LATEST = MAX_TIME - 1
_SHOWN = 80  # characters of a bad value that a message repeats


def events_of(
  events: Sequence[Mapping | str], rows: Callable[[str], int | None], behaviors: Sequence[str],
  now: int, gap_seconds: float = 1800.0
) -> EventLog:  # fmt: skip
  """One user's events, in any order, as a log of one user.

  Args:
    events: ad ids, or mappings with `ad_id` and, as known, `time` (unix seconds), `behavior`,
      `value` (money; below 0 it takes back, see `reading.returns`), `quantity`, `request_id`; None
      counts as left out, `user_id` is passed over. An event without a time was just before `now`.
    rows: gives the row of an ad id, None where there is no such ad.
    behaviors: their names, shallowest first; an event without one has the deepest.
    now: unix seconds of the request.
    gap_seconds: a pause that starts a new visit, where not every event has a `request_id`.

  Raises:
    DataError: an unknown ad, behaviour or field, a bad number or `now`, an event after `now`; the
      message names the entry and the value.
  """
  check_now(now)
  found = [_checked(number, event, rows, behaviors, now) for number, event in enumerate(events)]
  # Without an event there is nothing to put in order.
  if not found:
    return visits.no_events()
  ad, time, behavior, value, quantity, ids = zip(*found, strict=True)
  numbers: dict[str, int] = {}
  # One event without an id, and visits are told apart by pauses.
  request = (
    None if None in ids else np.array([numbers.setdefault(str(i), len(numbers)) for i in ids])
  )
  log = visits.ordered_log(
    np.array(["user"]), user=np.zeros(len(found), np.int32), ad=np.array(ad),
    time=np.array(time, np.int64), behavior=np.array(behavior), value=np.array(value),
    quantity=np.array(quantity), request=request, gap_seconds=gap_seconds,
  )  # fmt: skip
  # Events of after the request cannot be known at it.
  check_now(now, int(log.time.max()))
  return log


def check_now(now: Any, latest: int = 0) -> None:
  """Raises DataError for a moment that is none, or that lies before `latest`, the last event's
  (unix seconds).
  """
  if not _is_number(now, _LATEST_NOW):
    raise DataError(f"now={_shown(now)} is not allowed: unix seconds, 0 to {_LATEST_NOW}")
  if latest > now:
    raise DataError(f"now={now} is not allowed: the history goes on to {latest}")


def default_now(times: Iterable[Any], end: int) -> int:
  """The moment of a request that names none, unix seconds.

  Args:
    times: of the history's events; what is no time is passed over, as `events_of` names it.
    end: where the log ends that the run was trained on (`ContextBuilder.end`).
  """
  # An event without a time will stand just before the request, and cannot move it.
  return max([end, *(int(time) + 1 for time in times if _is_number(time, _LATEST))])


def _checked(number: int, event: Any, rows: Callable, behaviors: Sequence[str], now: int) -> tuple:
  """(ad row, time, depth, value, quantity, request id) of one entry."""
  where = f"history, entry {number + 1}"
  # A bare id is an event with everything else left to its default.
  event = {"ad_id": event} if isinstance(event, str) else event
  if not isinstance(event, Mapping):
    raise DataError(f"{where}: {_shown(event)} is neither an ad_id nor a mapping with one")
  for field in event:
    if field not in EVENT_FIELDS and field != "user_id":
      raise DataError(
        f"{where}: field {_shown(field)} is not known; allowed: {', '.join(EVENT_FIELDS)}"
      )
  ad_id = event.get("ad_id")
  # A known id becomes its row. What is no id is never looked up.
  row = rows(str(ad_id)) if _is_id(ad_id) else None
  if row is None:
    raise DataError(f"{where}: ad_id {_shown(ad_id)} is not in the ad table")
  behavior = event.get("behavior")
  behavior = behaviors[-1] if behavior is None else behavior
  if behavior not in behaviors:
    raise DataError(
      f"{where}: behavior {_shown(behavior)} is not known; allowed: {', '.join(behaviors)}"
    )
  depth = behaviors.index(behavior)
  # Where an event names no time, it was just before the request.
  time = _number(where, event, "time", now - 1, 0, _LATEST)
  value = _number(where, event, "value", 0.0, -MAX_NUMBER, MAX_NUMBER)
  if returns.is_wrong_value(value, depth, behaviors):
    raise DataError(f"{where}: value {_shown(value)} {returns.value_problem(behaviors)}")
  quantity = _number(where, event, "quantity", 1.0, -MAX_NUMBER, MAX_NUMBER)
  if returns.is_wrong_quantity(value, quantity):
    raise DataError(f"{where}: quantity {_shown(quantity)} {returns.QUANTITY_PROBLEM}")
  request = event.get("request_id")
  if request is not None and not _is_id(request):
    raise DataError(
      f"{where}: request_id {_shown(request)} is not allowed: text or a number, at least 0"
    )
  return row, time, depth, value, quantity, request


def _number(
  where: str, event: Mapping, field: str, default: float, least: float, most: float
) -> float:
  """A field's number, or the default where it is left out."""
  given = event.get(field)
  if given is None:
    return default
  if not _is_number(given, most, least):
    raise DataError(
      f"{where}: {field} {_shown(given)} is not allowed: a number, {least:.0f} to {most:.0f}"
    )
  return given


def _is_id(given: Any) -> bool:
  # Ids of ads may be numbers in JSON; they are compared as text.
  return isinstance(given, str) or _is_number(given, 2**63)


def _is_number(given: Any, most: float, least: float = 0) -> bool:
  # True is an int to Python, and no number here.
  real = isinstance(given, (int, float, np.integer, np.floating)) and not isinstance(given, bool)
  return real and least <= given <= most


def _shown(value: Any) -> str:
  """A bad value, in a length that fits a message."""
  try:
    text = repr(value)
  except ValueError:  # Python writes no whole number of thousands of digits
    return "of too many digits"
  return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
