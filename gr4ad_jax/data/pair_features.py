"""Features of (request, ad) pairs: crosses of user and ad that retrieval cannot see.

Nothing of a request itself, and nothing later, is read; popularity is what the contexts show (see `Inputs.contexts`).
"""

import dataclasses
import functools
import os
from typing import NamedTuple

import numpy as np

from gr4ad_jax.data import history, trends
from gr4ad_jax.data.batches import RequestContexts
from gr4ad_jax.data.history import DAY, DECAY
from gr4ad_jax.data.neighbors import Neighbors

YEAR = 365  # days
SEASON = (14, 28)  # days before and after this day a year ago

FEATURES = history.FEATURES + trends.FEATURES + (
  "lines_since", "decayed_share", "own_mean_value", "near", "near_last_visit", "near_best",
  "code_1_share", "code_1_count", "code_2_share", "group_share", "price", "price_above_user", "value_above_ad",
  "days_unsold", "days_known", "last_year", "last_year_share",
)  # fmt: skip
USER_FEATURES = history.USER_FEATURES + (
  "last_visit_lines", "last_visit_repeats", "late_repeats", "late_lines", "mean_price", "price_spread", "mean_quantity",
  "last_visit_value", "same_day",
)  # fmt: skip
_RESTOCK = 0.5


@dataclasses.dataclass(frozen=True)
class NeighborFolds:
  """Neighbours for requests that neighbours were fitted on: each user's come from the visits of other users alone.

  With the user's own visits among the counts, a training request's ads would be one another's neighbours because it
  took them together: a feature that knows the answer.

  Attributes:
    ids: [K + 1, N, k] int32; those of fold f < K leave the users with `user % K == f` out, the last leaves none out.
    cosine: [K + 1, N, k] float32.
  """

  ids: np.ndarray
  cosine: np.ndarray

  @classmethod
  def fit(cls, request_L, user_L, ad_L, whole: Neighbors, folds: int = 5) -> "NeighborFolds":
    """Fits on lines [L], a fold at a time; `whole` is what was fitted on all of them."""
    num_ads, width = whole.ids.shape
    parts = []
    for fold in range(folds):
      kept = user_L % folds != fold
      parts.append(Neighbors.fit(request_L[kept], ad_L[kept], num_ads, width))
    parts.append(whole)
    return cls(np.stack([part.ids for part in parts]), np.stack([part.cosine for part in parts]))

  def fold_of(self, user_B: np.ndarray, held_out: bool) -> np.ndarray:
    """[B] the fold of each user: his own where he was fitted on, the last where `held_out`."""
    last = len(self.ids) - 1
    return np.full(len(user_B), last) if held_out or not last else user_B % last

  def save(self, directory: str) -> None:
    """Writes `folds.npz`."""
    os.makedirs(directory, exist_ok=True)
    part = os.path.join(directory, "folds.part.npz")
    np.savez(part, ids=self.ids, cosine=self.cosine)
    os.replace(part, os.path.join(directory, "folds.npz"))

  @classmethod
  def load(cls, directory: str) -> "NeighborFolds":
    """Reads what `save` wrote."""
    with np.load(os.path.join(directory, "folds.npz"), allow_pickle=False) as saved:
      return cls(saved["ids"], saved["cosine"])


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


class SparseRows:
  """Sums of weights by (row, column): a matrix [B, columns] that is never made whole.

  Args:
    row: [n] in [0, B).
    column: [n] in [0, columns); negative: left out.
    weight: [n].
    columns: how many there are.
  """

  def __init__(self, row: np.ndarray, column: np.ndarray, weight: np.ndarray, columns: int):
    kept = column >= 0
    key = row[kept].astype(np.int64) * columns + column[kept]
    order = np.argsort(key, kind="stable")
    key, weight = key[order], weight[kept][order]
    first = np.flatnonzero(np.append(True, key[1:] != key[:-1])) if len(key) else np.zeros(0, np.int64)
    self._columns, self._key = columns, key[first]
    self._sum = np.add.reduceat(weight, first) if len(key) else weight
    self._max = np.maximum.reduceat(weight, first) if len(key) else weight

  def at(self, column_BC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and largest weight at each row's columns, [B, C] float32; 0 where there is none."""
    if not len(self._key):
      return np.zeros(column_BC.shape, np.float32), np.zeros(column_BC.shape, np.float32)
    key_BC = np.arange(len(column_BC))[:, None] * np.int64(self._columns) + column_BC
    at_BC = np.minimum(np.searchsorted(self._key, key_BC), len(self._key) - 1)
    found = self._key[at_BC] == key_BC
    return tuple(np.where(found, x[at_BC], 0).astype(np.float32) for x in (self._sum, self._max))


class PairFeatures:
  """Looks features of pairs up, from the columns of the contexts.

  Args:
    contexts: lines, codes, prices and popularity that these requests may see.
    folds: neighbours.
    held_out: whether the requests are none that the neighbours were fitted on.
    group_N: the group of each ad, its advertiser say; an integer.
  """

  def __init__(self, contexts: RequestContexts, folds: NeighborFolds, held_out: bool, group_N: np.ndarray):
    self.contexts, self.lines = contexts, contexts.lines
    self._folds, self._held_out, self._group_N = folds, held_out, group_N
    self._num_ads = np.int64(len(contexts.codes_NT))
    self._log_price_N = np.log1p(np.nan_to_num(contexts.price_N)).astype(np.float32)
    codes = contexts.codes_NT.astype(np.int64)
    self._code_columns = [codes[:, 0], codes[:, 0] * (codes[:, 1].max() + 1) + codes[:, 1]]

  @functools.cached_property
  def _by_ad(self) -> tuple[np.ndarray, np.ndarray]:
    """Key (ad, request) of every line, ascending, and the line's number."""
    lines = self.lines
    key = lines.ad.astype(np.int64) * len(lines.request_time) + lines.request
    order = np.argsort(key, kind="stable")
    return key[order], order

  @functools.cached_property
  def _sums(self) -> dict[str, np.ndarray]:
    """[L + 1] float64 sums of all lines before each."""
    lines, price_L = self.lines, self._log_price_N[self.lines.ad].astype(np.float64)
    columns = {"price": price_L, "price2": price_L**2, "quantity": np.log1p(np.maximum(lines.quantity, 0)),
               "value": np.log1p(np.maximum(lines.value, 0))}  # fmt: skip
    return {name: np.concatenate([[0.0], np.cumsum(x)]) for name, x in columns.items()}

  @functools.cached_property
  def _sold(self) -> tuple[np.ndarray, np.ndarray]:
    """Bucket of each ad's last sale before a bucket [buckets + 1, N] int32, -1 where there was none; of its first."""
    seen = self.contexts.popularity.seen
    bucket = np.arange(1, len(seen), dtype=np.int32)[:, None] - 1
    last = np.full(seen.shape, -1, np.int32)
    last[1:] = np.maximum.accumulate(np.where(seen[1:] > seen[:-1], bucket, -1), axis=0)
    return last, np.where(seen[-1] > 0, np.argmax(seen > 0, axis=0) - 1, len(seen)).astype(np.int32)

  def last_lines(self, requests: np.ndarray, ads_BC: np.ndarray) -> np.ndarray:
    """The line of each request's user that took the ad last before the request, [B, C] int64; -1: never."""
    key, order = self._by_ad
    num_requests = np.int64(len(self.lines.request_time))
    base_BC = np.maximum(ads_BC, 0).astype(np.int64) * num_requests
    at_BC = np.searchsorted(key, base_BC + requests[:, None]) - 1
    opening = self.lines.request[self.lines.user_first[requests]]  # the user's first request
    found = (at_BC >= 0) & (key[np.maximum(at_BC, 0)] >= base_BC + opening[:, None]) & (ads_BC >= 0)
    return np.where(found, order[np.maximum(at_BC, 0)], -1)

  def own_lines(self, requests: np.ndarray, ads_BC: np.ndarray) -> np.ndarray:
    """The request's own line with each ad, [B, C] int64; -1: it has none."""
    key, order = self._by_ad
    wanted = ads_BC.astype(np.int64) * len(self.lines.request_time) + requests[:, None]
    at_BC = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
    return np.where((key[at_BC] == wanted) & (ads_BC >= 0), order[at_BC], -1)

  def batch(self, requests: np.ndarray, ads_BC: np.ndarray) -> PairBatch:
    """All that a ranker reads of requests [B] and ads [B, C]; -1 is padding."""
    requests, ads_BC = np.asarray(requests), np.asarray(ads_BC)
    lines, codes = self.lines, self.contexts.codes_NT
    rows_BS = history.history_rows(lines, requests, self.contexts.config.history_slots)
    slot_BS = history.ads_of(lines, rows_BS)
    slot_features = history.history_features(lines, requests, rows_BS)
    users = self._user_features(requests)
    pairs = self._pair_features(requests, ads_BC, rows_BS, slot_BS, users)
    return PairBatch(
      pair_features_BCF=pairs,
      user_features_BF=users,
      ad_codes_BCT=codes[np.maximum(ads_BC, 0)],
      ad_row_BC=ads_BC.astype(np.int32),
      slot_codes_BST=codes[np.maximum(slot_BS, 0)],
      slot_row_BS=slot_BS.astype(np.int32),
      slot_features_BSF=slot_features,
    )

  def _user_features(self, requests: np.ndarray) -> np.ndarray:
    """[B, len(USER_FEATURES)] float32."""
    lines, sums = self.lines, self._sums
    first, here = lines.user_first[requests], lines.request_first[requests]
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
    price = (sums["price"][here] - sums["price"][first]) / count
    spread = np.sqrt(np.maximum((sums["price2"][here] - sums["price2"][first]) / count - price**2, 0))
    before = lines.request_time[np.maximum(requests - 1, 0)]
    time = lines.request_time[requests]
    more = np.stack([
      np.log1p(last_size),
      last_repeats,
      late_repeats,
      np.log1p(late_size / np.maximum(np.minimum(visits, 4), 1)),
      price,
      spread,
      (sums["quantity"][here] - sums["quantity"][first]) / count,
      (sums["value"][here] - sums["value"][begin]) / np.maximum(last_size, 1),
      (visits > 0) & (time - before < DAY / 2),
    ], axis=-1).astype(np.float32)  # fmt: skip
    return np.concatenate([history.user_features(lines, requests), more], axis=-1)

  def _pair_features(self, requests, ads_BC, rows_BS, slot_BS, users) -> np.ndarray:
    """[B, C, len(FEATURES)] float32."""
    lines, popularity = self.lines, self.contexts.popularity
    ad_BC = np.maximum(ads_BC, 0)
    time_B = lines.request_time[requests]
    own_BC = self.last_lines(requests, ads_BC)
    own = history.history_features(lines, requests, own_BC)
    trend = popularity.features(time_B, ad_BC)
    out = np.zeros((*ads_BC.shape, len(FEATURES)), np.float32)
    split = len(history.FEATURES) + len(trends.FEATURES)
    out[..., : own.shape[-1]], out[..., own.shape[-1] : split] = own, trend
    column = dict(zip(FEATURES[split:], np.moveaxis(out, -1, 0)[split:], strict=True))  # views

    row_BC = np.maximum(own_BC, 0)
    known = own_BC >= 0
    here_B1 = lines.request_first[requests][:, None]
    column["lines_since"][:] = np.where(known, 4 / np.sqrt(1.0 + here_B1 - row_BC), 0)
    own_mean = np.maximum(lines.total_value[row_BC], 0) / lines.count[row_BC]
    column["own_mean_value"][:] = np.where(known, np.log1p(own_mean), 0)

    slot_row = np.maximum(rows_BS, 0)
    gap_BS = lines.request_visit[requests][:, None] - lines.request_visit[lines.request[slot_row]]
    decay_BS = np.where(rows_BS >= 0, lines.decayed_count[slot_row] * DECAY ** (gap_BS - 1.0), 0)
    total_B1 = np.maximum(decay_BS.sum(axis=1, keepdims=True), 1e-6)
    own_decay = np.expm1(own[..., history.FEATURES.index("decayed_count")])
    column["decayed_share"][:] = np.log1p(100 * own_decay / total_B1)
    self._near(column, requests, ad_BC, slot_BS, decay_BS, gap_BS)

    code_1, code_2 = self._code_columns
    for name, groups in (("code_1", code_1), ("code_2", code_2), ("group", self._group_N)):
      b, s = np.nonzero(slot_BS >= 0)
      of_group = SparseRows(b, groups[slot_BS[b, s]], decay_BS[b, s], int(groups.max()) + 1)
      others = np.maximum(of_group.at(groups[ad_BC])[0] - own_decay, 0)
      column[f"{name}_share"][:] = np.log1p(100 * others / total_B1)
      if name == "code_1":
        column["code_1_count"][:] = np.log1p(others)

    price = self._log_price_N[ad_BC]
    column["price"][:] = price
    above = price - users[:, USER_FEATURES.index("mean_price"), None]
    column["price_above_user"][:] = np.where((users[:, 0] > 0)[:, None], above, 0)
    mean_value = trend[..., trends.FEATURES.index("mean_value")]
    column["value_above_ad"][:] = np.where(known, column["own_mean_value"] - mean_value, 0)
    self._seasons(column, time_B, ad_BC)
    out[ads_BC < 0] = 0
    return out

  def _near(self, column, requests, ad_BC, slot_BS, decay_BS, gap_BS) -> None:
    """How near an ad lies to the ads of the history."""
    fold_B = self._folds.fold_of(self.lines.request_user[requests], self._held_out)
    fitted = self._folds.ids.shape[1]
    b, s = np.nonzero((slot_BS >= 0) & (slot_BS < fitted))
    ad = slot_BS[b, s]
    ids, cosine = self._folds.ids[fold_B[b], ad], self._folds.cosine[fold_B[b], ad]
    row = np.repeat(b, ids.shape[1])
    score = SparseRows(row, ids.ravel(), (cosine * decay_BS[b, s, None]).ravel(), self._num_ads).at(ad_BC)[0]
    best = SparseRows(row, ids.ravel(), cosine.ravel(), self._num_ads).at(ad_BC)[1]
    late = gap_BS[b, s] == 1
    in_last = SparseRows(row[np.repeat(late, ids.shape[1])], ids[late].ravel(), cosine[late].ravel(), self._num_ads)
    column["near"][:], column["near_best"][:] = np.log1p(4 * score), 4 * best
    column["near_last_visit"][:] = np.log1p(4 * in_last.at(ad_BC)[0])

  def _seasons(self, column, time_B, ad_BC) -> None:
    """When anybody bought the ad: last, first, and in this season a year ago."""
    popularity = self.contexts.popularity
    bucket = popularity.bucket(time_B)
    last, first_N = self._sold
    known = ad_BC < popularity.seen.shape[1]
    ad_BC = np.where(known, ad_BC, 0)
    last_BC = np.where(known, last[bucket[:, None], ad_BC], -1)
    some = last_BC >= 0
    column["days_unsold"][:] = np.where(some, np.log1p((bucket[:, None] - 1 - last_BC) * popularity.width), 7)
    age = (bucket[:, None] - first_N[ad_BC]) * popularity.width
    column["days_known"][:] = np.where(some & (age > 0), np.log1p(np.maximum(age, 0)), 0)
    back, ahead = SEASON
    begin = time_B - (YEAR + back) * DAY
    end = popularity.bucket(time_B - (YEAR - ahead) * DAY)
    there = begin >= popularity.origin
    begin = popularity.bucket(begin)
    count = (popularity.seen[end[:, None], ad_BC] - popularity.seen[begin[:, None], ad_BC]) * known
    total = np.maximum(popularity.seen[end].sum(axis=1) - popularity.seen[begin].sum(axis=1), 1)
    share = np.log((count + _RESTOCK) / (total + _RESTOCK * self._num_ads)[:, None] * self._num_ads)
    column["last_year"][:] = there[:, None]
    column["last_year_share"][:] = np.where(there[:, None], share, 0)
