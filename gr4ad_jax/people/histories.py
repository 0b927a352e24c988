"""Histories whose newer users are on disk: hot ones in memory, the others from the store."""

import collections
from collections.abc import Sequence

from gr4ad_jax.data.schema import EventLog
from gr4ad_jax.features.histories import Histories, Person
from gr4ad_jax.people.events import digest_of
from gr4ad_jax.people.store import PeopleStore


class StoredHistories(Histories):
  """Histories with at most so many users in memory, beside the log that they start from.

  A user that changed stays in memory until `changed` was written and `saved` was called. Not safe
  for threads: `features.state.State` holds its lock.

  Args:
    events: the log to start from.
    store: where the others are.
    hot: users in memory. Those that changed may be more: see to `changed` before.
    gap_seconds: a pause that starts a new visit, of events without a `visit_id`.
  """

  def __init__(self, events: EventLog, store: PeopleStore, hot: int, gap_seconds: float = 1800.0):
    super().__init__(events, gap_seconds)
    self._store = store
    self._hot = hot
    self._people: collections.OrderedDict[str, Person] = collections.OrderedDict()
    self._erased = store.erased()
    self._gone: set[str] = set()  # erased, and still in the store
    self.changed: dict[str, Person] = {}
    self.number = store.number  # users that the log does not have
    # A list of its own, as the loop takes users out of the mapping.
    for user in [user for user in self._number if digest_of(user) in self._erased]:
      self._forget_base(user)

  def __len__(self) -> int:
    """Users in all."""
    return len(self._number) + self.number

  @property
  def in_memory(self) -> int:
    """Users in memory, beside those of the log."""
    return len(self._people)

  @property
  def crowded(self) -> bool:
    """Whether so many changed that they should be saved."""
    # Changed users cannot leave memory before they are saved.
    return 2 * len(self.changed) >= self._hot

  def starting_with(self, prefix: str, limit: int) -> list[str]:
    """See `Histories.starting_with`."""
    found = set(super().starting_with(prefix, limit))
    # One more for each that is deleted there soon: they are taken out again.
    stored = self._store.starting_with(prefix, limit + len(self._gone))
    found.update(user for user in stored if user not in self._gone)
    found.update(user for user in self.changed if user.startswith(prefix))
    return sorted(found)[:limit]

  def forget(self, digest: str) -> list[str]:
    """Leaves nothing of the users whose ids have a digest; returns their ids. It passes over all
    ids once.
    """
    self._erased.add(digest)
    # Ids are not kept by digest, so all of them are looked through.
    named = {*self._number, *self._people, *self.changed, *self._store.user_ids()}
    found = [user for user in named if digest_of(user) == digest and user not in self._gone]
    for user in found:
      if user in self._number:
        self._forget_base(user)
      else:
        self.number -= 1
      self._people.pop(user, None)
      self.changed.pop(user, None)
      self._gone.add(user)
    return found

  def saved(self, users: Sequence[str], gone: Sequence[str]) -> None:
    """Hears that users are in the store as they are in `changed`, and that others left it."""
    for user in users:
      self.changed.pop(user, None)
    self._gone.difference_update(gone)
    self._forget_cold()

  @property
  def gone(self) -> list[str]:
    """Users to delete from the store."""
    return list(self._gone)

  def _kept(self, user_id: str) -> Person | None:
    person = self._people.get(user_id)
    if person is not None:
      self._people.move_to_end(user_id)
      return person
    if user_id in self._gone:
      return None
    person = self._store.person(user_id)
    if person is not None:
      # The store has no logs: they follow from the events, and are made when a user is read.
      person.log = self._ordered([user_id], [person])
      self._people[user_id] = person
      self._forget_cold()
    return person

  def _keep(self, user_id: str, person: Person, is_new: bool) -> None:
    self.number += is_new
    # Who comes back after an erasure is written over what was there.
    self._gone.discard(user_id)
    self._people[user_id] = person
    self._people.move_to_end(user_id)
    self.changed[user_id] = person

  def _forget_base(self, user_id: str) -> None:
    """Leaves out a user of the log; his events stay in its columns, where nobody finds them."""
    del self._number[user_id]
    self.user_ids.remove(user_id)

  def _forget_cold(self) -> None:
    """Keeps the hot users, and those that changed."""
    # Each user is looked at once at most: those that changed go to the end.
    for _ in range(len(self._people) - self._hot + len(self.changed)):
      if len(self._people) <= self._hot:
        break
      user = next(iter(self._people))
      if user in self.changed:
        # At the end, so that the next call does not meet it again at once.
        self._people.move_to_end(user)
      else:
        del self._people[user]
