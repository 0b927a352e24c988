"""A stream as a source of batches: groups of new visits, and old ones beside them."""

import collections
import dataclasses
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from gr4ad_jax.config import LearnConfig
from gr4ad_jax.data.schema import DAY, DataError
from gr4ad_jax.features.batches import RequestBatch, RequestContexts
from gr4ad_jax.features.trends import Trends
from gr4ad_jax.learning.examples import Examples, Group, Known, Memory
from gr4ad_jax.learning.feed import Feed
from gr4ad_jax.learning.visits import Visit
from gr4ad_jax.people import neighbors as neighbors_lib
from gr4ad_jax.people.neighbors import GrowingNeighbors
from gr4ad_jax.preference import waiting_lists
from gr4ad_jax.preference.preference_task import Listed, listed, taken_first
from gr4ad_jax.preference.waiting_lists import Due, WaitingLists

_log = logging.getLogger(__name__)
_WAIT = 0.5  # seconds between two looks whether to stop


class StreamSource:
  """A `training.task.Source` over a stream.

  Group g makes `steps_per_group` steps, from `first_step` + g * `steps_per_group` on. Which visits
  it has, and all that their contexts read, depends on the stream alone and not on when it is read:
  so a learner that was killed reads the stream again and goes on as if it had not been.

  Args:
    feed: gives the visits.
    known: what contexts read beside the users' histories.
    old: contexts of the requests that the run learned from before the stream.
    old_requests: their numbers.
    config: how groups are made.
    batch_size: requests a batch.
    seed: of what is drawn.
    first_step: number of the first step.
    neighbors: co-visit neighbours that follow the visits.
    lists: where lists with rewards come from; None: there are none.
    list_width: candidates of a list, the rest is cut off.

  Attributes:
    steps_per_group: steps that are taken on a group.
    steps_per_epoch: the same: a stream has no epoch.
  """

  def __init__(
    self,
    feed: Feed,
    known: Known,
    old: RequestContexts,
    old_requests: np.ndarray,
    config: LearnConfig,
    batch_size: int,
    seed: int,
    first_step: int,
    neighbors: GrowingNeighbors,
    lists: WaitingLists | None = None,
    list_width: int = 0,
  ):
    self.feed = feed
    self._known = known
    self._old = old
    self._old_requests = old_requests
    self._config = config
    self._rows = batch_size
    self._seed = seed
    self._first_step = first_step
    self._lists = lists
    self._list_width = list_width
    # Where the lists stood when a group was whole, by its number.
    self._lists_after: dict[int, dict] = {}
    self._neighbors = neighbors
    self._new_steps = config.day_steps if config.learn_from == "day" else 1
    # Each step on new visits is followed by so many on old ones. A refit has one kind of step.
    going_on = self._new_steps * (1 + config.replay_steps)
    self.steps_per_group = config.refit_steps // config.round_groups or going_on
    self.steps_per_epoch = float(self.steps_per_group)
    self._groups: dict[int, Group] = {}  # those that steps may still ask for
    self._made = 0
    self._restoring = False
    self._memory: collections.deque[tuple[int, Sequence[Visit]]] = collections.deque()
    self._forgotten: set[int] = set()  # groups that nothing is to be learned from any more
    self._lock = threading.Lock()

  def group_of(self, step: int) -> int:
    """The group that a step is of."""
    return (step - self._first_step) // self.steps_per_group

  def gather(self, first: int, groups: int, stop: Callable[[], bool] = lambda: True) -> bool:
    """Reads on until the groups `first` … are whole.

    Args:
      first: number of a group.
      groups: how many.
      stop: asked while nothing comes, whether to wait no more.

    Returns:
      Whether they are whole.
    """
    while self._made < first + groups:
      # What was read may hold a group already, so it is asked for before more is read.
      visits = self._next_group()
      if visits is not None:
        self._make(visits)
      elif not self.feed.take():
        # Until something comes: this is where a learner that has caught up spends its time.
        while not self.feed.wait(_WAIT):
          if stop():
            return False
    return True

  def groups(self, first: int, number: int) -> list[Group]:
    """Groups that were gathered, and that no checkpoint is behind."""
    return [self._groups[group] for group in range(first, first + number)]

  def forget(self, first: int, number: int) -> None:
    """Groups that are learned from no more: not as old visits either."""
    self._forgotten |= set(range(first, first + number))

  @property
  def told(self) -> dict[str, float]:
    """Metrics: lists with rewards by what became of them, and visits that the neighbours know."""
    counts = self._lists.counts if self._lists else {}
    found = {f"lists/{name}": float(number) for name, number in counts.items()}
    return found | {"neighbors/visits": float(self._neighbors.version)}

  def batch(self, step: int, process: int = 0, processes: int = 1) -> RequestBatch | Listed:
    """The rows of a step, and lists beside them where some are due. Its group must have been
    gathered.

    Raises:
      ValueError: a job of several processes: a stream is learned from by one.
    """
    if processes > 1 or process:
      raise ValueError("a stream is learned from by one process")
    # Steps of a group: a new one, its replayed ones, the next new one, and so on.
    number, at = divmod(step - self._first_step, self.steps_per_group)
    if self._config.refit_steps:
      return self._refit_batch(number, step)
    with self._lock:
      group = self._groups[number]
    # 0 is the new step of each such run.
    replayed = at % (1 + self._config.replay_steps)
    if replayed:
      return self._old_batch(group.memory, group.popularity, step)
    number = at // (1 + self._config.replay_steps)
    return self._with_lists(group, number, self._new_batch(group, number))

  def state(self, step: int) -> dict:
    """Groups taken, the offset that they end at, and the groups that were forgotten: the rest is in
    the stream.
    """
    number = self.group_of(step)
    with self._lock:
      # The group that the step belongs to is not whole yet; the one before it was.
      group = self._groups.get(number - 1)
      lists = self._lists_after.get(number - 1)
      return {
        "next_step": step,
        "groups": number,
        "offset": group.offset if group else 0,
        "taken": group.taken if group else 0,
        "digest": group.digest if group else 0,
        "forgotten": sorted(self._forgotten),
        **({} if lists is None else {"lists": lists}),
      }

  def restore(self, state: dict) -> None:
    """Reads the stream again, up to where the last group of `state` was whole. Where events were
    erased since, it goes on all the same, though not to the same bits.

    Raises:
      DataError: the stream is another, or holds no longer what was read.
    """
    self._forgotten = set(state["forgotten"])
    # Groups are made again in the same way, but without the popularity that only learning needs.
    self._restoring = True
    feed = self.feed
    while self._made < state["groups"]:
      visits = self._next_group()
      if visits is not None:
        self._make(visits)
      elif feed.offset >= state["offset"] or not feed.take():
        # Some of the group's visits are gone, and it will never be whole.
        break
    self._restoring = False
    refused = "the stream is not the one that was learned from"
    if feed.offset < state["offset"]:
      raise DataError(f"{refused}: it ends at event {feed.offset}, not at {state['offset']}")
    # The digest is of all events; it differs where any of them changed.
    if feed.digest != state["digest"]:
      if feed.taken >= state["taken"]:
        raise DataError(f"{refused}: its events are others")
      _log.warning("%d events that were learned from are gone", state["taken"] - feed.taken)
    # Groups of which visits are gone keep their numbers, so that steps mean what they meant.
    self._made = state["groups"]
    # A checkpoint of a learner that read no lists has none: they are read from the first on.
    if self._lists and "lists" in state:
      self._lists.restore(state["lists"])
      self._lists_after[self._made - 1] = state["lists"]

  def _next_group(self) -> list[Visit] | None:
    """The visits of the next group; None: it is not whole."""
    over = self.feed.visits.over
    # A visit is over when its pause has passed, and only then it has all its events.
    if self._config.learn_from == "visits":
      # By visits: exactly a batch of them.
      return [over.popleft() for _ in range(self._rows)] if len(over) >= self._rows else None
    if not over:
      return None
    day = over[0].last // DAY
    # A day is whole when a visit of a later day is over.
    size = next((n for n, visit in enumerate(over) if visit.last // DAY > day), 0)
    return [over.popleft() for _ in range(size)] if size else None

  def _make(self, visits: Sequence[Visit]) -> None:
    feed = self.feed
    # The state must know all events of the group before its popularity is asked for.
    feed.visits.flush()
    popularity = None
    if not self._restoring:
      # By the clock, which never goes back, as a visit's beginning may: what is asked for then
      # depends on no other group.
      popularity = feed.visits.state.popularity(feed.visits.clock)
    memory = tuple(self._memory)
    self._neighbors.add(self._made, [[event.ad for event in visit.events] for visit in visits])
    about = visits, self._known_of, popularity, memory
    lists = self._due_lists(visits, memory)
    group = Group(self._made, *about, feed.offset, feed.taken, feed.digest, lists)
    with self._lock:
      self._groups[self._made] = group
      # While groups are made again, lists stay as they are: the state says where they stood.
      if self._lists and not self._restoring:
        self._lists_after[self._made] = self._lists.state()
      # Steps ahead may still ask for the last groups, and a round may be judged again; older ones
      # never.
      for by_number in (self._groups, self._lists_after):
        for old in [n for n in by_number if n < self._made - 4 * self._config.round_groups]:
          del by_number[old]
    # Forgotten groups have their place here too. So what a restored source remembers does not
    # depend on when they were forgotten.
    self._memory.append((self._made, visits))
    while sum(len(some) for _, some in self._memory) > self._config.replay_visits:
      self._memory.popleft()
    self._made += 1
    # What the oldest group that is kept remembers is the oldest that a batch may ask for.
    first = next(iter(self._groups.values()))
    self._neighbors.forget(first.memory[0][0] if first.memory else first.number)

  def _known_of(self, number: int) -> Known:
    """What the contexts of a group's visits read. Of old visits it is what was known when they were
    new: neighbours that were fitted on a visit would know its answer.
    """
    neighbors = self._neighbors.at(self._neighbors.version_of(number))
    return dataclasses.replace(self._known, neighbors=neighbors)

  def _by_version(self, entries: Iterable[tuple[int, Any]]) -> Iterator[tuple[Known, list[Any]]]:
    """Entries of groups, in order of version, as runs of those that know the same neighbours."""
    for _, some in itertools.groupby(entries, lambda one: self._neighbors.version_of(one[0])):
      run = list(some)
      yield self._known_of(run[0][0]), [entry for _, entry in run]

  def keep_neighbors(self, number: int) -> Callable[[str], None] | None:
    """What writes the neighbours that a group knows into a new folder; None: they are the run's."""
    version = self._neighbors.version_of(number)
    if not version:
      return None
    made = self._neighbors.at(version).part(-1)
    later = self._known.ads.later(len(made.ids))
    return lambda folder: neighbors_lib.save(folder, made, version, later)

  def _due_lists(self, visits: Sequence[Visit], memory: Memory) -> tuple[Due, ...]:
    """The lists that are learned from with a group: of its visits, or of those before it."""
    if not self._lists or self._restoring:
      return ()
    # By the moments of the records, as with ads: not by when this process comes to read them.
    self._lists.read(self.feed.newest)
    remembered = (*memory, (self._made, visits))
    return self._lists.due(remembered, self._config.list_rows, self._new_steps)

  def _with_lists(self, group: Group, number: int, batch: RequestBatch) -> RequestBatch | Listed:
    """A batch of new visits with the lists of its place in the group, where there are any."""
    rows = self._config.list_rows
    due = group.lists[number * rows : (number + 1) * rows]
    # Visits that were refused teach nothing by their lists either.
    if all(one.group in self._forgotten for one in due):
      return batch
    # Groups ascend, and so do the versions that they know. The order of a batch's rows is free.
    due = sorted(due, key=lambda one: one.group)
    parts = []
    for known, some in self._by_version((one.group, one) for one in due):
      examples = Examples.of([one.visit for one in some], known, group.popularity)
      columns = waiting_lists.columns_of([one.of for one in some], known.ads, self._list_width)
      made = listed(examples.contexts, examples.rows, *columns)
      parts.append(taken_first(made, self._list_width))
    lists = jax.tree.map(lambda *columns: np.concatenate(columns), *parts)
    kept_B1 = np.array([[one.group not in self._forgotten] for one in due])
    # Rows stay, so that the batch keeps its shape; what is masked has no part in the loss.
    requests = lists.requests._replace(target_mask_BM=lists.requests.target_mask_BM & kept_B1)
    return Listed(batch, lists._replace(requests=requests, mask_BC=lists.mask_BC & kept_B1))

  def _new_batch(self, group: Group, number: int) -> RequestBatch:
    """The group's visits in turn. Where they are fewer than a batch holds, some are there twice."""
    examples = group.examples
    size = len(examples.rows)
    order = np.arange(size)
    if size != self._rows:
      # A fixed order for a group, whichever step asks.
      order = self._random(group.number).permutation(size)
    # Modulo: where they are fewer than the batch, they come again from the start.
    places = order[(number * self._rows + np.arange(self._rows)) % size]
    return examples.batch(places, draw=number)

  def _refit_batch(self, number: int, step: int) -> RequestBatch:
    """Of all visits up to the end of a group's round, those of the round among them."""
    length = self._config.round_groups
    with self._lock:
      # The last group of the round remembers all that came before it.
      last = self._groups[number // length * length + length - 1]
    return self._old_batch((*last.memory, (last.number, last.visits)), last.popularity, step)

  def _old_batch(self, memory: Memory, popularity: Trends, step: int) -> RequestBatch:
    """Requests of before the stream, and visits of `memory`, all equally likely."""
    before = len(self._old_requests)
    kept = [(number, some) for number, some in memory if number not in self._forgotten]
    entries = [(number, visit) for number, some in kept for visit in some]
    # In order: rows may stand in any order in a batch, and so those of before come first.
    drawn = np.sort(self._random(step).choice(before + len(entries), self._rows))
    parts = []
    if (drawn < before).any():
      parts.append(self._old.batch(self._old_requests[drawn[drawn < before]], step))
    for known, visits in self._by_version(entries[at - before] for at in drawn[drawn >= before]):
      # With the popularity of the group that is learned from: what is known now, not then.
      parts.append(Examples.of(visits, known, popularity).batch(draw=step))
    return jax.tree.map(lambda *columns: np.concatenate(columns), *parts)

  def _random(self, number: int) -> np.random.Generator:
    # The number is part of the key: any step's draw can be made alone.
    bits = np.random.Philox(key=np.array([self._seed, number], np.uint64))
    return np.random.Generator(bits)
