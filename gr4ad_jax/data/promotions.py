"""What was displayed in a store and printed in its mailer, by ad, store and week; and where each
user shops.

A retailer sets both before the week begins, so a request may know those of its own week.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence

import numpy as np

from gr4ad_jax import files

FEATURES = ("displayed", "mailed")
DISPLAYED = 1  # bits of `kind`
MAILED = 2
_FILE = "promotions.npz"
_WEEK = 7 * 86_400  # seconds


@dataclasses.dataclass(frozen=True)
class Promotions:
  """Promotions of N ads in G stores over W weeks, P entries.

  Attributes:
    week_start: [W] int64 unix seconds at which each week begins, ascending.
    stores: G, the stores that any user shops in.
    key: [P] int64, (ad · G + store) · W + week of each entry, ascending.
    kind: [P] int8, DISPLAYED, MAILED, or both added.
    user_id: [U] str.
    store: [U] int32, number of the store where the user shops, -1 where it is not known.
  """

  week_start: np.ndarray
  stores: int
  key: np.ndarray
  kind: np.ndarray
  user_id: np.ndarray
  store: np.ndarray

  @classmethod
  def of(
    cls, week_start: np.ndarray, stores: int, entries: Sequence[np.ndarray], kind: np.ndarray,
    user_id: np.ndarray, store: np.ndarray,
  ) -> "Promotions":  # fmt: skip
    """From entries in any order, which may repeat: (ad, store, week) as numbers, [P] each."""
    ad, at, week = (np.asarray(column, np.int64) for column in entries)
    key = (ad * stores + at) * len(week_start) + week
    order = np.argsort(key, kind="stable")
    # Entries of the same ad, store and week become one, which has the bits of all.
    key, first = np.unique(key[order], return_index=True)
    joined = np.bitwise_or.reduceat(kind[order], first) if len(key) else kind[:0]
    return cls(week_start, stores, key, joined.astype(np.int8), user_id, store.astype(np.int32))

  @functools.cached_property
  def _store_of(self) -> dict[str, int]:
    return dict(zip(map(str, self.user_id), self.store.tolist(), strict=True))

  def stores_of(self, user_ids: Sequence[str]) -> np.ndarray:
    """[B] int32, the store of each user; -1 for one who is not known."""
    return np.array([self._store_of.get(str(user), -1) for user in user_ids], np.int32)

  def features(self, store_B: np.ndarray, time_B: np.ndarray, ad_BS: np.ndarray) -> np.ndarray:
    """Whether ads are displayed and mailed where users shop, in the week of a moment.

    Args:
      store_B: of `stores_of`.
      time_B: unix seconds.
      ad_BS: rows of the ad table, -1 in padding.

    Returns:
      [B, S, len(FEATURES)] float32, 1 or 0; 0 where store, week or ad is not known.
    """
    weeks = len(self.week_start)
    # The last week that begins at the moment or before it; -1 before the first.
    week_B = np.searchsorted(self.week_start, time_B, side="right") - 1
    # Of weeks behind the last one nothing is known.
    over_B = time_B >= self.week_start[-1] + _WEEK
    known_B = (store_B >= 0) & (week_B >= 0) & ~over_B
    # (B, S) rows of ads beside one store and one week a request.
    key_BS = (ad_BS.astype(np.int64) * self.stores + store_B[:, None]) * weeks + week_B[:, None]
    if not len(self.key):
      return np.zeros((*ad_BS.shape, len(FEATURES)), np.float32)
    # A key behind the last has no place. It reads the last one, and is not equal to it.
    at_BS = np.minimum(np.searchsorted(self.key, key_BS), len(self.key) - 1)
    found_BS = (self.key[at_BS] == key_BS) & known_B[:, None] & (ad_BS >= 0)
    kind_BS = np.where(found_BS, self.kind[at_BS], 0)
    return np.stack([kind_BS & DISPLAYED, (kind_BS & MAILED) > 0], axis=-1).astype(np.float32)

  def save(self, directory: str) -> None:
    """Writes `promotions.npz`."""
    columns = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    columns["user_id"] = np.array(list(map(str, self.user_id)))  # an array of text, not of objects
    files.save_arrays(os.path.join(directory, _FILE), compressed=True, **columns)

  @classmethod
  def load(cls, directory: str) -> "Promotions":
    """Reads what `save` wrote. Raises as `files.load_arrays` does."""
    names = [field.name for field in dataclasses.fields(cls)]
    found = dict(zip(names, files.load_arrays(os.path.join(directory, _FILE), *names), strict=True))
    return cls(**found | {"stores": int(found["stores"])})
