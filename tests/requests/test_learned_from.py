"""What a run learns from, and what it may know of each split, against loops over the log."""

import dataclasses
import types

import numpy as np
import pytest

from gr4ad_jax.config import Config, DataConfig, ModelConfig, TrainConfig
from gr4ad_jax.data import visits
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.data.schema import DAY, AdTable, Dataset
from gr4ad_jax.features.neighbors import NeighborFolds
from gr4ad_jax.requests import inputs as inputs_lib
from tests.features import logs
from tests.training.loops import Told

TRAIN, VALID, TEST = range(3)
LEARNED = {  # by --fit_splits
  "train": {TRAIN},
  "train+valid": {TRAIN, VALID},
  "train+valid+test": {TRAIN, VALID, TEST},
}
SLOTS = 3


def config_of(**training):
  slots = {"history_slots": SLOTS, "neighbor_slots": 2, "rising_slots": 1}
  data = DataConfig(targets=2, neighbor_folds=2, **slots)
  return Config(data=data, model=ModelConfig(ecpm_bins=4), training=TrainConfig(**training))


@pytest.fixture
def prepare(monkeypatch):
  """Inputs of a log; codes are of no interest here."""

  def prepared(events, **training):
    text = np.array([f"ad{n}" for n in range(logs.ADS)])
    price = np.ones(logs.ADS, np.float32)
    ads = AdTable(text, text, text, text, text, text, price, price.astype(np.int64))
    index = types.SimpleNamespace(codes_NT=np.zeros((logs.ADS, 2), np.int32))
    dataset = Dataset("made", ads, events, ("click", "cart", "purchase"))
    monkeypatch.setattr(inputs_lib, "load_dataset", lambda _: dataset)
    monkeypatch.setattr(inputs_lib, "tokenizer_of", lambda *_: (None, index))
    config = config_of(**training)
    return inputs_lib.prepare_inputs(config), config

  return prepared


@pytest.fixture(scope="module")
def told():
  """A log of values that all differ in train; an event of valid has a million, of test two."""
  events = logs.make_log(seed=5, users=9)
  value_E = 1 + np.random.default_rng(0).permutation(len(events))
  value_E = np.where(events.split == TRAIN, value_E, 1e6 * events.split).astype(np.float32)
  return Told(dataclasses.replace(events, value=value_E))


@pytest.mark.parametrize("fit_splits", LEARNED)
def test_neighbors_and_money_are_fitted_on_what_is_learned_from_alone(prepare, told, fit_splits):
  inputs, _ = prepare(told.events, fit_splits=fit_splits)
  some = [line for line in told.lines if told.split[line.request] in LEARNED[fit_splits]]
  request_L, ad_L = (np.array([getattr(line, name) for line in some]) for name in ("request", "ad"))
  user_L = np.array([told.user[line.request] for line in some])
  neighbors = NeighborFolds.fit(request_L, user_L, ad_L, logs.ADS, 2)
  ecpm = EcpmBins.fit(np.array([line.value for line in some], np.float32), 4)
  np.testing.assert_array_equal(inputs.neighbors.ids, neighbors.ids)
  np.testing.assert_array_equal(inputs.neighbors.cosine, neighbors.cosine)
  np.testing.assert_array_equal(inputs.ecpm.edges, ecpm.edges)
  np.testing.assert_array_equal(inputs.ecpm.means, ecpm.means)
  assert inputs.ecpm.clip == ecpm.clip
  # A line of valid is worth a million or more for each of its events, one of train far less.
  assert (inputs.ecpm.clip >= 1e6) == (fit_splits != "train")


@pytest.mark.parametrize(
  ("fit_splits", "split", "held_out", "shown"),
  [
    ("train", "train", False, {TRAIN}),
    ("train", "valid", True, {TRAIN}),
    ("train", "test", True, {TRAIN, VALID}),
    ("train+valid", "train", False, {TRAIN, VALID}),
    ("train+valid", "valid", False, {TRAIN, VALID}),
    ("train+valid", "test", True, {TRAIN, VALID}),
  ],
)
def test_what_the_requests_of_a_split_may_know(prepare, told, fit_splits, split, held_out, shown):
  inputs, config = prepare(told.events, fit_splits=fit_splits)
  contexts = inputs.contexts(config, split)
  # Requests that neighbours were fitted on must not see those that their own visits made.
  assert contexts.pairs.held_out is held_out
  sold = [(told.time[x.request] // DAY, x.ad) for x in told.lines if told.split[x.request] in shown]
  first, last = min(sold)[0], max(sold)[0]
  seen = np.zeros((last - first + 2, logs.ADS))
  for day, ad in sold:
    seen[day - first + 1 :, ad] += 1  # row b counts the days before b
  found = contexts.popularity.seen_before(np.arange(last - first + 2))
  np.testing.assert_array_equal(found, seen)


@pytest.mark.parametrize("fit_splits", LEARNED)
@pytest.mark.parametrize("period", [(0.0, 1.0), (0.25, 0.7), (0.0, 0.5)])
def test_requests_are_learned_from_by_split_and_period(prepare, told, fit_splits, period):
  inputs, config = prepare(told.events, fit_splits=fit_splits, period=period)
  fitted = [r for r in range(len(told.user)) if told.split[r] in LEARNED[fit_splits]]
  by_time = sorted(fitted, key=lambda r: (told.time[r], r))
  inside = by_time[round(period[0] * len(fitted)) : round(period[1] * len(fitted))]
  assert 0 < len(inside) and (len(inside) < len(fitted)) == (period != (0.0, 1.0))
  found = inputs_lib.learned_requests(inputs.lines, config)
  assert found.tolist() == sorted(inside)
  if period == (0.0, 1.0):
    assert set(inputs.lines.request_split[found].tolist()) == LEARNED[fit_splits]
  assert inputs.learned(config).tolist() == sorted(inside)
  timed = config_of(fit_splits=fit_splits, period=period, data_order="time")
  assert inputs.learned(timed).tolist() == inside
  assert inside != sorted(inside)  # else the orders would be one


@pytest.mark.parametrize(
  ("fit_splits", "expected"),
  [("train", [0, 3, 6, 9, 12, 15, 18]), ("train+valid", [0, 1, 4, 7, 10, 13, 16, 19])],
)
@pytest.mark.parametrize("data_order", ["shuffled", "time"])
def test_an_epoch_of_users_is_each_users_last_request_and_those_a_history_before_it(
  prepare, fit_splits, expected, data_order
):
  """Users of 1, S, S + 1 and 2S + 1 training visits; all but the first have two held-out more."""
  visits_U = [1, SLOTS + 2, SLOTS + 3, 2 * SLOTS + 3]
  rows = [(user, visit) for user, number in enumerate(visits_U) for visit in range(number)]
  user, visit = np.array(rows).T
  time = logs.START + DAY * visit - 60 * user  # the users' visits alternate
  zero = np.zeros(len(rows))
  columns = {"user": user, "ad": (user + visit) % logs.ADS, "time": time, "request": visit}
  columns |= {"behavior": zero, "value": zero, "quantity": zero}
  events = visits.ordered_log(np.array(["a", "b", "c", "d"]), **columns)
  inputs, config = prepare(events, fit_splits=fit_splits, examples="users", data_order=data_order)
  assert inputs.examples(config).tolist() == expected
