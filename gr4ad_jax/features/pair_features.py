"""Features of (request, ad) pairs: what a user had to do with an ad, and what others had.

Nothing of a request itself, and nothing later, is read; popularity is what the contexts show (see
`Inputs.contexts`). Work and memory grow with histories and pairs, not with the number of ads.
"""

import functools
from typing import NamedTuple

import numpy as np

from gr4ad_jax.config import DataConfig
from gr4ad_jax.data.schema import DAY
from gr4ad_jax.features import history, trends
from gr4ad_jax.features.lines import Lines
from gr4ad_jax.features.neighbors import NeighborFolds
from gr4ad_jax.features.sparse_rows import SparseRows
from gr4ad_jax.features.trends import Trends

CROSSES = (
  "lines_since", "decayed_share", "own_mean_value", "near", "near_last_visit", "near_best",
  "code_1_share", "code_1_count", "code_2_share", "price", "price_above_user", "value_above_ad",
)  # fmt: skip
AD_FEATURES = history.FEATURES + trends.FEATURES + CROSSES
FEATURES = (*AD_FEATURES, "group_share")
CODE_FEATURES = ("code_1_share", "code_1_count", "code_2_share")  # of CROSSES: by UA-SIDs
USER_FEATURES = history.USER_FEATURES + (
  "last_visit_lines", "last_visit_repeats", "late_repeats", "late_lines", "mean_price",
  "price_spread", "mean_quantity", "last_visit_value", "same_day",
)  # fmt: skip


class PairBatch(NamedTuple):
  """B requests with C ads each.

  Attributes:
    pair_features_BCF: float32, FEATURES; 0 in padding.
    user_features_BF: float32, USER_FEATURES.
    ad_codes_BCT: int32, UA-SID of each ad.
    ad_row_BC: int32, row of the ad table, -1 in padding.
    slot_codes_BST: int32, UA-SID of the history's ads.
    slot_row_BS: int32, their rows, -1 in padding.
    slot_features_BSF: float32, history.FEATURES.
  """

  pair_features_BCF: np.ndarray
  user_features_BF: np.ndarray
  ad_codes_BCT: np.ndarray
  ad_row_BC: np.ndarray
  slot_codes_BST: np.ndarray
  slot_row_BS: np.ndarray
  slot_features_BSF: np.ndarray


def own_decays(features: np.ndarray) -> np.ndarray:
  """[B, C] decayed counts of (request, ad) pairs by their features [B, C, F], of which the first
  are `history.FEATURES`.
  """
  return np.expm1(features[..., history.FEATURES.index("decayed_count")])


def total_decays(decay_BS: np.ndarray) -> np.ndarray:
  """[B, 1] sums of the decayed counts of a history's ads, above 0."""
  return np.maximum(decay_BS.sum(axis=1, keepdims=True), 1e-6)


def code_features(
  codes_NT, ad_BC: np.ndarray, slot_BS: np.ndarray, decay_BS: np.ndarray, own_decay_BC: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """How much of a history shares an ad's first UA-SID code, or its first two: CODE_FEATURES.

  They alone of all features depend on UA-SIDs. So they are made when a batch is, and examples on
  disk outlive a change of codes.

  Args:
    codes_NT: UA-SID of each ad.
    ad_BC: rows of the ad table.
    slot_BS: rows of the history's ads, -1 in padding.
    decay_BS: their decayed counts (`history.decayed_counts`).
    own_decay_BC: of the ads themselves (`own_decays`).

  Returns:
    Three [B, C] columns, in the order of CODE_FEATURES.
  """
  total_B1 = total_decays(decay_BS)
  first, both = (
    _others(groups, ad_BC, slot_BS, decay_BS, own_decay_BC)
    for groups in (codes_NT[:, 0], codes_NT[:, :2])
  )
  return np.log1p(100 * first / total_B1), np.log1p(first), np.log1p(100 * both / total_B1)


def _others(groups: np.ndarray, ad_BC, slot_BS, decay_BS, own_decay_BC) -> np.ndarray:
  """Decayed count of the history's other ads of an ad's group, [B, C]; `groups` [N], or [N, 2] for
  a pair's.
  """

  def group(ad):
    of_ad = groups[ad].astype(np.int64)
    return of_ad if of_ad.ndim == ad.ndim else (of_ad[..., 0] << 21) + of_ad[..., 1]

  b, s = np.nonzero(slot_BS >= 0)
  of_group = SparseRows(b, group(slot_BS[b, s]), group(ad_BC))
  return np.maximum(of_group.sum(decay_BS[b, s]) - own_decay_BC, 0)


class PairFeatures:
  """Looks features of pairs up.

  Args:
    lines: every line that may be history.
    codes_NT: UA-SID of each ad; None where nothing that is `coded` is asked for.
    price_N: list price of each ad, money, NaN where unknown.
    popularity: counts that are visible to these requests.
    neighbors: co-visit neighbours.
    config: length of histories.
    held_out: whether the requests are none that the neighbours were fitted on.
    group_N: the group of each ad, its advertiser say; an integer. None: `batch` cannot be asked.
  """

  def __init__(
    self,
    lines: Lines,
    codes_NT,
    price_N,
    popularity: Trends,
    neighbors: NeighborFolds,
    config: DataConfig,
    held_out: bool = True,
    group_N: np.ndarray | None = None,
  ):
    self.lines = lines
    self.codes_NT = codes_NT
    self.price_N = price_N
    self.popularity = popularity
    self.neighbors = neighbors
    self.config = config
    self.held_out = held_out
    self.group_N = group_N

  @functools.cached_property
  def _by_ad(self) -> tuple[np.ndarray, np.ndarray]:
    """Key (ad, request) of every line, ascending, and the line's number."""
    lines = self.lines
    key = lines.ad.astype(np.int64) * len(lines.request_time) + lines.request
    order = np.argsort(key, kind="stable")
    return key[order], order

  @functools.cached_property
  def _sums(self) -> dict[str, np.ndarray]:
    """[L] float64 sums of the user's lines before each."""
    lines = self.lines
    price_L = self.log_price(lines.ad).astype(np.float64)
    columns = {
      "price": price_L,
      "price2": price_L**2,
      "quantity": np.log1p(np.maximum(lines.quantity, 0)),
      "value": np.log1p(np.maximum(lines.value, 0)),
    }
    return {name: lines.sums_before(column_L) for name, column_L in columns.items()}

  def log_price(self, ad: np.ndarray) -> np.ndarray:
    """log(1 + price) of ads, 0 where it is unknown; float32."""
    return np.log1p(np.nan_to_num(self.price_N[ad])).astype(np.float32)

  def last_lines(self, requests: np.ndarray, ads_BC: np.ndarray) -> np.ndarray:
    """The line of each request's user that took the ad last before the request, [B, C] int64;
    -1: never.
    """
    key, order = self._by_ad
    num_requests = np.int64(len(self.lines.request_time))
    base_BC = np.maximum(ads_BC, 0).astype(np.int64) * num_requests
    at_BC = np.searchsorted(key, base_BC + requests[:, None]) - 1
    opening = self.lines.request[self.lines.user_first[requests]]  # the user's first request
    found = (at_BC >= 0) & (key[np.maximum(at_BC, 0)] >= base_BC + opening[:, None]) & (ads_BC >= 0)
    return np.where(found, order[np.maximum(at_BC, 0)], -1)

  def batch(self, requests: np.ndarray, ads_BC: np.ndarray) -> PairBatch:
    """All that a ranker reads of requests [B] and ads [B, C]; -1 is padding."""
    requests = np.asarray(requests)
    ads_BC = np.asarray(ads_BC)
    lines = self.lines
    codes = self.codes_NT
    rows_BS = history.history_rows(lines, requests, self.config.history_slots)
    slot_BS = history.ads_of(lines, rows_BS)
    users = self.user_features(requests)
    return PairBatch(
      pair_features_BCF=self._features(requests, ads_BC, rows_BS, users, self.group_N, True),
      user_features_BF=users,
      ad_codes_BCT=codes[np.maximum(ads_BC, 0)],
      ad_row_BC=ads_BC.astype(np.int32),
      slot_codes_BST=codes[np.maximum(slot_BS, 0)],
      slot_row_BS=slot_BS.astype(np.int32),
      slot_features_BSF=history.history_features(lines, requests, rows_BS),
    )

  def user_features(self, requests: np.ndarray) -> np.ndarray:
    """What users were like before the requests [B], as in USER_FEATURES; counts, money and times on
    a log scale.

    Returns:
      [B, len(USER_FEATURES)] float32.
    """
    lines = self.lines
    sums = self._sums
    first = lines.user_first[requests]
    here = lines.request_first[requests]
    count = np.maximum(here - first, 1)
    visits = lines.request_visit[requests]

    def late(back):
      begin = np.maximum(requests - np.minimum(back, visits), 0)
      begin = lines.request_first[begin]
      size = here - begin
      repeats = size - (lines.fresh[here] - lines.fresh[begin])
      return begin, size, repeats / np.maximum(size, 1)

    begin, last_size, last_repeats = late(1)
    _, late_size, late_repeats = late(4)
    price = sums["price"][here] / count
    spread = np.sqrt(np.maximum(sums["price2"][here] / count - price**2, 0))
    before = lines.request_time[np.maximum(requests - 1, 0)]
    time = lines.request_time[requests]
    more = np.stack([
      np.log1p(last_size),
      last_repeats,
      late_repeats,
      np.log1p(late_size / np.maximum(np.minimum(visits, 4), 1)),
      price,
      spread,
      sums["quantity"][here] / count,
      (sums["value"][here] - sums["value"][begin]) / np.maximum(last_size, 1),
      (visits > 0) & (time - before < DAY / 2),
    ], axis=-1).astype(np.float32)  # fmt: skip
    return np.concatenate([history.user_features(lines, requests), more], axis=-1)

  def ad_features(
    self,
    requests: np.ndarray,
    ads_BC: np.ndarray,
    rows_BS: np.ndarray,
    users_BF: np.ndarray,
    coded: bool = True,
  ) -> np.ndarray:
    """What a user and everyone had to do with ads, as in AD_FEATURES; counts, money and times on a
    log scale.

    Args:
      requests: [B] request numbers.
      ads_BC: rows of the ad table, -1 in padding.
      rows_BS: lines of the history, see `history.history_rows`.
      users_BF: of `user_features`.
      coded: whether CODE_FEATURES are made too; else they are 0.

    Returns:
      [B, C, len(AD_FEATURES)] float32, 0 in padding.
    """
    made = self._features(requests, ads_BC, rows_BS, users_BF, None, coded)
    return made[..., : len(AD_FEATURES)]

  def _features(
    self, requests, ads_BC, rows_BS, users_BF, group_N: np.ndarray | None, coded: bool
  ) -> np.ndarray:
    """[B, C, len(FEATURES)] float32, as `ad_features`; `group_share` is 0 without groups."""
    lines = self.lines
    ad_BC = np.maximum(ads_BC, 0)
    own_BC = self.last_lines(requests, ads_BC)
    own = history.history_features(lines, requests, own_BC)
    trend = self.popularity.features(lines.request_time[requests], ad_BC)
    out = np.zeros((*ads_BC.shape, len(FEATURES)), np.float32)
    split = own.shape[-1] + trend.shape[-1]
    out[..., : own.shape[-1]], out[..., own.shape[-1] : split] = own, trend
    column = dict(zip(FEATURES[split:], np.moveaxis(out, -1, 0)[split:], strict=True))  # views

    row_BC = np.maximum(own_BC, 0)
    known = own_BC >= 0
    here_B1 = lines.request_first[requests][:, None]
    column["lines_since"][:] = np.where(known, 4 / np.sqrt(1.0 + here_B1 - row_BC), 0)
    own_mean = np.maximum(lines.total_value[row_BC], 0) / lines.count[row_BC]
    column["own_mean_value"][:] = np.where(known, np.log1p(own_mean), 0)

    slot_BS = history.ads_of(lines, rows_BS)
    decay_BS = history.decayed_counts(lines, requests, rows_BS)
    own_decay = own_decays(own)
    column["decayed_share"][:] = np.log1p(100 * own_decay / total_decays(decay_BS))
    self._near(column, requests, ad_BC, slot_BS, decay_BS, rows_BS)
    if coded:
      of_codes = code_features(self.codes_NT, ad_BC, slot_BS, decay_BS, own_decay)
      for name, values in zip(CODE_FEATURES, of_codes, strict=True):
        column[name][:] = values
    if group_N is not None:
      others = _others(group_N, ad_BC, slot_BS, decay_BS, own_decay)
      column["group_share"][:] = np.log1p(100 * others / total_decays(decay_BS))

    price = self.log_price(ad_BC)
    column["price"][:] = price
    above = price - users_BF[:, USER_FEATURES.index("mean_price"), None]
    column["price_above_user"][:] = np.where((users_BF[:, 0] > 0)[:, None], above, 0)
    mean_value = trend[..., trends.FEATURES.index("mean_value")]
    column["value_above_ad"][:] = np.where(known, column["own_mean_value"] - mean_value, 0)
    out[ads_BC < 0] = 0
    return out

  def _near(self, column, requests, ad_BC, slot_BS, decay_BS, rows_BS) -> None:
    """How near an ad lies to the ads of the history."""
    neighbors = self.neighbors
    lines = self.lines
    fold_B = neighbors.fold_of(lines.request_user[requests], self.held_out)
    b, s = np.nonzero((slot_BS >= 0) & (slot_BS < neighbors.ids.shape[1]))
    ids, cosine = (x[fold_B[b], slot_BS[b, s]] for x in (neighbors.ids, neighbors.cosine))
    decay = decay_BS[b, s, None]
    visit = lines.request_visit[lines.request[rows_BS[b, s]]]
    late = (lines.request_visit[requests][b] - visit == 1)[:, None]
    near = SparseRows(np.repeat(b, ids.shape[1]), ids.ravel(), ad_BC)
    column["near"][:] = np.log1p(4 * near.sum((cosine * decay).ravel()))
    column["near_last_visit"][:] = np.log1p(4 * near.sum((cosine * late).ravel()))
    column["near_best"][:] = 4 * near.max(cosine.ravel())
