"""How popular each ad is at a moment, and which ads rise, from counts in time buckets."""

import dataclasses
import functools
import os

import numpy as np

from gr4ad_jax import files
from gr4ad_jax.data.history import DAY, Lines

WINDOWS = (7, 28, 91)  # days
CHARACTER = 182  # days over which an ad's repeat share and mean value are taken
YEAR = 365  # days
SEASON = (14, 28)  # days before and after this day a year ago
FEATURES = (
  "share_7", "share_28", "share_91", "trend", "repeat_share", "mean_value", "days_unsold",
  "days_known", "last_year", "last_year_share",
)  # fmt: skip
_MAX_CELLS = 20_000_000  # 240 MB in all: with more ads the buckets grow longer
_PRIOR_LINES, _PRIOR_REPEATS = 4.0, 1.0  # what an ad without lines is taken to have had
_UNSOLD = 7.0  # days_unsold of an ad that was never sold: log(1 + days) of three years


@dataclasses.dataclass(frozen=True)
class Trends:
  """Cumulative counts of lines by time bucket.

  Attributes:
    origin: unix seconds where bucket 0 begins.
    width: days a bucket.
    seen: [buckets + 1, N] int32; seen[b] counts lines before bucket b begins.
    repeats: [buckets + 1, N] int32, those of them whose user had taken the ad before.
    value: [buckets + 1, N] float32, their summed log(1 + value).
  """

  origin: int
  width: float
  seen: np.ndarray
  repeats: np.ndarray
  value: np.ndarray

  @classmethod
  def fit(cls, lines: Lines, num_ads: int, shown_L: np.ndarray | None = None) -> "Trends":
    """Counts lines, or those of the mask `shown_L` [L] alone."""
    shown_L = np.ones(len(lines.ad), bool) if shown_L is None else shown_L
    time, ad = lines.request_time[lines.request[shown_L]], lines.ad[shown_L]
    origin = int(time.min()) // DAY * DAY if len(time) else 0
    days = (int(time.max()) - origin) // DAY + 1 if len(time) else 1
    width = max(1.0, days * num_ads / _MAX_CELLS)
    bucket = ((time - origin) / (width * DAY)).astype(np.int64)
    buckets = int(np.ceil(days / width))

    def cumulated(weight_L, dtype):
      sums = np.bincount((bucket + 1) * num_ads + ad, weight_L, (buckets + 1) * num_ads)
      return np.cumsum(sums.reshape(buckets + 1, num_ads), axis=0).astype(dtype)

    repeats = cumulated(lines.count[shown_L] > 1, np.int32)
    return cls(
      origin,
      width,
      cumulated(None, np.int32),
      repeats,
      cumulated(np.log1p(lines.value[shown_L]), np.float32),
    )

  @functools.cached_property
  def _total(self) -> np.ndarray:
    """[buckets + 1] lines of all ads."""
    return self.seen.sum(axis=1, dtype=np.int64)

  @functools.cached_property
  def _risen(self) -> dict[tuple[int, int], np.ndarray]:
    """Rising ads by (bucket, slots)."""
    return {}

  @functools.cached_property
  def _mean_value(self) -> np.ndarray:
    """[buckets + 1] mean log(1 + value) of the lines so far."""
    return self.value.sum(axis=1) / np.maximum(self._total, 1)

  def bucket(self, time: np.ndarray) -> np.ndarray:
    """The bucket in which each moment lies: only earlier buckets count for it. A moment past the
    end counts all.
    """
    return np.clip((time - self.origin) / (self.width * DAY), 0, len(self.seen) - 1).astype(
      np.int64
    )

  def _window(self, bucket: np.ndarray, days: int) -> np.ndarray:
    return np.maximum(bucket - max(1, round(days / self.width)), 0)

  def features(self, time_B: np.ndarray, ad_BS: np.ndarray) -> np.ndarray:
    """Trailing popularity and character of ads at request time, as in FEATURES.

    Ads that the fit did not have, with rows from N on, are taken to have had no line.

    Returns:
      [B, S, len(FEATURES)] float32: log of each window's share against a uniform share; the change
      between the two shortest windows; 4 x the share of repeats and mean log(1 + value), both drawn
      towards a prior; log(1 + days) since the last sale, and since the first; whether the counts
      reach back to this season a year ago, and the log of the share in it.
    """
    bucket, total, num_ads = self.bucket(time_B), self._total, self.seen.shape[1]
    known_BS = ad_BS < num_ads
    ad_BS = np.where(known_BS, ad_BS, 0)

    def lately(sums, then):
      return (sums[bucket[:, None], ad_BS] - sums[then[:, None], ad_BS]) * known_BS

    logs = []
    for days in WINDOWS:
      then = self._window(bucket, days)
      share = (lately(self.seen, then) + 0.5) / (
        (total[bucket] - total[then])[:, None] + 0.5 * num_ads
      )
      logs.append(np.log(share * num_ads))
    then = self._window(bucket, CHARACTER)
    count = lately(self.seen, then) + _PRIOR_LINES
    repeat = 4 * (lately(self.repeats, then) + _PRIOR_REPEATS) / count
    value = (lately(self.value, then) + _PRIOR_LINES * self._mean_value[bucket, None]) / count
    about = [*logs, logs[0] - logs[1], repeat, value, *self._ages(bucket, ad_BS, known_BS)]
    begin = time_B - (YEAR + SEASON[0]) * DAY
    there_B1 = (begin >= self.origin)[:, None]
    begin, end = self.bucket(begin), self.bucket(time_B - (YEAR - SEASON[1]) * DAY)
    count = (self.seen[end[:, None], ad_BS] - self.seen[begin[:, None], ad_BS]) * known_BS
    share = (count + 0.5) / (np.maximum(total[end] - total[begin], 1)[:, None] + 0.5 * num_ads)
    about += [
      np.broadcast_to(there_B1, ad_BS.shape),
      np.where(there_B1, np.log(share * num_ads), 0),
    ]
    return np.stack(about, axis=-1).astype(np.float32)

  def _ages(self, bucket_B, ad_BS, known_BS) -> tuple[np.ndarray, np.ndarray]:
    """log(1 + days) since the last and the first sale, [B, S] each."""
    last, first_N = self._sold
    last_BS = np.where(known_BS, last[bucket_B[:, None], ad_BS], -1)
    age_BS = (bucket_B[:, None] - first_N[ad_BS]) * self.width
    unsold = np.where(
      last_BS >= 0, np.log1p((bucket_B[:, None] - 1 - last_BS) * self.width), _UNSOLD
    )
    return unsold, np.where((last_BS >= 0) & (age_BS > 0), np.log1p(np.maximum(age_BS, 0)), 0)

  @functools.cached_property
  def _sold(self) -> tuple[np.ndarray, np.ndarray]:
    """Bucket of each ad's last sale before a bucket [buckets + 1, N] int32, -1 where there was
    none; of its first.
    """
    last = np.full(self.seen.shape, -1, np.int32)
    bucket = np.arange(1, len(self.seen), dtype=np.int32)[:, None] - 1
    last[1:] = np.maximum.accumulate(np.where(self.seen[1:] > self.seen[:-1], bucket, -1), axis=0)
    never = self.seen[-1] == 0
    return last, np.where(never, len(self.seen), np.argmax(self.seen > 0, axis=0) - 1).astype(
      np.int32
    )

  def lately(self, time_B: np.ndarray, days: int = 28) -> np.ndarray:
    """[B, N] int32, lines of every ad in the last `days` before the day of each moment."""
    bucket = self.bucket(time_B)
    return self.seen[bucket] - self.seen[self._window(bucket, days)]

  def rising(self, bucket_B: np.ndarray, slots: int) -> np.ndarray:
    """Ads whose last week stands highest above their last four weeks. A bucket's are looked up
    once, then kept.

    Returns:
      [B, slots] int32 ad rows, the fastest riser first, -1 where fewer rise.
    """
    here, inverse = np.unique(bucket_B, return_inverse=True)
    made = self._risen
    for bucket in here.tolist():
      if (bucket, slots) not in made:
        made[bucket, slots] = self._rising(bucket, slots)
    return np.stack([made[bucket, slots] for bucket in here.tolist()])[inverse]

  def _rising(self, bucket: int, slots: int) -> np.ndarray:
    """[slots] int32, as `rising`."""
    out = np.full(slots, -1, np.int32)
    week = self.seen[bucket] - self.seen[self._window(np.array(bucket), 7)]
    base = (self.seen[bucket] - self.seen[self._window(np.array(bucket), 28)]) / 4
    rise = (week - base) / np.sqrt(base + 1)
    kept = min(slots, len(rise))
    top = np.argpartition(-rise, kept - 1)[:kept]
    top = top[np.lexsort((top, -rise[top]))]
    out[:kept] = np.where(rise[top] > 0, top, -1)
    return out

  def save(self, directory: str) -> None:
    """Writes `trends.npz`."""
    columns = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    files.save_arrays(os.path.join(directory, "trends.npz"), compressed=True, **columns)

  @classmethod
  def load(cls, directory: str) -> "Trends":
    """Reads what `save` wrote. Raises as `files.load_arrays` does."""
    names = ("origin", "width", "seen", "repeats", "value")
    origin, width, *columns = files.load_arrays(os.path.join(directory, "trends.npz"), *names)
    return cls(int(origin), float(width), *columns)
