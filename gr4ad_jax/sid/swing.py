"""Swing: which ads are taken together, from the training events alone.

The "user" of Swing's formula is one visit here. On Online Retail II a tower trained so finds the Swing neighbours of
the valid visits better than one trained on whole customers (recall@10 .349 against .322; content vectors alone .197).
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable
from typing import Protocol

import numpy as np

from gr4ad_jax.sid import swing_blocks
from gr4ad_jax.sid.swing_groups import BLOCK, Groups, check_columns, cuts, group, priority, train_blocks

_ENTRY_BYTES, _PAIR_BYTES = 128, 32  # what an entry and a pair of a block take at the most
_ENTRIES, _PAIRS = 1 << 18, 1 << 22  # of a block, where memory allows; more gain nothing
OF_A_VISIT, OF_AN_AD = "ads of a visit", "visits of an ad"  # what a priority decides on
_GROUPED, _TURNED, _COMPARED = "Swing: events", "Swing: ads of visits", "Swing: pairs of visits"

Told = Callable[[str, int, int], None]  # what is done, how much of it, of how much


@dataclasses.dataclass(frozen=True)
class Neighbors:
  """The strongest neighbours of each ad.

  Attributes:
    ads_NK: [N, K] int32 ad rows, strongest first, -1 where an ad has fewer.
    similarity_NK: [N, K] float32 Swing similarity, 0 where there is none.
  """

  ads_NK: np.ndarray
  similarity_NK: np.ndarray

  def split(self, held_out: float, seed: int) -> tuple["Neighbors", "Neighbors"]:
    """Parts the unordered pairs in two at random: (i, j) and (j, i) always lie on the same side.

    Args:
      held_out: share of the pairs of the second part, in [0, 1].
      seed: seed of the draw.

    Returns:
      The neighbours to train on and those held out, each with the order of the whole kept.
    """
    ad = np.arange(len(self.ads_NK))[:, None]
    low, high = np.minimum(ad, self.ads_NK), np.maximum(ad, self.ads_NK)
    _, pair = np.unique(low.astype(np.int64) * len(self.ads_NK) + high, return_inverse=True)
    pair = pair.reshape(self.ads_NK.shape)
    out_NK = (np.random.default_rng(seed).random(pair.max(initial=0) + 1) < held_out)[pair]
    return self.keep(~out_NK), self.keep(out_NK)

  def among(self, rows: np.ndarray) -> "Neighbors":
    """The neighbours within a subset of ads, [R] ascending rows, renumbered by their place in it."""
    place = np.full(len(self.ads_NK), -1, np.int32)
    place[rows] = np.arange(len(rows))
    ads_RK = np.where(self.ads_NK[rows] >= 0, place[self.ads_NK[rows]], -1)
    return Neighbors(ads_RK, self.similarity_NK[rows]).keep(ads_RK >= 0)

  def keep(self, mask_NK: np.ndarray) -> "Neighbors":
    """The neighbours where the mask holds, moved to the front of their row."""
    mask_NK = mask_NK & (self.ads_NK >= 0)
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
  """The most similar ads of each ad by Swing over the visits of training (split 0), as its users.

    sim(i, j) = Σ w_u w_v / (α + |I_u ∩ I_v|) over ordered pairs u ≠ v of visits that hold i and j, w_u = 1 / √|I_u|

  (Yang et al., arXiv:2010.05525.) Where no visit holds two ads, the users are the log's own.

  Four rules bound the work. Up to the caps the result is exact, and it never depends on memory and workers.
  1. Of a visit of more than `max_items_per_user` ads, those of the lowest `priority` count; |I_u| is of those.
  2. An ad of more than `max_users_per_item` visits is judged by those of the lowest `priority`.
  3. Two ads are neighbours where at least `min_support` of the visits by which the one is judged hold the other.
  4. The `neighbors` most similar stay; those that are equal in float32 go by ad row.

  Args:
    events: the log; of valid and test events only the split is looked at.
    num_ads: N.
    alpha: smoothing constant of the formula, 0 or more.
    neighbors: K.
    max_users_per_item: cap on the visits of an ad, whose work grows with their square.
    max_items_per_user: cap on the ads of a visit.
    min_support: visits that two neighbours share; less than 2 is as 2.
    seed: seed of both samples.
    memory_mb: MiB of working memory, of all workers. Beside it stand the columns, the result, and 4 bytes for each pair
      of visit and ad, before the cap on visits and after. An ad is never cut: its visits with their ads take 128 bytes
      an ad of a visit.
    workers: threads; 0: one a core.
    told: hears how far it is: events grouped by visit, ads of visits by ad, pairs of visits compared.

  Returns:
    Neighbours, similarity above zero only.

  Raises:
    schema.DataError: columns of different lengths, not of whole numbers, or an id out of range.
    ValueError: a setting out of range.
  """
  least = {"neighbors": 1, "max_users_per_item": 1, "max_items_per_user": 1, "memory_mb": 16}
  for name, low in least.items():
    if locals()[name] < low:
      raise ValueError(f"{name} is {locals()[name]}; {low} or more is needed")
  check_columns(events, num_ads)
  memory = memory_mb << 20
  baskets = _baskets(events, max_items_per_user, seed, memory, told)
  visits = group(
    baskets.blocks,
    max_users_per_item,
    lambda ad, rows: priority(baskets.ids_G[rows], ad, seed, OF_AN_AD),
    memory,
    told and (lambda done, total: told(_TURNED, done, total)),
  )
  ads_NK = np.full((num_ads, neighbors), -1, np.int32)
  similarity_NK = np.zeros((num_ads, neighbors), np.float32)
  workers = workers or os.cpu_count() or 1
  share = memory // (2 * workers)

  def fill(low: int, high: int) -> None:
    cells = swing_blocks.similar(
      baskets, visits, low, high, num_ads=num_ads, alpha=alpha, min_support=max(min_support, 2),
      pairs_at_once=max(min(_PAIRS, share // _PAIR_BYTES), 1),
    )  # fmt: skip
    rank = cells.rank()
    kept = rank < neighbors
    ads_NK[cells.ad_C[kept], rank[kept]] = cells.other_C[kept]
    similarity_NK[cells.ad_C[kept], rank[kept]] = cells.similarity_C[kept]

  most = max(min(max(_ENTRIES, num_ads // 4), share // _ENTRY_BYTES), 1)
  blocks = list(cuts(_entries(baskets, visits), most))
  _work(fill, blocks, visits.sizes(), workers, told)
  return Neighbors(ads_NK, similarity_NK)


def _baskets(events: Columns, cap: int, seed: int, memory: int, told: Told | None) -> Groups:
  """The distinct ads of each visit; of each user, where no visit holds two, as in a log of reviews."""
  for column in (events.request, events.user):
    baskets = group(
      lambda column=column: train_blocks(column, events.ad, events.split),
      cap,
      lambda basket, ads: priority(basket, ads, seed, OF_A_VISIT),
      memory,
      told and (lambda done, total: told(_GROUPED, done, total)),
    )
    if (baskets.sizes() > 1).any():
      break
  return baskets


def _entries(baskets: Groups, visits: Groups) -> np.ndarray:
  """Ads of the visits of each ad in all, int64, by row of `visits`."""
  size = baskets.sizes()
  parts = [np.zeros(0, np.int64)]
  for low, high in cuts(visits.sizes(), BLOCK):
    begin, end = visits.start[low], visits.start[high]
    parts.append(np.add.reduceat(size[visits.members_P[begin:end]], visits.start[low:high] - begin))
  return np.concatenate(parts)


def _work(fill, blocks: list[tuple[int, int]], visits: np.ndarray, workers: int, told: Told | None) -> None:
  """Fills all blocks, some at once; tells of the pairs of visits that are compared, by which the work grows."""
  pairs = np.append(0, np.cumsum(visits * (visits - 1) // 2))
  done, total = 0, int(pairs[-1])
  if told:
    told(_COMPARED, done, total)
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    try:
      waiting = {pool.submit(fill, low, high): pairs[high] - pairs[low] for low, high in blocks}
      for block in concurrent.futures.as_completed(waiting):
        block.result()
        done += int(waiting[block])
        if told:
          told(_COMPARED, done, total)
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise
