"""The tables of a whole log, mapped from disk: no process holds them."""

import functools
import os

import numpy as np

from gr4ad_jax.data.schema import DAY, SPLITS
from gr4ad_jax.examples import bundles, columns
from gr4ad_jax.examples.records import Codec
from gr4ad_jax.examples.stages import Job
from gr4ad_jax.features.neighbors import NeighborFolds, Visits
from gr4ad_jax.features.trends import Trends


def near(
  tables: str, fold: int, folds: int, lo: int, hi: int, mass_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Neighbours of the ads lo … hi-1, by the visits of users that a fold does not leave out; the
  fold `folds` leaves none out.
  """
  visits, kept_V = open_visits(tables, fold, folds)
  return visits.of_block(lo, hi, mass_N, kept_V=kept_V)


def open_visits(tables: str, fold: int, folds: int) -> tuple[Visits, np.ndarray | None]:
  """The visits of what is learned from, mapped; and which of them a fold keeps."""
  visits = Visits(
    columns.load(tables, "lines/ad"),
    *(columns.load(tables, f"visits/{name}") for name in ("first", "of_ad", "ad_first")),
  )
  kept_V = None if fold == folds else columns.load(tables, "visits/user") % folds != fold
  return visits, kept_V


@functools.lru_cache(maxsize=1)  # what a process has looked up of a day serves all partitions
def load_tables(job: Job) -> bundles.Tables:
  """What bundles read, mapped."""
  levels = {bundles.shown(split, job.fitted) for split in range(len(SPLITS))}
  trends = {level: load_trends(job.tables, level) for level in levels}
  for level, counts in trends.items():
    if job.config.rising_slots:
      counts.keep_rising(columns.load(job.tables, f"trends/{level}/rising"))
  ids, cosine = (columns.load(job.tables, f"neighbors/{name}") for name in ("ids", "cosine"))
  price_N = columns.load(job.tables, "ads/price")
  return bundles.Tables(price_N, trends, NeighborFolds(ids, cosine), job.config, job.fitted)


_CELLS = ("ad", "bucket", "seen", "repeats", "units")


def save_rising(tables: str, level: int, trends: Trends, slots: int) -> None:
  """Writes the ads that rise in each bucket, so that they are looked up once, and not by each
  process.
  """
  # Four weeks after the last event nothing rises any more.
  last = trends.bucket_of(np.array(trends.end + 29 * DAY))
  columns.save(tables, f"trends/{level}/rising", trends.rising(np.arange(int(last)), slots))


def save_trends(tables: str, level: int, trends: Trends) -> None:
  """Writes the counts of ads as columns."""
  for name in _CELLS:
    columns.save(tables, f"trends/{level}/{name}", getattr(trends, name))
  about = {"origin": trends.origin, "width": trends.width, "num_ads": trends.num_ads}
  columns.write_note(os.path.join(tables, "trends", str(level), "about.json"), about)


def load_trends(tables: str, level: int) -> Trends:
  """What `save_trends` wrote, mapped."""
  about = columns.read_note(os.path.join(tables, "trends", str(level), "about.json"))
  return Trends(
    **about, **{name: columns.load(tables, f"trends/{level}/{name}") for name in _CELLS}
  )


def codec(job: Job) -> Codec:
  """How the examples are written."""
  levels_FV = columns.load(job.tables, "levels") if job.form == "bytes" else None
  return Codec(job.config, job.form, levels_FV)
