"""The last code of a UA-SID: a hash of business features, and where ads go whose prefix has no
code left.
"""

import hashlib
from collections.abc import Callable, Sequence, Set

import numpy as np

from gr4ad_jax.data import schema

# UA-SIDs that are taken: all of them, [N, T], or a function from the codes before the last to those
# taken as the last.
Existing = np.ndarray | Callable[[tuple[int, ...]], Set[int]]
Prefix = tuple[int, ...]


def complete(
  ads: schema.AdTable,
  prefix_NP: np.ndarray,
  size: int,
  mode: str,
  existing: Existing | None = None,
  nearby: tuple[Sequence[np.ndarray], Callable[[int], np.ndarray]] | None = None,
) -> np.ndarray:
  """Completes prefixes by a hash of business features (ad, account, conversion type).

  "hash" keeps the hash. "probe" walks from it to the first code that is free in the prefix, round
  the end; ads are served in the order of a hash of their id, so the order of the table does not
  matter. Ads whose prefix is full come
  last: each moves to the nearest prefix with a free code, which shares as many first codes with its
    own as it can, so
  no other ad's codes change. Only where no code is left at all, or without `nearby`, an ad keeps
  its prefix and its
  hash: a collision.

  Args:
    ads: N ads.
    prefix_NP: [N, T-1] codes of the levels before.
    size: codes of the last level.
    mode: "hash" or "probe".
    existing: UA-SIDs that are taken.
    nearby: the [V_t, D] centroids of the levels before, and the [D] vector of an ad by its row,
      asked for where the ad's prefix is full; None: ads never move.

  Returns:
    [N, T] int32.

  Raises:
    ValueError: existing codes of another number of levels.
  """
  taken = _taken(existing, prefix_NP.shape[1] + 1)
  keys = [
    "\x1f".join(map(str, key))
    for key in zip(ads.ad_id, ads.account_id, ads.conversion_type, strict=True)
  ]
  code_N = np.asarray([stable_hash(key) % size for key in keys], np.int32)
  if mode == "probe":
    prefix_NP = prefix_NP.copy()
    used = _Used(taken, size)
    crowded = []
    for row in sorted(
      range(len(ads)), key=lambda row: (stable_hash(str(ads.ad_id[row])), keys[row])
    ):
      prefix = tuple(prefix_NP[row].tolist())
      if used.is_full(prefix):
        crowded.append(row)
      else:
        code_N[row] = used.take(prefix, int(code_N[row]))
    if nearby is not None:
      centroids, vector_of = nearby
      search = _OpenPrefixes(centroids, used)
      for row in crowded:
        prefix = search.nearest(vector_of(row), tuple(prefix_NP[row].tolist()))
        if prefix is None:  # no code is free anywhere, so none is for the ads that follow
          break
        prefix_NP[row] = prefix
        code_N[row] = used.take(prefix, int(code_N[row]))
  return np.concatenate([prefix_NP, code_N[:, None]], axis=1).astype(np.int32)


class _Used:
  """The last codes that are taken, by prefix; a prefix is looked up once."""

  def __init__(self, taken: Callable[[Prefix], Set[int]], size: int):
    self._taken = taken
    self._size = size
    self._below: dict[Prefix, set[int]] = {}

  def _of(self, prefix: Prefix) -> set[int]:
    if prefix not in self._below:
      self._below[prefix] = set(self._taken(prefix))
    return self._below[prefix]

  def is_full(self, prefix: Prefix) -> bool:
    """Whether the prefix has no code left."""
    return len(self._of(prefix)) >= self._size

  def take(self, prefix: Prefix, wanted: int) -> int:
    """Takes the first free code from the wanted one on, round the end; the prefix is not full."""
    used = self._of(prefix)
    code = next(
      code for offset in range(self._size) if (code := (wanted + offset) % self._size) not in used
    )
    used.add(code)
    return code


class _OpenPrefixes:
  """Looks for prefixes with a free last code. A node that was found full is never entered again."""

  def __init__(self, centroids: Sequence[np.ndarray], used: _Used):
    self._centroids = centroids
    self._used = used
    self._full: dict[Prefix, np.ndarray] = {}  # node -> which of its children have no code left

  def nearest(self, vector_D: np.ndarray, home: Prefix) -> Prefix | None:
    """The open prefix that shares most first codes with `home`, then at each level the nearest;
    None: there is none.
    """
    residuals = [vector_D]
    for code, table_CD in zip(home, self._centroids, strict=True):
      residuals.append(residuals[-1] - table_CD[code])
    for depth in reversed(range(len(home))):
      found = self._below(home[:depth], residuals[depth])
      if found is not None:
        return found
    return None

  def _below(self, node: Prefix, residual_D: np.ndarray) -> Prefix | None:
    level = len(node)
    if level == len(self._centroids):
      return None if self._used.is_full(node) else node
    table_CD = self._centroids[level]
    full_C = self._full.setdefault(node, np.zeros(len(table_CD), bool))
    gap_CD = table_CD - residual_D
    squared_C = np.einsum("cd,cd->c", gap_CD, gap_CD)
    while not full_C.all():
      code = int(
        np.argmin(np.where(full_C, np.inf, squared_C))
      )  # of equal distances the lowest code
      found = self._below((*node, code), residual_D - table_CD[code])
      if found is not None:
        return found
      full_C[code] = True
    return None


def _taken(existing: Existing | None, levels: int) -> Callable[[Prefix], Set[int]]:
  """The taken last codes by prefix."""
  if callable(existing):
    return existing
  below: dict[Prefix, set[int]] = {}
  if existing is not None:
    if existing.shape[1:] != (levels,):
      raise ValueError(f"existing codes have shape {existing.shape}; [N, {levels}] is needed")
    for code in np.asarray(existing).tolist():
      below.setdefault(tuple(code[:-1]), set()).add(code[-1])
  return lambda prefix: below.get(prefix, set())


def stable_hash(text: str) -> int:
  """64-bit hash that is the same in every process."""
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
