"""Ads whose events nobody knows before test, against loops over the log."""

import dataclasses

import numpy as np
import pytest

from gr4ad_jax.builders import held_out
from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import AdTable, DataError, Dataset, Report

ADS = 15
SHARE = 0.2
TRAIN, VALID, TEST = range(3)


def make_dataset(users=24, seed=1):
  """Visits that overlap, events that come days late, users of one visit and more."""
  rng = np.random.default_rng(seed)
  rows = []
  for user in range(users):
    for visit in range(1 + user % 6):
      begin = 1000 * user + 100 * visit
      for _ in range(rng.integers(1, 5)):
        # A third of the events come after the user's next visits have begun.
        late = 0 if rng.random() < 0.7 else rng.integers(50, 450)
        rows.append((user, rng.integers(ADS), begin + late, visit))
  user, ad, time, request = map(np.array, zip(*rows, strict=True))
  log = visits.ordered_log(
    np.array([f"u{n:02d}" for n in range(users)]), user=user, ad=ad, time=time,
    behavior=rng.integers(0, 3, len(rows)), value=2.0 ** np.arange(len(rows)) % 9973,
    quantity=1 + rng.integers(0, 3, len(rows)), request=request,
  )  # fmt: skip
  text = np.array([f"ad{n}" for n in range(ADS)])
  ads = AdTable(text, text, text, text, text, text, np.ones(ADS, np.float32), np.zeros(ADS, int))
  report = Report(ADS, users, {}, {}, len(rows), dropped={"odd": 3})
  return Dataset("made", ads, log, ("click", "cart", "purchase"), report)


def visits_of(log, rows):
  """{(user, moment of the visit's first event): its events} of some rows."""
  found = {}
  for row in rows:
    about = (int(log.ad[row]), int(log.time[row]), int(log.behavior[row]), float(log.value[row]))
    key = (str(log.user_id[log.user[row]]), int(log.request[row]))
    found.setdefault(key, []).append((*about, float(log.quantity[row]), int(log.split[row])))
  return found


def test_a_share_is_drawn_and_always_the_same():
  held_N = held_out.drawn(200, 0.05)
  assert held_N.sum() == 10 and held_N.tolist() == held_out.drawn(200, 0.05).tolist()
  assert not held_out.drawn(200, 0).any() and held_out.drawn(9, 0.01).sum() == 1
  # A greater share holds the same ads out, and more.
  assert held_out.drawn(200, 0.2)[held_N].all()


def test_held_out_ads_have_events_in_visits_of_test_alone():
  dataset = make_dataset()
  log = dataset.events
  held_N = held_out.drawn(ADS, SHARE)
  split_of = {}
  for request, split in zip(log.request.tolist(), log.split.tolist(), strict=True):
    split_of.setdefault(request, split)  # that of the visit's first event
  kept = [
    e for e in range(len(log)) if split_of[int(log.request[e])] == TEST or not held_N[log.ad[e]]
  ]
  found = held_out.without(dataset, SHARE)
  left = found.events
  # The same events in the same visits, whose numbers are new.
  expected = sorted(map(sorted, visits_of(log, kept).values()))
  assert sorted(map(sorted, visits_of(left, range(len(left))).values())) == expected
  assert 0 < len(left) < len(log)
  gone_late = [
    e for e in range(len(log))
    if held_N[log.ad[e]] and split_of[int(log.request[e])] != TEST and log.split[e] == TEST
  ]  # fmt: skip
  assert gone_late and held_N[left.ad[left.split == TEST]].any()
  # In order, as every log is.
  opening = np.flatnonzero(np.append(True, np.diff(left.request) > 0))
  begin = left.time[opening]
  same_user = np.diff(left.user[opening]) == 0
  assert (np.diff(begin)[same_user] >= 0).all() and (np.diff(left.user) >= 0).all()
  assert left.request[-1] == len(opening) - 1 and set(left.user.tolist()) == set(
    range(len(left.user_id))
  )
  assert found.report.dropped == {"odd": 3, "of held-out ads": len(log) - len(left)}
  assert sum(found.report.events.values()) == len(left) and found.report.ads == ADS
  assert found.ads is dataset.ads  # what the table says of an ad is no event


def test_prices_and_dates_from_sales_do_not_tell_of_held_out_ads():
  dataset = dataclasses.replace(make_dataset(), priced_by_sales=True)
  found = held_out.without(dataset, SHARE)
  log = found.events
  held_N = held_out.drawn(ADS, SHARE)
  for ad in range(ADS):
    own = [e for e in range(len(log)) if log.ad[e] == ad and log.split[e] == TRAIN]
    if not own:
      assert np.isnan(found.ads.price[ad]) and found.ads.created[ad] == -1
    else:
      unit = np.median([log.value[e] / log.quantity[e] for e in own])
      assert found.ads.price[ad] == pytest.approx(unit, rel=1e-4)
      assert found.ads.created[ad] == min(log.time[e] for e in own)
  assert np.isnan(found.ads.price[held_N]).all() and (found.ads.created[held_N] == -1).all()


def test_new_ads_are_those_that_nobody_took_before_test():
  dataset = held_out.without(make_dataset(users=4), SHARE)
  held_N, unsold_N = held_out.new_ads(dataset, SHARE)
  log = dataset.events
  test_visits = {int(r) for r, s in zip(log.request, log.split, strict=True) if s == TEST}
  before = {
    int(ad)
    for ad, request in zip(log.ad, log.request, strict=True)
    if int(request) not in test_visits
    or log.split[np.flatnonzero(log.request == request)[0]] != TEST
  }
  assert held_N.tolist() == held_out.drawn(ADS, SHARE).tolist()
  assert [n for n in range(ADS) if unsold_N[n]] == [
    n for n in range(ADS) if n not in before and not held_N[n]
  ]
  assert unsold_N.any()
  assert held_out.known_ads(dataset, SHARE).tolist() == (~held_N & ~unsold_N).tolist()
  assert held_out.known_ads(dataset, 0).all()


def test_a_log_of_held_out_ads_alone_is_refused():
  dataset = make_dataset()
  held = np.flatnonzero(held_out.drawn(ADS, SHARE))
  ad = np.full(len(dataset.events), held[0], np.int32)
  alone = dataclasses.replace(dataset, events=dataclasses.replace(dataset.events, ad=ad))
  with pytest.raises(DataError, match="--held_out_ads=0.2 is not allowed: made has no other event"):
    held_out.without(alone, SHARE)
