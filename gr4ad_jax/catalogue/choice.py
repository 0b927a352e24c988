"""Which ads a request may be answered with: its own wishes, as rows of the ad table."""

import collections
import dataclasses
import threading
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gr4ad_jax.config import SearchConfig
from gr4ad_jax.data.schema import DAY, DataError, EventLog
from gr4ad_jax.index.holdings import SETS_KEPT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
  """What a request wants to be answered with; as it is made, with anything.

  Attributes:
    seen_ads: 'left': ads of the user's history too; 'masked': none of them; None: as configured.
    seen_days: with 'masked', only those of the last so many days; 0: of any age; None: as
      configured.
    not_ads: ad ids that are not wanted.
    only_accounts: the only advertisers whose ads are; empty: all.
    only_categories: the only categories whose ads are; empty: all.
  """

  seen_ads: str | None = None
  seen_days: float | None = None
  not_ads: tuple[str, ...] = ()
  only_accounts: tuple[str, ...] = ()
  only_categories: tuple[str, ...] = ()

  @property
  def wanted(self) -> tuple:
    """All of it, in words that JSON can write."""
    # The fields of `Choice` alone: a subclass, such as a query, has others.
    return tuple(getattr(self, field.name) for field in dataclasses.fields(Choice))


def rows_left_out(
  choice: Choice, log: EventLog, now: int, search: SearchConfig, row_of: Callable[[str], int | None]
) -> np.ndarray:
  """Rows of the ads that a request names as not wanted, or has seen.

  Args:
    choice: of the request.
    log: the user's history, of one user.
    now: unix seconds of the request.
    search: what counts where the request says nothing.
    row_of: gives the row of an ad id, None where there is none.

  Raises:
    DataError: an ad id that there is none of.
  """
  rows = [_known("not_ads", ad_id, row_of(ad_id)) for ad_id in choice.not_ads]
  # Only named ads are left out; the ranking itself treats seen ones.
  if (choice.seen_ads or search.seen_ads) == "left":
    return np.array(rows, np.int64)
  days = search.seen_days if choice.seen_days is None else choice.seen_days
  seen = log.ad if not days else log.ad[log.time >= now - days * DAY]
  # An ad may stand here twice, which does no harm: the rows become a set.
  return np.append(np.array(rows, np.int64), seen)


def _known(field: str, name: str, found: int | None) -> int:
  if found is None:
    raise DataError(f"{field}: {name[:80]!r} is no ad")
  return found


class Labels:
  """The words of one column of the ads, as numbers. Reading is safe while another thread sets.

  Args:
    name: of the field that asks for some of them, for messages.
    words: of the rows 0 … N-1.
  """

  def __init__(self, name: str, words: Iterable[str]):
    self._name = name
    self._numbers = {}
    self._number_N = np.array([self._number(str(word)) for word in words], np.int32)
    self._size = len(self._number_N)

  def set(self, row: int, word: str) -> None:
    """Gives a row another word; rows may be new."""
    if row >= len(self._number_N):
      # An eighth more at least, so that rows that come one by one are not copied each time.
      room = max(row + 1, len(self._number_N) + len(self._number_N) // 8) - len(self._number_N)
      self._number_N = np.append(self._number_N, np.full(room, -1, np.int32))
    self._number_N[row] = self._number(word)
    self._size = max(self._size, row + 1)

  def mask(self, words: Sequence[str]) -> np.ndarray:
    """[N] bool, the rows with one of these words. Raises DataError for a word that no row has."""
    wanted = []
    for word in words:
      if word not in self._numbers:
        raise DataError(f"{self._name}: no ad has {word[:80]!r}")
      wanted.append(self._numbers[word])
    # The rows behind `_size` are room, and no ads.
    return np.isin(self._number_N[: self._size], wanted)

  def knows(self, word: str) -> bool:
    """Whether a row has had this word."""
    return word in self._numbers

  def _number(self, word: str) -> int:
    return self._numbers.setdefault(word, len(self._numbers))


class AdSets:
  """The sets of ads that requests ask for by account and category, each made once while it lasts.

  Args:
    accounts: of the rows.
    categories: of the rows.
  """

  def __init__(self, accounts: Iterable[str], categories: Iterable[str]):
    self.accounts = Labels("only_accounts", accounts)
    self.categories = Labels("only_categories", categories)
    self._version = 0
    self._lock = threading.Lock()
    self._made: collections.OrderedDict[tuple, np.ndarray] = collections.OrderedDict()

  def set(self, row: int, account: str, category: str) -> None:
    """Takes what an ad says now."""
    with self._lock:
      self.accounts.set(row, account)
      self.categories.set(row, category)
      # A change may touch any set, so all are made anew when they are asked for.
      self._made.clear()

  def allowed(self, choice: Choice, but_accounts: frozenset[str] = frozenset()):
    """[N] bool, the ads that a request may be answered with; None: all of them.

    Requests that ask for the same get the same array.

    Args:
      choice: of the request.
      but_accounts: accounts whose ads nobody gets.

    Raises:
      DataError: an account or category that no ad has.
    """
    accounts = frozenset(choice.only_accounts)
    categories = frozenset(choice.only_categories)
    key = accounts, categories, but_accounts
    if not any(key):
      return None
    with self._lock:
      if key not in self._made:
        self._made[key] = self._make(accounts, categories, but_accounts)
        while len(self._made) > SETS_KEPT:
          self._made.popitem(last=False)
      # The one that was asked for last stands at the end.
      self._made.move_to_end(key)
      return self._made[key]

  def _make(
    self, accounts: frozenset[str], categories: frozenset[str], but_accounts: frozenset[str]
  ) -> np.ndarray:
    parts = []
    if accounts:
      parts.append(self.accounts.mask(sorted(accounts)))
    if categories:
      parts.append(self.categories.mask(sorted(categories)))
    if but_accounts:
      # Of other accounts there is no ad yet.
      known = filter(self.accounts.knows, sorted(but_accounts))
      parts.append(~self.accounts.mask(list(known)))
    # All conditions hold together.
    return np.logical_and.reduce(parts)
