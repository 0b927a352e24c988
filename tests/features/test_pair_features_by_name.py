"""Every feature of a (request, ad) pair by its name, from the events of a log, one at a time."""

import dataclasses
import math

import numpy as np
import pytest

from gr4ad_jax.config import DataConfig
from gr4ad_jax.features import batches, history, pair_features, trends
from gr4ad_jax.features.batches import RequestContexts
from gr4ad_jax.features.lines import build_lines
from gr4ad_jax.features.neighbors import NeighborFolds
from gr4ad_jax.features.trends import Trends
from tests.features import logs

ADS, DAY = logs.ADS, 86_400
CODES_NT = np.stack([np.arange(ADS) % 2, np.arange(ADS) % 5 % 3, np.arange(ADS)], axis=1).astype(
  np.int32
)
PRICE_N = np.append(np.nan, np.linspace(0.5, 80, ADS - 1)).astype(np.float32)
GROUP_N = np.array([3, 1, 3, 1, 7, 7, 1, 3, 7])


class Log:
  """A log as plain lists: a line is (request, ad, depth, value, quantity), summed over the
  events of a visit.
  """

  def __init__(self, seed=4, users=7):
    self.events = logs.make_log(seed, users=users, most_visits=9)
    self.lines = logs.lines_of(self.events)
    self.user, self.time, self.visit = logs.visits_of(self.events)

  def before(self, request):
    """The user's lines before a request, oldest first."""
    return [
      line
      for line in self.lines
      if line.request < request and self.user[line.request] == self.user[request]
    ]

  def slots(self, request, number):
    """The latest line of each ad of the history, oldest first, the last `number` of them."""
    latest = {}
    for line in self.before(request):
      latest.pop(line.ad, None)
      latest[line.ad] = line
    return list(latest.values())[-number:]

  def decayed(self, request, ad):
    """How often the user took an ad, .9 a visit since."""
    mine = [line for line in self.before(request) if line.ad == ad]
    return sum(0.9 ** (self.visit[request] - 1 - self.visit[line.request]) for line in mine)

  def repeats(self, lines):
    """How many of a user's lines are of an ad that he had taken before."""
    return sum(any(other.ad == line.ad for other in self.before(line.request)) for line in lines)


def log_price(ad):
  return 0.0 if math.isnan(PRICE_N[ad]) else math.log1p(PRICE_N[ad])


def user_by_name(log, request):
  """What is told of a user beyond history.USER_FEATURES."""
  past, visits = log.before(request), log.visit[request]
  own_requests = [r for r in range(request) if log.user[r] == log.user[request]]
  last = [line for line in past if own_requests and line.request == own_requests[-1]]
  late = [line for line in past if line.request in own_requests[-4:]]
  prices = [log_price(int(line.ad)) for line in past]
  mean = sum(prices) / max(len(prices), 1)
  return {
    "last_visit_lines": math.log1p(len(last)),
    "last_visit_repeats": log.repeats(last) / max(len(last), 1),
    "late_repeats": log.repeats(late) / max(len(late), 1),
    "late_lines": math.log1p(len(late) / max(min(visits, 4), 1)),
    "mean_price": mean,
    "price_spread": math.sqrt(sum((price - mean) ** 2 for price in prices) / max(len(prices), 1)),
    "mean_quantity": sum(math.log1p(line.quantity) for line in past) / max(len(past), 1),
    "last_visit_value": sum(math.log1p(line.value) for line in last) / max(len(last), 1),
    "same_day": float(visits > 0 and log.time[request] - log.time[own_requests[-1]] < DAY / 2),
  }


def crosses_by_name(log, request, ad, slots, near, mean_value):
  """What is told of a pair beyond the history's and the popularity's features.

  `near` gives the cosine of an ad to another one, 0 where it is no neighbour; `mean_value` is the
  popularity's.
  """
  history_slots, past = log.slots(request, slots), log.before(request)
  count = {int(line.ad): log.decayed(request, line.ad) for line in history_slots}
  total = max(sum(count.values()), 1e-6)
  own = [line for line in past if line.ad == ad]
  first_line = sum(line.request < request for line in log.lines)  # of the request
  own_decay = log.decayed(request, ad)
  own_mean = math.log1p(sum(line.value for line in own) / len(own)) if own else 0.0
  last_visit = {
    int(line.ad) for line in history_slots if log.visit[request] - log.visit[line.request] == 1
  }

  def others(group_of):
    same = sum(c for other, c in count.items() if group_of(other) == group_of(ad))
    return max(same - own_decay, 0)

  shares = {name: others(group_of) for name, group_of in (
    ("code_1", lambda a: CODES_NT[a, 0]), ("code_2", lambda a: tuple(CODES_NT[a, :2])),
    ("group", lambda a: GROUP_N[a])
  )}  # fmt: skip
  return {
    "lines_since": 4 / math.sqrt(1 + first_line - log.lines.index(own[-1])) if own else 0.0,
    "decayed_share": math.log1p(100 * own_decay / total),
    "own_mean_value": own_mean,
    "near": math.log1p(4 * sum(near(other, ad) * c for other, c in count.items())),
    "near_last_visit": math.log1p(4 * sum(near(other, ad) for other in last_visit)),
    "near_best": 4 * max((near(other, ad) for other in count), default=0.0),
    "code_1_share": math.log1p(100 * shares["code_1"] / total),
    "code_1_count": math.log1p(shares["code_1"]),
    "code_2_share": math.log1p(100 * shares["code_2"] / total),
    "price": log_price(ad),
    "price_above_user": log_price(ad) - user_by_name(log, request)["mean_price"] if past else 0.0,
    "value_above_ad": own_mean - mean_value if own else 0.0,
    "group_share": math.log1p(100 * shares["group"] / total),
  }


@pytest.fixture(scope="module")
def log():
  return Log()


def contexts_of(log, slots, held_out):
  lines = build_lines(log.events, ADS)
  folds = NeighborFolds.fit(lines.request, lines.request_user[lines.request], lines.ad, ADS, 3)
  config = DataConfig(history_slots=slots, neighbor_slots=3, rising_slots=2, targets=3)
  about = lines, CODES_NT, PRICE_N, Trends.fit(lines, ADS), folds, config
  return RequestContexts(*about, held_out=held_out, group_N=GROUP_N), folds


def test_user_features_by_name_equal_a_loop(log):
  contexts, _ = contexts_of(log, 9, True)
  requests = np.arange(len(log.user))
  found = contexts.pairs.user_features(requests)
  names = pair_features.USER_FEATURES
  assert found.shape == (len(requests), len(names)) and found.dtype == np.float32
  np.testing.assert_array_equal(found[:, : len(history.USER_FEATURES)],
                                history.user_features(contexts.lines, requests))  # fmt: skip
  for request in requests:
    expected = user_by_name(log, request)
    assert (*history.USER_FEATURES, *expected) == names
    for name, value in expected.items():
      assert found[request, names.index(name)] == pytest.approx(value, rel=1e-4, abs=2e-4), (
        name,
        request,
      )


@pytest.mark.parametrize(("slots", "held_out"), [(3, False), (9, True)])
def test_pair_features_by_name_equal_a_loop(log, slots, held_out):
  """A history shorter than the slots and one that is cut; each user's own fold of neighbours and
  that of all.
  """
  contexts, folds = contexts_of(log, slots, held_out)
  requests = np.arange(len(log.user))
  every_BC = np.tile(np.arange(ADS), (len(requests), 1))
  found = contexts.pairs.batch(requests, every_BC)
  names = pair_features.FEATURES
  popular = contexts.popularity.features(contexts.lines.request_time[requests], every_BC)
  own = history.FEATURES + trends.FEATURES
  np.testing.assert_array_equal(
    found.pair_features_BCF[..., len(history.FEATURES) : len(own)], popular
  )
  assert max(len(log.slots(r, 99)) for r in requests) > 5
  for request in requests[::2]:
    fold = 3 if held_out else log.user[request] % 3

    def near(one, other, fold=fold):
      place = np.flatnonzero(folds.ids[fold, one] == other)
      return float(folds.cosine[fold, one, place[0]]) if len(place) else 0.0

    for ad in range(ADS):
      mean_value = popular[request, ad, trends.FEATURES.index("mean_value")]
      expected = crosses_by_name(log, request, ad, slots, near, mean_value)
      assert (*own, *expected) == names
      for name, value in expected.items():
        one = found.pair_features_BCF[request, ad, names.index(name)]
        assert one == pytest.approx(value, rel=1e-3, abs=3e-4), (name, request, ad)
  slot_ads = [[int(line.ad) for line in log.slots(r, slots)] for r in requests]
  assert found.slot_row_BS.tolist() == [row + [-1] * (slots - len(row)) for row in slot_ads]
  for b, row in enumerate(slot_ads):
    np.testing.assert_array_equal(found.slot_codes_BST[b, : len(row)], CODES_NT[row])
  rows_BS = history.history_rows(contexts.lines, requests, slots)
  np.testing.assert_array_equal(
    found.slot_features_BSF, history.history_features(contexts.lines, requests, rows_BS)
  )
  np.testing.assert_array_equal(found.ad_row_BC, every_BC)
  np.testing.assert_array_equal(found.ad_codes_BCT, CODES_NT[every_BC])


def test_slots_and_pairs_tell_the_same_of_an_ad(log):
  """A context's slot carries what a ranker reads of the pair, but for the group."""
  contexts, _ = contexts_of(log, 4, True)
  requests = np.arange(len(log.user))
  made = contexts.batch(requests)
  pairs = contexts.pairs.batch(requests, made.slot_ad_BS).pair_features_BCF
  wide = len(pair_features.AD_FEATURES)
  np.testing.assert_array_equal(made.slot_features_BSF[..., :wide], pairs[..., :wide])
  assert batches.SLOT_FEATURES == (*pair_features.AD_FEATURES, "neighbor_score")
  np.testing.assert_array_equal(made.user_features_BF, contexts.pairs.user_features(requests))


def test_neighbours_are_those_of_all_unless_told_otherwise(log):
  lines = build_lines(log.events, ADS)
  contexts, folds = contexts_of(log, 9, True)
  about = lines, CODES_NT, PRICE_N, contexts.popularity, folds, contexts.config
  assert RequestContexts(*about).pairs.held_out is True and RequestContexts(*about).min_depth == 0
  assert pair_features.PairFeatures(*about).held_out is True
  own, _ = contexts_of(log, 9, False)
  requests = np.arange(len(log.user))
  one, other = (x.batch(requests) for x in (contexts, own))
  assert (one.slot_ad_BS != other.slot_ad_BS).any()
  for b, (r, fold) in enumerate(zip(requests, np.array(log.user) % 3, strict=True)):
    count = {int(line.ad): log.decayed(r, line.ad) for line in log.slots(r, 9)}
    score = np.zeros(ADS)
    for ad, c in count.items():
      for near, cosine in zip(folds.ids[fold, ad], folds.cosine[fold, ad], strict=True):
        if near >= 0 and near not in count:
          score[near] += c * cosine
    best = np.sort(score[score > 0])[::-1][:3]
    np.testing.assert_allclose(other.slot_features_BSF[b, 9:12, -1][: len(best)], best, rtol=2e-3)
    assert (other.slot_kind_BS[b, 9:12] == batches.NEIGHBOR).sum() == len(best)


def test_a_log_of_one_line_tells_nothing_of_any_pair():
  log = Log()
  names = ("user", "request", "ad", "time", "behavior", "value", "quantity", "split")
  log.events = dataclasses.replace(
    log.events, **{name: getattr(log.events, name)[:1] for name in names}
  )
  contexts, _ = contexts_of(log, 3, True)
  found = contexts.pairs.batch(np.array([0]), np.array([[0, -1, 4]])).pair_features_BCF[0]
  of_history = [name for name in pair_features.FEATURES if name not in (*trends.FEATURES, "price")]
  assert (
    not found[:, [pair_features.FEATURES.index(name) for name in of_history]].any()
    and not found[1].any()
  )
  pairs = contexts.pairs.batch(
    np.array([0]), np.array([[0, -1, 4]])
  )  # padding takes the codes of ad 0
  assert pairs.ad_codes_BCT[0].tolist() == CODES_NT[[0, 0, 4]].tolist()
  assert pairs.slot_codes_BST[0].tolist() == CODES_NT[[0, 0, 0]].tolist()
  batch = contexts.batch(np.array([0]))
  assert batch.target_ad_BM[0].tolist() == [log.events.ad[0], -1, -1] and batch.user_value_B[0] == 0
