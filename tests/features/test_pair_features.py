"""Features of pairs equal those of slots and of plain loops, and know nothing of the request
itself or later.
"""

import numpy as np
import pytest

from gr4ad_jax.config import DataConfig
from gr4ad_jax.data import visits
from gr4ad_jax.features import history, pair_features, sparse_rows
from gr4ad_jax.features.batches import RequestContexts
from gr4ad_jax.features.lines import build_lines
from gr4ad_jax.features.neighbors import CoVisitNeighbors, NeighborFolds
from gr4ad_jax.features.pair_features import FEATURES
from gr4ad_jax.features.sparse_rows import SparseRows
from gr4ad_jax.features.trends import Trends
from tests.features import logs

DATA = DataConfig(history_slots=logs.ADS, neighbor_slots=3, rising_slots=2, targets=3)
CODES_NT = np.stack([np.arange(logs.ADS) % 3, np.arange(logs.ADS) % 4], axis=1).astype(np.int32)
EVERY_AD = np.arange(logs.ADS)


def folds_of(lines, folds=2):
  return NeighborFolds.fit(
    lines.request, lines.request_user[lines.request], lines.ad, logs.ADS, folds
  )


def contexts_of(events, fitted=None, min_depth=0):
  """Contexts of a log; what is fitted is that of other features, where they are given."""
  lines = build_lines(events, logs.ADS)
  price = np.linspace(1, 9, logs.ADS).astype(np.float32)
  popularity = fitted.popularity if fitted else Trends.fit(lines, logs.ADS)
  neighbors = fitted.neighbors if fitted else folds_of(lines)
  return RequestContexts(lines, CODES_NT, price, popularity, neighbors, DATA, min_depth,
                         group_N=np.arange(logs.ADS) % 2)  # fmt: skip


def made(events, fitted=None):
  return contexts_of(events, fitted).pairs


@pytest.fixture(scope="module")
def features():
  return made(logs.make_log(seed=4, users=10))


def everything(features):
  requests = np.arange(len(features.lines.request_time))
  return requests, np.broadcast_to(EVERY_AD, (len(requests), logs.ADS))


def test_last_and_own_lines_equal_a_loop(features):
  requests, ads = everything(features)
  last = features.last_lines(requests, ads)
  own = features.lines.outcomes.of(requests, ads)
  lines = features.lines
  for b, request in enumerate(requests):
    before = {
      lines.ad[n]: n for n in range(lines.user_first[request], lines.request_first[request])
    }
    here = {
      lines.ad[n]: n for n in range(lines.request_first[request], lines.request_first[request + 1])
    }
    np.testing.assert_array_equal(last[b], [before.get(ad, -1) for ad in EVERY_AD])
    np.testing.assert_array_equal(own[b], [here.get(ad, -1) for ad in EVERY_AD])


def test_behaviour_of_an_ad_is_that_of_its_history_slot(features):
  requests, ads = everything(features)
  found = features.batch(requests, ads)
  rows = history.history_rows(features.lines, requests, DATA.history_slots)
  slots = history.history_features(features.lines, requests, rows)
  for b, s in np.argwhere(rows >= 0):
    ad = features.lines.ad[rows[b, s]]
    np.testing.assert_array_equal(found.pair_features_BCF[b, ad, : slots.shape[-1]], slots[b, s])


def test_an_ads_features_do_not_depend_on_the_others_and_padding_has_none(features):
  requests, ads = everything(features)
  whole = features.batch(requests, ads).pair_features_BCF
  some = features.batch(requests, np.stack([[7, -1, 2]] * len(requests))).pair_features_BCF
  np.testing.assert_array_equal(some[:, 0], whole[:, 7])
  np.testing.assert_array_equal(some[:, 2], whole[:, 2])
  assert not some[:, 1].any() and np.isfinite(whole).all()


def test_nothing_of_the_request_or_later_is_read():
  events = logs.make_log(seed=5, users=8)
  before = made(events)
  for request in np.unique(events.request)[::4]:
    # What is fitted is fitted on the training's own lines, and counts of a day are seen from the
    # next day on.
    after = made(logs.replaced_from(events, request), before)
    user = before.lines.request_user[request]
    assert user == after.lines.request_user[request]
    one, two = (x.batch(np.array([request]), EVERY_AD[None]) for x in (before, after))
    for name, a, b in zip(one._fields, one, two, strict=True):
      np.testing.assert_array_equal(a, b, err_msg=name)


def test_a_training_user_sees_neighbours_that_others_made():
  events = logs.make_log(seed=6, users=6)
  lines = build_lines(events, logs.ADS)
  users = lines.request_user[lines.request]
  folds = folds_of(lines)
  np.testing.assert_array_equal(folds.fold_of(np.array([0, 1, 5]), False), [0, 1, 1])
  np.testing.assert_array_equal(folds.fold_of(np.array([0, 1, 5]), True), [2, 2, 2])
  kept = users % 2 != 1
  np.testing.assert_array_equal(
    folds.ids[1], CoVisitNeighbors.fit(lines.request[kept], lines.ad[kept], logs.ADS).ids
  )


@pytest.mark.parametrize("number", [0, 1, 3])
def test_folds_come_back_from_disk(tmp_path, number):
  folds = folds_of(build_lines(logs.make_log(seed=4, users=10), logs.ADS), number)
  folds.save(str(tmp_path))
  loaded = NeighborFolds.load(str(tmp_path))
  np.testing.assert_array_equal(loaded.ids, folds.ids)
  np.testing.assert_array_equal(loaded.cosine, folds.cosine)
  assert len(folds.ids) == number + 1
  np.testing.assert_array_equal(CoVisitNeighbors.load(str(tmp_path)).ids, folds.part(-1).ids)


def test_without_folds_everyone_sees_all_visits():
  folds = folds_of(build_lines(logs.make_log(seed=4, users=10), logs.ADS), 0)
  np.testing.assert_array_equal(folds.fold_of(np.array([0, 1, 5]), False), [0, 0, 0])


def sums_of(row, column, places, of, columns=60):
  """Sums and largest of weights, read at some places."""
  read = sparse_rows.Places(of, places, 1 + int(max(of.max(), row.max())), columns, len(row))
  rows = SparseRows(read, row, column)
  return lambda weight: (rows.sum(weight[rows.kept]), rows.max(weight[rows.kept]))


def test_sparse_rows_sum_and_take_the_largest():
  places, of = np.array([3, 1, 1, 0]), np.array([0, 0, 1, 1])
  about = np.array([0, 0, 1, 0]), np.array([3, 3, 1, -1]), places, of, 4
  total, largest = sums_of(*about)(np.array([1.0, 2.0, 5.0, 9.0]))
  np.testing.assert_array_equal(total, [3, 0, 5, 0])
  np.testing.assert_array_equal(largest, [2, 0, 5, 0])
  nothing = sums_of(np.array([0]), np.array([-1]), places, of, 4)
  np.testing.assert_array_equal(nothing(np.ones(1)), np.zeros((2, 4)))


@pytest.mark.parametrize("columns", [7, 1 << 41])  # packed with the number, and too wide for it
@pytest.mark.parametrize("number", [0, 1, 3000])
def test_keys_are_sorted_stably(columns, number):
  rng = np.random.default_rng(0)
  key = (rng.integers(0, 1 << 20, number).astype(np.int64) << 42) + rng.integers(0, columns, number)
  key[number // 2 :] = key[: number - number // 2]
  order, ordered = sparse_rows.sorted_keys(key)
  np.testing.assert_array_equal(order, np.argsort(key, kind="stable"))
  np.testing.assert_array_equal(ordered, np.sort(key))


def test_groups_count_the_historys_other_ads(features):
  requests, ads = everything(features)
  found = features.batch(requests, ads).pair_features_BCF
  lines = features.lines
  groups = {
    "code_1": CODES_NT[:, 0],
    "code_2": CODES_NT[:, 0] * 100 + CODES_NT[:, 1],
    "group": np.arange(logs.ADS) % 2,
  }
  for b, request in enumerate(requests):
    past = {lines.ad[n]: n for n in range(lines.user_first[request], lines.request_first[request])}
    gap = {
      ad: lines.request_visit[request] - lines.request_visit[lines.request[n]]
      for ad, n in past.items()
    }
    count = {
      ad: lines.decayed_count[n] * history.DECAY ** (gap[ad] - 1.0) for ad, n in past.items()
    }
    total = max(sum(count.values()), 1e-6)
    for name, group_N in groups.items():
      others = [
        sum(c for ad, c in count.items() if ad != one and group_N[ad] == group_N[one])
        for one in EVERY_AD
      ]
      column = found[b, :, FEATURES.index(f"{name}_share")]
      np.testing.assert_allclose(
        column, np.log1p(100 * np.array(others) / total), rtol=1e-4, atol=1e-4, err_msg=name
      )


def test_near_is_the_history_weighted_cosine(features):
  requests, ads = everything(features)
  near = features.batch(requests, ads).pair_features_BCF[..., FEATURES.index("near_best")] / 4
  ids, cosine = features.neighbors.ids[-1], features.neighbors.cosine[-1]
  for b, request in enumerate(requests):
    past = set(
      features.lines.ad[features.lines.user_first[request] : features.lines.request_first[request]]
    )
    expected = [
      max((cosine[p][ids[p] == ad].max(initial=0) for p in past), default=0) for ad in EVERY_AD
    ]
    np.testing.assert_allclose(near[b], expected, rtol=1e-6)


@pytest.mark.parametrize(("row_bits", "column_bits"), [(20, 40), (20, 41), (21, 41), (21, 42)])
def test_keys_at_the_edge_of_what_one_integer_packs_are_sorted(row_bits, column_bits):
  """Three keys take two bits for their number: 62, 63, 64 and 65 bits in all, and 63 can be
  used.
  """
  row, column = (1 << row_bits) - 1, (1 << column_bits) - 1
  key = np.array([(row << 42) + column, (row << 42) + 5, (row << 42) + column], np.int64)
  order, ordered = sparse_rows.sorted_keys(key)
  assert order.tolist() == [1, 0, 2] and ordered.tolist() == [key[1], key[0], key[2]]


def test_a_pause_of_less_than_half_a_day_is_the_same_day():
  hours = [0, 11.99, 23.99, 32.99, 60, 72.01]
  events = logs.make_log()
  n = len(hours)
  columns = {
    "user": np.zeros(n),
    "ad": np.arange(n),
    "time": np.array(hours) * 3600,
    "behavior": np.zeros(n),
    "value": np.ones(n),
    "quantity": np.ones(n),
    "request": np.arange(n),
  }
  events = visits.ordered_log(
    events.user_id, **{name: x.astype(int) for name, x in columns.items()}
  )
  found = made(events).user_features(np.arange(n))
  assert found[:, pair_features.USER_FEATURES.index("same_day")].tolist() == [0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("rows", [3, 400])  # with places that 16 bits number, and with more
@pytest.mark.parametrize("columns", [60, 1 << 17])  # few for a table of all, and too many
def test_sums_are_the_same_by_tables_of_cells_and_by_a_search(monkeypatch, rows, columns):
  """Weights that no order of adding but theirs rounds alike; columns that a row reads twice."""
  rng = np.random.default_rng(0)
  row = rng.integers(0, rows, 9000)
  some = rng.integers(0, columns, 60)  # of which others may be none that are read
  column = np.append(-1, some)[rng.integers(0, 61, 9000)]
  of = np.repeat(np.arange(rows), 200)
  places = some[rng.integers(0, 50, len(of))]
  weight = 10.0 ** rng.uniform(-9, 9, 9000)
  found = sums_of(row, column, places, of, columns)(weight)
  few = rng.integers(0, len(of), 50)
  flat = sums_of(row, column, places[few], of[few], columns)(weight)
  monkeypatch.setattr(sparse_rows, "_CELLS", 0)
  searched = sums_of(row, column, places, of, columns)(weight)
  for read in range(2):
    assert (found[read] > 0).any() and (found[read] == searched[read]).all()
    assert (flat[read] == found[read][few]).all()
  # The loop that they stand for: weights of a cell one after another, in float64 here.
  total = {}
  for cell in zip(row.tolist(), column.tolist(), weight.tolist(), strict=True):
    total[cell[:2]] = total.get(cell[:2], 0) + cell[2]
  wanted = [total.get(cell, 0) for cell in zip(of.tolist(), places.tolist(), strict=True)]
  np.testing.assert_allclose(found[0], wanted, rtol=1e-6)


@pytest.mark.parametrize("most", [0, 1 << 22])  # by a search, by a table
def test_places_find_cells(monkeypatch, most):
  monkeypatch.setattr(sparse_rows, "_CELLS", most)
  of, column = np.array([0, 2, 2, 0]), np.array([5, 0, 6, 5])
  places = sparse_rows.Places(of, column, 4, 7, 9)
  assert places.by_table == bool(most)
  row = np.arange(4)[:, None]
  found = places.find(row, np.tile(np.arange(-1, 7), (4, 1)))
  wanted = np.full((4, 8), -1)
  wanted[0, 6], wanted[2, 1], wanted[2, 7] = places.at[0], 1, 2
  np.testing.assert_array_equal(found, wanted)
  assert places.at[0] == places.at[3] and places.at[0] in (0, 3)


def test_lines_of_slots_are_those_that_a_search_finds():
  """Of histories that fit, and of those with more ads than slots; rising ads stand in both."""
  log = logs.make_log(11, users=9, most_visits=9)
  lines = build_lines(log, logs.ADS)
  near = NeighborFolds.of(CoVisitNeighbors.fit(lines.request, lines.ad, logs.ADS, 4))
  trends = Trends.fit(lines, logs.ADS)
  everyone = np.arange(len(lines.request_time))
  for slots in (2, 9):
    config = DataConfig(history_slots=slots, neighbor_slots=3, rising_slots=4, targets=2)
    contexts = RequestContexts(lines, None, np.ones(logs.ADS, np.float32), trends, near, config)
    ads, _, rows = contexts.slots(everyone)
    wanted = contexts.pairs.last_lines(everyone, ads)
    assert (wanted[:, slots:] >= 0).any()
    b, s = (ads >= 0).nonzero()
    places = sparse_rows.Places(b, ads[b, s], len(ads), logs.ADS, 9)
    slot_BS = history.ads_of(lines, rows)
    found = contexts.pairs._own_lines(places, everyone, rows, slot_BS)
    np.testing.assert_array_equal(found, wanted[b, s])
