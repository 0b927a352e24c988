"""Swing (docs/design/method.md §1.1) over a made-up log of any size: its speed and its memory.

The log's popularity of ads and its sizes of visits follow power laws. Its columns lie in files and
are memory-mapped. Beside it stands what the caps, which bound the work, change on real data.
"""

import os
import tempfile
import time
from typing import NamedTuple

import numpy as np
from numpy.lib.format import open_memmap

from gr4ad_jax.benchmarks import timing
from gr4ad_jax.builders.prepare import load_dataset
from gr4ad_jax.config import Config, DataConfig, SidConfig
from gr4ad_jax.sid import tokenizer as tokenizer_lib
from gr4ad_jax.swing import swing

LARGEST = 1000  # ads of a visit
_AT_ONCE = 1 << 20  # events made at once
# Caps that are compared, with the others off: visits of an ad, ads of a visit, shared visits.
CAPS = {
  "max_users_per_item": (16, 64, 256, 1024),
  "max_items_per_user": (10, 20, 50, 200),
  "min_support": (3, 5, 10),
}
# Beyond what any ad or visit has; two visits are what the formula needs.
_OFF = {"max_users_per_item": 2**31, "max_items_per_user": 2**31, "min_support": 2}


class Log(NamedTuple):
  """The columns that Swing reads."""

  request: np.ndarray
  user: np.ndarray
  ad: np.ndarray
  split: np.ndarray


def power_law_log(folder: str, events: int, ads: int, seed: int = 0) -> Log:
  """Makes a log in files of a folder.

  - A visit holds ⌊5 / √(1 - x)⌋ events, x uniform, and at most `LARGEST`. So P(size > s) ~ s^-2,
    and the mean is about 10.
  - An event's ad has rank ⌊n^x⌋ of n, so P(rank r) ~ 1/r. For half of the events it is the rank
    among all ads. For the others it is the rank within the visit's topic, one of N/100 topics of
    100 ads each.
  - Ranks are given to rows of the ad table at random. All events are of training. Every visit is a
    user's own.
  """
  rng = np.random.default_rng(seed)
  row_of_rank = rng.permutation(ads).astype(np.int32)
  topics = max(ads // 100, 1)
  kinds = {"request": np.int32, "ad": np.int32, "split": np.int8}
  columns = {
    name: open_memmap(os.path.join(folder, f"{name}.npy"), "w+", kind, (events,))
    for name, kind in kinds.items()
  }
  begin = 0
  visits = 0
  while begin < events:
    # The inverse of the distribution: with x uniform, 5 / √(1 - x) is above s with (5 / s)².
    size = np.minimum(5 / np.sqrt(1 - rng.random(_AT_ONCE // 10)), LARGEST).astype(np.int64)
    # The last round may be cut.
    visit = np.repeat(np.arange(len(size)), size)[: events - begin]
    end = begin + len(visit)
    count = len(visit)
    topic = rng.integers(topics, size=len(size))[visit]
    # The ads of a topic are every `topics`-th in rank, so each topic has popular ads.
    within = topic + topics * (_ranks(rng, count, ads // topics) - 1)
    rank = np.where(rng.random(count) < 0.5, within, _ranks(rng, count, ads) - 1)
    columns["request"][begin:end] = visits + visit
    columns["ad"][begin:end] = row_of_rank[rank]
    columns["split"][begin:end] = 0
    begin = end
    visits = visits + len(size)
  for column in columns.values():
    column.flush()
  # Opened anew and for reading alone, as a log on disk is.
  read = {name: np.load(os.path.join(folder, f"{name}.npy"), mmap_mode="r") for name in kinds}
  return Log(read["request"], read["request"], read["ad"], read["split"])


def _ranks(rng: np.random.Generator, count: int, most: int) -> np.ndarray:
  """[count] int64 ranks in [1, most], P(rank r) ~ log(1 + 1/r)."""
  # As x is below 1, the power is below most + 1; but rounding may bring it there.
  return np.minimum((most + 1) ** rng.random(count), most).astype(np.int64)


def measure(config: Config, events: int, ads: int, told: swing.Told | None = None) -> dict:
  """Fits Swing once on a made-up log, by the settings, then measures the caps on Online Retail II.

  The peak of memory is that of the process since its start, mapped files included.
  """
  with tempfile.TemporaryDirectory() as folder:
    begin = time.perf_counter()
    log = power_law_log(folder, events, ads, config.training.seed)
    made = time.perf_counter()
    used = time.process_time()
    fitted = tokenizer_lib.co_occurrence(log, ads, config.sid, config.training.seed, told)
    figures = {
      "events": events,
      "ads": ads,
      "visits": int(log.request[-1]) + 1,
      "memory_mb": config.sid.swing_memory_mb,
      "cores": os.cpu_count(),
      "make_seconds": made - begin,
      "fit_seconds": time.perf_counter() - made,
      "fit_cpu_seconds": time.process_time() - used,
      "peak_rss_gib": timing.peak_memory() / 2**30,
      "ads_with_neighbors": int((fitted.ads_NK[:, 0] >= 0).sum()),
      "neighbors": int((fitted.ads_NK >= 0).sum()),
    }
  return figures | {"caps": caps()}


def caps() -> dict:
  """What the caps keep of Online Retail II: a share for each cap and value, and for the defaults.

  It is the share of the neighbours found without caps that are still found with one.
  """
  dataset = load_dataset(DataConfig())
  whole = swing.fit_swing(dataset.events, len(dataset.ads), **_OFF)
  found = {}
  for name, values in CAPS.items():
    for value in values:
      part = swing.fit_swing(dataset.events, len(dataset.ads), **_OFF | {name: value})
      found[f"{name}={value}"] = overlap(part, whole)
  settings = SidConfig()
  by_default = tokenizer_lib.co_occurrence(dataset.events, len(dataset.ads), settings, 0)
  return found | {"defaults": overlap(by_default, whole)}


def overlap(part: swing.Neighbors, whole: swing.Neighbors) -> float:
  """Share of the neighbours of `whole` that are neighbours of the same ad in `part`."""
  size = len(whole.ads_NK)
  row = np.arange(size)[:, None] * size  # one number for each pair of ads: (N, 1) + (N, K)
  pairs = [(row + found.ads_NK)[found.ads_NK >= 0] for found in (part, whole)]
  return float(np.isin(pairs[1], pairs[0]).mean()) if len(pairs[1]) else 1.0


def summary(figures: dict) -> str:
  """The figures in words."""
  seconds = figures["fit_seconds"]
  lines = [
    f"{figures['events']:,} events in {figures['visits']:,} visits over {figures['ads']:,} ads, "
    f"{figures['cores']} cores, --swing_memory_mb={figures['memory_mb']}",
    f"made in {figures['make_seconds']:.0f} s; fitted in {seconds:.0f} s "
    f"({figures['fit_cpu_seconds']:.0f} s of CPU), {figures['events'] / seconds:,.0f} events/s, "
    f"{figures['ads'] / seconds:,.0f} ads/s",
    f"peak memory of the process {figures['peak_rss_gib']:.2f} GiB",
    f"{figures['ads_with_neighbors']:,} ads have neighbours, {figures['neighbors']:,} in all",
    "share of the uncapped neighbours that stay, Online Retail II:",
  ]
  return "\n".join(lines + [f"  {name}: {share:.3f}" for name, share in figures["caps"].items()])
