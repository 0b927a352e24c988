"""An example as bytes: what is known of a request (`batches.Known`), and what followed it.

Three forms. `exact` gives the very bits back. `float16` rounds features. `bytes` keeps a byte a
feature: the nearest of 256 values that are fitted on a sample, the quantiles of each feature.
UA-SIDs are in none: they are looked up with the batch, and the features that follow from them made.
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
KEPT = tuple(name for name in SLOT_FEATURES if name not in CODE_FEATURES)
LEVELS = 256  # of a byte
_PLACES = [SLOT_FEATURES.index(name) for name in KEPT]
_DECAY = KEPT.index("decayed_count")
# `decode` finds the decayed counts by this.
assert KEPT[: len(HISTORY_FEATURES)] == HISTORY_FEATURES
_OUTCOME = np.dtype([("ad", "<i4"), ("depth", "i1"), ("value", "<f4")])


@dataclasses.dataclass(frozen=True)
class Codec:
  """Examples to bytes and back.

  Args:
    config: numbers of slots.
    form: one of FORMS.
    levels_FV: [len(KEPT), LEVELS] float32, ascending; of the form `bytes`.
  """

  config: DataConfig
  form: str = "exact"
  levels_FV: np.ndarray | None = None

  @functools.cached_property
  def _head(self) -> np.dtype:
    """What every example has; its outcomes follow."""
    config = self.config
    slots = config.history_slots + config.neighbor_slots + config.rising_slots
    kind = {"exact": "<f4", "float16": "<f2", "bytes": "u1"}[self.form]
    fields = [
      ("time", "<i8"),  # unix seconds
      ("user", "<u8"),  # a hash of the user's id
      ("outcomes", "<i4"),
      ("user_value", "<f4"),
      ("user_features", "<f4", (len(USER_FEATURES),)),
      ("slot_ad", "<i4", (slots,)),
      ("slot_features", kind, (slots, len(KEPT))),
    ]
    if self.form == "exact":  # else it follows from the feature `decayed_count`
      fields.append(("decay", "<f8", (config.history_slots,)))
    return np.dtype(fields)

  @property
  def fixed_bytes(self) -> int:
    """Of an example without outcomes, before compression."""
    return self._head.itemsize

  def encode(
    self, known: Known, followed: Followed, time_B: np.ndarray, user_B: np.ndarray
  ) -> list[bytes]:
    """The records of B examples.

    Args:
      known, followed: of the requests.
      time_B: unix seconds of the requests.
      user_B: hashes of the users' ids.
    """
    head = np.zeros(len(time_B), self._head)
    head["time"] = time_B
    head["user"] = user_B
    head["outcomes"] = followed.size_B
    head["user_value"] = known.user_value_B
    head["user_features"] = known.user_features_BF
    head["slot_ad"] = known.slot_ad_BS
    features = known.slot_features_BSF[..., _PLACES]
    head["slot_features"] = self._bytes_of(features) if self.form == "bytes" else features
    if self.form == "exact":
      head["decay"] = known.decay_BH
    outcome = np.zeros(len(followed.ad_P), _OUTCOME)
    for name, column in (("ad", followed.ad_P), ("depth", followed.depth_P)):
      outcome[name] = column
    outcome["value"] = followed.value_P
    end_B = np.cumsum(followed.size_B)
    # An example is its head, then the outcomes that belong to it.
    return [
      head[b : b + 1].tobytes() + outcome[end - size : end].tobytes()
      for b, (end, size) in enumerate(zip(end_B.tolist(), followed.size_B.tolist(), strict=True))
    ]

  def decode(self, records: Sequence[bytes]) -> tuple[Known, Followed, np.ndarray, np.ndarray]:
    """What `encode` was given, of B >= 1 records; `Followed.first_B` is not kept and is 0."""
    fixed = self.fixed_bytes
    # Heads have one length, so the parts of all records make two plain arrays.
    head = np.frombuffer(b"".join([record[:fixed] for record in records]), self._head)
    outcome = np.frombuffer(b"".join([record[fixed:] for record in records]), _OUTCOME)
    ads = head["slot_ad"].astype(np.int32)
    features = np.zeros((*ads.shape, len(SLOT_FEATURES)), np.float32)
    kept = head["slot_features"]
    if self.form == "bytes":
      # (F,), (B, S, F) -> (B, S, F): level by feature and byte.
      kept = self.levels_FV[np.arange(len(KEPT)), kept]
    features[..., _PLACES] = kept
    if self.form == "exact":
      decay = head["decay"].astype(np.float64)
    else:
      past = features[:, : self.config.history_slots, _DECAY].astype(np.float64)
      # The inverse of the feature's scale; padding has no count.
      decay = np.where(ads[:, : self.config.history_slots] >= 0, np.expm1(past), 0)
    users = head["user_features"].astype(np.float32)
    known = Known(ads, features, users, head["user_value"].astype(np.float32), decay)
    size = head["outcomes"].astype(np.int64)
    columns = (outcome[name].astype(outcome.dtype[name]) for name in ("ad", "depth", "value"))
    return known, Followed(np.zeros_like(size), size, *columns), head["time"], head["user"]

  def _bytes_of(self, features: np.ndarray) -> np.ndarray:
    """[..., F] uint8, the nearest level of each feature."""
    out = np.empty(features.shape, np.uint8)
    for column, levels_V in enumerate(self.levels_FV):
      # Halves between neighbouring levels: below one, the level left of it is nearer.
      middle = (levels_V[1:] + levels_V[:-1]) / 2
      out[..., column] = np.searchsorted(middle, features[..., column])
    return out


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
