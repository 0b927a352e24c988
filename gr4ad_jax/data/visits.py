"""Events in order: grouped into visits, visits numbered, each user's last visits held out; and what
had happened at a moment.
"""

import dataclasses

import numpy as np

from gr4ad_jax.data.schema import DAY, SPLITS, EventLog

TRAIN, VALID, TEST = (SPLITS.index(name) for name in ("train", "valid", "test"))
MIN_VISITS = 3  # a user with fewer has none to hold out


def ordered_log(
  user_id: np.ndarray,
  *,
  user: np.ndarray,
  ad: np.ndarray,
  time: np.ndarray,
  behavior: np.ndarray,
  value: np.ndarray,
  quantity: np.ndarray,
  request: np.ndarray | None = None,
  gap_seconds: float = 0.0,
  split: np.ndarray | None = None,
) -> EventLog:
  """Sorts E >= 1 events by user, visit, time and position, and gives each visit its split.

  Args:
    user_id: [U] what `user` counts; users without events are left out, the others keep their order.
    user, ad, time, behavior, value, quantity: [E] columns of `EventLog`, in any order.
    request: [E] integers; events of one user that share it are one visit. None: a pause of
      `gap_seconds` or more between two events of a user starts a new visit.
    gap_seconds: used without `request` only.
    split: [E] of events that were split before; None: by `split_of_visits`.

  Returns:
    The log. A user's visits stand in order of their first moment, then of their first row. An event
    has the split of the visit in whose period it happened (`periods`).
  """
  present, user = np.unique(user, return_inverse=True)
  visit = by_pause(user, time, gap_seconds) if request is None else _visits_by_id(user, request)
  request = _in_order(visit, user, time)
  # Stable, so that equal times keep the log's order.
  order = np.lexsort((time, request))
  user_R = user[order][_first_of_run(request[order])]
  if split is None:
    # An event that comes late is of the split in which it happened. Else training would know what
    # came after a held-out visit had begun.
    period = periods(user[order], request[order], time[order])
    split_E = split_of_visits(user_R)[period]
  else:
    split_E = split[order].astype(np.int8)
  return EventLog(
    user_id=user_id[present],
    user=user[order].astype(np.int32),
    request=request[order].astype(np.int32),
    ad=ad[order].astype(np.int32),
    time=time[order].astype(np.int64),
    behavior=behavior[order].astype(np.int8),
    value=value[order].astype(np.float32),
    quantity=quantity[order].astype(np.float32),
    split=split_E,
  )


def split_of_visits(user_R: np.ndarray) -> np.ndarray:
  """Split of each visit, [R] int8, from the visits' users [R], grouped and in order of time.

  Of a user with three visits or more the last is test and the one before it valid; all else is
  train.
  """
  begin = _first_of_run(user_R)
  count = np.diff(np.append(begin, len(user_R)))
  split_R = np.full(len(user_R), TRAIN, np.int8)
  last = (begin + count - 1)[count >= MIN_VISITS]
  split_R[last] = TEST
  split_R[last - 1] = VALID
  return split_R


def no_events(users: int = 1) -> EventLog:
  """The log of users without an event."""
  none = np.zeros(0, np.float32)
  column = np.zeros(0, np.int32)
  return EventLog(
    user_id=np.full(users, "user"),
    user=column,
    request=column,
    ad=column,
    time=column.astype(np.int64),
    behavior=column.astype(np.int8),
    value=none,
    quantity=none,
    split=column.astype(np.int8),
  )


def periods(user: np.ndarray, request: np.ndarray, time: np.ndarray) -> np.ndarray:
  """The visit in whose period each event happened: the latest of its user's that had begun before.

  An event of a visit may come late, after the user's next visits have begun: a purchase days after
  its click. A request knows the events of earlier periods and no others. Of visits of one moment,
  the first ones count as over when the next one begins.

  Args:
    user, request, time: [E] columns of an `EventLog`, in its order.

  Returns:
    [E] int32, at least `request`, and equal to it for the first events of every visit.
  """
  if not len(time):
    return request.astype(np.int32)
  first = _first_of_run(request)
  # Moments from 0 on, below `span`: user · span + moment sorts by user, and then by moment.
  origin = int(time.min())
  span = int(time.max()) - origin + 1
  # Visits stand in order of user and first moment: so do these numbers, one a visit.
  begin_R = user[first].astype(np.int64) * span + (time[first] - origin)
  moment = user.astype(np.int64) * span + (time - origin)
  # The first visit, of all users, that begins at the event's moment or later: it knows the event.
  knows = np.searchsorted(begin_R, moment)
  # The first events of a visit find the visit itself, or one of the same moment: one less would be
  # too early, so a period is its own visit at the least.
  return np.maximum(knows - 1, request).astype(np.int32)


def attributed(events: EventLog, days: float) -> np.ndarray:
  """Whether each event counts as following its request: at most `days` after the visit's first
  moment; [E] bool.
  """
  return events.time - events.time[_opening(events.request)] <= days * DAY


def until(events: EventLog, now_U: np.ndarray) -> EventLog:
  """The log as it stood when each user's moment came: what happened later is not in it.

  Args:
    events: the log of U users.
    now_U: unix seconds, one a user.
  """
  known = events.time <= now_U[events.user]
  if known.all():
    return events
  columns = events.columns(known)
  request = renumbered(columns["user"], columns["request"])
  return dataclasses.replace(events, **columns | {"request": request})


def renumbered(user: np.ndarray, visit: np.ndarray) -> np.ndarray:
  """Visits numbered 0, 1, … where user or visit changes, [E] int32."""
  opens = (np.diff(user) != 0) | (np.diff(visit) != 0)
  return np.cumsum(np.append(0, opens), dtype=np.int32)[: len(user)]


def split_of_requests(events: EventLog) -> np.ndarray:
  """The split of each event's request, [E] int8: that of the visit's first event."""
  return events.split[_opening(events.request)]


def _opening(request: np.ndarray) -> np.ndarray:
  """[E] the first event of each event's visit."""
  first = _first_of_run(request)[: len(request)]
  return np.repeat(first, np.diff(np.append(first, len(request))))


def _visits_by_id(user: np.ndarray, request: np.ndarray) -> np.ndarray:
  """Visit of each event, [E], numbered 0, 1, … in no particular order."""
  # One number for each pair of user and id: two users may have the same id.
  key = user.astype(np.int64) * (int(request.max()) + 1) + request
  return np.unique(key, return_inverse=True)[1]


def by_pause(user: np.ndarray, time: np.ndarray, gap_seconds: float) -> np.ndarray:
  """As `_visits_by_id`, from the pauses between a user's events."""
  order = np.lexsort((time, user))
  # E - 1 of them: the very first event begins visit 0 without being asked.
  starts = (np.diff(user[order]) != 0) | (np.diff(time[order]) >= gap_seconds)
  visit = np.zeros(len(user), np.int64)
  visit[order[1:]] = np.cumsum(starts)
  return visit


def _in_order(visit: np.ndarray, user: np.ndarray, time: np.ndarray) -> np.ndarray:
  """Renumbers visits by user, first moment and first row."""
  # Stable, so that of equal times the first row comes first.
  by_time = np.lexsort((time, visit))
  earliest = by_time[_first_of_run(visit[by_time])]
  first_row = np.unique(visit, return_index=True)[1]
  number = np.empty(len(first_row), np.int64)
  # `lexsort` looks at its last key first: user, then first moment, then first row.
  number[np.lexsort((first_row, time[earliest], user[first_row]))] = np.arange(len(first_row))
  return number[visit]


def _first_of_run(x: np.ndarray) -> np.ndarray:
  """Where each run of equal values begins."""
  return np.flatnonzero(np.append(True, x[1:] != x[:-1]))
