"""The one function that makes examples: a bundle of users with their events in, examples out.

The pool of `examples/preparing` and the pipeline of `examples/beam` call it. Features come from
`features/`, as in memory: a part of the users gives the bits that the whole log gives.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gr4ad_jax.config import DataConfig
from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import DAY, SPLITS, EventLog
from gr4ad_jax.features.batches import Known, RequestContexts
from gr4ad_jax.features.counts import Counts
from gr4ad_jax.features.lines import Lines, build_lines
from gr4ad_jax.features.neighbors import NeighborFolds
from gr4ad_jax.features.targets import Followed
from gr4ad_jax.features.trends import Trends

BUNDLE_EVENTS = 100_000  # of a bundle; a user of more is one by himself
_REQUESTS = 256  # made at once


@dataclasses.dataclass(frozen=True)
class Tables:
  """What all bundles read besides their events; the arrays may be mapped from disk.

  Attributes:
    price_N: list price of each ad, money, NaN where unknown.
    trends: counts of ads that requests of each split see, by the number of splits that count.
    neighbors: co-visit neighbours.
    config: numbers of slots; attribution.
    fitted: splits that are learned from, from the first on.
  """

  price_N: np.ndarray
  trends: dict[int, Trends]
  neighbors: NeighborFolds
  config: DataConfig
  fitted: int


class Examples(NamedTuple):
  """Some examples of a bundle.

  Attributes:
    request_B: numbers of the requests in the bundle.
    known, followed: of them.
    time_B: unix seconds.
  """

  request_B: np.ndarray
  known: Known
  followed: Followed
  time_B: np.ndarray


def shown(split: int, fitted: int) -> int:
  """How many splits, from the first on, count in what is popular for requests of a split: those
  before it, and those that are learned from.
  """
  # Splits that are learned from see one another, as in memory.
  return max(split, fitted)


def examples_of(
  log: EventLog, tables: Tables, wanted_R: np.ndarray | None = None
) -> Iterator[Examples]:
  """The examples of a bundle: of each split, in order of request.

  Args:
    log: of some users, all that they have, in order; `user` counts the users of the whole log, and
      `request` the visits of this one.
    tables: of the whole log.
    wanted_R: mask of the requests that are made; None: all.
  """
  lines = build_lines(log, len(tables.price_N), tables.config.attribution_days)
  wanted_R = np.ones(len(lines.request_time), bool) if wanted_R is None else wanted_R
  for split in range(len(SPLITS)):
    requests = np.flatnonzero((lines.request_split == split) & wanted_R)
    if not len(requests):
      continue
    trends = tables.trends[shown(split, tables.fitted)]
    # Of splits that are learned from, a user's own visits must be left out of the neighbours.
    held_out = split >= tables.fitted
    about = lines, None, tables.price_N, trends, tables.neighbors, tables.config
    contexts = RequestContexts(*about, held_out=held_out)
    for begin in range(0, len(requests), _REQUESTS):
      some = requests[begin : begin + _REQUESTS]
      yield Examples(some, contexts.known(some), contexts.followed(some), lines.request_time[some])


def bundles(log: EventLog, events: int = BUNDLE_EVENTS) -> Iterator[tuple[slice, slice, EventLog]]:
  """Runs of a log's users, of so many events or of one user: (users, events, their log), with the
  visits numbered from 0 in each.
  """
  # Where each user's events begin, and behind the last user the end of the log.
  first_U = np.searchsorted(log.user, np.arange(len(log.user_id) + 1))
  begin = 0
  while begin < len(log.user_id):
    # The last user whose events still fit; `right` takes users without an event along.
    end = int(np.searchsorted(first_U, first_U[begin] + events, side="right")) - 1
    # One user at least, however many events he has.
    end = max(end, begin + 1)
    here = slice(int(first_U[begin]), int(first_U[end]))
    columns = log.columns(here)
    columns["request"] = visits.renumbered(columns["user"], columns["request"])
    yield slice(begin, end), here, EventLog(log.user_id, **columns)
    begin = end


def renamed(log: EventLog, number_U: np.ndarray) -> EventLog:
  """A bundle whose users have their numbers in the whole log, `number_U` of those here: neighbours
  are of the fold of that number.
  """
  return dataclasses.replace(log, user=number_U[log.user].astype(np.int32))


def daily_counts(lines: Lines) -> tuple[np.ndarray, Counts]:
  """What lines add to the counts of ads, by split, ad and day.

  Returns:
    The split of each count [n], and the counts, each at the beginning of its day.
  """
  # By split first: later stages add splits up one after another.
  found = []
  for split in range(len(SPLITS)):
    counts = Counts.of(lines, lines.request_split[lines.request] == split)
    day = counts.time // DAY
    # Columns of the stacked pairs (ad, day) are the cells.
    cell, inverse = np.unique(
      np.stack([counts.ad.astype(np.int64), day]), axis=1, return_inverse=True
    )
    sums = np.zeros((3, cell.shape[1]), np.int64)
    for row, column in zip(sums, (counts.seen, counts.repeats, counts.value), strict=True):
      np.add.at(row, inverse, column)
    found.append((np.full(cell.shape[1], split), cell[0], cell[1] * DAY, *sums))
  split, *columns = (np.concatenate(parts) for parts in zip(*found, strict=True))
  return split, Counts(*columns)
