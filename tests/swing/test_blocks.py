"""Swing's cuts, samples and memory: no cut changes a bit, the samples are the stated ones, and
the bound holds.
"""

import collections
import contextlib
import itertools
import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.swing import groups, swing

Log = collections.namedtuple("Log", "request user ad split")
UNCUT = 1 << 30
PAIRS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=60)


def make_log(events=3000, ads=60, visits=400, seed=0):
  """A log in no order, of popular and of rare ads, with repeats."""
  rng = np.random.default_rng(seed)
  ad = ((ads + 1) ** rng.random(events)).astype(np.int32) - 1
  visit = rng.integers(visits, size=events).astype(np.int32)
  return Log(visit, visit // 3, ad, (rng.random(events) < 0.1).astype(np.int8))


@contextlib.contextmanager
def cut(entries=UNCUT, pairs=UNCUT, events=1 << 20, keys=UNCUT):
  """Blocks of so many entries, pairs, events and sorted keys."""
  with (
    mock.patch.multiple(swing, _ENTRIES=entries, _PAIRS=pairs, BLOCK=events),
    mock.patch.multiple(groups, BLOCK=events, _KEY_BYTES=max((1 << 30) // keys, 1)),
  ):
    yield


def sampled(log, max_items, max_users, seed):
  """The ads of each visit and the visits of each ad, after both caps, in words of the docstring."""
  taken = collections.defaultdict(set)
  for visit, ad, split in zip(
    log.request.tolist(), log.ad.tolist(), log.split.tolist(), strict=True
  ):
    if split == 0:
      taken[visit].add(ad)

  def lowest(members, most, order):
    return set(sorted(members, key=order)[:most]) if len(members) > most else set(members)

  for visit, ads in taken.items():
    taken[visit] = lowest(
      ads,
      max_items,
      lambda ad, visit=visit: groups.priority([visit], [ad], seed, swing.OF_A_VISIT)[0],
    )
  visits_of = collections.defaultdict(set)
  for visit, ads in taken.items():
    for ad in ads:
      visits_of[ad].add(visit)
  for ad, visits in visits_of.items():
    visits_of[ad] = lowest(
      visits,
      max_users,
      lambda visit, ad=ad: groups.priority([visit], [ad], seed, swing.OF_AN_AD)[0],
    )
  return taken, visits_of


def by_rules(log, num_ads, alpha, max_items, max_users, min_support, seed):
  """The formula over the samples, written out: [N, N] float64."""
  taken, visits_of = sampled(log, max_items, max_users, seed)
  found = np.zeros((num_ads, num_ads))
  for i, visits in visits_of.items():
    for j in set().union(*(taken[visit] for visit in visits)) - {i}:
      both = [visit for visit in visits if j in taken[visit]]
      if len(both) >= min_support:
        found[i, j] = sum(
          (len(taken[u]) * len(taken[v])) ** -0.5 / (alpha + len(taken[u] & taken[v]))
          for u, v in itertools.permutations(both, 2)
        )
  return found


def dense(found):
  """[N, N] similarities."""
  whole = np.zeros((len(found.ads_NK), len(found.ads_NK)))
  row, slot = np.nonzero(found.ads_NK >= 0)
  whole[row, found.ads_NK[row, slot]] = found.similarity_NK[row, slot]
  return whole


@pytest.mark.parametrize("caps", [(1000, 256, 2), (6, 256, 2), (1000, 9, 2), (5, 7, 3)])
def test_equals_the_formula_over_the_stated_samples(caps):
  log = make_log(events=900, ads=12, visits=80)
  max_items, max_users, support = caps
  found = swing.fit_swing(
    log,
    12,
    neighbors=11,
    max_items_per_user=max_items,
    max_users_per_item=max_users,
    min_support=support,
    seed=3,
  )
  expected = by_rules(log, 12, 1.0, max_items, max_users, support, 3)
  assert (expected > 0).any()
  np.testing.assert_allclose(dense(found), expected, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(
  entries=st.integers(1, 1000), pairs=st.integers(1, 2000), events=st.integers(20, 1000),
  keys=st.integers(1, 1000),
  workers=st.integers(1, 3), memory=st.sampled_from([1024, 4096]),
)  # fmt: skip
def test_no_cut_and_no_number_of_workers_changes_a_bit(
  entries, pairs, events, keys, workers, memory
):
  log, caps = make_log(1000, 60, 130), {"max_users_per_item": 40, "max_items_per_user": 8}
  with cut():
    whole = swing.fit_swing(log, 60, **caps, workers=1)
  with cut(entries, pairs, events, keys):
    found = swing.fit_swing(log, 60, **caps, workers=workers, memory_mb=memory)
  np.testing.assert_array_equal(found.ads_NK, whole.ads_NK)
  np.testing.assert_array_equal(found.similarity_NK, whole.similarity_NK)


def test_the_order_of_the_events_does_not_matter():
  log, order = make_log(), np.random.default_rng(1).permutation(3000)
  whole = swing.fit_swing(log, 60, max_users_per_item=20)
  found = swing.fit_swing(Log(*(column[order] for column in log)), 60, max_users_per_item=20)
  np.testing.assert_array_equal(found.similarity_NK, whole.similarity_NK)
  np.testing.assert_array_equal(found.ads_NK, whole.ads_NK)


def test_another_seed_is_another_sample():
  first, second = (
    swing.fit_swing(make_log(), 60, max_users_per_item=20, seed=seed) for seed in (0, 1)
  )
  assert (first.similarity_NK != second.similarity_NK).any()


def test_equal_similarities_go_by_ad_row():
  baskets = [[4, 2, 0], [4, 2, 0]]
  visit = np.repeat([0, 1], 3).astype(np.int32)
  found = swing.fit_swing(Log(visit, visit, np.concatenate(baskets), np.zeros(6, np.int8)), 5)
  assert found.ads_NK[[0, 2, 4], :2].tolist() == [[2, 4], [0, 4], [0, 2]]


def test_columns_may_be_memory_mapped(tmp_path):
  log = make_log()
  for name, column in log._asdict().items():
    np.save(tmp_path / f"{name}.npy", column)
  mapped = Log(*(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in log._fields))
  np.testing.assert_array_equal(swing.fit_swing(mapped, 60).ads_NK, swing.fit_swing(log, 60).ads_NK)


@pytest.mark.parametrize("kind", [np.uint64, np.int64, np.uint16])
def test_any_type_of_whole_numbers_will_do(kind):
  log = make_log()
  found = swing.fit_swing(Log(*(column.astype(kind) for column in log)), 60)
  np.testing.assert_array_equal(found.similarity_NK, swing.fit_swing(log, 60).similarity_NK)


@pytest.mark.parametrize(
  ("events", "ads", "memory_mb", "workers"),
  [
    (300_000, 3_000, 16, 2),
    (300_000, 200_000, 32, 2),
    pytest.param(300_000, 2_000_000, 16, 16, marks=pytest.mark.long),
    pytest.param(300_000, 3_000, 256, 16, marks=pytest.mark.long),
  ],
)
def test_memory_stays_within_the_setting(events, ads, memory_mb, workers):
  log = make_log(events, ads, events // 10)
  swing.fit_swing(make_log(), 60)  # what is loaded on first use
  tracemalloc.start()
  try:
    found = swing.fit_swing(log, ads, memory_mb=memory_mb, workers=workers)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  beside = (
    2 * 4 * events
    + found.ads_NK.nbytes
    + found.similarity_NK.nbytes
    + 100 * ads
    + 32 * events // 10
  )
  assert peak <= beside + (memory_mb << 20)


def test_progress_is_told_to_the_end():
  heard = collections.defaultdict(list)
  with cut(entries=200, keys=500):
    swing.fit_swing(
      make_log(), 60, told=lambda what, done, total: heard[what].append((done, total))
    )
  assert len(heard) == 3
  for steps in heard.values():
    done, total = np.array(steps).T
    assert (
      done[0] == 0 and done[-1] == total[-1] and (np.diff(done) >= 0).all() and len(set(total)) == 1
    )
    assert len(done) > 3


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"ad": np.array([0, 1, 7])}, r"column 'ad', row 2: 7 is not in \[0, 5\)"),
    ({"ad": np.array([0, -1, 7])}, r"column 'ad', row 1: -1 is not in"),
    ({"request": np.array([0, 2**31, 1])}, "column 'request', row 1: 2147483648 is not in"),
    ({"user": np.array([0, 1])}, r"column 'user' has shape \(2,\); column 'ad' has \(3,\)"),
    ({"split": np.zeros((3, 1), np.int8)}, r"column 'split' has shape \(3, 1\)"),
    (
      {"request": np.array([0.0, 1.0, 2.0])},
      "column 'request' holds float64; whole numbers are needed",
    ),
  ],
)
def test_bad_columns_are_named(change, words):
  log = Log(np.arange(3), np.arange(3), np.arange(3), np.zeros(3, np.int8))._replace(**change)
  with pytest.raises(DataError, match=words):
    swing.fit_swing(log, 5)


def test_an_event_that_is_not_of_training_may_hold_anything():
  log = Log(np.array([0, 0, 1]), np.arange(3), np.array([0, 1, 99]), np.array([0, 0, 1]))
  assert (swing.fit_swing(log, 2).ads_NK == -1).all()


@pytest.mark.parametrize(
  "name", ["neighbors", "max_users_per_item", "max_items_per_user", "memory_mb"]
)
def test_settings_out_of_range_are_named(name):
  with pytest.raises(ValueError, match=f"{name} is 0; 1[6]* or more is needed"):
    swing.fit_swing(make_log(), 60, **{name: 0})


@settings(max_examples=60, deadline=None)
@given(pairs=PAIRS, cap=st.integers(1, 5), keys=st.integers(1, 40), events=st.integers(1, 70))
def test_groups_are_the_distinct_members_of_lowest_rank(pairs, cap, keys, events):
  group_P, members = np.array(pairs, np.int32).reshape(-1, 2).T
  expected = collections.defaultdict(set)
  for group, member in pairs:
    expected[group].add(member)

  def blocks():
    return [
      (group_P[at : at + events], members[at : at + events]) for at in range(0, len(pairs), events)
    ]

  with cut(events=events, keys=keys):
    found = groups.group(blocks, cap, lambda group, members: (members + group) % 10, 1 << 30)
  assert found.ids_G.tolist() == sorted(expected)
  for row, group in enumerate(sorted(expected)):
    kept = sorted(
      sorted(expected[group], key=lambda member, group=group: (member + group) % 10)[:cap]
    )
    assert found.members_P[found.start[row] : found.start[row + 1]].tolist() == kept
  assert int(found.start[-1]) == len(found.members_P)


def test_priorities_are_distinct_and_even():
  visit, ad = np.divmod(np.arange(200_000), 1000)
  found = groups.priority(visit, ad, 0, swing.OF_AN_AD)
  assert len(np.unique(found)) == len(found)
  share = np.bincount((found >> np.uint64(60)).astype(int), minlength=16) / len(found)
  np.testing.assert_allclose(share, 1 / 16, atol=0.004)
  for other in (
    groups.priority(visit, ad, 1, swing.OF_AN_AD),
    groups.priority(visit, ad, 0, "others"),
  ):
    assert abs(np.corrcoef(found.astype(float), other.astype(float))[0, 1]) < 0.01


def test_a_priority_is_what_it_was():
  """Values worked out apart from NumPy, in whole numbers modulo 2^64: saved neighbours rest on
  these samples.
  """
  for visit, ad, seed, use, expected in (
    (0, 0, 0, swing.OF_AN_AD, 8000382128187493293),
    (7, 3, 0, swing.OF_A_VISIT, 10560530975865469302),
    (2**31 - 1, 2**31 - 2, 5, swing.OF_AN_AD, 17971290940105661617),
  ):
    assert groups.priority([visit], [ad], seed, use).tolist() == [expected]


def test_runs_of_work_hold_at_most_so_much_or_one_item():
  assert list(groups.cuts(np.array([2, 2, 9, 1, 0, 0, 3]), 4)) == [(0, 2), (2, 3), (3, 7)]
  assert list(groups.cuts(np.zeros(0, int), 4)) == []
