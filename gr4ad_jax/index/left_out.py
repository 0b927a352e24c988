"""The ads that a request does without: named ones, and all but those of a set."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class LeftOut:
  """What R requests do without.

  Attributes:
    requests: R.
    request_E: int64, request of each named row, ascending.
    row_E: int64, rows of the ad table, ascending within a request, each once.
    only: for each request a bool array, True for the rows that it may have, or None for all rows.
      Rows past its end it may not have. Requests with the same set should share the array, as what
      is made of it is made once. Empty: None for every request.
  """

  requests: int
  request_E: np.ndarray
  row_E: np.ndarray
  only: tuple[np.ndarray | None, ...] = ()

  @classmethod
  def of(
    cls, requests: int, request_E: np.ndarray, row_E: np.ndarray,
    only: Sequence[np.ndarray | None] = (),
  ) -> "LeftOut":  # fmt: skip
    """From rows in any order, which may repeat. -1 is padding.

    Raises:
      ValueError: a request outside of 0 … requests - 1, or sets that are not one a request.
    """
    request_E = np.asarray(request_E, np.int64)
    row_E = np.asarray(row_E, np.int64)
    if len(request_E) and not 0 <= request_E.min() <= request_E.max() < requests:
      raise ValueError(f"requests are numbered from 0 to {requests - 1}")
    if only and len(only) != requests:
      raise ValueError(f"{len(only)} sets of ads for {requests} requests")
    named = row_E >= 0
    # One number for each (request, row): sorted by request, then by row, each once.
    width = 1 + int(row_E.max(initial=0))
    pair = np.unique(request_E[named] * width + row_E[named])
    return cls(requests, pair // width, pair % width, tuple(only))

  @classmethod
  def lists(
    cls, rows: Sequence[Sequence[int]], only: Sequence[np.ndarray | None] = ()
  ) -> "LeftOut":
    """From each request's own list of rows."""
    size = [len(some) for some in rows]
    row_E = np.concatenate([np.asarray(some, np.int64) for some in rows]) if rows else np.zeros(0)
    return cls.of(len(rows), np.repeat(np.arange(len(rows)), size), row_E, only)

  @classmethod
  def joined(cls, parts: Sequence["LeftOut"]) -> "LeftOut":
    """Those of several batches as those of one, with their requests numbered on."""
    size = np.array([part.requests for part in parts])
    first = np.cumsum(size) - size
    request_E = [part.request_E + begin for part, begin in zip(parts, first, strict=True)]
    # A part without sets has none for each of its requests.
    only = [one for part in parts for one in part.only or (None,) * part.requests]
    rows = np.concatenate([part.row_E for part in parts])
    return cls(int(size.sum()), np.concatenate(request_E), rows, tuple(only))

  def inside(self, group_N: np.ndarray) -> "LeftOut":
    """The same, and all ads that are not of a group, [N] bool."""
    both: dict[int, np.ndarray] = {id(None): np.asarray(group_N, bool)}
    for one in self.sets:
      # Rows past the end of either are in neither.
      shared = min(len(one), len(group_N))
      both[id(one)] = np.asarray(one[:shared], bool) & group_N[:shared]
    only = self.only or (None,) * self.requests
    # One array for each set that there was: what is made of it is made once.
    return LeftOut(self.requests, self.request_E, self.row_E, tuple(both[id(one)] for one in only))

  def __bool__(self):
    """Whether anything is left out at all."""
    return bool(len(self.row_E) or self.sets)

  @property
  def sets(self) -> list[np.ndarray]:
    """The distinct sets of allowed ads, told apart by which array it is, not by what it holds."""
    return list({id(one): one for one in self.only if one is not None}.values())

  @property
  def most(self) -> int:
    """The most rows that a request names."""
    return int(np.bincount(self.request_E, minlength=1).max())

  def take(self, requests: np.ndarray) -> "LeftOut":
    """Some requests, in the order named. They become 0, 1, …, and may repeat."""
    # Each request's rows are a run: all runs as one gather.
    requests = np.asarray(requests)
    first = np.searchsorted(self.request_E, requests)
    size = np.searchsorted(self.request_E, requests, side="right") - first
    request_E = np.repeat(np.arange(len(requests)), size)
    nth = np.arange(len(request_E)) - np.repeat(np.cumsum(size) - size, size)
    only = tuple(self.only[request] for request in requests) if self.only else ()
    return LeftOut(len(requests), request_E, self.row_E[np.repeat(first, size) + nth], only)

  def keeps(self, request_n: np.ndarray, row_n: np.ndarray) -> np.ndarray:
    """Whether requests may have rows, [n] bool. Padding (-1) they may not."""
    # One number a pair, so that one look-up answers all. It must be unique for both lists of rows.
    width = 1 + max(int(self.row_E.max(initial=0)), int(row_n.max(initial=0)))
    kept = row_n >= 0
    kept &= ~np.isin(request_n * width + row_n, self.request_E * width + self.row_E)
    for allowed_N in self.sets:
      # Which pairs are of a request with this set. (R,) gathered by (n,).
      under = np.array([one is allowed_N for one in self.only])[request_n]
      inside = row_n < len(allowed_N)
      kept &= ~under | (inside & allowed_N[np.where(inside & kept, row_n, 0)])
    return kept

  def kept(self, ad_RK: np.ndarray) -> np.ndarray:
    """[R, K] whether each request may have each ad of its list."""
    row_RK = np.broadcast_to(np.arange(len(ad_RK))[:, None], ad_RK.shape)
    return self.keeps(row_RK.ravel(), ad_RK.ravel()).reshape(ad_RK.shape)
