"""What advertisers and users are promised, counted from what is answered: budgets and caps.

A *budget* is the money that an account may spend in a day (UTC). It is paced: by any moment no more
than the day's share of the traffic up to then. What an ad costs is its predicted value in the
answer. A *cap* is how often a user may be shown an ad within some days. An ad counts as shown when
it is answered. Counts are in memory. What the stream says was shown before a start, or by another
server, is counted by `shown_elsewhere` (`impressions`).
"""

import bisect
import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

DAY = 86_400  # seconds
HOUR = 3_600  # seconds
_LOOK = 1.0  # seconds between two looks at which accounts are ahead of their plan
_EVEN = 0.1  # share of a plan that is spread evenly, so that no hour is without any

Entry = tuple[int, float, float, float]  # row, log p, score, value


@dataclasses.dataclass(frozen=True)
class DayPlan:
  """Which share of a day's budget may be spent by each moment of it.

  Attributes:
    by_hour: 25 shares, ascending from 0 to 1; between them a straight line.
  """

  by_hour: tuple[float, ...] = tuple(hour / 24 for hour in range(25))

  @classmethod
  def of(cls, times: np.ndarray) -> "DayPlan":
    """The plan of a log's traffic: its events by hour of the day (UTC), a tenth spread evenly.

    A log without hours, whose events all stand in one, has an even plan.

    Args:
      times: [E] unix seconds.
    """
    hours = np.bincount(np.asarray(times, np.int64) % DAY // HOUR, minlength=24).astype(float)
    # One hour alone says nothing of how a day goes.
    if np.count_nonzero(hours) < 2:
      return cls()
    share = (1 - _EVEN) * hours / hours.sum() + _EVEN / 24
    # Shares by the beginning of each hour, and 1 at the day's end.
    return cls((0.0, *np.cumsum(share)[:-1].tolist(), 1.0))

  def share(self, now: float) -> float:
    """The share at a moment, unix seconds."""
    hour, rest = divmod(now % DAY, HOUR)
    # Between two hours the plan rises evenly.
    low, high = self.by_hour[int(hour) : int(hour) + 2]
    return low + (high - low) * rest / HOUR


@dataclasses.dataclass(frozen=True)
class Receipt:
  """What an answer was counted for.

  Attributes:
    user: whom it was shown to; None where nobody knows.
    day: of the spend, days since 1970.
    expires: when its showings leave the cap's window, unix seconds.
    shown: (row, account, cost) of each ad.
  """

  user: str | None
  day: int
  expires: float
  shown: tuple[tuple[int, str, float], ...]


class Ledger:
  """Counts, and says who has had enough. Safe for threads.

  Args:
    account_of: account of a row of the ad table.
    plan: of every budget.
    cap_times: how often a user may be shown an ad; 0: no cap.
    cap_days: in so many days.
    clock: unix seconds; it never goes back.
  """

  def __init__(
    self,
    account_of: Callable[[int], str],
    plan: DayPlan | None = None,
    cap_times: int = 0,
    cap_days: float = 1.0,
    clock: Callable[[], float] = time.time,
  ):
    self._account_of = account_of
    self._plan = plan or DayPlan()
    self._clock = clock
    self._cap_times = cap_times
    self._cap_seconds = cap_days * DAY
    self._lock = threading.RLock()
    self._budgets: dict[str, float] = {}
    self._day = 0
    self._spent = collections.defaultdict(float)
    self._blocked = frozenset()
    self._looked = -np.inf
    # Showings in the order in which they leave the window, and their number by (user, row).
    self._window: list[tuple[float, str, int]] = []
    self._times: collections.Counter[tuple[str, int]] = collections.Counter()
    self._capped: dict[str, set[int]] = {}

  @property
  def counts(self) -> bool:
    """Whether anything is limited."""
    return bool(self._cap_times or self._budgets)

  def set_budget(self, account: str, daily_budget: float | None) -> None:
    """Gives an account a budget, money a day; None: no limit. What it has spent today counts."""
    with self._lock:
      self._budgets.pop(account, None)
      if daily_budget is not None:
        self._budgets[account] = daily_budget
      # The new budget counts from the next look on, which is at once.
      self._looked = -np.inf

  def account(self, account: str) -> dict[str, float | None]:
    """An account's daily budget (None: no limit), what it has spent today, and its plan by now."""
    with self._lock:
      self._turn_day()
      budget = self._budgets.get(account)
      planned = None if budget is None else budget * self._plan.share(self._clock())
      return {
        "daily_budget": budget,
        "spent_today": self._spent.get(account, 0.0),
        "planned": planned,
      }

  def blocked(self) -> frozenset[str]:
    """Accounts that are ahead of their plan, or have spent all; looked at once a second at most.

    `take` looks at each ad anew: an account that has come to its limit since is refused there.
    """
    with self._lock:
      now = self._clock()
      # A clock that went back asks for a look, too.
      if now - self._looked >= _LOOK or now < self._looked:
        self._turn_day()
        self._blocked = frozenset(filter(self._has_enough, self._budgets))
        self._looked = now
      return self._blocked

  def capped(self, user: str | None) -> np.ndarray:
    """Rows of the ads that a user has been shown as often as allowed."""
    with self._lock:
      self._forget_old()
      return np.array(sorted(self._capped.get(user, ())), np.int64)

  def take(
    self,
    user: str | None,
    entries: Sequence[Entry],
    choose: Callable[[list[Entry]], list[Entry]],
  ) -> tuple[list[Entry], Receipt]:
    """Chooses among the ads that may still be shown, and counts those that are chosen.

    Checked and counted at once: however many ask at the same time, no cap is broken, and no
    account spends more than one answer past its limit.

    Args:
      user: whom they are shown to; None where nobody knows: no cap is kept then.
      entries: candidates, best first.
      choose: picks some of those that may be shown.
    """
    with self._lock:
      self._forget_old()
      self._turn_day()
      # Chosen among what may still be shown, under the same lock as the count.
      chosen = choose([entry for entry in entries if self._may_show(user, entry[0])])
      return chosen, self._count(user, chosen)

  def take_all(self, user: str | None, entries: Sequence[Entry]) -> Receipt | None:
    """Counts all of the ads, or, where one of them may not be shown any more, none: None."""
    with self._lock:
      self._forget_old()
      self._turn_day()
      if all(self._may_show(user, row) for row, *_ in entries):
        return self._count(user, entries)
      return None

  def give_back(self, receipt: Receipt) -> None:
    """Takes back what was counted for an answer that nobody was given."""
    with self._lock:
      for row, account, cost in receipt.shown:
        # What was spent on an earlier day is forgotten already.
        if receipt.day == self._day:
          self._spent[account] -= cost
        # The very entry of this answer, as the same ad may be shown to the user again.
        at = bisect.bisect_left(self._window, (receipt.expires, receipt.user or "", row))
        if at < len(self._window) and self._window[at] == (receipt.expires, receipt.user, row):
          del self._window[at]
          self._uncount(receipt.user, row)
      self._looked = -np.inf

  def shown_elsewhere(
    self, user: str | None, entries: Sequence[tuple[int, float]], moment: float
  ) -> None:
    """Counts what another server has shown, or this one before it was started.

    Args:
      user: whom it was shown to; None where nobody knows.
      entries: (row, cost) of each ad.
      moment: when it was shown, unix seconds.
    """
    with self._lock:
      self._forget_old()
      self._turn_day()
      if int(moment // DAY) == self._day:
        for row, cost in entries:
          self._spent[self._account_of(row)] += cost
      expires = moment + self._cap_seconds
      # A showing whose time is over caps nothing.
      if user is not None and self._cap_times and expires > self._clock():
        for row, _ in entries:
          self._show(user, row, expires)

  def reaches_back(self) -> float:
    """The moment from which on what was shown still counts, unix seconds."""
    now = self._clock()
    # Budgets go back to midnight, caps by their own days.
    return min(now // DAY * DAY, now - self._cap_seconds if self._cap_times else now)

  def forget(self, user: str) -> None:
    """Leaves nothing of what a user was shown."""
    with self._lock:
      self._window = [entry for entry in self._window if entry[1] != user]
      self._capped.pop(user, None)
      for key in [key for key in self._times if key[0] == user]:
        del self._times[key]

  def _may_show(self, user: str | None, row: int) -> bool:
    if row in self._capped.get(user, ()):
      return False
    return not self._has_enough(self._account_of(row))

  def _has_enough(self, account: str) -> bool:
    budget = self._budgets.get(account)
    if budget is None:
      return False
    return self._spent.get(account, 0.0) >= budget * self._plan.share(self._clock())

  def _count(self, user: str | None, entries: Sequence[Entry]) -> Receipt:
    expires = self._clock() + self._cap_seconds
    shown = tuple((row, self._account_of(row), value) for row, _, _, value in entries)
    for row, account, cost in shown:
      self._spent[account] += cost
      if user is not None and self._cap_times:
        self._show(user, row, expires)
    return Receipt(user, self._day, expires, shown)

  def _show(self, user: str, row: int, expires: float) -> None:
    # Kept in order of `expires`, so that what is over stands at the front.
    bisect.insort(self._window, (expires, user, row))
    self._times[user, row] += 1
    if self._times[user, row] >= self._cap_times:
      self._capped.setdefault(user, set()).add(row)

  def _uncount(self, user: str, row: int) -> None:
    self._times[user, row] -= 1
    if not self._times[user, row]:
      del self._times[user, row]
    # The cap may free the ad again before its last showing has left the window.
    if self._times[user, row] < self._cap_times and user in self._capped:
      self._capped[user].discard(row)
      if not self._capped[user]:
        del self._capped[user]

  def _forget_old(self) -> None:
    # A tuple of the moment alone sorts before all entries of that moment.
    past = bisect.bisect_right(self._window, (self._clock(),))
    for _, user, row in self._window[:past]:
      self._uncount(user, row)
    del self._window[:past]

  def _turn_day(self) -> None:
    day = int(self._clock() // DAY)
    if day != self._day:
      self._day = day
      # Budgets are of a day. Showings live on, as caps have a window of their own.
      self._spent.clear()
      self._looked = -np.inf
