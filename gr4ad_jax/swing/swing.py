"""Swing: which ads are taken together, from the training events alone.

The similarity is that of Yang et al., arXiv:2010.05525 (docs/design/method.md §1.1):

  sim(i, j) = Σ w_u w_v / (α + |I_u ∩ I_v|), over ordered pairs u ≠ v of users that took i and j

I_u are the ads that u took, and w_u = 1 / √|I_u|. A "user" is one visit here. Where no visit holds
two ads, as in a log of reviews, the users are the log's own.

Four rules bound the work. Below the caps the result is exact, and it depends neither on memory nor
on workers.
1. Of a visit of more than `max_items_per_user` ads, those of the lowest `priority` count. |I_u| is
   of those.
2. An ad of more than `max_users_per_item` visits is judged by those of the lowest `priority`.
3. Two ads are neighbours where at least `min_support` of the visits by which the one is judged hold
   the other.
4. The `neighbors` most similar stay. Those that are equal in float32 go by ad row.

`memory_mb` bounds the working memory of all workers together. Beside it stand the columns, the
result, 4 bytes for each pair of visit and ad before the cap on visits and 4 for each after it, 32
bytes a visit and 100 an ad. Blocks of ads are sized by the ads of their visits.

Two things are never cut, whatever they take. In each worker it is a single ad, with 160 bytes for
each ad of each visit by which it is judged. While events are sorted, it is the largest visit and
the most popular ad, with 40 bytes an event.
"""

import concurrent.futures
import dataclasses
import json
import os
import zipfile
from collections.abc import Callable
from typing import Protocol

import numpy as np

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.swing import blocks
from gr4ad_jax.swing.groups import (
  BLOCK,
  Groups,
  check_columns,
  cuts,
  group,
  priority,
  train_blocks,
)

# Bytes that an entry and a pair of a block take at the most, with all arrays made of them. What the
# two are, `blocks` says.
_ENTRY_BYTES = 128
_PAIR_BYTES = 32
_WORKER_BYTES = 64 << 20  # of memory, for each worker after the first
# Of a block, where memory allows; never more.
_ENTRIES = 1 << 18
_PAIRS = 1 << 22
# What a priority decides on: it goes into the hash, so the two draws know nothing of each other.
OF_A_VISIT = "ads of a visit"
OF_AN_AD = "visits of an ad"
_GROUPED = "Swing: events"
_TURNED = "Swing: ads of visits"
_COMPARED = "Swing: pairs of visits"

# Hears how far work is: what is done, how much of it, of how much.
Told = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Neighbors:
  """The strongest neighbours of each ad.

  Attributes:
    ads_NK: [N, K] int32 ad rows, strongest first, -1 where an ad has fewer.
    similarity_NK: [N, K] float32 Swing similarity, 0 where there is none.
  """

  ads_NK: np.ndarray
  similarity_NK: np.ndarray

  def save(self, path: str, made: dict[str, float]) -> None:
    """Writes an .npz file with the settings that made it, under a temporary name first."""
    part = f"{path}.part.npz"
    np.savez(
      part, ads=self.ads_NK, similarity=self.similarity_NK, made=np.asarray(json.dumps(made))
    )
    os.replace(part, path)

  @classmethod
  def load(cls, path: str, wanted: dict[str, float]) -> "Neighbors":
    """Reads what `save` wrote.

    Raises:
      OSError: there is no such file.
      DataError: it is another file, damaged, or made with other settings than those wanted. The
        message names the flag.
    """
    try:
      with np.load(path, allow_pickle=False) as saved:
        found = cls(saved["ads"], saved["similarity"])
        made = dict(json.loads(str(saved["made"])))
    except (EOFError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
      raise DataError(f"{path}: not a file of Swing neighbours ({error!r})") from error
    if found.ads_NK.ndim != 2 or found.ads_NK.shape != found.similarity_NK.shape:
      raise DataError(
        f"{path}: neighbours of shape {found.ads_NK.shape}, similarities "
        f"{found.similarity_NK.shape}"
      )
    for name, value in wanted.items():
      if made.get(name) != value:
        raise DataError(f"{path}: made with --{name}={made.get(name)}; {value} is wanted")
    return found

  def split(self, held_out: float, seed: int) -> tuple["Neighbors", "Neighbors"]:
    """Parts the unordered pairs in two at random: (i, j) and (j, i) always lie on the same side.

    Else a pair that is held out would be learned from its other direction.

    Args:
      held_out: share of the pairs of the second part, in [0, 1].
      seed: seed of the draw.

    Returns:
      The neighbours to train on and those held out, each with the order of the whole kept.
    """
    ad = np.arange(len(self.ads_NK))[:, None]
    # (N, 1) with (N, K) -> (N, K). One number for each unordered pair; `unique` makes them dense,
    # so that one draw each is enough. Padding gets numbers too; `keep` passes it over.
    low = np.minimum(ad, self.ads_NK)
    high = np.maximum(ad, self.ads_NK)
    _, pair = np.unique(low.astype(np.int64) * len(self.ads_NK) + high, return_inverse=True)
    pair = pair.reshape(self.ads_NK.shape)
    out_NK = (np.random.default_rng(seed).random(pair.max(initial=0) + 1) < held_out)[pair]
    return self.keep(~out_NK), self.keep(out_NK)

  def among(self, rows: np.ndarray) -> "Neighbors":
    """The neighbours within a subset of ads, renumbered by their place in it.

    Args:
      rows: [R] ascending rows of the subset.
    """
    place = np.full(len(self.ads_NK), -1, np.int32)
    place[rows] = np.arange(len(rows))
    ads_RK = np.where(self.ads_NK[rows] >= 0, place[self.ads_NK[rows]], -1)
    return Neighbors(ads_RK, self.similarity_NK[rows]).keep(ads_RK >= 0)

  def keep(self, mask_NK: np.ndarray) -> "Neighbors":
    """The neighbours where the mask holds, moved to the front of their row."""
    mask_NK = mask_NK & (self.ads_NK >= 0)
    # False sorts before True. Stable, so those that stay keep their order, strongest first.
    order = np.argsort(~mask_NK, axis=1, kind="stable")
    ads_NK = np.take_along_axis(np.where(mask_NK, self.ads_NK, -1), order, axis=1)
    similarity_NK = np.take_along_axis(np.where(mask_NK, self.similarity_NK, 0), order, axis=1)
    return Neighbors(ads_NK.astype(np.int32), similarity_NK.astype(np.float32))


class Columns(Protocol):
  """What is read of a log: [E] columns of whole numbers, in memory or memory-mapped."""

  request: np.ndarray  # visit
  user: np.ndarray
  ad: np.ndarray
  split: np.ndarray  # 0: training


def fit_swing(
  events: Columns,
  num_ads: int,
  *,
  alpha: float = 1.0,
  neighbors: int = 16,
  max_users_per_item: int = 256,
  max_items_per_user: int = 1000,
  min_support: int = 2,
  seed: int = 0,
  memory_mb: int = 1024,
  workers: int = 0,
  told: Told | None = None,
) -> Neighbors:
  """The most similar ads of each ad, by the formula and the rules of this file's head.

  Args:
    events: the log. Of valid and test events only the split is looked at.
    num_ads: N.
    alpha: smoothing constant of the formula, 0 or more.
    neighbors: K.
    max_users_per_item: cap on the visits of an ad. Its work grows with their square.
    max_items_per_user: cap on the ads of a visit.
    min_support: visits that two neighbours share. Less than 2 is as 2, as a pair of visits is
      needed.
    seed: seed of both samples.
    memory_mb: MiB of working memory, 16 or more (see the head).
    workers: threads, one for each 64 MiB of memory at most. 0: one a core.
    told: hears how far it is: events grouped by visit, ads of visits by ad, pairs of visits
      compared.

  Returns:
    Neighbours, similarity above zero only.

  Raises:
    DataError: columns of different lengths, not of whole numbers, or an id out of range.
    ValueError: a setting out of range.
  """
  at_least(
    1,
    neighbors=neighbors,
    max_users_per_item=max_users_per_item,
    max_items_per_user=max_items_per_user,
  )
  at_least(16, memory_mb=memory_mb)
  check_columns(events, num_ads)
  memory = memory_mb << 20
  workers = min(workers or os.cpu_count() or 1, max(memory // _WORKER_BYTES, 1))
  baskets = _baskets(events, max_items_per_user, seed, memory, told)
  visits = _visits(baskets, max_users_per_item, seed, memory, told)
  found = _Filled(num_ads, neighbors)
  # Half for entries, and half for pairs.
  share = memory // (2 * workers)
  _compare(baskets, visits, found, alpha, min_support, share, workers, told)
  return found.neighbors


def _compare(
  baskets: Groups,
  visits: Groups,
  found: "_Filled",
  alpha: float,
  min_support: int,
  share: int,
  workers: int,
  told: Told | None,
) -> None:
  """Fills in the neighbours, a block of ads a worker. `share` bytes bound entries, and pairs."""

  # Threads, as NumPy lets go of the interpreter's lock in its long loops. Blocks are of distinct
  # ads, so no two write the same rows.
  def work(low: int, high: int) -> None:
    found.take(
      blocks.similar(
        baskets, visits, low, high, alpha=alpha, min_support=max(min_support, 2),
        pairs_at_once=max(min(_PAIRS, share // _PAIR_BYTES), 1),
      )
    )  # fmt: skip

  most = max(min(_ENTRIES, share // _ENTRY_BYTES), 1)
  _all(work, list(cuts(_entries(baskets, visits), most)), visits.sizes(), workers, told)


def at_least(low: int, **settings: int) -> None:
  """Raises ValueError for the first setting that is below."""
  for name, value in settings.items():
    if value < low:
      raise ValueError(f"{name} is {value}; {low} or more is needed")


class _Filled:
  """Neighbours that are filled in, some ads at a time."""

  def __init__(self, num_ads: int, neighbors: int):
    shape = (num_ads, neighbors)
    self.neighbors = Neighbors(np.full(shape, -1, np.int32), np.zeros(shape, np.float32))

  def take(self, cells: blocks.Cells) -> None:
    """Keeps the most similar of each ad. Threads may take other ads at the same time."""
    # A cell's rank is its column: cells of an ad come from the most similar on.
    rank = cells.rank()
    kept = rank < self.neighbors.ads_NK.shape[1]
    place = cells.ad_C[kept], rank[kept]
    self.neighbors.ads_NK[place] = cells.other_C[kept]
    self.neighbors.similarity_NK[place] = cells.similarity_C[kept]


def _baskets(events: Columns, cap: int, seed: int, memory: int, told: Told | None) -> Groups:
  """The distinct ads of each visit; of each user, where no visit holds two."""
  for column in (events.request, events.user):
    baskets = group(
      # `column` is bound here; else the lambda would read the loop's variable when it is called.
      lambda column=column: train_blocks(column, events.ad, events.split),
      cap,
      lambda basket, ads: priority(basket, ads, seed, OF_A_VISIT),
      memory,
      told and (lambda done, total: told(_GROUPED, done, total)),
    )
    if (baskets.sizes() > 1).any():
      break
  return baskets


def _visits(baskets: Groups, cap: int, seed: int, memory: int, told: Told | None) -> Groups:
  """The visits of each ad, as rows of `baskets`."""
  return group(
    baskets.blocks,
    cap,
    # By the visit's number in the log, not by its row: a pipeline that sees parts has no rows.
    lambda ad, rows: priority(baskets.ids_G[rows], ad, seed, OF_AN_AD),
    memory,
    told and (lambda done, total: told(_TURNED, done, total)),
  )


def _entries(baskets: Groups, visits: Groups) -> np.ndarray:
  """How many ads the visits of each ad hold in all, int64, by row of `visits`."""
  size = baskets.sizes()
  parts = [np.zeros(0, np.int64)]
  for low, high in cuts(visits.sizes(), BLOCK):
    begin = visits.start[low]
    end = visits.start[high]
    # Every ad has a visit, so no run of `reduceat` is empty: of an empty one it would give a value.
    parts.append(np.add.reduceat(size[visits.members_P[begin:end]], visits.start[low:high] - begin))
  return np.concatenate(parts)


def _all(
  work, blocks: list[tuple[int, int]], visits: np.ndarray, workers: int, told: Told | None
) -> None:
  """Works on all blocks, some at once, and tells how far it is.

  That is told in pairs of visits that are compared, as the work grows with those.
  """
  # pairs[high] - pairs[low] are those of a block of ads.
  pairs = np.append(0, np.cumsum(visits * (visits - 1) // 2))
  done = 0
  total = int(pairs[-1])
  if told:
    told(_COMPARED, done, total)
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    try:
      waiting = {pool.submit(work, low, high): pairs[high] - pairs[low] for low, high in blocks}
      for block in concurrent.futures.as_completed(waiting):
        block.result()
        done += int(waiting[block])
        if told:
          told(_COMPARED, done, total)
    except BaseException:  # Ctrl-C too: else all blocks that wait would still be worked on
      pool.shutdown(cancel_futures=True)
      raise
