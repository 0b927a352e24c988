"""Traffic-aware beams (TABS): search as wide as the load allows, and narrower before anybody waits
too long.

Source: docs/design/method.md §4, `B_t = B_base · f(Q_t, C_avail)`. Here f picks among schedules
that were compiled beforehand. Nothing in this module reads a clock: time is an argument, in
seconds.
"""

import bisect
import dataclasses
import math
from collections.abc import Sequence


class Costs:
  """Seconds of a batch by schedule and bucket: measured before serving, then scaled by how batches
  really fare.

  One factor, `pace`, is learned while serving, so a schedule that was not used for a while is known
  like the others.

  Args:
    seconds_SB: for each schedule, narrowest first, the seconds of a batch of each bucket.
    buckets: batch sizes, ascending.
  """

  def __init__(self, seconds_SB: Sequence[Sequence[float]], buckets: Sequence[int]):
    self._seconds = [tuple(row) for row in seconds_SB]
    self.buckets = tuple(buckets)
    self.pace = 1.0

  def __len__(self):
    return len(self._seconds)

  def bucket(self, size: int) -> int:
    """The bucket that a batch of `size` requests is padded to; the largest where none holds it."""
    # The first bucket that is not smaller; a larger batch than all of them has the last one's cost.
    return self.buckets[min(bisect.bisect_left(self.buckets, size), len(self.buckets) - 1)]

  def seconds(self, schedule: int, size: int) -> float:
    """Expected seconds of one batch of `size` requests."""
    return self.pace * self._seconds[schedule][self.buckets.index(self.bucket(size))]

  def drain(self, schedule: int, queued: int) -> float:
    """Expected seconds to answer `queued` requests, in batches as large as there are."""
    full, rest = divmod(queued, self.buckets[-1])
    return full * self.seconds(schedule, self.buckets[-1]) + (
      self.seconds(schedule, rest) if rest else 0.0
    )

  def observe(self, schedule: int, size: int, seconds: float) -> None:
    """Learns from a batch; one outlier counts at most tenfold."""
    # How much slower than measured this batch was, on top of what is known already.
    ratio = self.pace * seconds / self.seconds(schedule, size)
    # A running mean over about ten batches.
    self.pace += 0.1 * (min(ratio, 10 * self.pace) - self.pace)


class Rate:
  """A sum per second that forgets: what lies `span` seconds back counts for 1/e."""

  def __init__(self, span: float):
    self._span = span
    self._sum = 0.0
    self._at = 0.0

  def add(self, now: float, amount: float = 1.0) -> None:
    """Counts an amount at a moment."""
    # The sum first: it decays from the moment at which it was last counted.
    self._sum = self._decayed(now) + amount
    self._at = max(now, self._at)

  def per_second(self, now: float) -> float:
    """The rate at a moment."""
    return self._decayed(now) / self._span

  def _decayed(self, now: float) -> float:
    # A clock that goes back forgets nothing.
    return self._sum * math.exp(-max(now - self._at, 0.0) / self._span)


@dataclasses.dataclass(frozen=True)
class Load:
  """What the controller looks at.

  Attributes:
    queued: requests that wait.
    latency: of recent requests, seconds, near the top of their range; 0 where there were none.
    arrivals: requests a second, those that are refused included.
  """

  queued: int
  latency: float
  arrivals: float


class BeamController:
  """Picks the schedule of each batch.

  It narrows at once, as far as needed. It widens by one step, after a pause, and only where the
  load would then stay well under the limit at which it narrows. A widening that had to be taken
  back doubles the pause, up to 32 times.

  Args:
    costs: of the schedules, narrowest first.
    start: schedule to begin with.
    target: latency to hold, seconds.
    high: narrows where utilisation, or the queue's time as a share of the target, passes this.
    low: widens only where both would stay under this.
    dwell: seconds from one change to the next widening.
  """

  def __init__(
    self,
    costs: Costs,
    start: int,
    target: float,
    *,
    high: float = 0.85,
    low: float = 0.6,
    dwell: float = 1.0,
  ):
    self._costs = costs
    self._target = target
    self._high = high
    self._low = low
    self._dwell = dwell
    self.schedule = start
    self._changed = -math.inf
    self._widened = -math.inf
    self._pause = dwell

  def choose(self, now: float, load: Load) -> int:
    """The schedule for a batch that starts now."""
    wanted = self._narrowed(now, load)
    if wanted < self.schedule:
      # It had to narrow again soon after it had widened: widening was wrong, so the next pause is
      # longer.
      taken_back = now - self._widened < 2 * self._pause
      self._pause = min(2 * self._pause, 32 * self._dwell) if taken_back else self._dwell
    elif self._may_widen(now, load):
      wanted = self.schedule + 1
      self._widened = now
    if wanted != self.schedule:
      self.schedule = wanted
      self._changed = now
    return self.schedule

  def utilisation(self, arrivals: float, schedule: int | None = None) -> float:
    """Share of the time that so many requests a second need, in full batches; above 1 in overload.

    Smaller batches take more, but only while there is time for them: under load batches fill up.
    """
    largest = self._costs.buckets[-1]
    return (
      arrivals
      * self._costs.seconds(self.schedule if schedule is None else schedule, largest)
      / largest
    )

  def _fits(self, schedule: int, load: Load, share: float) -> bool:
    # One request at least: the batch that is about to start has to fit, too.
    drain = self._costs.drain(schedule, max(load.queued, 1))
    return self.utilisation(load.arrivals, schedule) <= share and drain <= share * self._target

  def _ratio(self, schedule: int) -> float:
    largest = self._costs.buckets[-1]
    return self._costs.seconds(schedule, largest) / self._costs.seconds(self.schedule, largest)

  def _narrowed(self, now: float, load: Load) -> int:
    """The widest schedule, at most the present one, that fits; the narrowest where none does."""
    widest = self.schedule
    if load.latency > self._target and now - self._changed >= self._dwell:
      # Costs are of the search alone, and a request waits for more than that.
      # The measured latency has the last word: some of it no cost foresees.
      widest = max(widest - 1, 0)
    # Schedule 0 is the narrowest, and the last resort.
    return next((s for s in range(widest, 0, -1) if self._fits(s, load, self._high)), 0)

  def _may_widen(self, now: float, load: Load) -> bool:
    wider = self.schedule + 1
    if wider >= len(self._costs) or now - self._changed < self._pause:
      return False
    # Widening asks for more room than staying does (low < high), so that it does not swing.
    return (
      self._fits(wider, load, self._low)
      and load.latency * self._ratio(wider) <= self._high * self._target
    )
