"""Contexts at serving time: what training would have seen, for one user or many, however many
ads there are.
"""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from gr4ad_jax.answering.contexts import ContextBuilder, UserHistories
from gr4ad_jax.config import DataConfig
from gr4ad_jax.data import visits
from gr4ad_jax.data.promotions import Promotions
from gr4ad_jax.data.schema import DAY, Dataset, EventLog
from gr4ad_jax.features.batches import (
  HISTORY,
  NEIGHBOR,
  SLOT_FEATURES,
  RequestContexts,
  slot_features,
)
from gr4ad_jax.features.contexts import FixedAds, joined
from gr4ad_jax.features.counts import Counts
from gr4ad_jax.features.lines import build_lines
from gr4ad_jax.features.neighbors import CoVisitNeighbors, NeighborFolds
from gr4ad_jax.features.pair_features import CROSSES
from gr4ad_jax.features.trends import Trends
from tests.features import logs

CONFIG = DataConfig(history_slots=5, neighbor_slots=3, rising_slots=2, targets=3)
CODES = np.random.default_rng(0).integers(0, 9, (logs.ADS, 3)).astype(np.int32)
PRICE = np.append(np.arange(logs.ADS - 1, dtype=np.float32), np.nan).astype(np.float32)
CREATED = np.full(logs.ADS, -1)
CONTEXT = (
  "slot_kind_BS",
  "slot_codes_BST",
  "slot_features_BSF",
  "user_features_BF",
  "user_value_B",
)


def fitted(events):
  lines = build_lines(events, logs.ADS)
  return Trends.fit(lines, logs.ADS), CoVisitNeighbors.fit(lines.request, lines.ad, logs.ADS, 4)


def builder_of(events, config=CONFIG, ads=None):
  return ContextBuilder(config, *fitted(events), ads or FixedAds(CODES, PRICE, CREATED))


def before(events, request):
  """The events of a request's user before that request, as a log of one user."""
  mine = (events.user == events.user[events.request == request][0]) & (events.request < request)
  columns = {
    f.name: getattr(events, f.name)[mine]
    for f in dataclasses.fields(EventLog)
    if f.name != "user_id"
  }
  return EventLog(np.array(["someone"]), **columns)


def assert_same(one, other, rows=slice(None)):
  for name in CONTEXT:
    np.testing.assert_allclose(
      getattr(one, name), getattr(other, name)[rows], rtol=1e-6, atol=1e-6, err_msg=name
    )
    assert getattr(one, name).dtype == getattr(other, name).dtype, name


@pytest.fixture(scope="module", params=range(3))
def events(request):
  return logs.make_log(request.param, users=8)


@pytest.mark.parametrize("slots", [(5, 3, 2), (1, 0, 0), (40, 20, 0), (2, 0, 30)])
def test_a_served_request_sees_what_a_logged_one_sees(events, slots):
  config = dataclasses.replace(
    CONFIG, history_slots=slots[0], neighbor_slots=slots[1], rising_slots=slots[2]
  )
  lines = build_lines(events, logs.ADS)
  requests = np.arange(len(lines.request_time))
  trends, neighbors = fitted(events)
  logged = RequestContexts(lines, CODES, PRICE, trends, NeighborFolds.of(neighbors), config).batch(
    requests
  )
  histories = joined(
    [before(events, r) for r in requests]
  )  # first visits are among them: users without events
  assert 0 < len(np.unique(histories.user)) < len(requests)
  served = builder_of(events, config).batch(histories, lines.request_time)
  assert_same(served, logged)
  assert not served.target_mask_BM.any()
  assert [(x.shape, x.dtype) for x in served] == [(x.shape, x.dtype) for x in logged]


def test_promotions_are_served_as_they_were_learned(events):
  lines = build_lines(events, logs.ADS)
  requests = np.arange(len(lines.request_time))
  weeks = np.arange(events.time.min() // DAY * DAY, events.time.max() + 1, 7 * DAY)
  rng = np.random.default_rng(0)
  entries = rng.integers([0, 0, 0], [logs.ADS, 2, len(weeks)], (len(weeks) * logs.ADS, 3)).T
  kind = rng.integers(1, 4, entries.shape[1])
  stores = np.arange(len(events.user_id)) % 3 - 1  # one in three shops nowhere
  promotions = Promotions.of(weeks, 2, entries, kind, events.user_id, stores)
  shops = {"promotions": promotions, "user_ids": events.user_id}
  trends, neighbors = fitted(events)
  logged = RequestContexts(
    lines, CODES, PRICE, trends, NeighborFolds.of(neighbors), CONFIG, **shops
  ).batch(requests)
  users = events.user_id[lines.request_user]
  histories = joined(
    [dataclasses.replace(before(events, r), user_id=users[r : r + 1]) for r in requests]
  )
  builder = ContextBuilder(CONFIG, trends, neighbors, FixedAds(CODES, PRICE, CREATED), promotions)
  assert_same(builder.batch(histories, lines.request_time), logged)
  names = slot_features(DataConfig(promotions=True))
  shown = logged.slot_features_BSF[..., [names.index("displayed"), names.index("mailed")]]
  kinds = logged.slot_kind_BS
  assert shown[kinds > 0].any(axis=0).all() and not shown[kinds == 0].any()
  assert not shown[stores[lines.request_user] < 0].any()
  without = builder_of(events).batch(histories, lines.request_time)
  np.testing.assert_array_equal(
    logged.slot_features_BSF[..., : len(SLOT_FEATURES)], without.slot_features_BSF
  )


def test_a_row_is_of_its_user_alone(events):
  builder, known = builder_of(events), UserHistories(events)
  now = int(events.time.max()) + np.arange(4) * DAY
  users = [3, 0, 3, 5]
  together = builder.batch(known.take(users), now)
  for b, user in enumerate(users):
    assert_same(builder.batch(known.take([user]), now[b : b + 1]), together, slice(b, b + 1))
  assert (
    together.user_features_BF[0] != together.user_features_BF[2]
  ).any()  # the same user, two days later


def test_a_user_of_the_log_is_seen_as_of_the_moment(events):
  """Whatever the log knows by now, a request sees what had happened when it came."""
  builder, known = builder_of(events), UserHistories(events)
  asked = 0
  for request in range(int(events.request[-1]) + 1):
    user = events.user[events.request == request][0]
    now = np.array([events.time[events.request == request][0] - 1])
    early = before(events, request)
    if len(early) and early.time.max() <= now[0]:
      asked += 1
      assert_same(builder.batch(known.take([user]), now), builder.batch(joined([early]), now))
  assert asked > 5


def test_a_late_purchase_is_not_served_before_it_happens():
  """A click on the 1st, bought on the 9th under one visit; asked on the 3rd and on the 10th."""
  start = int(logs.START) // DAY * DAY
  log = visits.ordered_log(
    np.array(["u"]),
    user=np.zeros(3, int),
    request=np.array([0, 0, 0]),
    ad=np.array([1, 1, 2]),
    time=start + DAY * np.array([1, 9, 9]),
    behavior=np.array([0, 2, 2]),
    value=np.array([0.0, 30.0, 8.0]),
    quantity=np.ones(3),
  )
  builder = builder_of(log)
  batch = builder.batch(UserHistories(log).take([0, 0]), start + DAY * np.array([3, 10]))
  history = np.where(batch.slot_kind_BS == HISTORY, batch.slot_ad_BS, -1)[:, :2].tolist()
  assert history == [[1, -1], [1, 2]]
  column = {name: batch.slot_features_BSF[:, 0, i] for i, name in enumerate(SLOT_FEATURES)}
  assert column["depth"].tolist() == [0, 2] and column["count"][0] == np.float32(np.log1p(1))
  np.testing.assert_allclose(column["last_value"], [0, np.log1p(30)], rtol=1e-6)
  assert column["mean_value"][0] == 0 < column["mean_value"][1]  # popularity, too
  assert batch.user_value_B.tolist() == [0, pytest.approx(38)]


def test_nobody_has_a_history(events):
  builder = builder_of(events)
  batch = builder.batch(visits.no_events(2), np.full(2, builder.end))
  assert set(batch.slot_kind_BS.ravel().tolist()) <= {0, 3} and (batch.user_value_B == 0).all()
  assert all(np.isfinite(getattr(batch, name)).all() for name in CONTEXT)


def test_the_end_of_the_log_is_the_first_day_that_counts_all(events):
  end = builder_of(events).end
  trends = fitted(events)[0]
  assert end > events.time.max() and end - DAY <= events.time.max()
  np.testing.assert_array_equal(
    trends.bucket_of(np.array([end - 1, end])), trends.buckets - np.array([1, 0])
  )


def test_an_ad_that_came_later_stands_in_a_history_and_has_no_past_of_its_own(events):
  new, now = logs.ADS + 1, np.array([events.time.max() + DAY])
  ads = FixedAds(
    np.concatenate([CODES, [[8, 8, 8], [7, 7, 7]]]).astype(np.int32),
    np.append(PRICE, [3, 4]).astype("f"),
    np.append(CREATED, [-1, -1]),
  )
  builder = builder_of(events, dataclasses.replace(CONFIG, history_slots=10), ads)
  without = joined([before(events, int(events.request[-1]))])
  more = {"ad": new, "value": 0, "quantity": 0}  # one more event of the last visit
  columns = {
    f.name: getattr(without, f.name) for f in dataclasses.fields(EventLog) if f.name != "user_id"
  }
  columns = {
    name: np.append(column, column.dtype.type(more.get(name, column[-1])))
    for name, column in columns.items()
  }
  batch, old = (
    builder.batch(dataclasses.replace(without, **columns), now),
    builder.batch(without, now),
  )
  (slot,) = np.flatnonzero((batch.slot_codes_BST[0] == 7).all(axis=1))
  features = dict(zip(SLOT_FEATURES, batch.slot_features_BSF[0, slot].tolist(), strict=True))
  assert batch.slot_kind_BS[0, slot] == HISTORY and features["count"] == np.log1p(np.float32(1))
  assert features["price"] == np.log1p(np.float32(4)) and features["neighbor_score"] == 0
  assert features["repeat_share"] == 1  # the prior alone
  alone = [
    i for i, name in enumerate(SLOT_FEATURES) if name not in CROSSES
  ]  # what does not compare with the history
  for columns in (lambda x: x.slot_codes_BST, lambda x: x.slot_features_BSF[..., alone]):
    np.testing.assert_array_equal(*(columns(x)[x.slot_kind_BS == NEIGHBOR] for x in (batch, old)))


def test_codes_and_prices_are_those_of_the_moment(events):
  class Changing:
    codes_NT, price_N = CODES, PRICE

  ads = Changing()
  builder, log, now = (
    builder_of(events, ads=ads),
    UserHistories(events).take([0]),
    np.array([events.time.max() + DAY]),
  )
  old = builder.batch(log, now)
  ads.codes_NT, ads.price_N = CODES + 1, PRICE + 1
  new = builder.batch(log, now)
  np.testing.assert_array_equal(new.slot_codes_BST, old.slot_codes_BST + 1)
  price = SLOT_FEATURES.index("price")
  assert (new.slot_features_BSF[..., price] > old.slot_features_BSF[..., price]).any()
  assert (new.slot_features_BSF[..., price] >= old.slot_features_BSF[..., price]).all()
  rest = [
    i
    for i, name in enumerate(SLOT_FEATURES)
    if "price" not in name and not name.startswith("code_")
  ]
  np.testing.assert_array_equal(new.slot_features_BSF[..., rest], old.slot_features_BSF[..., rest])


def test_memory_of_a_batch_does_not_grow_with_the_ads():
  peaks = []
  for num_ads in (2_000, 200_000):
    events = logs.make_log(0, users=8, ads=num_ads)
    rng = np.random.default_rng(0)
    ad = rng.integers(0, num_ads, 2 * num_ads)
    time = int(events.time.min()) + rng.integers(0, 60 * DAY, 2 * num_ads)
    once = np.ones(2 * num_ads, np.int64)
    trends = Trends.empty(num_ads).adding(Counts(ad, time, once, 0 * once, once << 34))
    near = rng.integers(0, num_ads, (num_ads, 32)).astype(np.int32)
    neighbors = CoVisitNeighbors(near, rng.random((num_ads, 32)).astype(np.float32))
    none = np.full(num_ads, -1)
    ads = FixedAds(np.zeros((num_ads, 3), np.int32), np.zeros(num_ads, np.float32), none)
    builder, known = ContextBuilder(DataConfig(), trends, neighbors, ads), UserHistories(events)
    now = np.full(8, events.time.max() + DAY)
    builder.batch(known.take(range(8)), now)  # the rising ads of a day are looked up once
    tracemalloc.start()
    builder.batch(known.take(range(8)), now)
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert peaks[1] < 1.2 * peaks[0] and peaks[1] < 2_000_000


def test_users_are_found_by_id(events):
  known = UserHistories.of(Dataset("log", None, events, ("a", "b", "c")))
  assert known.user_ids == [f"u{n}" for n in range(8)]
  for number, user in enumerate(known.user_ids):
    log, mine = known.log_of(user), events.user == number
    for name in ("ad", "time", "behavior", "value", "quantity"):
      np.testing.assert_array_equal(getattr(log, name), getattr(events, name)[mine])
    np.testing.assert_array_equal(log.request, events.request[mine] - events.request[mine][0])
    assert (log.user == 0).all() and log.user_id.tolist() == [user]
  assert known.log_of("u8") is None and known.log_of("u1\0") is None


def test_users_are_searched_by_prefix():
  names = np.array(["b2", "a", "b10", "b", "", "ä", "b\U0010ffffz"])
  none = visits.no_events(len(names))
  known = UserHistories(dataclasses.replace(none, user_id=names))
  assert known.starting_with("b", 9) == ["b", "b10", "b2", "b\U0010ffffz"]
  assert known.starting_with("b", 2) == ["b", "b10"]
  assert known.starting_with("", 99) == sorted(names.tolist()) and known.starting_with("c", 5) == []


def test_taken_users_are_numbered_anew(events):
  log = UserHistories(events).take([5, 2, 5])
  assert log.user_id.tolist() == ["u5", "u2", "u5"]
  sizes = [(events.user == number).sum() for number in (5, 2, 5)]
  np.testing.assert_array_equal(log.user, np.repeat(np.arange(3), sizes))
  np.testing.assert_array_equal(
    log.ad, np.concatenate([events.ad[events.user == number] for number in (5, 2, 5)])
  )
  assert log.request[0] == 0 and set(np.diff(log.request).tolist()) <= {0, 1}
  assert len(np.unique(log.request)) == sum(
    len(np.unique(events.request[events.user == n])) for n in (5, 2, 5)
  )
