"""Features of (request, ad) pairs: what a user had to do with an ad, and what others had.

Nothing of a request itself, and nothing later, is read; popularity is what the contexts show (see
`Inputs.contexts`). Work and memory grow with histories and pairs, not with the number of ads.
"""

import functools
from typing import NamedTuple

import numpy as np

from gr4ad_jax.config import DataConfig
from gr4ad_jax.data.schema import DAY
from gr4ad_jax.features import ages, history, trends
from gr4ad_jax.features.lines import Lines
from gr4ad_jax.features.neighbors import NeighborFolds
from gr4ad_jax.features.sparse_rows import Places, SparseRows
from gr4ad_jax.features.trends import Trends

CROSSES = (
  "lines_since", "decayed_share", "own_mean_value", "near", "near_last_visit", "near_best",
  "code_1_share", "code_1_count", "code_2_share", "price", "price_above_user", "value_above_ad",
)  # fmt: skip
AD_FEATURES = history.FEATURES + trends.FEATURES + CROSSES
FEATURES = (*AD_FEATURES, "group_share")  # with --ad_age, `ages.FEATURES` follow
CODE_FEATURES = history.CODE_FEATURES  # of CROSSES: by UA-SIDs
USER_FEATURES = history.USER_FEATURES + (
  "last_visit_lines", "last_visit_repeats", "late_repeats", "late_lines", "mean_price",
  "price_spread", "mean_quantity", "last_visit_value", "same_day",
)  # fmt: skip


class PairBatch(NamedTuple):
  """B requests with C ads each.

  Attributes:
    pair_features_BCF: float32, FEATURES, and `ages.FEATURES` with --ad_age; 0 in padding.
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
    created_N: when each ad was created, unix seconds, -1 where unknown. Read with --ad_age alone.
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
    created_N: np.ndarray | None = None,
  ):
    self.lines = lines
    self.codes_NT = codes_NT
    self.price_N = price_N
    self.popularity = popularity
    self.neighbors = neighbors
    self.config = config
    self.held_out = held_out
    self.group_N = group_N
    self.created_N = created_N

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
    # The last key below (ad, this request): the ad's latest line before it, whoever's line that is.
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
    pairs_BCF = self._features(requests, ads_BC, rows_BS, users, self.group_N, True)
    if self.config.ad_age:
      pairs_BCF = np.concatenate([pairs_BCF, self.ages(requests, ads_BC)[..., None]], axis=-1)
    return PairBatch(
      pair_features_BCF=pairs_BCF,
      user_features_BF=users,
      ad_codes_BCT=codes[np.maximum(ads_BC, 0)],
      ad_row_BC=ads_BC.astype(np.int32),
      slot_codes_BST=codes[np.maximum(slot_BS, 0)],
      slot_row_BS=slot_BS.astype(np.int32),
      slot_features_BSF=history.history_features(lines, requests, rows_BS),
    )

  def ages(self, requests: np.ndarray, ads_BC: np.ndarray) -> np.ndarray:
    """How old ads are at the requests, [B, C] float32 (`ages.log_ages`); 0 in padding.

    Raises:
      ValueError: it is not known when ads were created.
    """
    if self.created_N is None:
      raise ValueError("--ad_age asks when ads were created, and `created_N` is missing")
    time_B = self.lines.request_time[requests]
    age_BC = ages.log_ages(self.created_N, time_B, np.maximum(ads_BC, 0))
    return np.where(ads_BC >= 0, age_BC, np.float32(0))

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
    decay_BS: np.ndarray | None = None,
  ) -> np.ndarray:
    """What a user and everyone had to do with ads, as in AD_FEATURES; counts, money and times on a
    log scale.

    Args:
      requests: [B] request numbers.
      ads_BC: rows of the ad table, -1 in padding.
      rows_BS: lines of the history, see `history.history_rows`.
      users_BF: of `user_features`.
      coded: whether CODE_FEATURES are made too; else they are 0.
      decay_BS: `history.decayed_counts` of these lines, where they are known.

    Returns:
      [B, C, len(FEATURES)] float32: AD_FEATURES, and after them a column of 0. Padding is 0.
    """
    return self._features(requests, ads_BC, rows_BS, users_BF, None, coded, decay_BS)

  def _features(
    self, requests, ads_BC, rows_BS, users_BF, group_N, coded: bool, decay_BS=None
  ) -> np.ndarray:
    """As `ad_features`; `group_share` is 0 without groups.

    All is computed of the n cells that hold an ad: padding costs nothing.
    """
    lines = self.lines
    cell = (ads_BC >= 0).ravel().nonzero()[0]
    b = cell // ads_BC.shape[1]
    ad = ads_BC.ravel().take(cell)
    slot_BS = history.ads_of(lines, rows_BS)
    # Each of the history's ads will look for its neighbours among the cells.
    asked = self.neighbors.ids.shape[2] * int((slot_BS >= 0).sum())
    places = Places(b, ad, len(requests), len(self.price_N), asked)
    made = np.zeros((len(FEATURES), len(b)), np.float32)
    column = dict(zip(FEATURES, made, strict=True))  # views
    own = self._own_lines(places, requests, rows_BS, slot_BS)
    known = (own >= 0).nonzero()[0]
    row = own[known]
    split = len(history.FEATURES)
    made[:split, known] = history.line_features(lines, requests[b[known]], row)
    trend = self.popularity.features_of(lines.request_time[requests], ad, b)
    made[split : split + trend.shape[1]] = trend.T

    here = lines.request_first[requests[b[known]]]
    column["lines_since"][known] = 4 / np.sqrt(1.0 + here - row)
    mean = lines.told.columns[row, lines.told.names.index("own_mean_value")]
    column["own_mean_value"][known] = mean
    column["value_above_ad"][known] = mean - column["mean_value"][known]

    if decay_BS is None:
      decay_BS = history.decayed_counts(lines, requests, rows_BS)
    own_decay = history.own_decays(column["decayed_count"])
    total = history.total_decays(decay_BS)[b, 0]
    column["decayed_share"][:] = np.log1p(100 * own_decay / total)
    self._near(column, requests, places, slot_BS, decay_BS, rows_BS)
    if coded:
      of_codes = history.code_features(self.codes_NT, ad, b, slot_BS, decay_BS, own_decay)
      for name, values in zip(CODE_FEATURES, of_codes, strict=True):
        column[name][:] = values
    if group_N is not None:
      of_slot, s = (slot_BS >= 0).nonzero()
      groups = group_N[ad], group_N[slot_BS[of_slot, s]]
      others = history.others_of_group(*groups, b, of_slot, decay_BS[of_slot, s], own_decay)
      column["group_share"][:] = np.log1p(100 * others / total)

    price = self.log_price(ad)
    column["price"][:] = price
    # Means of a user without visits are 0, and would make every price look high.
    above = price - users_BF[b, USER_FEATURES.index("mean_price")]
    column["price_above_user"][:] = np.where(users_BF[b, 0] > 0, above, 0)
    out = np.zeros((*ads_BC.shape, len(FEATURES)), np.float32)
    out.reshape(-1, len(FEATURES))[cell] = np.ascontiguousarray(made.T)
    return out

  def _own_lines(self, places: Places, requests, rows_BS, slot_BS) -> np.ndarray:
    """`last_lines` of the n cells: found from the users' lines, of which there are few, and not
    among those of all users.
    """
    row, s = (slot_BS >= 0).nonzero()
    line = rows_BS[row, s]
    ad = slot_BS[row, s]
    # Where all slots are taken, the user may have older lines than those.
    full = (slot_BS[:, -1] >= 0).nonzero()[0]
    if len(full):
      of_full, older = history.latest_lines(self.lines, requests[full])
      row = np.concatenate([row, full[of_full]])
      line = np.concatenate([line, older])
      ad = np.concatenate([ad, self.lines.ad[older]])
    found = places.find(row, ad)
    own = np.full(places.size, -1)
    some = found >= 0
    own[found[some]] = line[some]
    return own.take(places.at)

  def _near(self, column, requests, places: Places, slot_BS, decay_BS, rows_BS) -> None:
    """How near the ads of the cells lie to the ads of the history."""
    neighbors = self.neighbors
    lines = self.lines
    _, ads, width = neighbors.ids.shape
    fold_B = neighbors.fold_of(lines.request_user[requests], self.held_out)
    b, s = ((slot_BS >= 0) & (slot_BS < ads)).nonzero()
    of = fold_B[b] * ads + slot_BS[b, s]
    near = SparseRows(places, b[:, None], neighbors.ids.reshape(-1, width).take(of, axis=0))
    # Of the weights that count: the history's ad that each is of, and its cosine.
    m = near.kept // width
    cosine = neighbors.cosine.reshape(-1).take(near.kept + ((of - np.arange(len(of))) * width)[m])
    visit = lines.request_visit[lines.request[rows_BS[b, s]]]
    late = lines.request_visit[requests][b] - visit == 1
    column["near"][:] = np.log1p(4 * near.sum(cosine * decay_BS[b, s].take(m)))
    column["near_last_visit"][:] = np.log1p(4 * near.sum(cosine * late.take(m)))
    column["near_best"][:] = 4 * near.max(cosine)
