"""Batches: what a request becomes, which targets are drawn, which requests make up a step."""

import concurrent.futures
import dataclasses

import chex
import jax
import numpy as np
import pytest

from gr4ad_jax.config import DataConfig
from gr4ad_jax.examples.order import TrainingOrder
from gr4ad_jax.features import batches, history
from gr4ad_jax.features.batches import (
  HISTORY,
  NEIGHBOR,
  PADDING,
  RISING,
  RequestContexts,
  zero_batch,
)
from gr4ad_jax.features.lines import build_lines
from gr4ad_jax.features.neighbors import CoVisitNeighbors, NeighborFolds
from gr4ad_jax.features.trends import Trends
from tests.data.splitmix import BITS, GOLDEN, splitmix
from tests.features import logs

CONFIG = DataConfig(history_slots=5, neighbor_slots=3, rising_slots=2, targets=3)
CODES = np.random.default_rng(0).integers(0, 9, (logs.ADS, 3)).astype(np.int32)
PRICE = np.append(np.arange(logs.ADS - 1, dtype=np.float32), np.nan).astype(np.float32)


def make_contexts(events=None, config=CONFIG, min_depth=0, fit_on=None):
  events = logs.make_log(5, users=8) if events is None else events
  known = events if fit_on is None else fit_on
  known_lines, lines = (build_lines(x, logs.ADS) for x in (known, events))
  trends = Trends.fit(known_lines, logs.ADS)
  near = NeighborFolds.of(CoVisitNeighbors.fit(known_lines.request, known_lines.ad, logs.ADS, 4))
  return RequestContexts(lines, CODES, PRICE, trends, near, config, min_depth)


@pytest.fixture(scope="module")
def contexts():
  return make_contexts()


@pytest.fixture(scope="module")
def whole(contexts):
  return contexts.batch(np.arange(len(contexts.lines.request_time)))


def test_slots_are_history_then_neighbours_then_rising_ads(contexts, whole):
  lines, kinds = contexts.lines, whole.slot_kind_BS
  requests = np.arange(len(lines.request_time))
  ads, found, rows = contexts.slots(requests)
  np.testing.assert_array_equal(found, kinds)
  expected = np.repeat([HISTORY, NEIGHBOR, RISING], [5, 3, 2])
  assert ((kinds == expected) | (kinds == PADDING)).all() and {0, 1, 2, 3} == set(
    kinds.ravel().tolist()
  )
  np.testing.assert_array_equal(kinds == PADDING, ads < 0)
  np.testing.assert_array_equal(rows, history.history_rows(lines, requests, 5))
  np.testing.assert_array_equal(ads[:, :5], np.where(rows >= 0, lines.ad[rows], -1))
  np.testing.assert_array_equal(whole.slot_codes_BST[ads >= 0], CODES[ads[ads >= 0]])
  for r in requests:
    past = set(ads[r, :5][ads[r, :5] >= 0].tolist())
    near = ads[r, 5:8][ads[r, 5:8] >= 0].tolist()
    assert len(set(near)) == len(near) and not past & set(near)
  rising = contexts.popularity.rising(
    contexts.popularity.bucket_of(lines.request_time[requests]), 2
  )
  np.testing.assert_array_equal(ads[:, 8:], rising)


def test_slot_features_stand_in_their_columns(contexts, whole):
  requests = np.arange(len(contexts.lines.request_time))
  ads, kinds, rows = contexts.slots(requests)
  column = {name: whole.slot_features_BSF[..., i] for i, name in enumerate(batches.SLOT_FEATURES)}
  real = kinds != PADDING
  assert np.isfinite(whole.slot_features_BSF).all() and (whole.slot_features_BSF[~real] == 0).all()
  past = history.history_features(contexts.lines, requests, rows)
  strange = contexts.pairs.last_lines(requests, ads[:, 5:]) < 0
  for i, name in enumerate(history.FEATURES):
    np.testing.assert_array_equal(column[name][:, :5], past[..., i], err_msg=name)
    assert (column[name][:, 5:][strange] == 0).all(), name
  every = contexts.pairs.ad_features(requests, ads, rows, contexts.pairs.user_features(requests))
  np.testing.assert_array_equal(whole.slot_features_BSF[..., :-1], every[..., :-1])
  assert (every[..., -1] == 0).all()
  popular = contexts.popularity.features(contexts.lines.request_time, np.maximum(ads, 0))
  np.testing.assert_array_equal(column["share_28"][real], popular[..., 1][real])
  np.testing.assert_allclose(
    column["price"][real], np.log1p(np.nan_to_num(PRICE))[ads[real]], rtol=1e-6
  )
  assert ((column["neighbor_score"] > 0) == (kinds == NEIGHBOR)).all()
  assert (np.diff(column["neighbor_score"][:, 5:8]) <= 0).all()


def test_without_behavior_features_a_request_is_its_ads(whole):
  config = dataclasses.replace(CONFIG, behavior_features=False)
  bare = make_contexts(config=config).batch(np.arange(len(whole.slot_ad_BS)))
  kept = ("neighbor_score", "price")
  for i, name in enumerate(batches.SLOT_FEATURES):
    expected = whole.slot_features_BSF[..., i] if name in kept else 0
    np.testing.assert_array_equal(
      bare.slot_features_BSF[..., i], np.broadcast_to(expected, bare.slot_kind_BS.shape)
    )
  assert (bare.user_features_BF == 0).all() and (whole.user_features_BF != 0).any()
  for name in set(bare._fields) - {"slot_features_BSF", "user_features_BF"}:
    np.testing.assert_array_equal(getattr(bare, name), getattr(whole, name), err_msg=name)


def test_targets_are_the_requests_lines(contexts, whole):
  lines = contexts.lines
  sizes = np.diff(lines.request_first)
  assert (
    whole.target_mask_BM.sum(1) == np.minimum(sizes, 3)
  ).all() and sizes.max() > 3 > sizes.min()
  row = contexts.targets(np.arange(len(sizes)))
  for r in range(len(sizes)):
    drawn = row[r][row[r] >= 0]
    assert len(set(drawn.tolist())) == len(drawn) and (lines.request[drawn] == r).all()
    assert (row[r, len(drawn) :] == -1).all()
    n = len(drawn)
    np.testing.assert_array_equal(whole.target_codes_BMT[r, :n], CODES[lines.ad[drawn]])
    np.testing.assert_array_equal(whole.target_value_BM[r, :n], lines.value[drawn])
    np.testing.assert_array_equal(whole.target_depth_BM[r, :n], lines.depth[drawn])
  assert (whole.target_value_BM[~whole.target_mask_BM] == 0).all()


def test_draws_differ_and_are_even():
  contexts = make_contexts(config=dataclasses.replace(CONFIG, targets=1))
  requests = np.flatnonzero(np.diff(contexts.lines.request_first) == 4)[:1]
  drawn = contexts.targets(np.repeat(requests, 4000), np.arange(4000))[:, 0]
  share = np.bincount(drawn - contexts.lines.request_first[requests[0]], minlength=4) / 4000
  np.testing.assert_allclose(share, 0.25, atol=0.03)
  np.testing.assert_array_equal(contexts.targets(requests, 7), contexts.targets(requests, 7))


def test_a_row_depends_on_its_request_and_draw_alone(contexts, whole):
  requests, draw = np.array([7, 2, 2, 11]), np.array([0, 0, 5, 0])
  some = make_contexts().batch(requests, draw)
  chex.assert_trees_all_equal(some[:4], tuple(x[requests] for x in whole[:4]))
  for i in range(4):
    alone = contexts.batch(requests[i : i + 1], draw[i : i + 1])
    chex.assert_trees_all_equal(alone, jax.tree.map(lambda x, i=i: x[i : i + 1], some))


def test_looking_neighbours_up_ahead_changes_nothing(whole):
  contexts = make_contexts()
  contexts.prepare(np.arange(len(contexts.lines.request_time)))
  chex.assert_trees_all_equal(contexts.batch(np.arange(len(contexts.lines.request_time))), whole)


def test_a_context_knows_neither_its_request_nor_anything_later():
  events = logs.make_log(5, users=8)
  before = make_contexts(events, fit_on=events)
  for r in range(2, len(before.lines.request_time), 3):
    after = make_contexts(
      logs.replaced_from(events, r), fit_on=events
    )  # the counts are shared, as at test time
    one, other = (x.batch(np.array([r])) for x in (before, after))
    for name in (
      "slot_kind_BS",
      "slot_codes_BST",
      "slot_features_BSF",
      "user_features_BF",
      "user_value_B",
    ):
      np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_user_value_is_the_mean_of_the_visits_before(contexts, whole):
  lines = contexts.lines
  for r in range(len(lines.request_time)):
    past = lines.value[
      (lines.request_user[lines.request] == lines.request_user[r]) & (lines.request < r)
    ].sum()
    assert whole.user_value_B[r] == pytest.approx(
      past / max(lines.request_visit[r], 1), rel=1e-4, abs=1e-4
    )


@pytest.mark.parametrize("min_depth", [1, 2])
def test_only_deep_lines_are_targets(min_depth):
  contexts = make_contexts(min_depth=min_depth)
  batch = contexts.batch(np.arange(len(contexts.lines.request_time)))
  assert batch.target_depth_BM[batch.target_mask_BM].min() == min_depth
  for r, mask in enumerate(batch.target_mask_BM):
    deep = (
      contexts.lines.depth[contexts.lines.request_first[r] : contexts.lines.request_first[r + 1]]
      >= min_depth
    )
    assert mask.sum() == min(deep.sum(), 3)
  assert (batch.target_mask_BM.sum(1) == 0).any()
  assert (
    batch.slot_kind_BS == make_contexts().batch(np.arange(len(batch.user_value_B))).slot_kind_BS
  ).all()


@pytest.mark.parametrize("slots", [(5, 3, 2), (1, 0, 0), (40, 20, 0), (2, 0, 30)])
def test_zero_batch_is_a_batch_without_content(slots):
  config = DataConfig(
    history_slots=slots[0], neighbor_slots=slots[1], rising_slots=slots[2], targets=4
  )
  real, empty = (
    make_contexts(config=config).batch(np.array([3, 0, 6])),
    zero_batch(config, 3, rows=3),
  )
  assert [(x.shape, x.dtype) for x in real] == [(x.shape, x.dtype) for x in empty]
  assert all((x == 0).all() for x in empty)


def test_many_threads_make_what_one_makes(whole):
  contexts, order = make_contexts(), TrainingOrder(np.arange(len(whole.slot_kind_BS)), 8, 0)
  alone = TrainingOrder(order.examples, order.batch_size, order.seed)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    made = list(
      pool.map(lambda step: (order.step(step)[0], contexts.batch(*order.step(step))), range(40))
    )
  for step, (requests, batch) in enumerate(made):
    np.testing.assert_array_equal(requests, alone.step(step)[0])
    chex.assert_trees_all_equal(batch.slot_features_BSF, whole.slot_features_BSF[requests])


def test_targets_are_those_of_the_lowest_hashes():
  """Two of a request's deep lines, by a hash of line and draw; the order is that of the hashes."""
  contexts = make_contexts(config=dataclasses.replace(CONFIG, targets=2), min_depth=1)
  lines, requests = contexts.lines, np.arange(len(contexts.lines.request_time))
  draws = requests % 5
  found = contexts.targets(requests, draws)
  cut = 0
  for b, r in enumerate(requests):
    own = [
      n for n in range(lines.request_first[r], lines.request_first[r + 1]) if lines.depth[n] >= 1
    ]
    if len(own) > 2:
      salt = splitmix((int(draws[b]) + 1) * GOLDEN & BITS)
      own = sorted(own, key=lambda line: splitmix(line ^ salt))[:2]
      cut += 1
    assert found[b].tolist() == own + [-1] * (2 - len(own))
  assert cut > 3
  np.testing.assert_array_equal(contexts.targets(requests), contexts.targets(requests, 0))
  made = contexts.batch(requests, draws)
  np.testing.assert_array_equal(made.target_ad_BM, np.where(found >= 0, lines.ad[found], -1))
  np.testing.assert_array_equal(made.target_mask_BM, found >= 0)
  np.testing.assert_array_equal(
    made.target_codes_BMT[found >= 0], CODES[lines.ad[found[found >= 0]]]
  )
  np.testing.assert_array_equal(
    contexts.batch(requests).target_ad_BM, contexts.batch(requests, 0).target_ad_BM
  )


def test_neighbours_of_thousands_of_requests_are_all_looked_up():
  """Blocks meet: no request between two of them is left out."""
  events = logs.make_log(7, users=520)
  contexts = make_contexts(events)
  number = len(contexts.lines.request_time)
  assert number > 2048 + 16
  contexts.prepare(np.arange(number))
  some = np.concatenate([np.arange(2040, 2056), np.arange(0, number, 97), [number - 1]])
  ads = contexts.slots(np.arange(number))[0]
  assert ads.min() == -1
  np.testing.assert_array_equal(make_contexts(events).slots(some)[0], ads[some])


def test_padding_gathers_the_first_row(whole):
  """A gather needs a row: padding takes that of ad 0, and masks say that it is none."""
  empty = whole.slot_kind_BS == PADDING
  assert (
    empty.any()
    and (whole.slot_codes_BST[empty] == CODES[0]).all()
    and (whole.slot_ad_BS[empty] == -1).all()
  )
  empty = ~whole.target_mask_BM
  assert empty.any() and (whole.target_codes_BMT[empty] == CODES[0]).all()
  assert (whole.target_depth_BM[empty] == 0).all() and (whole.target_ad_BM[empty] == -1).all()


def test_without_neighbour_slots_nothing_is_looked_up():
  contexts = make_contexts(config=dataclasses.replace(CONFIG, neighbor_slots=0))
  contexts.prepare(np.arange(5))
  assert contexts.slots(np.arange(5))[0].shape == (5, 7)
  assert zero_batch(CONFIG, 3).slot_kind_BS.shape == (1, 10)
