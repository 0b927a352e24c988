"""What a candidate is worth: a reward of what is known of its context and its ad
(docs/design/method.md §3.2).
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Protocol

import numpy as np

from gr4ad_jax.config import ConfigError, PreferenceConfig
from gr4ad_jax.data.schema import AdTable, DataError
from gr4ad_jax.features import trends
from gr4ad_jax.features.batches import RequestContexts
from gr4ad_jax.objectives.lists import MOST_REWARD
from gr4ad_jax.reading import column_files, tables

DISCOUNT = 0.9  # of a later visit's money in the lifetime reward
_REPEATS = trends.FEATURES.index("repeat_share")


@dataclasses.dataclass(frozen=True)
class RewardColumns:
  """B requests with C ads each; money in the log's unit, padded ads are whatever ad 0 is.

  Attributes:
    request_B: request numbers.
    ad_BC: rows of the ad table.
    purchase_BC: p(purchase), calibrated, to the power 1 - a, times the reference's p to the power a
      = --reward_prior; 1 for ads that were bought and 0 for others where there is no model.
    value_BC: E[value | purchase] to the power --value_exponent; the logged value where there is no
      model.
    logged_BC: value of the request's own lines, 0 where the ad was not taken.
    repeat_BC: share of the ad's recent lines whose user had taken it before.
    user_value_B: mean value of the user's earlier visits.
    ads: the ad table, for any further column.
  """

  request_B: np.ndarray
  ad_BC: np.ndarray
  purchase_BC: np.ndarray
  value_BC: np.ndarray
  logged_BC: np.ndarray
  repeat_BC: np.ndarray
  user_value_B: np.ndarray
  ads: AdTable


RewardFn = Callable[[RewardColumns], np.ndarray]


class Estimates(Protocol):
  """What a reward model says of pairs."""

  purchase_BC: np.ndarray
  value_BC: np.ndarray


class Estimator(Protocol):
  """A reward model, as `reward_model.RewardModel` is."""

  def estimate(self, requests_B: np.ndarray, ads_BC: np.ndarray) -> Estimates:
    """p(purchase) and E[value | purchase] of ads [B, C]."""


def revenue(columns: RewardColumns) -> np.ndarray:
  """eCPM: p(purchase) · E[value | purchase]."""
  return columns.purchase_BC * columns.value_BC


def logged(columns: RewardColumns) -> np.ndarray:
  """What was paid; 0 for all that was not bought."""
  return columns.logged_BC


def lifetime(columns: RewardColumns) -> np.ndarray:
  """eCPM with what follows it: an ad that is taken again at each visit with the share r of its
  repeats earns 1 + γr + (γr)² + … = 1 / (1 - γr) times its first sale.
  """
  return revenue(columns) / (1 - DISCOUNT * np.clip(columns.repeat_BC, 0, 1))


def margin_of(path: str, ads: AdTable) -> RewardFn:
  """eCPM times the share of the price that is kept, by ad.

  Args:
    path: .csv or .parquet file, or a folder of such parts, with the columns `ad_id` and `margin`
      (share of the money, below 0 where an ad loses some).
    ads: every one of them must stand in the file.

  Raises:
    DataError: a bad cell, an ad that stands there twice, or an ad without a margin.
  """
  column_files.check_file("margins_path", path)
  cells = column_files.read_file(path, ("ad_id", "margin"))
  tables.unique_ids(cells["ad_id"])
  row_E = tables.rows_of(cells["ad_id"], ads, allow_unknown=True)
  margin_E = cells["margin"].numbers(np.nan, signed=True)
  margin_N = np.full(len(ads), np.nan, np.float32)
  margin_N[row_E[row_E >= 0]] = margin_E[row_E >= 0]
  # An empty cell reads as NaN, so it counts as missing as an absent row does.
  if np.isnan(margin_N).any():
    missing = ads.ad_id[int(np.argmax(np.isnan(margin_N)))]
    raise DataError(f"{path}: column 'margin' has no value for ad {str(missing)!r}")
  return lambda columns: revenue(columns) * margin_N[columns.ad_BC]


def resolve(config: PreferenceConfig, ads: AdTable) -> RewardFn:
  """The reward function that --reward names.

  Raises:
    ConfigError: neither a known name nor `package.module:function` that can be imported; a
      --reward_prior beside what was logged.
    DataError: see `margin_of`.
  """
  name = config.reward
  if name == "logged" and config.reward_prior:
    raise ConfigError(
      f"--reward_prior={config.reward_prior} is not allowed: --reward=logged has no p(purchase)"
    )
  known = {"revenue": revenue, "logged": logged, "lifetime": lifetime}
  if name in known:
    return known[name]
  if name == "margin":
    if not config.margins_path:
      raise ConfigError(
        "--margins_path= is not allowed: --reward=margin needs a file of ad_id, margin"
      )
    return margin_of(config.margins_path, ads)
  module, _, function = name.partition(":")
  if not function:
    raise ConfigError(
      f"--reward={name} is not allowed: {', '.join(known)}, margin, or package.module:function"
    )
  try:
    found = getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError) as error:
    raise ConfigError(f"--reward={name} is not allowed: {error}") from error
  if not callable(found):
    raise ConfigError(f"--reward={name} is not allowed: {function} is not a function")
  return found


class Rewarder:
  """Rewards of candidates.

  Args:
    config: which reward, and the exposure term.
    contexts: history and popularity of the requests.
    ads: the ad table.
    model: the reward model; None: only what was logged is known.

  Raises:
    ConfigError, DataError: see `resolve`.
  """

  def __init__(
    self, config: PreferenceConfig, contexts: RequestContexts, ads: AdTable, model: Estimator | None
  ):
    self._config = config
    self._contexts = contexts
    self._ads = ads
    self._model = model
    self._reward = resolve(config, ads)

  def __call__(self, requests_B: np.ndarray, ad_BC: np.ndarray, logp_BC: np.ndarray) -> np.ndarray:
    """Rewards [B, C] float32 in the domain of all list objectives: finite, at most `MOST_REWARD` in
    size; 0 in padding.

    A reward below zero (a margin that is lost) is as good as any: what each objective makes of it,
    its docstring says.

    Args:
      requests_B: request numbers.
      ad_BC: rows of the ad table, -1 in padding.
      logp_BC: the reference policy's log p of them, finite.

    Raises:
      ConfigError: a user's function that returns another shape, or what is no number.
      DataError: a reward outside of the domain, with its request and ad.
    """
    columns = self.columns(requests_B, ad_BC, logp_BC)
    given_BC = np.asarray(self._reward(columns))
    if given_BC.shape != ad_BC.shape or given_BC.dtype.kind not in "biuf":
      raise ConfigError(
        f"--reward={self._config.reward} gave {given_BC.dtype}{list(given_BC.shape)}: "
        f"finite numbers {list(ad_BC.shape)} are needed"
      )
    # What leaves float32 is told below.
    with np.errstate(over="ignore", invalid="ignore"):
      reward_BC = given_BC.astype(np.float32)
      if self._config.reward_power != 1:
        # The power of the size, with the sign kept: a root of a number below 0 would be NaN.
        reward_BC = np.sign(reward_BC) * np.abs(reward_BC) ** self._config.reward_power
      reward_BC = reward_BC * self._exposure(requests_B, columns.ad_BC)
    reward_BC = np.where(ad_BC >= 0, reward_BC, 0).astype(np.float32)
    self._check(requests_B, ad_BC, given_BC, reward_BC)
    return reward_BC

  def _check(self, requests_B, ad_BC, given_BC, reward_BC) -> None:
    """Raises DataError for the first reward that no objective is defined for."""
    wrong_BC = ~(np.abs(reward_BC) <= MOST_REWARD)  # NaN is wrong too
    if wrong_BC.any():
      b, c = np.argwhere(wrong_BC)[0]
      ad_id = str(self._ads.ad_id[ad_BC[b, c]])
      bent = ""
      if abs(given_BC[b, c]) <= MOST_REWARD:
        bent = f", {reward_BC[b, c]} by --reward_power and --exposure"
      raise DataError(
        f"--reward={self._config.reward}: request {requests_B[b]}, ad {ad_id!r}: "
        f"{given_BC[b, c]}{bent}: "
        f"a finite number from {-MOST_REWARD:g} to {MOST_REWARD:g} is needed"
      )

  def columns(
    self, requests_B: np.ndarray, ad_BC: np.ndarray, logp_BC: np.ndarray
  ) -> RewardColumns:
    """All that a reward function may read; arguments as of a call."""
    contexts = self._contexts
    lines = self._contexts.lines
    # Padding reads ad 0, and its reward becomes 0 in the end.
    row_BC = np.maximum(ad_BC, 0)
    own_BC = lines.outcomes.of(requests_B, ad_BC)
    logged_BC = np.where(own_BC >= 0, lines.outcomes.value[np.maximum(own_BC, 0)], 0)
    if self._model:
      found = self._model.estimate(requests_B, ad_BC)
      prior = self._config.reward_prior
      purchase_BC = found.purchase_BC ** (1 - prior) * np.exp(prior * logp_BC)
      value_BC = found.value_BC**self._config.value_exponent
    else:
      # Without a model what happened stands for what would: 1 or 0, times what was paid.
      purchase_BC = (logged_BC > 0).astype(np.float32)
      value_BC = logged_BC
    about = contexts.popularity.features(lines.request_time[requests_B], row_BC)
    spent_B = lines.spent[lines.request_first[requests_B]]
    return RewardColumns(
      request_B=requests_B,
      ad_BC=row_BC,
      purchase_BC=purchase_BC,
      value_BC=value_BC,
      logged_BC=logged_BC,
      repeat_BC=about[..., _REPEATS] / 4,  # the feature is 4 x the share
      # A visit's number is how many the user has had before it.
      user_value_B=spent_B / np.maximum(lines.request_visit[requests_B], 1),
      ads=self._ads,
    )

  def _exposure(self, requests_B: np.ndarray, row_BC: np.ndarray) -> np.ndarray:
    """(share / mean share)^-weight of the ads, or of their advertisers, over the last four
    weeks: [B, C].
    """
    config = self._config
    contexts = self._contexts
    if config.exposure == "none" or not config.exposure_weight:
      return np.ones(row_BC.shape, np.float32)
    seen_BN = contexts.popularity.lately(contexts.lines.request_time[requests_B])
    if config.exposure == "account":
      account_N = self._ads.account_N
      of_account = np.zeros((len(requests_B), account_N.max() + 1))
      # (B, N) -> (B, accounts): turned over, since `add.at` adds along the first axis.
      np.add.at(of_account.T, account_N, seen_BN.T)
      # Gathered back to the ads: all ads of an account have its count.
      seen_BN = of_account[:, account_N]
    # One count more, so that nothing is 0: a share of 0 to a power below 0 would be infinite.
    relative_BN = (seen_BN + 1) / (seen_BN + 1).mean(axis=1, keepdims=True)
    return np.take_along_axis(relative_BN, row_BC, axis=1) ** -config.exposure_weight
