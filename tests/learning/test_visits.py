"""Visits from events in any order, against the rules told in words."""

import numpy as np
import pytest

from gr4ad_jax.config import DataConfig
from gr4ad_jax.data import visits as visits_lib
from gr4ad_jax.data.schema import DAY
from gr4ad_jax.features.batches import slot_features
from gr4ad_jax.features.contexts import FixedAds
from gr4ad_jax.features.histories import Histories
from gr4ad_jax.features.neighbors import CoVisitNeighbors, NeighborFolds
from gr4ad_jax.features.state import State
from gr4ad_jax.features.trends import Trends
from gr4ad_jax.learning.examples import Examples, Known
from gr4ad_jax.learning.visits import Event, Visits, with_visit

GAP = 100
NEAR = CoVisitNeighbors(np.full((9, 1), -1, np.int32), np.zeros((9, 1), np.float32))


@pytest.fixture
def visits():
  ads = FixedAds(np.zeros((9, 3), np.int32), np.ones(9, np.float32), np.full(9, -1))
  state = State(DataConfig(), ads, NEAR, Histories(visits_lib.no_events(0)), Trends.empty(9))
  return Visits(state, GAP)


def event(user, ad, time, visit=None):
  return Event(user, ad, time, 0, 1.0, 1.0, visit)


def told(some):
  return [(visit.user_id, visit.visit_id, [e.ad for e in visit.events]) for visit in some]


def test_a_pause_ends_a_visit_by_the_clock_of_the_events(visits):
  visits.add(event("a", 1, 1000))
  visits.add(event("b", 2, 1090))
  visits.add(event("a", 3, 1099))  # goes on: less than a pause
  assert told(visits.over) == []
  visits.add(event("c", 4, 1198))
  assert told(visits.over) == [("b", None, [2])]
  visits.add(event("d", 5, 1199))
  assert told(visits.over) == [("b", None, [2]), ("a", None, [1, 3])]
  assert told(visits.open) == [("c", None, [4]), ("d", None, [5])]


def test_named_visits_of_a_user_stand_beside_each_other(visits):
  for ad, name in enumerate("xyx"):
    visits.add(event("a", ad, 1000 + ad, name))
  visits.add(event("b", 8, 2000))
  assert told(visits.over) == [("a", "y", [1]), ("a", "x", [0, 2])]


def test_what_comes_late_is_history_and_no_request(visits):
  visits.add(event("a", 1, 1000, "x"))
  visits.add(event("b", 2, 5000))
  visits.add(event("a", 3, 4990, "x"))  # its visit is over, though the event is new
  visits.add(event("c", 4, 4900))  # would have been over before it came
  assert visits.late == 2
  assert told(visits.over) == [("a", "x", [1])]
  assert told(visits.open) == [("b", None, [2])]
  visits.flush()
  assert sorted(visits.state.log_of("a").ad) == [1, 3]
  assert visits.state.log_of("c").ad.tolist() == [4]


def test_a_visit_keeps_what_was_known_when_it_opened(visits):
  visits.add(event("a", 1, 1000, "x"))
  visits.add(event("a", 2, 2000, "y"))
  visits.add(event("a", 3, 900, "z"))  # late: it was not known to y
  visits.add(event("a", 4, 2001, "y"))
  visits.add(event("b", 5, 9000))
  last = visits.over[-1]
  log = with_visit(last)
  assert log.ad.tolist() == [1, 2, 4]
  assert log.request.tolist() == [0, 1, 1]
  assert last.begin == 2000


def test_examples_know_how_old_ads_are_as_the_state_does():
  config = DataConfig(ad_age=True, history_slots=4, neighbor_slots=0, rising_slots=0)
  created = np.array([0, 40, -1, *[10] * 6]) * DAY
  ads = FixedAds(np.zeros((9, 3), np.int32), np.ones(9, np.float32), created)
  state = State(config, ads, NEAR, Histories(visits_lib.no_events(0)), Trends.empty(9))
  visits = Visits(state, GAP)
  visits.add(event("a", 0, 50 * DAY))
  visits.add(event("a", 1, 51 * DAY))
  visits.flush()
  before = state.features(["a"], np.array([52 * DAY]))
  visits.add(event("a", 2, 52 * DAY))
  visits.add(event("b", 3, 60 * DAY))
  last = visits.over[-1]
  known = Known(ads, NeighborFolds.of(NEAR), config, 0, 30.0)
  examples = Examples.of([last], known, state.popularity(last.begin))
  column = slot_features(DataConfig(ad_age=True)).index("ad_age")
  found = examples.batch().slot_features_BSF[0, :, column]
  np.testing.assert_allclose(sorted(found), [0, 0, np.log1p(12), np.log1p(52)], rtol=1e-6)
  np.testing.assert_array_equal(found, before.slot_features_BSF[0, :, column])
