import numpy as np
import pytest

from gr4ad_jax.evaluation import calibration, metrics, protocols
from tests.evaluation import loops


def test_requests_join_the_lines_of_an_ad_and_clip_their_value(shop):
  requests = protocols.eval_requests(shop, "test")
  np.testing.assert_array_equal(requests.request, [3, 6])
  np.testing.assert_array_equal(requests.user, [0, 1])
  np.testing.assert_array_equal(requests.target_start, [0, 2, 3])
  np.testing.assert_array_equal(requests.target_ad, [0, 3, 2])
  clip = np.percentile([6, 5, 8], 99)
  np.testing.assert_allclose(requests.target_value, [6, 5, clip], rtol=1e-6)
  assert clip < 8


def test_target_behavior_sets_the_shallowest_hit(make_dataset):
  rows = [
    (0, 0, 1, 0, "train", 0),
    (0, 1, 0, 0, "test", 0),
    (0, 1, 1, 2, "test", 1),
    (0, 1, 2, 3, "test", 2),
  ]
  rows += [(1, 2, 0, 0, "test", 0)]
  log = make_dataset(rows, 3, "ad_log", ("click", "cart", "purchase"))
  np.testing.assert_array_equal(protocols.eval_requests(log, "test").request, [1, 2])
  carts = protocols.eval_requests(log, "test", "cart")
  np.testing.assert_array_equal(carts.request, [1])  # the visit with clicks alone has no target
  np.testing.assert_array_equal(carts.target_ad, [1, 2])
  with pytest.raises(ValueError, match="'view' is unknown; allowed: click, cart, purchase"):
    protocols.eval_requests(log, "test", "view")
  with pytest.raises(ValueError, match="no event of behaviour"):
    protocols.eval_requests(log, "valid")


def test_history_of_test_holds_valid_and_history_of_valid_does_not(shop):
  test, valid = (protocols.history_events(shop, split) for split in ("test", "valid"))
  np.testing.assert_array_equal(np.unique(shop.events.request[test]), [0, 1, 2, 4, 5, 7])
  np.testing.assert_array_equal(np.unique(shop.events.request[valid]), [0, 1, 4, 7])
  with pytest.raises(ValueError, match="'train' is unknown here; allowed: valid, test"):
    protocols.history_events(shop, "train")


def test_take_keeps_rows_whole(shop):
  requests = protocols.eval_requests(shop, "test")
  swapped = requests.take([1, 0])
  np.testing.assert_array_equal(swapped.request, [6, 3])
  np.testing.assert_array_equal(swapped.target_start, [0, 1, 3])
  np.testing.assert_array_equal(swapped.target_ad, [2, 0, 3])
  np.testing.assert_array_equal(swapped.target_value, requests.target_value[[2, 0, 1]])
  assert len(requests.take(np.array([], int))) == 0


KS = {"online_retail": (10, 50), "ad_log": (10, 50), "amazon_reviews": (5, 10)}


@pytest.mark.parametrize(("name", "ks"), KS.items())
def test_each_data_set_has_a_protocol_that_speaks_of_seen_ads(name, ks):
  protocol = protocols.protocol_of(name)
  assert protocol.ks == ks
  assert "ads seen before are left" in protocol.text


def test_unknown_data_set():
  with pytest.raises(
    ValueError, match="allowed: online_retail, complete_journey, amazon_reviews, ad_log"
  ):
    protocols.protocol_of("movies")


@pytest.mark.parametrize("behavior", ["", "click", "cart", "purchase"])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_requests_equal_a_loop_over_the_events(bazaar, split, behavior):
  depth = ("click", "cart", "purchase").index(behavior) if behavior else 0
  expected = loops.baskets(bazaar, split, depth)
  found = protocols.eval_requests(bazaar, split, behavior)
  assert (
    found.split == split
    and found.request.tolist() == list(expected)
    and len(found) == len(expected)
  )
  assert found.user.tolist() == [user for user, _ in expected.values()]
  for r, (_, basket) in enumerate(expected.values()):
    own = slice(found.target_start[r], found.target_start[r + 1])
    assert found.target_ad[own].tolist() == sorted(basket)
    assert found.target_value[own].tolist() == pytest.approx(
      [basket[ad] for ad in sorted(basket)], rel=1e-6
    )
    assert (found.target_row[own] == r).all()
  assert found.target_start[-1] == len(found.target_ad) == len(found.target_row)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_history_is_counted_in_lines_not_in_events(bazaar, split):
  found = protocols.line_counts(bazaar, split)
  history = loops.history(bazaar, split)
  assert found.tolist() == [sum(ad == n for _, _, ad in history) for n in range(len(bazaar.ads))]
  assert (
    found.sum() < protocols.history_events(bazaar, split).sum()
  )  # an ad of two events in a visit counts once
  with pytest.raises(ValueError, match="'train' is unknown here; allowed: valid, test"):
    protocols.line_counts(bazaar, "train")


def test_take_repeats_and_leaves_out(bazaar):
  requests = protocols.eval_requests(bazaar, "test")
  rows = [3, 0, 3, 5]
  found = requests.take(rows)
  assert (found.split, found.request.tolist(), found.user.tolist()) == (
    "test", requests.request[rows].tolist(), requests.user[rows].tolist()
  )  # fmt: skip
  for r, row in enumerate(rows):
    own = slice(found.target_start[r], found.target_start[r + 1])
    of_row = slice(requests.target_start[row], requests.target_start[row + 1])
    np.testing.assert_array_equal(found.target_ad[own], requests.target_ad[of_row])
    np.testing.assert_array_equal(found.target_value[own], requests.target_value[of_row])
  assert found.target_start[-1] == len(found.target_ad) == len(found.target_value)


def test_what_several_systems_share_cannot_be_changed():
  for kind in (
    protocols.Protocol,
    protocols.EvalRequests,
    metrics.Ratio,
    metrics.Interval,
    calibration.Calibration,
  ):
    assert kind.__dataclass_params__.frozen


def test_requests_of_some_users_are_spread_over_all(bazaar):
  requests = protocols.eval_requests(bazaar, "test")
  everyone = np.unique(requests.user).tolist()
  some = requests.of_users(3)
  users = set(some.user.tolist())
  assert len(users) == 3 < len(everyone) and {everyone[0], everyone[-1]} < users
  rows = [row for row, user in enumerate(requests.user.tolist()) if user in users]
  for found, wanted in ((some, requests.take(rows)), (requests.of_users(10**6), requests)):
    np.testing.assert_array_equal(found.request, wanted.request)
    np.testing.assert_array_equal(found.target_start, wanted.target_start)
    np.testing.assert_array_equal(found.target_ad, wanted.target_ad)
