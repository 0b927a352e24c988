"""How popular each ad is at a moment, and which ads rise, from counts in time buckets."""

import dataclasses
import os

import numpy as np

from gr4ad_jax.data.history import DAY

WINDOWS = (7, 28, 91)  # days
FEATURES = ("share_7", "share_28", "share_91", "trend")
_MAX_CELLS = 50_000_000  # 200 MB of int32: with more ads the buckets grow longer


@dataclasses.dataclass(frozen=True)
class Trends:
  """Cumulative event counts by time bucket.

  Attributes:
    origin: unix seconds where bucket 0 begins.
    width: days a bucket.
    seen: [buckets + 1, N] int32; seen[b] counts events before bucket b begins.
  """

  origin: int
  width: float
  seen: np.ndarray

  @classmethod
  def fit(cls, time: np.ndarray, ad: np.ndarray, num_ads: int) -> "Trends":
    """Counts events, given as unix seconds [E] and ad rows [E]."""
    origin = int(time.min()) // DAY * DAY if len(time) else 0
    days = (int(time.max()) - origin) // DAY + 1 if len(time) else 1
    width = max(1.0, days * num_ads / _MAX_CELLS)
    bucket = ((time - origin) / (width * DAY)).astype(np.int64)
    buckets = int(np.ceil(days / width))
    counts = np.bincount((bucket + 1) * num_ads + ad, minlength=(buckets + 1) * num_ads)
    return cls(origin, width, np.cumsum(counts.reshape(buckets + 1, num_ads), axis=0, dtype=np.int32))

  def bucket(self, time: np.ndarray) -> np.ndarray:
    """The bucket in which each moment lies: only earlier buckets count for it. A moment past the end counts all."""
    return np.clip((time - self.origin) / (self.width * DAY), 0, len(self.seen) - 1).astype(np.int64)

  def _window(self, bucket: np.ndarray, days: int) -> np.ndarray:
    return np.maximum(bucket - max(1, round(days / self.width)), 0)

  def features(self, time_B: np.ndarray, ad_BS: np.ndarray) -> np.ndarray:
    """Trailing popularity of ads at request time, as in FEATURES.

    Returns:
      [B, S, len(FEATURES)] float32: log of each window's share against a uniform share, and the change between windows.
    """
    bucket = self.bucket(time_B)
    now = self.seen[bucket[:, None], ad_BS]
    total = self.seen.sum(axis=1, dtype=np.int64)
    logs = []
    for days in WINDOWS:
      then = self._window(bucket, days)
      count = now - self.seen[then[:, None], ad_BS]
      share = (count + 0.5) / ((total[bucket] - total[then])[:, None] + 0.5 * self.seen.shape[1])
      logs.append(np.log(share * self.seen.shape[1]))
    return np.stack([*logs, logs[0] - logs[1]], axis=-1).astype(np.float32)

  def rising(self, slots: int) -> np.ndarray:
    """Ads whose last week stands highest above their last four weeks, for every bucket.

    Returns:
      [buckets + 1, slots] int32 ad rows, the fastest riser first, -1 where fewer rise.
    """
    slots_here = min(slots, self.seen.shape[1])
    out = np.full((len(self.seen), slots), -1, np.int32)
    for b in range(1, len(self.seen)):
      week = self.seen[b] - self.seen[self._window(np.array(b), 7)]
      base = (self.seen[b] - self.seen[self._window(np.array(b), 28)]) / 4
      rise = (week - base) / np.sqrt(base + 1)
      top = np.argpartition(-rise, slots_here - 1)[:slots_here]
      top = top[np.lexsort((top, -rise[top]))]
      out[b, :slots_here] = np.where(rise[top] > 0, top, -1)
    return out

  def save(self, directory: str) -> None:
    """Writes `trends.npz`."""
    os.makedirs(directory, exist_ok=True)
    part = os.path.join(directory, "trends.part.npz")
    np.savez_compressed(part, origin=self.origin, width=self.width, seen=self.seen)
    os.replace(part, os.path.join(directory, "trends.npz"))

  @classmethod
  def load(cls, directory: str) -> "Trends":
    """Reads what `save` wrote."""
    with np.load(os.path.join(directory, "trends.npz"), allow_pickle=False) as saved:
      return cls(int(saved["origin"]), float(saved["width"]), saved["seen"])
