"""Rewards: what each name means, a user's own function, exposure, and one-line errors."""

import numpy as np
import pytest

from gr4ad_jax.config import ConfigError, DataConfig, PreferenceConfig
from gr4ad_jax.data.schema import AdTable, DataError
from gr4ad_jax.features.batches import RequestContexts
from gr4ad_jax.features.lines import build_lines
from gr4ad_jax.features.neighbors import CoVisitNeighbors, NeighborFolds
from gr4ad_jax.features.trends import Trends
from gr4ad_jax.value.rewards import Rewarder
from tests.features import logs
from tests.training.loops import Told


class Model:
  """p = .1 x ad, E[value] = 10."""

  def estimate(self, requests_B, ads_BC):
    class Found:
      purchase_BC = (0.1 * np.maximum(ads_BC, 0)).astype(np.float32)
      value_BC = np.full(ads_BC.shape, 10, np.float32)

    return Found


@pytest.fixture(scope="module")
def told():
  return Told(logs.make_log(seed=3, users=12, days=40))  # far longer than four weeks


@pytest.fixture(scope="module")
def contexts(told):
  lines = build_lines(told.events, logs.ADS)
  codes_NT = np.zeros((logs.ADS, 2), np.int32)
  neighbors = NeighborFolds.of(CoVisitNeighbors.fit(lines.request, lines.ad, logs.ADS))
  data = DataConfig(history_slots=6, neighbor_slots=3, rising_slots=2, targets=3)
  return RequestContexts(
    lines, codes_NT, np.ones(logs.ADS, np.float32), Trends.fit(lines, logs.ADS), neighbors, data
  )


@pytest.fixture(scope="module")
def ads():
  text = np.array([f"ad{n}" for n in range(logs.ADS)])
  account = np.array([f"shop{n % 3}" for n in range(logs.ADS)])
  number = np.zeros(logs.ADS, np.float32)
  return AdTable(text, text, account, text, text, text, number, number.astype(np.int64))


REQUESTS, ADS_BC = np.array([5, 9]), np.array([[1, 2, -1], [8, 0, 3]])
LOGP_BC = np.log(np.array([[0.4, 0.1, 0.1], [0.2, 0.3, 0.5]], np.float32))


def reward(contexts, ads, model=None, **settings):
  return Rewarder(PreferenceConfig(**settings), contexts, ads, model)(REQUESTS, ADS_BC, LOGP_BC)


def doubled(columns):
  return 2 * columns.purchase_BC * columns.value_BC


def lopsided(columns):
  return columns.value_BC[:, :1]


def worded(columns):
  return np.full(columns.ad_BC.shape, "much")


def hopeless(columns):
  return np.where(columns.ad_BC == 8, np.nan, columns.value_BC)


def boundless(columns):
  return np.where(columns.ad_BC == 3, -1e300, columns.value_BC.astype(np.float64))


def edge(columns):
  return np.where(columns.ad_BC == 2, -1e15, np.where(columns.ad_BC == 3, 1e15, 0))


def test_value_exponent_bends_the_value_alone(contexts, ads):
  straight, bent = (reward(contexts, ads, Model(), value_exponent=power) for power in (1.0, 0.5))
  np.testing.assert_allclose(bent, straight / np.sqrt(10), rtol=1e-6)


def test_the_prior_is_the_references_share_of_the_probability(contexts, ads):
  half = reward(contexts, ads, Model(), reward_prior=0.5)
  np.testing.assert_allclose(
    half, 10 * np.sqrt([[0.1 * 0.4, 0.2 * 0.1, 0], [0.8 * 0.2, 0, 0.3 * 0.5]]), rtol=1e-5
  )
  with pytest.raises(
    ConfigError, match="--reward_prior=0.5 is not allowed: --reward=logged has no"
  ):
    reward(contexts, ads, reward="logged", reward_prior=0.5)


def test_revenue_is_probability_times_value_and_padding_is_nothing(contexts, ads):
  np.testing.assert_allclose(reward(contexts, ads, Model()), [[1, 2, 0], [8, 0, 3]], rtol=1e-6)


def test_power_and_a_users_own_function(contexts, ads):
  own = f"{__name__}:doubled"
  np.testing.assert_allclose(
    reward(contexts, ads, Model(), reward=own, reward_power=2.0), [[4, 16, 0], [256, 0, 36]]
  )


def paid(told, request):
  """What a request paid for each of its ads."""
  return {line.ad: line.value for line in told.own(request)}


def test_logged_reward_is_what_the_request_paid(contexts, ads, told):
  rows = zip(REQUESTS, ADS_BC.tolist(), strict=True)
  expected = [[paid(told, request).get(ad, 0) for ad in row] for request, row in rows]
  everything = Rewarder(PreferenceConfig(reward="logged"), contexts, ads, None)
  np.testing.assert_allclose(everything(REQUESTS, ADS_BC, LOGP_BC), expected)
  bought = next(line for line in told.lines if line.value)
  alone = everything(np.array([bought.request]), np.array([[bought.ad]]), LOGP_BC[:1, :1])
  np.testing.assert_allclose(alone, [[bought.value]], rtol=1e-6)


def test_columns_without_a_model_are_what_the_log_says(contexts, ads, told):
  requests = np.arange(len(told.user))
  ad_BC = np.tile(np.arange(logs.ADS), (len(requests), 1))
  rewarder = Rewarder(PreferenceConfig(), contexts, ads, None)
  found = rewarder.columns(requests, ad_BC, np.zeros(ad_BC.shape))
  np.testing.assert_array_equal(found.request_B, requests)
  np.testing.assert_array_equal(found.ad_BC, ad_BC)
  kinds = set()
  for r in requests:
    known = paid(told, r)
    kinds |= {amount > 0 for amount in known.values()}
    value_N = np.array([known.get(ad, 0.0) for ad in range(logs.ADS)])
    np.testing.assert_allclose(found.logged_BC[r], value_N, rtol=1e-6)
    np.testing.assert_allclose(found.value_BC[r], value_N, rtol=1e-6)
    np.testing.assert_array_equal(found.purchase_BC[r], np.where(value_N > 0, 1, 0))
    share_N = [told.repeat_share(r, ad) for ad in range(logs.ADS)]
    np.testing.assert_allclose(found.repeat_BC[r], share_N, rtol=1e-5)
    visits = told.visit[r]
    spent = sum(line.value for line in told.past(r))
    np.testing.assert_allclose(found.user_value_B[r], spent / visits if visits else 0, rtol=1e-5)
  assert kinds == {True, False}  # some ads of requests were bought, others only clicked on


def test_lifetime_grows_with_repeats(contexts, ads, told):
  once, ever = (reward(contexts, ads, Model(), reward=name) for name in ("revenue", "lifetime"))
  rows = zip(REQUESTS, np.maximum(ADS_BC, 0).tolist(), strict=True)  # padding is worth 0 anyway
  share = [[told.repeat_share(request, ad) for ad in row] for request, row in rows]
  assert len(np.unique(share)) > 2
  np.testing.assert_allclose(ever, once / (1 - 0.9 * np.array(share)), rtol=1e-5)


def test_margins_come_from_a_file_that_has_every_ad(contexts, ads, tmp_path):
  path = tmp_path / "margins.csv"
  path.write_text("ad_id,margin\n" + "".join(f"ad{n},{n / 10}\n" for n in range(logs.ADS)))
  found = reward(contexts, ads, Model(), reward="margin", margins_path=str(path))
  np.testing.assert_allclose(found, [[0.1, 0.4, 0], [6.4, 0, 0.9]], rtol=1e-5)
  path.write_text("ad_id,margin\n" + "".join(f"ad{n},{(n - 2.5) / 10}\n" for n in range(logs.ADS)))
  found = reward(contexts, ads, Model(), reward="margin", margins_path=str(path), reward_power=0.5)
  np.testing.assert_allclose(
    found, [[-(0.15**0.5), -(0.1**0.5), 0], [4.4**0.5, 0, 0.15**0.5]], rtol=1e-5
  )
  path.write_text("ad_id,margin\n" + "ad1,-inf\n")
  with pytest.raises(DataError, match="'margin', row 1: '-inf' is not a finite"):
    reward(contexts, ads, Model(), reward="margin", margins_path=str(path))
  path.write_text("ad_id,margin\nad1,.5\nad2,.5\n ad1,.7\n")
  with pytest.raises(
    DataError, match="margins.csv: column 'ad_id', row 3: 'ad1' is already the ad of row 1"
  ):
    reward(contexts, ads, Model(), reward="margin", margins_path=str(path))
  path.write_text("ad_id,margin\nad1,.5\n")
  with pytest.raises(DataError, match="'margin' has no value for ad 'ad0'"):
    reward(contexts, ads, Model(), reward="margin", margins_path=str(path))
  with pytest.raises(ConfigError, match="--margins_path="):
    reward(contexts, ads, Model(), reward="margin")


@pytest.mark.parametrize("exposure", ["ad", "account"])
def test_exposure_lowers_what_is_shown_most(contexts, ads, told, exposure):
  plain = reward(contexts, ads, Model())
  found = reward(contexts, ads, Model(), exposure=exposure, exposure_weight=0.5)
  seen_BN = np.stack([told.lately(request) for request in REQUESTS])
  if exposure == "account":
    shop = np.arange(logs.ADS) % 3
    seen_BN = np.stack([[row[shop == s].sum() for s in shop] for row in seen_BN])
  share = (seen_BN + 1) / (seen_BN + 1).mean(1, keepdims=True)
  expected = plain * np.take_along_axis(share, np.maximum(ADS_BC, 0), 1) ** -0.5
  np.testing.assert_allclose(found, np.where(ADS_BC >= 0, expected, 0), rtol=1e-5)


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("profit", "revenue, logged, lifetime, margin, or package.module:function"),
    ("no_such_module:f", "no_such_module"),
    (f"{__name__}:missing", "missing"),
    (f"{__name__}:REQUESTS", "not a function"),
    (f"{__name__}:lopsided", r"gave float32\[2, 1\]: finite numbers \[2, 3\]"),
    (f"{__name__}:worded", r"gave <U4\[2, 3\]: finite numbers"),
  ],
)
def test_what_is_no_reward_is_told(contexts, ads, name, words):
  with pytest.raises(ConfigError, match=words):
    reward(contexts, ads, Model(), reward=name)


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    (
      {"reward": f"{__name__}:hopeless"},
      "hopeless: request 9, ad 'ad8': nan: a finite number from -1e",
    ),
    ({"reward": f"{__name__}:boundless"}, r"boundless: request 9, ad 'ad3': -1e\+300: a finite"),
    (
      {"reward_power": 17.0},
      r"--reward=revenue: request 9, ad 'ad8': 8.0, 2251\S* by --reward_power and",
    ),
  ],
)
def test_a_reward_that_no_objective_is_defined_for_is_told_with_its_request_and_ad(
  contexts, ads, settings, words
):
  with pytest.raises(DataError, match=words):
    reward(contexts, ads, Model(), **settings)


def test_the_ends_of_the_domain_are_rewards(contexts, ads):
  found = reward(contexts, ads, Model(), reward=f"{__name__}:edge")
  np.testing.assert_array_equal(found, np.float32([[0, -1e15, 0], [0, 0, 1e15]]))
