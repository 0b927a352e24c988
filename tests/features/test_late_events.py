"""Events that come late: nothing knows of them before they happen, and targets follow requests."""

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gr4ad_jax.builders.prepare import load_dataset
from gr4ad_jax.config import DataConfig
from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import DAY, AdTable, Dataset
from gr4ad_jax.evaluation import parts, protocols
from gr4ad_jax.features import history
from gr4ad_jax.features.batches import NEIGHBOR, RequestContexts
from gr4ad_jax.features.lines import build_lines
from gr4ad_jax.features.neighbors import CoVisitNeighbors, NeighborFolds
from gr4ad_jax.features.trends import FEATURES, Trends
from tests import tiny
from tests.features.happenings import ADS, EVENTS, log_of, told

MARCH = 19_782 * DAY  # midnight before 1 March 2024
MUG, CUP, PAN, POT = range(4)
CODES = np.arange(12, dtype=np.int32).reshape(4, 3)
CONFIG = DataConfig(history_slots=4, neighbor_slots=2, rising_slots=2, targets=3)
CONTEXT = ("slot_kind_BS", "slot_ad_BS", "slot_features_BSF", "user_features_BF", "user_value_B")


def day(number):
  """Noon of a day of March."""
  return MARCH + (number - 1) * DAY + DAY // 2


# A click on the mug on 1 March brings a purchase of 30 on the 9th, and one of a pan. The user's
# other requests are of the 3rd and the 12th.
LATE = (
  (0, MUG, day(1), 0, 0.0, 1),
  (0, MUG, day(9), 2, 30.0, 1),
  (0, PAN, day(9), 2, 8.0, 1),
  (1, CUP, day(3), 1, 0.0, 1),
  (2, CUP, day(12), 2, 5.0, 1),
)


def shop(rows=LATE, others=()):
  """A log of one user's rows (visit, ad, time, depth, value, quantity), and of other users'."""
  all_rows = [(0, *row) for row in rows] + [(1 + row[0], *row) for row in others]
  user, visit, ad, time, depth, value, quantity = zip(*all_rows, strict=True)
  return visits.ordered_log(
    np.array([f"u{n}" for n in range(max(user) + 1)]),
    user=np.array(user),
    request=np.array(visit),
    ad=np.array(ad),
    time=np.array(time),
    behavior=np.array(depth),
    value=np.array(value),
    quantity=np.array(quantity),
  )


def contexts_of(events, near=None):
  lines = build_lines(events, 4)
  none = CoVisitNeighbors(np.full((4, 2), -1, np.int32), np.zeros((4, 2), np.float32))
  near = NeighborFolds.of(near or none)
  price = np.full(4, 2, np.float32)
  return RequestContexts(lines, CODES, price, Trends.fit(lines, 4), near, CONFIG)


def known(contexts, request):
  """Ads of a request's history, each with its features by name."""
  here = np.array([request])
  rows = history.history_rows(contexts.lines, here, 4)
  features = history.history_features(contexts.lines, here, rows)[0]
  ads = history.ads_of(contexts.lines, rows)[0]
  return {
    int(ad): dict(zip(history.FEATURES, row.tolist(), strict=True))
    for ad, row in zip(ads, features, strict=True)
    if ad >= 0
  }


def test_a_late_purchase_is_no_history_before_it_happens():
  contexts = contexts_of(shop())
  third, twelfth = known(contexts, 1), known(contexts, 2)
  assert list(third) == [MUG] and third[MUG]["depth"] == 0 and third[MUG]["total_value"] == 0
  assert list(twelfth) == [CUP, MUG, PAN]  # in order of the last time
  assert twelfth[MUG]["depth"] == 2
  assert twelfth[MUG]["last_value"] == pytest.approx(np.log1p(30))
  assert twelfth[MUG]["gap_days"] == pytest.approx(np.log1p(3) / 2)
  batch = contexts.batch(np.array([1, 2]))
  np.testing.assert_allclose(batch.user_value_B, [0, 38 / 2], rtol=1e-5)


def test_a_request_does_not_change_by_what_comes_later():
  """The whole batch, but for its targets, is that of a log which ends at the request's moment."""
  events = shop()
  early = visits.until(events, np.array([day(3)]))
  assert len(early) == 2
  one, other = (contexts_of(log).batch(np.array([1])) for log in (events, early))
  for name in CONTEXT:
    np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_a_late_purchase_is_not_popular_before_it_happens():
  popularity = contexts_of(shop()).popularity
  value, share = FEATURES.index("mean_value"), FEATURES.index("share_28")
  days = np.array([day(3), day(9), day(10)])
  found = popularity.features(days, np.full((3, 1), MUG))[:, 0]
  assert found[0, value] == found[1, value] == 0  # its own day does not count either
  assert found[2, value] > 0 and found[2, share] > found[1, share]
  assert popularity.lately(days)[:, PAN].tolist() == [0, 0, 1]


def test_a_line_of_many_days_counts_each_day_at_its_own():
  """A cart on the 4th, a purchase of its ad on the 6th and a return on the 8th, in one line."""
  rows = ((0, MUG, day(1), 0, 0.0, 1), (0, CUP, day(4), 1, 0.0, 1), (0, CUP, day(6), 2, 8.0, 1))
  popularity = Trends.fit(build_lines(shop((*rows, (0, CUP, day(8), 2, -8.0, -1))), 4), 4)
  found = popularity.features(np.array([day(n) for n in (4, 5, 7, 9)]), np.full((4, 1), CUP))[:, 0]
  column = dict(zip(FEATURES, found.T, strict=True))
  mean = 4 * np.log(9) / 2  # the prior's: four times the mean of the two lines
  expected = [0, 0, (np.log(9) + mean) / 5, 0]
  np.testing.assert_allclose(column["mean_value"], expected, atol=1e-6)
  assert popularity.lately(np.array([day(9)]))[0].tolist() == [1, 1, 0, 0]
  np.testing.assert_allclose(column["days_unsold"][1:], np.log1p([0, 2, 4]), atol=1e-6)


def test_a_late_purchase_has_no_neighbours_before_it_happens():
  """The pot stands near the pan alone; the pan is bought under the first visit, on the 9th."""
  near = CoVisitNeighbors(
    np.array([[-1, -1], [-1, -1], [POT, -1], [PAN, -1]], np.int32),
    np.array([[0, 0], [0, 0], [0.5, 0], [0.5, 0]], np.float32),
  )
  batch = contexts_of(shop(), near).batch(np.array([1, 2]))
  found = [
    set(ads[kinds == NEIGHBOR].tolist())
    for ads, kinds in zip(batch.slot_ad_BS, batch.slot_kind_BS, strict=True)
  ]
  assert found == [set(), {POT}]


def test_neighbours_are_not_fitted_on_what_happened_after_the_held_out_request():
  """The first visit is learned from, but its purchase of the pan came after the valid request."""
  lines = build_lines(shop(), 4)
  assert lines.request_split.tolist() == [0, 1, 2]
  learned = lines.request_split[lines.request] == 0
  assert lines.ad[learned].tolist() == [MUG]
  fitted = NeighborFolds.fit(
    lines.request[learned], lines.request[learned], lines.ad[learned], 4, 0
  )
  assert (fitted.ids == -1).all()


def test_events_are_of_the_split_in_which_they_happened():
  """What is fitted on training events, codes say, must not know a purchase of the valid period."""
  events = shop()
  assert events.split.tolist() == [0, 1, 1, 1, 2]
  assert visits.split_of_requests(events).tolist() == [0, 0, 0, 1, 2]


@pytest.mark.parametrize(
  ("days", "mug", "ads"), [(30.0, (2, 30.0), {MUG, PAN}), (8.0, (2, 30.0), {MUG, PAN}),
                           (7.9, (0, 0.0), {MUG}), (0.0, (0, 0.0), {MUG})],
)  # fmt: skip
def test_targets_are_what_followed_within_the_window(days, mug, ads):
  events = shop()
  outcomes = build_lines(events, 4, days).outcomes
  first = {
    int(ad): (int(depth), float(value))
    for request, ad, depth, value in zip(
      outcomes.request, outcomes.ad, outcomes.depth, outcomes.value, strict=True
    )
    if request == 0
  }
  assert set(first) == ads and first[MUG] == mug
  assert outcomes.first.tolist() == [0, len(ads), len(ads) + 1, len(ads) + 2]
  table = AdTable(*(np.array(["x"] * 4, object) for _ in range(6)), np.zeros(4), np.zeros(4))
  dataset = Dataset("log", table, events, ("click", "cart", "purchase"), None, days)
  judged = protocols.eval_requests(dataset, "train")
  assert judged.request.tolist() == [0] and set(judged.target_ad.tolist()) == ads


def test_what_counts_as_seen_had_happened():
  """The targets of the request of the 3rd are judged as new or taken before as of the 3rd."""
  rows = (*LATE[:4], (1, PAN, day(3), 2, 2.0, 1), *LATE[4:])
  table = AdTable(*(np.array(["x"] * 4, object) for _ in range(6)), np.zeros(4), np.zeros(4))
  dataset = Dataset("log", table, shop(rows), ("click", "cart", "purchase"))
  for split, seen in (("valid", {MUG}), ("test", {MUG, PAN, CUP})):
    requests = protocols.eval_requests(dataset, split)
    found = parts.seen_before(dataset, requests)
    assert set(found.row_E.tolist()) == seen


def test_a_log_with_late_events_is_stored_and_read_back(tmp_path):
  """Prepared data lie by split: an event that came late is stored where it happened."""
  rows = [("u", f"ad{ad}", time, ("click", "cart", "purchase")[depth], value, visit)
          for visit, ad, time, depth, value, _ in LATE]  # fmt: skip
  tiny.write_csv(tmp_path / "events.csv", tiny.EVENT_HEADER, rows)
  ads = [(f"ad{ad}", "a thing", "shop", 2) for ad in range(4)]
  tiny.write_csv(tmp_path / "ads.csv", tiny.AD_HEADER, ads)
  config = DataConfig(
    dataset="ad_log",
    ads_path=str(tmp_path / "ads.csv"),
    events_path=str(tmp_path / "events.csv"),
    data_dir=str(tmp_path / "data"),
    attribution_days=8.5,
  )
  found = load_dataset(config)
  assert found.attribution_days == 8.5
  for name in ("request", "ad", "time", "behavior", "value", "split"):
    expected = getattr(shop(), name)
    np.testing.assert_array_equal(getattr(found.events, name), expected, err_msg=name)


def test_the_window_changes_no_history():
  one, other = (build_lines(shop(), 4, days) for days in (0.0, 30.0))
  for field in dataclasses.fields(one):
    if field.name not in ("outcomes", "steps"):
      np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_what_was_only_given_back_is_no_target():
  events = shop((*LATE[:1], (1, CUP, day(3), 2, -5.0, -1), (1, PAN, day(3), 2, 5.0, 1)))
  outcomes = build_lines(events, 4).outcomes
  assert outcomes.ad.tolist() == [MUG, PAN]
  assert outcomes.of(np.array([1]), np.array([[CUP, PAN, -1]])).tolist() == [[-1, 1, -1]]
  dataset = Dataset("log", np.zeros(4), events, ("click", "cart", "purchase"))
  assert protocols.eval_requests(dataset, "train").target_ad.tolist() == [MUG, PAN]


@settings(max_examples=30, deadline=None)
@given(EVENTS)
@example(
  [(0, 0, 1, 2, 0, 0, 1), (0, 1, 2, 4, 1, 3, 1), (0, 0, 1, 9, 2, 20, 1), (0, 2, 1, 9, 0, 0, 1)]
)
def test_all_at_once_equals_event_by_event(events):
  log = log_of(events)
  lines = build_lines(log, ADS)
  requests = np.arange(len(lines.request_time))
  rows = history.history_rows(lines, requests, ADS)
  slots = history.history_features(lines, requests, rows)
  users = history.user_features(lines, requests)

  def opened(request, person, time):
    found = history.ads_of(lines, rows)[request]
    expected = person.history()
    assert found[found >= 0].tolist() == list(expected)
    for s, of_ad in enumerate(expected.values()):
      by_name = person.ad_features(of_ad, time)
      assert set(by_name) == set(history.FEATURES)
      for name, value in by_name.items():
        one = slots[request, s, history.FEATURES.index(name)]
        assert one == pytest.approx(value, rel=1e-5, abs=1e-6), name
    for name, value in person.user_features(time).items():
      one = users[request, history.USER_FEATURES.index(name)]
      assert one == pytest.approx(value, rel=1e-5, abs=1e-6), name

  told(log, opened)


@settings(max_examples=30, deadline=None)
@given(EVENTS, st.integers(0, 45))
def test_popularity_equals_a_count_of_the_events_of_earlier_days(events, at):
  """Lines, repeats and log(1 + value), each event on its own day, from the log cut at midnight."""
  log = log_of(events)
  now = (19_000 + at // 2) * DAY
  found = Trends.fit(build_lines(log, ADS), ADS)
  seen = np.zeros(ADS)
  repeats = np.zeros(ADS)
  value = np.zeros(ADS)
  early = dataclasses.replace(
    log, **{f.name: getattr(log, f.name)[log.time < now] for f in dataclasses.fields(log)[1:]}
  )
  if len(early):
    for person in told(early, lambda *_: None).values():
      for ad, lines in person.history().items():
        seen[ad] += len(lines)
        repeats[ad] += len(lines) - 1
        value[ad] += sum(np.log1p(max(line.value, 0)) for line in lines)
  cells = (found.bucket < (now - found.origin) // DAY) if len(found.ad) else []
  for name, expected in (("seen", seen), ("repeats", repeats), ("units", value)):
    column = np.zeros(ADS)
    for ad, total in zip(found.ad[cells], getattr(found, name)[cells], strict=True):
      column[ad] = total / (2**34 if name == "units" else 1)
    np.testing.assert_allclose(column, expected, rtol=1e-6, atol=1e-7, err_msg=name)
