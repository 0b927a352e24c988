"""A log that grew is told apart from another log."""

import dataclasses

import numpy as np
import pytest

from gr4ad_jax.requests import known_events
from tests.features import logs
from tests.features.happenings import log_of

# User, visit, ad, half day, depth, quarters of money, units; the last event stands there twice.
EVENTS = [
  (1, 0, 1, 2, 0, 4, 1),
  (1, 1, 2, 8, 2, 8, 1),
  (2, 0, 3, 4, 1, 0, 1),
  (2, 0, 3, 4, 1, 0, 1),
]


def grown(*more):
  return log_of([*EVENTS, *more])


@pytest.fixture
def kept(tmp_path):
  known_events.save(str(tmp_path), log_of(EVENTS))
  return str(tmp_path)


def test_a_log_that_grew_has_all_that_was_there(kept):
  """A new user who comes first in order, a new visit, and a late event of an old one."""
  assert known_events.all_in(kept, log_of(EVENTS))
  later = grown((0, 0, 1, 30, 0, 0, 1), (1, 2, 1, 9, 0, 0, 1), (1, 0, 4, 3, 2, 20, 1))
  assert (later.user != log_of(EVENTS).user[0]).any()
  assert known_events.all_in(kept, later)


@pytest.mark.parametrize("column", ["ad", "time", "behavior", "value", "quantity"])
def test_a_log_with_another_event_is_another_log(kept, column):
  log = grown((0, 0, 1, 30, 0, 0, 1))
  changed = getattr(log, column).copy()
  changed[1] += 1
  assert not known_events.all_in(kept, dataclasses.replace(log, **{column: changed}))


def test_a_log_that_lacks_an_event_or_a_user_s_name_is_another_log(kept):
  assert not known_events.all_in(kept, log_of(EVENTS[1:]))
  assert not known_events.all_in(kept, log_of(EVENTS[:3]))  # once is not twice
  log = log_of(EVENTS)
  renamed = dataclasses.replace(log, user_id=np.array(["x", "c"]))
  assert not known_events.all_in(kept, renamed)


def test_of_a_run_of_before_nothing_is_known(tmp_path):
  assert not known_events.all_in(str(tmp_path), log_of(EVENTS))


def test_the_order_of_users_and_visits_is_not_in_a_hash():
  log = logs.make_log(2)
  users = np.arange(len(log.user_id))[::-1]
  other = dataclasses.replace(
    log, user=users[log.user].astype(np.int32), user_id=log.user_id[::-1], request=log.request + 7
  )
  np.testing.assert_array_equal(known_events.hashes(log), known_events.hashes(other))
  assert len(np.unique(known_events.hashes(log))) > 0.9 * len(log)
