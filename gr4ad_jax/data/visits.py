"""Events in order: grouped into visits, visits numbered, each user's last visits held out."""

import numpy as np

from gr4ad_jax.data.schema import SPLITS, EventLog

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
) -> EventLog:
  """Sorts E >= 1 events by user, visit, time and position, and gives each visit its split.

  Args:
    user_id: [U] what `user` counts; users without events are left out, the others keep their order.
    user, ad, time, behavior, value, quantity: [E] columns of `EventLog`, in any order.
    request: [E] integers; events of one user that share it are one visit. None: a pause of
      `gap_seconds` or more between two events of a user starts a new visit.
    gap_seconds: used without `request` only.

  Returns:
    The log. A user's visits stand in order of their first moment, then of their first row.
  """
  present, user = np.unique(user, return_inverse=True)
  visit = (
    _visits_by_pause(user, time, gap_seconds) if request is None else _visits_by_id(user, request)
  )
  request = _in_order(visit, user, time)
  order = np.lexsort((time, request))  # stable: equal times keep the log's order
  user_R = user[order][_first_of_run(request[order])]
  return EventLog(
    user_id=user_id[present],
    user=user[order].astype(np.int32),
    request=request[order].astype(np.int32),
    ad=ad[order].astype(np.int32),
    time=time[order].astype(np.int64),
    behavior=behavior[order].astype(np.int8),
    value=value[order].astype(np.float32),
    quantity=quantity[order].astype(np.float32),
    split=split_of_visits(user_R)[request[order]],
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


def _visits_by_id(user: np.ndarray, request: np.ndarray) -> np.ndarray:
  """Visit of each event, [E], numbered 0, 1, … in no particular order."""
  key = user.astype(np.int64) * (int(request.max()) + 1) + request
  return np.unique(key, return_inverse=True)[1]


def _visits_by_pause(user: np.ndarray, time: np.ndarray, gap_seconds: float) -> np.ndarray:
  """As `_visits_by_id`, from the pauses between a user's events."""
  order = np.lexsort((time, user))
  starts = (np.diff(user[order]) != 0) | (np.diff(time[order]) >= gap_seconds)
  visit = np.zeros(len(user), np.int64)
  visit[order[1:]] = np.cumsum(starts)
  return visit


def _in_order(visit: np.ndarray, user: np.ndarray, time: np.ndarray) -> np.ndarray:
  """Renumbers visits by user, first moment and first row."""
  by_time = np.lexsort((time, visit))  # stable: of equal times the first row comes first
  earliest = by_time[_first_of_run(visit[by_time])]
  first_row = np.unique(visit, return_index=True)[1]
  number = np.empty(len(first_row), np.int64)
  number[np.lexsort((first_row, time[earliest], user[first_row]))] = np.arange(len(first_row))
  return number[visit]


def _first_of_run(x: np.ndarray) -> np.ndarray:
  """Where each run of equal values begins."""
  return np.flatnonzero(np.append(True, x[1:] != x[:-1]))
