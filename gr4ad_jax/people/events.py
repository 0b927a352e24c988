"""Events as they come in and as they stand in the topic `events`.

A record's key is the event's id, so that an event that is posted again is a repeat. Its value has
user_id, ad_id, time (unix seconds), behavior (a name), value (money), quantity and request_id (null
where there is none). The topic `erasures` says which users were erased, and behind which event. It
names them by `digest_of` their ids alone.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gr4ad_jax.data.schema import DAY, DataError
from gr4ad_jax.features.histories import Events
from gr4ad_jax.reading import returns

TOPIC = "events"
ERASURES = "erasures"
AHEAD = DAY  # seconds that an event's clock may be ahead of the server's
WAITS = "its ad is not known: it waits for it"
FUTURE = "it is more than a day in the future"


class Posted(NamedTuple):
  """Events that were checked.

  Attributes:
    values: of the records to append.
    keys: likewise.
    set_aside: event id -> why it does not count, now or at all.
  """

  values: list[dict[str, Any]]
  keys: list[str]
  set_aside: dict[str, str]


def checked(events: Sequence[Mapping[str, Any]], behaviors: Sequence[str], now: float) -> Posted:
  """Events as records.

  Args:
    events: with event_id, user_id, ad_id, time and, as known, behavior (left out: the deepest),
      value (0), quantity (1), request_id. Types and ranges are checked already.
    behaviors: their names, shallowest first.
    now: unix seconds.

  Returns:
    Those that count. What lies in the future is set aside: it would move the moment of every
    request there.

  Raises:
    DataError: a behaviour that the run does not know, or a value or quantity below 0 where nothing
      can be taken back; the message names the event.
  """
  values = []
  keys = []
  aside = {}
  for number, event in enumerate(events):
    behavior = event.get("behavior")
    # Without one, it is the deepest: whoever posts without a word posts purchases.
    behavior = behaviors[-1] if behavior is None else behavior
    if behavior not in behaviors:
      raise DataError(
        f"events, entry {number + 1}: behavior {behavior[:80]!r} is not known; allowed: "
        f"{', '.join(behaviors)}"
      )
    # A clock that is a day ahead is wrong, and would move the state's end there.
    if event["time"] > now + AHEAD:
      aside[event["event_id"]] = FUTURE
      continue
    value = {name: event[name] for name in ("user_id", "ad_id", "time")}
    value["behavior"] = behavior
    for name, default in (("value", 0.0), ("quantity", 1.0), ("request_id", None)):
      given = event.get(name)
      # None and a missing field are the same.
      value[name] = default if given is None else given
    _check_return(f"events, entry {number + 1}", value, behaviors)
    values.append(value)
    keys.append(event["event_id"])
  return Posted(values, keys, aside)


def _check_return(where: str, value: Mapping[str, Any], behaviors: Sequence[str]) -> None:
  """Raises DataError where an event takes back what it cannot, as a log file is refused."""
  money = value["value"]
  units = value["quantity"]
  if returns.is_wrong_value(money, behaviors.index(value["behavior"]), behaviors):
    raise DataError(f"{where}: value {money} {returns.value_problem(behaviors)}")
  if returns.is_wrong_quantity(money, units):
    raise DataError(f"{where}: quantity {units} {returns.QUANTITY_PROBLEM}")


def columns(values: Sequence[Mapping[str, Any]], rows: Sequence[int], depth: Mapping[str, int]):
  """Values of records as `Events`.

  Args:
    values: n of them.
    rows: [n] row of each one's ad.
    depth: of each behaviour, by its name.
  """

  def column(name: str, kind: str) -> np.ndarray:
    return np.array([value[name] for value in values], kind)

  return Events(
    [value["user_id"] for value in values],
    np.array(rows, np.int32),
    column("time", "i8"),
    np.array([depth[value["behavior"]] for value in values], np.int8),
    column("value", "f4"),
    column("quantity", "f4"),
    [value["request_id"] for value in values],
  )


def erasure(user_id: str, after: int) -> dict[str, Any]:
  """The value that says that a user was erased, when the topic `events` ended at `after`."""
  return {"digest": digest_of(user_id), "after": after}


def digest_of(user_id: str) -> str:
  """What stands for the id of an erased user: 128 bits of BLAKE2, in hex."""
  return hashlib.blake2b(user_id.encode(), digest_size=16).hexdigest()
