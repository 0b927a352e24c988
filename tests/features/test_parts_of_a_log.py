"""A part of the users gives what the whole log gives: the same bits, whoever else is in it."""

import dataclasses

import numpy as np

from gr4ad_jax.config import DataConfig
from gr4ad_jax.data import visits
from gr4ad_jax.features.batches import RequestContexts, assembled
from gr4ad_jax.features.lines import build_lines, running_sums
from gr4ad_jax.features.neighbors import NeighborFolds
from gr4ad_jax.features.trends import Trends
from tests.features import logs

CONFIG = DataConfig(history_slots=5, neighbor_slots=3, rising_slots=2, targets=3)
CODES = np.random.default_rng(0).integers(0, 4, (logs.ADS, 3)).astype(np.int32)


def test_money_that_no_sum_holds_exactly_is_the_same_in_a_part_of_the_users():
  """Values of .1 and 1e7 side by side: a sum over all users would round each user's otherwise."""
  log = logs.make_log(3, users=8)
  rng = np.random.default_rng(1)
  value = np.where(log.value > 0, 10.0 ** rng.uniform(-3, 7, len(log)), 0).astype(np.float32)
  log = dataclasses.replace(log, value=value)
  price = rng.uniform(0.01, 90, logs.ADS).astype(np.float32)
  whole = build_lines(log, logs.ADS)
  trends = Trends.fit(whole, logs.ADS)
  near = NeighborFolds.fit(
    whole.request, whole.request_user[whole.request], whole.ad, logs.ADS, folds=2
  )
  about = CODES, price, trends, near, CONFIG, 0, False
  wanted = RequestContexts(whole, *about)
  late = log.user >= 5
  columns = {
    f.name: getattr(log, f.name)[late] for f in dataclasses.fields(log) if f.name != "user_id"
  }
  request = visits.renumbered(columns["user"], columns["request"])
  part = build_lines(dataclasses.replace(log, **columns | {"request": request}), logs.ADS)
  found = RequestContexts(part, *about)
  first = int(log.request[late][0])
  number = len(part.request_time)
  assert first > 10 and number > 5
  known, other = found.known(np.arange(number)), wanted.known(first + np.arange(number))
  for name, one, two in zip(known._fields, known, other, strict=True):
    np.testing.assert_array_equal(one, two, err_msg=name)
  batch = wanted.batch(first + np.arange(number), draw=2)
  follow = wanted.followed(first + np.arange(number))  # outcomes are numbered over the whole log
  again = assembled(known, follow, CODES, CONFIG, 2)
  for name, one, two in zip(batch._fields, batch, again, strict=True):
    np.testing.assert_array_equal(one, two, err_msg=name)


def test_running_sums_of_long_groups_are_those_of_short_ones():
  """Few long groups and many short ones go two ways; both add one after another."""
  rng = np.random.default_rng(0)
  for sizes in ([1, 40, 3], [2] * 30 + [5], [], [1]):
    group = np.repeat(np.arange(len(sizes)), sizes)
    value = 10.0 ** rng.uniform(-6, 6, len(group))
    total, wanted = 0.0, []
    for row, (one, of) in enumerate(zip(value.tolist(), group.tolist(), strict=True)):
      total = one if row == 0 or group[row - 1] != of else total + one
      wanted.append(total)
    assert running_sums(value, group).tolist() == wanted
