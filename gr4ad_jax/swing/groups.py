"""A log as groups: the ads of each visit, or the visits of each ad.

Groups are capped by a stated rule, within a bound on memory. Columns are read in blocks, and may be
memory-mapped. What is held is the result, 4 bytes a member, and `memory` bytes.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from gr4ad_jax.data.schema import DataError

BLOCK = 1 << 17  # events read at once
_BINS = 1 << 20  # of the histogram by which the passes are cut
_KEY_BYTES = 40  # a sorted key with what is made of it
_LOW = np.int64(0xFFFFFFFF)  # the lower half of a key, its member
_HIGHEST = 2**31  # ids are below, so that two of them fit one int64

# (group, member) arrays of equal length. Each call begins anew, as there are several passes.
Blocks = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Groups:
  """G groups of distinct members.

  Attributes:
    ids_G: [G] int32 ascending, the groups that have members.
    start: [G + 1] int64, where each group's members begin.
    members_P: [P] int32, ascending within a group.
  """

  ids_G: np.ndarray
  start: np.ndarray
  members_P: np.ndarray

  def sizes(self, low: int = 0, high: int | None = None) -> np.ndarray:
    """How many members the groups from row `low` to before `high` have, int64."""
    return np.diff(self.start[low : len(self.start) if high is None else high + 1])

  def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs (member, row of its group), a block at a time: what turns groups round."""
    for low, high in cuts(self.sizes(), BLOCK):
      begin = self.start[low]
      end = self.start[high]
      yield self.members_P[begin:end], np.repeat(np.arange(low, high), self.sizes(low, high))


def cuts(work: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
  """Cuts [n] amounts of work into runs (low, high), each of at most `most` in all.

  An amount that is more by itself is a run of its own.
  """
  total = np.cumsum(work)
  low = 0
  while low < len(total):
    high = int(np.searchsorted(total, (total[low - 1] if low else 0) + most, side="right"))
    high = max(high, low + 1)
    yield low, high
    low = high


def train_blocks(
  group_E: np.ndarray, ad_E: np.ndarray, split_E: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(group, ad) of the training events, int32, a block at a time."""
  for begin in range(0, len(ad_E), BLOCK):
    train = np.asarray(split_E[begin : begin + BLOCK]) == 0
    # `copy=False`: columns that are int32 already are not copied once more.
    yield tuple(
      column[begin : begin + BLOCK][train].astype(np.int32, copy=False)
      for column in (group_E, ad_E)
    )


def check_columns(events, num_ads: int) -> None:
  """Checks the columns `request`, `user`, `ad` and `split` of a log.

  Raises:
    DataError: a column of another shape, not of whole numbers, or with an id out of range in an
      event of training, in which case the message names its row, counted from 0.
  """
  columns = {name: getattr(events, name) for name in ("ad", "request", "user", "split")}
  for name, column in columns.items():
    if column.shape != (len(events.ad),):
      raise DataError(
        f"column '{name}' has shape {column.shape}; column 'ad' has {events.ad.shape}"
      )
    if not np.issubdtype(column.dtype, np.integer):
      raise DataError(f"column '{name}' holds {column.dtype}; whole numbers are needed")
  highest = {"ad": num_ads, "request": _HIGHEST, "user": _HIGHEST}
  for begin in range(0, len(events.ad), BLOCK):
    train = events.split[begin : begin + BLOCK] == 0
    for name, high in highest.items():
      value = columns[name][begin : begin + BLOCK]
      bad = np.flatnonzero(train & ((value < 0) | (value >= high)))
      if len(bad):
        raise DataError(
          f"column '{name}', row {begin + bad[0]}: {value[bad[0]]} is not in [0, {high})"
        )


def priority(basket: np.ndarray, ad: np.ndarray, seed: int, use: str) -> np.ndarray:
  """A number for each (visit, ad), uint64, that looks random.

  It depends on nothing but the two, the seed and what it is for. So a sample does not depend on the
  order of the log, on blocks or on machines. It is the finaliser of SplitMix64 (Steele et al.,
  OOPSLA 2014) of `basket·2^32 + ad` plus an offset. That is a bijection: no two pairs have the same
  number, and the smallest of a group are always the same ones.

  Args:
    basket: number of the visit, below 2^31; one or [n].
    ad: ad row; one or [n].
    seed: of the sample.
    use: what is sampled, so that two uses of one seed draw apart.
  """
  offset = int.from_bytes(
    hashlib.blake2b(f"{use} {seed}".encode(), digest_size=8).digest(), "little"
  )
  # uint64 wraps round at 2^64, in sum and products: that is how the hash is defined.
  x = (
    (np.asarray(basket, np.uint64) << np.uint64(32)) + np.asarray(ad, np.uint64) + np.uint64(offset)
  )
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def group(
  blocks: Blocks,
  cap: int,
  rank: Callable[[int, np.ndarray], np.ndarray],
  memory: int,
  told: Callable[[int, int], None] | None = None,
) -> Groups:
  """The distinct members of each group; of more than `cap`, those of the smallest rank.

  Each pass reads all blocks anew. It takes a range of groups whose members fit the memory, and
  sorts them. So memory is paid for by passes.

  Args:
    blocks: the (group, member) pairs, whole numbers in [0, 2^31), in any order, repeated or not.
    cap: members kept of a group, 1 or more.
    rank: from a group and its [n] members to n distinct numbers.
    memory: bytes beside the result. A 2^20th part of the range of groups is never cut, whatever it
      takes.
    told: hears how many pairs of all are grouped.
  """
  # Two passes before the others: the range of groups, then how many pairs each bin of it has. A bin
  # is a run of 2^shift groups, so that there are at most 2^20 of them.
  highest = max((int(groups.max()) for groups, _ in blocks() if len(groups)), default=0)
  shift = max(0, highest.bit_length() - (_BINS.bit_length() - 1))
  bins = (highest >> shift) + 1
  histogram = np.zeros(bins, np.int64)
  for groups, _ in blocks():
    np.add.at(histogram, groups >> shift, 1)
  total = int(histogram.sum())
  # What stays unwritten takes no memory.
  members_P = np.empty(total, np.int32)
  ids = [np.zeros(0, np.int32)]
  sizes = [np.zeros(0, np.int64)]
  filled = 0
  done = 0
  if told:
    told(0, total)
  # A quarter of the memory is not planned with: the block that is read comes beside the keys.
  for low, high in cuts(histogram, max(memory // 4 * 3 // _KEY_BYTES, 1)):
    keys = _keys(blocks, low << shift, high << shift, int(histogram[low:high].sum()))
    done += len(keys)
    # Sorted, so pairs that repeat stand together. Distinct ones first, then the cap.
    keys = keys[np.append(True, keys[1:] != keys[:-1])] if len(keys) else keys
    found, first, size = _runs((keys >> 32).astype(np.int32))
    members = (keys & _LOW).astype(np.int32)
    del keys
    members, size = _capped(found, first, size, members, cap, rank)
    members_P[filled : filled + len(members)] = members
    filled += len(members)
    ids.append(found)
    sizes.append(size)
    if told:
      told(done, total)
  return Groups(
    np.concatenate(ids), np.append(0, np.cumsum(np.concatenate(sizes))), members_P[:filled]
  )


def _keys(blocks: Blocks, low: int, high: int, count: int) -> np.ndarray:
  """[count] int64 `group·2^32 + member` of the groups in [low, high), ascending."""
  keys = np.empty(count, np.int64)
  at = 0
  for groups, members in blocks():
    inside = (groups >= low) & (groups < high)
    groups = groups[inside]
    members = members[inside]
    keys[at : at + len(groups)] = (groups.astype(np.int64) << 32) | members
    at += len(groups)
  keys.sort()
  return keys


def _runs(ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The distinct values, where each begins, and how often it stands there."""
  # Cut at the length: of an empty array the True would stay.
  first = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1])[: len(ascending)])
  return ascending[first], first, np.diff(np.append(first, len(ascending)))


def _capped(ids, first, size, members, cap, rank) -> tuple[np.ndarray, np.ndarray]:
  """The members kept, and how many of each group."""
  over = np.flatnonzero(size > cap)
  if not len(over):
    return members, size
  keep = np.ones(len(members), bool)
  for row in over.tolist():
    begin = first[row]
    end = first[row] + size[row]
    keep[begin:end] = False
    # A mask, so members stay in their order. Ranks are distinct, so there are no ties.
    keep[begin + np.argpartition(rank(int(ids[row]), members[begin:end]), cap - 1)[:cap]] = True
  return members[keep], np.minimum(size, cap)
