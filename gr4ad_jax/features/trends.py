"""How popular each ad is at a moment, and which ads rise, from counts by ad and day.

Only days on which something happened to an ad are kept, so the counts grow with the log and not
with ads times days. All sums are of whole numbers, so events can be added at any time and order.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping

import numpy as np

from gr4ad_jax import files
from gr4ad_jax.data.schema import DAY
from gr4ad_jax.features.counts import CELL, UNIT, Cells, Counts
from gr4ad_jax.features.lines import Lines

WINDOWS = (7, 28, 91)  # days
CHARACTER = 182  # days over which an ad's repeat share and mean value are taken
YEAR = 365  # days
SEASON = (14, 28)  # days before and after this day a year ago
# `days_known` counts from an ad's first sale, `days_unsold` from its last one.
FEATURES = (
  "share_7", "share_28", "share_91", "trend", "repeat_share", "mean_value", "days_unsold",
  "days_known", "last_year", "last_year_share",
)  # fmt: skip
_PRIOR_LINES, _PRIOR_REPEATS = 4.0, 1.0  # what an ad without lines is taken to have had
_UNSOLD = 7.0  # days_unsold of an ad that was never sold: log(1 + days) of three years


@dataclasses.dataclass(frozen=True)
class Trends:
  """Cumulative counts of lines by ad and time bucket, in C cells: those in which something changed.

  Attributes:
    origin: unix seconds where bucket 0 begins.
    width: days a bucket: 1, or what a file of an older form had.
    num_ads: N.
    ad: [C] int32, ascending.
    bucket: [C] int32, of an ad's cells ascending.
    seen: [C] int64, the ad's lines up to and with this bucket.
    repeats: [C] int64, those of them whose user had taken the ad before.
    units: [C] int64, their summed log(1 + value), in units of 2^-34.
  """

  origin: int
  width: float
  num_ads: int
  ad: np.ndarray
  bucket: np.ndarray
  seen: np.ndarray
  repeats: np.ndarray
  units: np.ndarray

  @classmethod
  def empty(cls, num_ads: int) -> "Trends":
    """Counts of nothing."""
    return cls(0, 1.0, num_ads, *(np.zeros(0, kind) for kind in ("i4", "i4", "i8", "i8", "i8")))

  @classmethod
  def fit(cls, lines: Lines, num_ads: int, shown_L: np.ndarray | None = None) -> "Trends":
    """Counts lines, or those of the mask `shown_L` [L] alone."""
    return cls.empty(num_ads).adding(Counts.of(lines, shown_L))

  def adding(self, counts: Counts, num_ads: int | None = None) -> "Trends":
    """These counts and more, of any moments: as if all had been counted at once.

    Args:
      counts: what changed.
      num_ads: rows of the ad table by now; None: as many as before.
    """
    num_ads = self.num_ads if num_ads is None else num_ads
    if not len(counts.ad):
      return dataclasses.replace(self, num_ads=num_ads)
    first = int(counts.time.min()) // DAY * DAY
    origin = min(self.origin, first) if len(self.ad) else first
    if self.width != 1 and origin < self.origin:
      raise ValueError("counts by buckets of several days take no events before their first bucket")
    shift = round((self.origin - origin) / DAY) if len(self.ad) else 0
    new = ((counts.time - origin) / (self.width * DAY)).astype(np.int64)
    ad = np.concatenate([self.ad, counts.ad]).astype(np.int64)
    bucket = np.concatenate([self.bucket.astype(np.int64) + shift, new])
    span = int(bucket.max()) + 1
    cell, inverse = np.unique(ad * span + bucket, return_inverse=True)
    ad = cell // span
    starts = np.append(True, ad[1:] != ad[:-1])
    start = np.flatnonzero(starts)[np.cumsum(starts) - 1]  # each cell's first of the same ad

    def cumulated(name: str, added: np.ndarray) -> np.ndarray:
      change = np.concatenate([self._changes(name), added])
      sums = np.zeros(len(cell), np.int64)
      np.add.at(sums, inverse, change)
      # One running sum over all ads, from which that of the ads before is taken off.
      total = np.cumsum(sums)
      return total - total[start] + sums[start]

    columns = cumulated("seen", counts.seen), cumulated("repeats", counts.repeats)
    columns = (*columns, cumulated("units", counts.value))
    # A cell in which nothing is left, as where an event was taken back, is as one that never was.
    changed = np.any([x != np.where(starts, 0, np.roll(x, 1)) for x in columns], axis=0)
    cells = ad.astype(np.int32), (cell % span).astype(np.int32), *columns
    return Trends(origin, self.width, num_ads, *(x[changed] for x in cells))

  def _changes(self, name: str) -> np.ndarray:
    """[C] what each cell adds to a cumulative column."""
    column = getattr(self, name)
    change = column.copy()
    change[1:] -= np.where(self.ad[1:] == self.ad[:-1], column[:-1], 0)
    return change

  @functools.cached_property
  def buckets(self) -> int:
    """Buckets up to and with the last one in which something happened, at least one."""
    return int(self.bucket.max(initial=0)) + 1

  @property
  def end(self) -> int:
    """Unix seconds where the last of these buckets ends: what is asked there sees all counts."""
    return self.origin + int(np.ceil(self.buckets * self.width * DAY))

  @functools.cached_property
  def _cells(self) -> Cells:
    """Where an ad's counts before a bucket stand."""
    return Cells(self.ad, self.bucket, self.num_ads, self.buckets)

  @functools.cached_property
  def _columns(self) -> np.ndarray:
    """[C + 1] what is read of a cell, with a row of 0 in front for ads without a cell."""
    sold = np.where(self._changes("seen") > 0, np.arange(1, len(self.ad) + 1), 0)
    # The last cell of any ad so far in which a line began; its own, where that lies in its run.
    sold = np.maximum.accumulate(sold)
    columns = np.zeros(len(self.ad) + 1, CELL)
    columns["seen"][1:] = self.seen
    columns["repeats"][1:] = self.repeats
    columns["value"][1:] = self.units / UNIT
    columns["last"] = -1
    own = ((sold > 0) & (self.ad[np.maximum(sold, 1) - 1] == self.ad)).nonzero()[0]
    columns["last"][1 + own] = self.bucket[sold[own] - 1]
    return columns

  @functools.cached_property
  def _total(self) -> np.ndarray:
    """[buckets + 1] lines of all ads before each bucket."""
    count = np.bincount(self.bucket + 1, self._changes("seen"), self.buckets + 1)
    return np.cumsum(count.astype(np.int64))

  @functools.cached_property
  def _risen(self) -> dict[tuple[int, int], np.ndarray]:
    """Rising ads by (bucket, slots)."""
    return {}

  @functools.cached_property
  def _mean_value(self) -> np.ndarray:
    """[buckets + 1] mean log(1 + value) of the lines before each bucket."""
    order = np.argsort(self.bucket, kind="stable")
    bounds = np.searchsorted(self.bucket[order], np.arange(self.buckets + 1))
    value = self._columns["value"][1:]
    sums = np.zeros(self.buckets + 1, np.float32)
    value_N = np.zeros(self.num_ads, np.float32)
    for b in range(self.buckets):  # one row of all ads, brought up to date bucket by bucket
      here = order[bounds[b] : bounds[b + 1]]
      value_N[self.ad[here]] = value[here]
      sums[b + 1] = value_N.sum()
    return sums / np.maximum(self._total, 1)

  def bucket_of(self, time: np.ndarray) -> np.ndarray:
    """The bucket of each moment: only earlier ones count for it. A moment after the last event has
    one of its own: windows leave old events behind, and ads grow older.
    """
    return np.maximum((time - self.origin) / (self.width * DAY), 0).astype(np.int64)

  def _window(self, bucket: np.ndarray, days: int) -> np.ndarray:
    return np.maximum(bucket - max(1, round(days / self.width)), 0)

  def features(self, time_B: np.ndarray, ad_BS: np.ndarray) -> np.ndarray:
    """`features_of` ads [B, S], each of its row's moment: [B, S, len(FEATURES)]."""
    of = np.repeat(np.arange(len(ad_BS)), ad_BS.shape[1])
    return self.features_of(time_B, ad_BS.ravel(), of).reshape(*ad_BS.shape, len(FEATURES))

  def features_of(self, time_B: np.ndarray, ad_n: np.ndarray, of_n: np.ndarray) -> np.ndarray:
    """Trailing popularity and character of ads at request time, as in FEATURES.

    Ads that the counts do not have, with rows from N on, are taken to have had no line.

    Args:
      time_B: unix seconds of requests.
      ad_n: rows of the ad table.
      of_n: the request of each.

    Returns:
      [n, len(FEATURES)] float32: log of each window's share against a uniform share; the change
      between the two shortest windows; 4 x the share of repeats and mean log(1 + value), both drawn
      towards a prior; log(1 + days) since the last sale, and since the first; whether the counts
      reach back to this season a year ago, and the log of the share in it.
    """
    bucket = self.bucket_of(time_B)
    known_n = ad_n < self.num_ads
    ad_n = np.where(known_n, ad_n, 0)
    asked = self._cells.asked(ad_n)

    def change(name, then):
      return (now[name] - then[name]) * known_n

    def before(then_B):
      return self._columns.take(self._cells.before(then_B, asked, of_n))

    now = before(bucket)
    logs = []
    for days in WINDOWS:
      then = self._window(bucket, days)
      count = change("seen", before(then))
      total = self._total[np.minimum(bucket, self.buckets)]
      total = total - self._total[np.minimum(then, self.buckets)]
      # The share of an ad against an even share. Half a line more keeps the log finite at no line.
      even = (total + 0.5 * self.num_ads)[of_n]
      logs.append(np.log((count + 0.5) / even * self.num_ads))
    then = before(self._window(bucket, CHARACTER))
    count = change("seen", then) + _PRIOR_LINES
    # Repeats a line, by a prior of one in four lines; so an ad without lines has the value 1.
    repeat = 4 * (change("repeats", then) + _PRIOR_REPEATS) / count
    mean_B = self._mean_value[np.minimum(bucket, self.buckets)]
    value = (change("value", then) + (_PRIOR_LINES * mean_B)[of_n]) / count
    ages = self._ages(bucket[of_n], ad_n, np.where(known_n, now["last"], -1))
    season = self._last_year(time_B, ad_n, known_n, of_n)
    about = *logs, logs[0] - logs[1], repeat, value, *ages, *season
    return np.stack(about, dtype=np.float32, casting="unsafe").T

  def _ages(self, bucket_n, ad_n, last_n) -> tuple[np.ndarray, np.ndarray]:
    """log(1 + days) since the last and the first sale, [n] each; `last_n` is -1 without one."""
    age_n = (bucket_n - self._first.take(ad_n)) * self.width
    sold = last_n >= 0
    # Bucket `b` sees sales up to `b - 1`: a sale of yesterday was 0 days ago.
    since = np.maximum((bucket_n - 1 - last_n) * self.width, 0)
    unsold = np.where(sold, np.log1p(since), _UNSOLD)
    return unsold, np.where(sold & (age_n > 0), np.log1p(np.maximum(age_n, 0)), 0)

  @functools.cached_property
  def _first(self) -> np.ndarray:
    """[N] the bucket of each ad's first sale; past the last one where there was none."""
    first_N = np.full(self.num_ads, self.buckets + 1, np.int32)
    sold = np.flatnonzero(self._changes("seen") > 0)[::-1]
    first_N[self.ad[sold]] = self.bucket[sold]  # from the last to the first, which stays
    return first_N

  def _last_year(self, time_B, ad_n, known_n, of_n) -> tuple[np.ndarray, np.ndarray]:
    """Whether the counts reach back to this season a year ago, and each ad's share in it; [n]."""
    begin = time_B - (YEAR + SEASON[0]) * DAY
    # Counts of nothing reach back to no season, wherever their bucket 0 lies.
    there_B = (begin >= self.origin) & (len(self.ad) > 0)
    there_n = there_B[of_n]
    log_share = np.zeros(len(ad_n))
    # Of the others nothing is looked up.
    some = there_n.nonzero()[0]
    asked = self._cells.asked(ad_n[some])
    of_n = of_n[some]
    begin = self.bucket_of(begin)
    end = self.bucket_of(time_B - (YEAR - SEASON[1]) * DAY)
    count = self._columns.take(self._cells.before(end, asked, of_n))["seen"]
    count = count - self._columns.take(self._cells.before(begin, asked, of_n))["seen"]
    total = self._total[np.minimum(end, self.buckets)]
    total = np.maximum(total - self._total[np.minimum(begin, self.buckets)], 1)
    share = (count * known_n[some] + 0.5) / (total + 0.5 * self.num_ads)[of_n]
    log_share[some] = np.log(share * self.num_ads)
    return there_n, log_share

  def seen_before(self, bucket: np.ndarray) -> np.ndarray:
    """Lines of every ad before buckets of any shape: [..., N] int32."""
    asked = self._cells.asked(np.arange(self.num_ads))
    cells = self._cells.before(np.asarray(bucket)[..., None], asked)
    return self._columns.take(cells)["seen"]

  def lately(self, time_B: np.ndarray, days: int = 28) -> np.ndarray:
    """[B, N] int32, lines of every ad in the last `days` before the day of each moment."""
    now = self.bucket_of(time_B)
    return self.seen_before(now) - self.seen_before(self._window(now, days))

  def rising(self, bucket_B: np.ndarray, slots: int) -> np.ndarray:
    """Ads whose last week stands highest above their last four weeks. A bucket's are looked up
    once, then kept.

    Returns:
      [B, slots] int32 ad rows, the fastest riser first, -1 where fewer rise.
    """
    # Four weeks after the last event nothing rises any more: later buckets share one entry.
    bucket_B = np.minimum(bucket_B, self.buckets + max(1, round(28 / self.width)))
    here, inverse = np.unique(bucket_B, return_inverse=True)
    made = self._risen
    # Neighbouring buckets look back at the same days.
    seen = functools.lru_cache(maxsize=32)(self.seen_before)
    for bucket in here.tolist():
      if (bucket, slots) not in made:
        made[bucket, slots] = self._rising(bucket, slots, seen)
    return np.stack([made[bucket, slots] for bucket in here.tolist()])[inverse]

  def keep_rising(self, ads_PR: np.ndarray) -> None:
    """Takes over what `rising` gave of the buckets 0 … P - 1, in this process or another one."""
    self._risen.update(((bucket, len(ads)), ads) for bucket, ads in enumerate(ads_PR))

  def _rising(self, bucket: int, slots: int, seen) -> np.ndarray:
    """[slots] int32, as `rising`; `seen` is `seen_before`."""
    out = np.full(slots, -1, np.int32)
    week = seen(bucket) - seen(int(self._window(bucket, 7)))
    base = (seen(bucket) - seen(int(self._window(bucket, 28)))) / 4
    # In units of a Poisson count's standard deviation, plus 1 for ads that hardly sell.
    rise = (week - base) / np.sqrt(base + 1)
    kept = min(slots, len(rise))
    top = np.argpartition(-rise, kept - 1)[:kept]
    top = top[np.lexsort((top, -rise[top]))]
    out[:kept] = np.where(rise[top] > 0, top, -1)
    return out

  def save(self, directory: str) -> None:
    """Writes `trends.npz`."""
    files.save_arrays(os.path.join(directory, "trends.npz"), compressed=True, **self.arrays())

  def arrays(self) -> dict[str, np.ndarray]:
    """All that they are, by name."""
    return {f.name: np.asarray(getattr(self, f.name)) for f in dataclasses.fields(self)}

  @classmethod
  def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Trends":
    """What `arrays` gave. Raises KeyError where one is missing."""
    origin, width, num_ads, *columns = (arrays[f.name] for f in dataclasses.fields(cls))
    return cls(int(origin), float(width), int(num_ads), *columns)

  @classmethod
  def load(cls, directory: str) -> "Trends":
    """Reads what `save` wrote, or a run of before, whose counts stood in tables of all buckets and
    ads. Raises as `files.load_arrays` does.
    """
    path = os.path.join(directory, "trends.npz")
    if "ad" not in files.load_all(path):
      names = ("origin", "width", "seen", "repeats", "value")
      return cls._of_tables(*files.load_arrays(path, *names))
    names = [field.name for field in dataclasses.fields(cls)]
    return cls.of_arrays(dict(zip(names, files.load_arrays(path, *names), strict=True)))

  @classmethod
  def _of_tables(cls, origin, width, *tables_PN: np.ndarray) -> "Trends":
    """From cumulative counts before each of P buckets, [P, N] each."""
    num_ads = tables_PN[0].shape[1]
    changed_PN = np.any([np.diff(table, axis=0) != 0 for table in tables_PN], axis=0)
    ad, bucket = np.nonzero(changed_PN.T)  # in order of ad, then bucket
    seen, repeats, value = (table[bucket + 1, ad] for table in tables_PN)
    units = np.rint(value.astype(np.float64) * UNIT).astype(np.int64)
    cells = ad.astype(np.int32), bucket.astype(np.int32)
    counts = seen.astype(np.int64), repeats.astype(np.int64), units
    return cls(int(origin), float(width), num_ads, *cells, *counts)
