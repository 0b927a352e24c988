"""An example as bytes: what is known of a request (`batches.Known`), and what followed it.

Three forms. `exact` gives the very bits back. `float16` rounds features. `bytes` keeps a byte a
feature: the nearest of 256 values that are fitted on a sample, the quantiles of each feature.
UA-SIDs are in none: they are looked up with the batch, and the features that follow from them made.
Slots without an ad take a bit each, and nothing else.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from gr4ad_jax.config import DataConfig
from gr4ad_jax.features.batches import SLOT_FEATURES, USER_FEATURES, Known
from gr4ad_jax.features.history import FEATURES as HISTORY_FEATURES
from gr4ad_jax.features.pair_features import CODE_FEATURES
from gr4ad_jax.features.targets import Followed

FORMS = ("exact", "float16", "bytes")
LAYOUT = 2  # of a record; what was written in another one is not read
KEPT = tuple(name for name in SLOT_FEATURES if name not in CODE_FEATURES)
LEVELS = 256  # of a byte
_PLACES = [SLOT_FEATURES.index(name) for name in KEPT]
_DECAY = SLOT_FEATURES.index("decayed_count")
# `decode` finds the decayed counts by this.
assert SLOT_FEATURES[: len(HISTORY_FEATURES)] == HISTORY_FEATURES
_OUTCOME = np.dtype([("ad", "<i4"), ("depth", "i1"), ("value", "<f4")])
_AD = np.dtype("<i4")
_BINS = 4096  # of the table by which `_Nearest` guesses


@dataclasses.dataclass(frozen=True)
class Codec:
  """Examples to bytes and back.

  A record is a head, then of the n slots that hold an ad the ads [n] and the features, one after
  another [F, n], then the outcomes.

  Args:
    config: numbers of slots.
    form: one of FORMS.
    levels_FV: [len(KEPT), LEVELS] float32, ascending; of the form `bytes`.
  """

  config: DataConfig
  form: str = "exact"
  levels_FV: np.ndarray | None = None

  @property
  def _slots(self) -> int:
    config = self.config
    return config.history_slots + config.neighbor_slots + config.rising_slots

  @functools.cached_property
  def _head(self) -> np.dtype:
    """What every example has."""
    fields = [
      ("time", "<i8"),  # unix seconds
      ("user", "<u8"),  # a hash of the user's id
      ("outcomes", "<i4"),
      ("user_value", "<f4"),
      ("user_features", "<f4", (len(USER_FEATURES),)),
      ("filled", "u1", ((self._slots + 7) // 8,)),  # a bit a slot: whether it holds an ad
    ]
    if self.form == "exact":  # else it follows from the feature `decayed_count`
      fields.append(("decay", "<f8", (self.config.history_slots,)))
    return np.dtype(fields)

  @functools.cached_property
  def _kind(self) -> np.dtype:
    """Of a feature."""
    return np.dtype({"exact": "<f4", "float16": "<f2", "bytes": "u1"}[self.form])

  @functools.cached_property
  def _nearest(self) -> "_Nearest":
    return _Nearest(self.levels_FV)

  def bytes_of(self, slots: int, outcomes: int) -> int:
    """Of an example with so many slots that hold an ad, before compression."""
    slot = _AD.itemsize + len(KEPT) * self._kind.itemsize
    return self._head.itemsize + slots * slot + outcomes * _OUTCOME.itemsize

  def encode(
    self, known: Known, followed: Followed, time_B: np.ndarray, user_B: np.ndarray
  ) -> list[bytes]:
    """The records of B examples.

    Args:
      known, followed: of the requests; features of slots without an ad are 0.
      time_B: unix seconds of the requests.
      user_B: hashes of the users' ids.
    """
    filled_BS = known.slot_ad_BS >= 0
    head = np.zeros(len(time_B), self._head)
    head["time"] = time_B
    head["user"] = user_B
    head["outcomes"] = followed.size_B
    head["user_value"] = known.user_value_B
    head["user_features"] = known.user_features_BF
    head["filled"] = np.packbits(filled_BS, axis=1)
    if self.form == "exact":
      head["decay"] = known.decay_BH
    cell = np.flatnonzero(filled_BS)
    ad_n = known.slot_ad_BS.ravel()[cell].astype(_AD)
    features = known.slot_features_BSF.reshape(-1, known.slot_features_BSF.shape[-1])
    # (n, F) -> (F, n): a column of like values is compressed better than rows are.
    features_Fn = np.ascontiguousarray(features.take(cell, axis=0).T)[_PLACES]
    if self.form == "bytes":
      features_Fn = self._nearest(features_Fn)
    features_Fn = features_Fn.astype(self._kind, copy=False)
    outcome = np.zeros(len(followed.ad_P), _OUTCOME)
    for name, column in (("ad", followed.ad_P), ("depth", followed.depth_P)):
      outcome[name] = column
    outcome["value"] = followed.value_P
    n = 0
    p = 0
    records = []
    ends = np.cumsum(filled_BS.sum(axis=1)).tolist(), np.cumsum(followed.size_B).tolist()
    for b, (slot_end, end) in enumerate(zip(*ends, strict=True)):
      slots = ad_n[n:slot_end].tobytes(), features_Fn[:, n:slot_end].tobytes()
      records.append(b"".join([head[b : b + 1].tobytes(), *slots, outcome[p:end].tobytes()]))
      n = slot_end
      p = end
    return records

  def decode(self, records: Sequence[bytes]) -> tuple[Known, Followed, np.ndarray, np.ndarray]:
    """What `encode` was given, of B >= 1 records; `Followed.first_B` is not kept and is 0."""
    fixed = self._head.itemsize
    # Parts of one kind are joined over all records, and make plain arrays.
    head = np.frombuffer(b"".join([record[:fixed] for record in records]), self._head)
    filled_BS = np.unpackbits(head["filled"], axis=1, count=self._slots).view(bool)
    cell = np.flatnonzero(filled_BS)
    ad_n, features_Fn, outcome = self._parts(records, filled_BS.sum(axis=1))
    ads = np.full(filled_BS.shape, -1, np.int32)
    ads.ravel()[cell] = ad_n
    whole_Fn = np.zeros((len(SLOT_FEATURES), len(cell)), np.float32)
    for feature, (place, column) in enumerate(zip(_PLACES, features_Fn, strict=True)):
      # A feature at a time: its levels stay in the cache.
      if self.form == "bytes":
        column = self.levels_FV[feature].take(column)
      whole_Fn[place] = column
    features = np.zeros((*ads.shape, len(SLOT_FEATURES)), np.float32)
    features.reshape(-1, len(SLOT_FEATURES))[cell] = np.ascontiguousarray(whole_Fn.T)
    if self.form == "exact":
      decay = head["decay"].astype(np.float64)
    else:
      past = features[:, : self.config.history_slots, _DECAY].astype(np.float64)
      # The inverse of the feature's scale; padding has no count, and 0 stays 0.
      decay = np.expm1(past)
    users = head["user_features"].astype(np.float32)
    known = Known(ads, features, users, head["user_value"].astype(np.float32), decay)
    size = head["outcomes"].astype(np.int64)
    columns = (outcome[name].astype(outcome.dtype[name]) for name in ("ad", "depth", "value"))
    return known, Followed(np.zeros_like(size), size, *columns), head["time"], head["user"]

  def _parts(
    self, records: Sequence[bytes], slots_B: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What stands behind the heads: ads [n], features [F, n] and outcomes [P] of all records."""
    fixed = self._head.itemsize
    ads = []
    features = np.empty((len(KEPT), int(slots_B.sum())), self._kind)
    outcomes = []
    at = 0
    for record, slots in zip(records, slots_B.tolist(), strict=True):
      begin = fixed + slots * _AD.itemsize
      end = begin + slots * len(KEPT) * self._kind.itemsize
      ads.append(record[fixed:begin])
      columns = np.frombuffer(record, self._kind, slots * len(KEPT), begin)
      features[:, at : at + slots] = columns.reshape(len(KEPT), slots)
      outcomes.append(record[end:])
      at += slots
    ad_n = np.frombuffer(b"".join(ads), _AD)
    return ad_n, features, np.frombuffer(b"".join(outcomes), _OUTCOME)


class _Nearest:
  """The nearest of the levels of each feature, as a search among the halves between them gives it.

  A table of equal bins says how many halves lie below a value's bin. What is in the bin itself is
  then compared, which is a step or two: several times faster than a search.
  """

  def __init__(self, levels_FV: np.ndarray):
    # Halves between neighbouring levels: below one, the level left of it is nearer.
    self._middle_FV = (levels_FV[:, 1:] + levels_FV[:, :-1]) / 2
    # Behind the last half nothing follows, so that the comparison ends there.
    last = np.full((len(levels_FV), 1), np.inf, np.float32)
    self._bounds_FV = np.concatenate([self._middle_FV, last], axis=1)
    self._low_F = self._middle_FV[:, 0]
    span_F = self._middle_FV[:, -1] - self._low_F
    # Of a feature with one value alone all is in the first bin.
    scale_F = np.where(span_F > 1e-30, _BINS / np.maximum(span_F, 1e-30), 0)
    self._scale_F = scale_F.astype(np.float32)
    # Rounding keeps the order, so a half of an earlier bin is below a value of this one.
    self._below_FV = np.stack([
      np.searchsorted(self._bins(feature, middle_V), np.arange(_BINS)).astype(np.uint8)
      for feature, middle_V in enumerate(self._middle_FV)
    ])  # fmt: skip

  def _bins(self, feature: int, value_n: np.ndarray) -> np.ndarray:
    at = (value_n - self._low_F[feature]) * self._scale_F[feature]
    return np.minimum(np.maximum(at, 0), _BINS - 1).astype(np.intp)

  def __call__(self, value_Fn: np.ndarray) -> np.ndarray:
    """[F, n] uint8 of finite values."""
    code_Fn = np.empty(value_Fn.shape, np.uint8)
    for feature, (value_n, code_n) in enumerate(zip(value_Fn, code_Fn, strict=True)):
      bounds_V = self._bounds_FV[feature]
      code_n[:] = self._below_FV[feature].take(self._bins(feature, value_n))
      for _ in range(2):
        above_n = value_n > bounds_V.take(code_n)
        code_n += above_n
      # Where a bin holds more halves than that, as where values crowd, the search says it.
      more = above_n.nonzero()[0]
      code_n[more] = np.searchsorted(self._middle_FV[feature], value_n[more])
    return code_Fn


def fit_levels(known: Known) -> np.ndarray:
  """The LEVELS values of each kept feature that stand for all others: [len(KEPT), LEVELS] float32.

  They are the quantiles of the slots of a sample, 0 among them, as padding and what an ad lacks is
  0. A feature of fewer distinct values has all of them.
  """
  slots = known.slot_features_BSF[known.slot_ad_BS >= 0][:, _PLACES]
  levels_FV = np.zeros((len(KEPT), LEVELS), np.float32)
  for row, column in zip(levels_FV, slots.T, strict=True):
    # A feature of few distinct values keeps each of them.
    found = np.unique(np.append(column, 0))
    if len(found) > LEVELS:
      cuts = np.quantile(column, np.linspace(0, 1, LEVELS - 1), method="nearest")
      found = np.unique(np.append(cuts, 0))
    row[: len(found)] = found
    # The table is filled up with its last level, so that it still ascends.
    row[len(found) :] = found[-1]
  return levels_FV
