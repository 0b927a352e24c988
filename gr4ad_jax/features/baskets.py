"""A visit that has begun: what is in the basket already is the latest that is known of the user."""

import dataclasses

import numpy as np

from gr4ad_jax.data.schema import EventLog


def with_basket(
  log: EventLog, ad_X: np.ndarray, now: int, value_X: np.ndarray, behavior: int
) -> EventLog:
  """One user's log with a basket as the last visit.

  Args:
    log: of one user, who may have no event; nothing of it is after `now`.
    ad_X: rows of the ads in the basket, in the order in which they came.
    now: unix seconds at which they were taken.
    value_X: money that each brings.
    behavior: how deep the user went with them.
  """
  X = len(ad_X)
  # One past the largest number in the log: the basket is a visit of its own, and the last one.
  visit = int(log.request.max(initial=-1)) + 1
  more = {
    "user": 0,
    "request": visit,
    "ad": ad_X,
    "time": now,
    "behavior": behavior,
    "value": value_X,
    "quantity": 1,
    "split": 0,
  }
  columns = {}
  for name, given in more.items():
    column = getattr(log, name)
    # A scalar stands for all X ads of the basket; the cast keeps the dtypes of the log.
    added = np.broadcast_to(np.asarray(given, column.dtype), X)
    columns[name] = np.append(column, added)
  # A log that is cut out of a larger one keeps its user's number there: here he is user 0.
  columns["user"] = np.zeros_like(columns["user"])
  return dataclasses.replace(log, **columns)
