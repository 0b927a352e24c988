"""The last code of a UA-SID: a hash of business features (docs/design/method.md §1.2).

It also decides where ads go whose *prefix*, the codes before the last, has no code left.
"""

import hashlib
from collections.abc import Callable, Sequence, Set

import numpy as np

from gr4ad_jax.data import schema

# UA-SIDs that are taken. Either all of them, [N, T]; or a function that says for a prefix which
# last codes are taken under it.
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

  "hash" keeps the hash. "probe" walks from it to the first code that is free in the prefix; after
  the last code it goes on at 0. Ads are served in the order of a hash of their id, so the order of
  the table does not matter.

  Ads whose prefix is full come last. Each moves to a prefix with a free code: one that shares as
  many first codes with its own as can be, and of those the nearest. No other ad's codes change.
  Where no code is left at all, or without `nearby`, an ad keeps its prefix and its hash, and shares
  its UA-SID.

  Args:
    ads: N ads.
    prefix_NP: [N, T-1] codes of the levels before.
    size: codes of the last level.
    mode: "hash" or "probe".
    existing: UA-SIDs that are taken.
    nearby: the [V_t, D] centroids of the levels before, and a function from an ad's row to its [D]
      vector. It is asked where the ad's prefix is full. None: ads never move.

  Returns:
    [N, T] int32.

  Raises:
    ValueError: existing codes of another number of levels.
  """
  taken = _taken(existing, prefix_NP.shape[1] + 1)
  # Joined by the unit separator: the fields "a", "bc" must not read like "ab", "c".
  keys = [
    "\x1f".join(map(str, key))
    for key in zip(ads.ad_id, ads.account_id, ads.conversion_type, strict=True)
  ]
  code_N = np.asarray([stable_hash(key) % size for key in keys], np.int32)
  if mode == "probe":
    prefix_NP, code_N = _probed(ads.ad_id, keys, prefix_NP, code_N, _Used(taken, size), nearby)
  return np.concatenate([prefix_NP, code_N[:, None]], axis=1).astype(np.int32)


def _probed(
  ad_id_N: np.ndarray,
  keys: Sequence[str],
  prefix_NP: np.ndarray,
  code_N: np.ndarray,
  used: "_Used",
  nearby: tuple[Sequence[np.ndarray], Callable[[int], np.ndarray]] | None,
) -> tuple[np.ndarray, np.ndarray]:
  """Prefixes and last codes after probing, from the hashes that it starts at (see `complete`)."""
  prefix_NP = prefix_NP.copy()
  code_N = code_N.copy()
  crowded = []
  # Ids of one hash, or one id twice, go by the whole key.
  for row in sorted(range(len(keys)), key=lambda row: (stable_hash(str(ad_id_N[row])), keys[row])):
    prefix = tuple(prefix_NP[row].tolist())
    # Later, not at once: who moves must not take a code from an ad whose own prefix this is.
    if used.is_full(prefix):
      crowded.append(row)
    else:
      code_N[row] = used.take(prefix, int(code_N[row]))
  if nearby is not None:
    centroids, vector_of = nearby
    search = _OpenPrefixes(centroids, used)
    for row in crowded:
      prefix = search.nearest(vector_of(row), tuple(prefix_NP[row].tolist()))
      # No code is free anywhere, so none is for the ads that follow.
      if prefix is None:
        break
      prefix_NP[row] = prefix
      code_N[row] = used.take(prefix, int(code_N[row]))
  return prefix_NP, code_N


class _Used:
  """The last codes that are taken, by prefix. A prefix is looked up once and then kept."""

  def __init__(self, taken: Callable[[Prefix], Set[int]], size: int):
    self._taken = taken
    self._size = size
    self._below: dict[Prefix, set[int]] = {}

  def _of(self, prefix: Prefix) -> set[int]:
    """The codes taken under a prefix: a set of our own, to which further ones are added."""
    if prefix not in self._below:
      self._below[prefix] = set(self._taken(prefix))
    return self._below[prefix]

  def is_full(self, prefix: Prefix) -> bool:
    """Whether the prefix has no code left."""
    return len(self._of(prefix)) >= self._size

  def take(self, prefix: Prefix, wanted: int) -> int:
    """Takes the first free code from the wanted one on, round the end. The prefix must have one."""
    used = self._of(prefix)
    code = next(
      code for offset in range(self._size) if (code := (wanted + offset) % self._size) not in used
    )
    used.add(code)
    return code


class _OpenPrefixes:
  """Looks for prefixes with a free last code.

  Codes are only ever taken, so a node that was found full is never entered again. That keeps a
  search among many full prefixes short.
  """

  def __init__(self, centroids: Sequence[np.ndarray], used: _Used):
    self._centroids = centroids
    self._used = used
    self._full: dict[Prefix, np.ndarray] = {}  # node -> which of its children have no code left

  def nearest(self, vector_D: np.ndarray, home: Prefix) -> Prefix | None:
    """The open prefix that shares most first codes with `home`; None where no prefix is open.

    Where the codes part, each level takes the nearest centroid that leads to an open prefix.
    """
    # What is left of the vector at each depth along `home`: [D] for depths 0 … T - 1.
    residuals = [vector_D]
    for code, table_CD in zip(home, self._centroids, strict=True):
      residuals.append(residuals[-1] - table_CD[code])
    for depth in reversed(range(len(home))):
      found = self._below(home[:depth], residuals[depth])
      if found is not None:
        return found
    return None

  def _below(self, node: Prefix, residual_D: np.ndarray) -> Prefix | None:
    """The first open prefix below a node, nearest children first; None where all are full."""
    level = len(node)
    if level == len(self._centroids):
      return None if self._used.is_full(node) else node
    table_CD = self._centroids[level]
    full_C = self._full.setdefault(node, np.zeros(len(table_CD), bool))
    gap_CD = table_CD - residual_D
    squared_C = np.einsum("cd,cd->c", gap_CD, gap_CD)
    while not full_C.all():
      # Of equally near ones the lowest code.
      code = int(np.argmin(np.where(full_C, np.inf, squared_C)))
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
  """64-bit hash that is the same in every process, which Python's `hash` of text is not."""
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
