"""Visits as requests: contexts of the moment at which they opened, and what they brought."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from gr4ad_jax.config import DataConfig
from gr4ad_jax.evaluation.protocols import EvalRequests
from gr4ad_jax.features.batches import RequestBatch, RequestContexts
from gr4ad_jax.features.contexts import AdColumns, joined
from gr4ad_jax.features.lines import build_lines
from gr4ad_jax.features.neighbors import NeighborFolds
from gr4ad_jax.features.trends import Trends
from gr4ad_jax.learning.visits import Visit, with_visit
from gr4ad_jax.preference.waiting_lists import Due

Memory = tuple[tuple[int, Sequence[Visit]], ...]  # groups and their visits

SPLIT = "live"  # of requests that are of no split


@dataclasses.dataclass(frozen=True)
class Known:
  """What contexts read beside the users' histories.

  Attributes:
    ads: codes, prices and dates.
    neighbors: co-visit neighbours; no user's visits are left out.
    config: numbers of slots and targets.
    min_depth: shallowest behaviour that is a target.
    attribution_days: what a visit brings counts up to so many days after its first event.
  """

  ads: AdColumns
  neighbors: NeighborFolds
  config: DataConfig
  min_depth: int
  attribution_days: float


@dataclasses.dataclass(frozen=True)
class Examples:
  """B visits as requests.

  Attributes:
    visits: the visits.
    contexts: turns `rows` into batches.
    rows: [B] their request numbers there.
  """

  visits: Sequence[Visit]
  contexts: RequestContexts
  rows: np.ndarray

  @classmethod
  def of(cls, visits: Sequence[Visit], known: Known, popularity: Trends) -> "Examples":
    """The same functions as of a whole log, on the users' histories with the visit as the last one.

    Args:
      visits: B >= 1; a user may be in them more than once.
      known: what else contexts read.
      popularity: counts of all that happened before the days of the visits, at least.
    """
    # Each visit becomes a user of this small log, so that one user may ask at several moments.
    log = joined([with_visit(visit) for visit in visits])
    ads = known.ads
    lines = build_lines(log, len(ads.codes_NT), known.attribution_days)
    # Copies: the table may grow while a later step still reads this one.
    columns = np.array(ads.codes_NT), np.array(ads.price_N)
    about = popularity, known.neighbors, known.config, known.min_depth
    created_N = np.array(ads.created_N)
    contexts = RequestContexts(lines, *columns, *about, created_N=created_N)
    # The last request of each user: his visit. The rows before it are his history.
    last = np.flatnonzero(np.append(np.diff(lines.request_user) > 0, True))
    return cls(visits, contexts, last)

  def batch(self, some: np.ndarray | None = None, draw: int = 0) -> RequestBatch:
    """The batch of some of the visits, by their places; None: of all."""
    return self.contexts.batch(self.rows if some is None else self.rows[some], draw)

  def requests(self) -> tuple[np.ndarray, EvalRequests]:
    """Places of the visits that have a target, and these as requests to be judged by. A request's
    user is numbered by the first visit of his; values are not clipped.
    """
    outcomes = self.contexts.lines.outcomes
    first = outcomes.first
    numbers: dict[str, int] = {}
    # Numbers are given in order of first mention, so that they do not depend on ids.
    user_B = [numbers.setdefault(visit.user_id, len(numbers)) for visit in self.visits]
    kept = []
    targets = []
    for place, row in enumerate(self.rows):
      # The outcomes of a request stand together.
      own = np.arange(first[row], first[row + 1])
      # Shallower behaviour is no target here either.
      own = own[outcomes.depth[own] >= self.contexts.min_depth]
      if len(own):
        kept.append(place)
        # Targets by ad row, as those of a split are.
        targets.append(own[np.argsort(outcomes.ad[own])])
    places = np.array(kept, np.int64)
    # The empty array gives the dtype where there is no target at all.
    flat = np.concatenate([np.zeros(0, np.int64), *targets]).astype(np.int64)
    start = np.append(0, np.cumsum([len(own) for own in targets])).astype(np.int64)
    user = np.array(user_B, np.int32)[places]
    values = outcomes.value[flat].astype(np.float32)
    return places, EvalRequests(
      SPLIT, places.astype(np.int32), user, start, outcomes.ad[flat].astype(np.int32), values
    )


class Group:
  """Visits that are learned from together.

  Args:
    number: groups are numbered from 0.
    visits: the visits, in the order in which they ended.
    known: what contexts read beside the users' histories, by the number of the group.
    popularity: as it was known when the group was whole; None: nobody will ask for its examples.
    memory: (group, its visits) of earlier groups that old ones are drawn from.
    offset: of the last event that was taken when the group was whole.
    taken: how many events that were.
    digest: a checksum of them.
    lists: lists with rewards that are learned from beside the visits, batches of them.
  """

  def __init__(
    self,
    number: int,
    visits: Sequence[Visit],
    known: Callable[[int], Known],
    popularity: Trends | None,
    memory: Memory,
    offset: int,
    taken: int,
    digest: int,
    lists: Sequence[Due] = (),
  ):
    self.number = number
    self.visits = visits
    self.popularity = popularity
    self.memory = memory
    self.offset = offset
    self.taken = taken
    self.digest = digest
    self.lists = lists
    self._known = known

  @functools.cached_property
  def examples(self) -> Examples:
    """The visits as requests."""
    return Examples.of(self.visits, self._known(self.number), self.popularity)
