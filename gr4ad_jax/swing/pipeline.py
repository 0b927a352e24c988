"""Swing as an Apache Beam pipeline, for logs that one machine does not hold.

It finds the very neighbours that `swing.fit_swing` finds. It reads the prepared events where they
lie, a run of users at a time. A visit belongs to one user, so its ads need no *shuffle*, which
sends data between workers. There is one shuffle, by ad. Before it each worker drops what the cap on
visits would drop anyway.
"""

import glob
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from gr4ad_jax.config import SidConfig
from gr4ad_jax.data.extras import beam_pipeline, optional
from gr4ad_jax.swing import blocks, by_config, swing
from gr4ad_jax.swing.groups import Groups, priority

_PAIRS = 1 << 22  # held in memory
_USERS = 1000  # read at once

# A user's number; visit and ad of each of its training events.
Example = tuple[int, np.ndarray, np.ndarray]
# Its priority, number, and ads in ascending order. Beam keeps the smallest of these tuples, so the
# priority stands first.
Visit = tuple[int, int, tuple[int, ...]]
Row = tuple[int, list[int], list[float]]  # an ad; its neighbours, strongest first; their similarity


def run(
  folders: dict[str, str], config: SidConfig, seed: int, parts: str, options: Sequence[str] = ()
) -> swing.Neighbors:
  """The neighbours of a prepared data set, as `by_config.co_occurrence` gives them.

  Args:
    folders: of the prepared parts (`prepare.prepared_folders`). All workers must be able to read
      them.
    config: the settings.
    seed: of the samples.
    parts: an empty folder for the rows, which all workers can write.
    options: of the Beam pipeline, as on its command line.

  Raises:
    ImportError: the `beam` extra is missing.
    ConfigError: options that Beam refuses.
  """
  beam = optional("apache_beam", "beam")
  tfds = optional("tensorflow_datasets")
  pipeline = beam_pipeline(options)
  num_ads = tfds.builder_from_directory(folders["ads"]).info.splits["ads"].num_examples
  with pipeline:
    rows = similar_ads(
      read_examples(pipeline, folders["events"]), **by_config.swing_arguments(config, seed)
    )
    _ = rows | beam.Map(json.dumps) | beam.io.WriteToText(os.path.join(parts, "rows"))
  return assemble(_written(parts), num_ads, config.swing_neighbors)


def _written(parts: str) -> Iterator[Row]:
  """The rows that the workers wrote, one as JSON in each line of the files `rows*`."""
  for path in sorted(glob.glob(os.path.join(glob.escape(parts), "rows*"))):
    with open(path, encoding="utf-8") as lines:
      yield from map(json.loads, lines)


def read_examples(pipeline: Any, events_dir: str) -> Any:
  """The training examples of prepared events, a collection of `Example`.

  Args:
    pipeline: a Beam pipeline.
    events_dir: folder of the prepared `events`, which all workers can read:
      `prepare.events_dir(config)`.
  """
  beam = optional("apache_beam", "beam")
  tfds = optional("tensorflow_datasets")
  count = tfds.builder_from_directory(events_dir).info.splits["train"].num_examples
  ranges = [(begin, min(begin + _USERS, count)) for begin in range(0, count, _USERS)]
  # Only the ranges are dealt out (`Reshuffle`); each worker then reads its own users from disk.
  return pipeline | beam.Create(ranges) | beam.Reshuffle() | beam.FlatMap(_read, events_dir)


def _read(users: tuple[int, int], events_dir: str) -> Iterator[Example]:
  """The examples of a run of users."""
  source = (
    optional("tensorflow_datasets").builder_from_directory(events_dir).as_data_source("train")
  )
  numbers = range(*users)
  for user, example in zip(numbers, source.__getitems__(list(numbers)), strict=True):
    yield user, np.asarray(example["request"]), np.asarray(example["ad"])


def similar_ads(
  examples: Any,
  *,
  alpha: float = 1.0,
  neighbors: int = 16,
  max_users_per_item: int = 256,
  max_items_per_user: int = 1000,
  min_support: int = 2,
  seed: int = 0,
) -> Any:
  """The neighbours of each ad that has any, by the rules of `swing.fit_swing`.

  Args:
    examples: a collection of `Example`.
    alpha: smoothing constant.
    neighbors: K.
    max_users_per_item: cap on the visits of an ad, which one worker holds with their ads.
    max_items_per_user: cap on the ads of a visit.
    min_support: visits that two neighbours share.
    seed: seed of both samples.

  Returns:
    A collection of `Row`.

  Raises:
    ImportError: the `beam` extra is missing.
    ValueError: a setting out of range.
  """
  beam = optional("apache_beam", "beam")
  swing.at_least(
    1,
    neighbors=neighbors,
    max_users_per_item=max_users_per_item,
    max_items_per_user=max_items_per_user,
  )
  # One number of the whole log goes to every worker: whether any visit holds two ads decides what
  # a visit is.
  largest = examples | "largest of a user" >> beam.Map(_largest) | beam.CombineGlobally(_most)
  by_visit = beam.pvalue.AsSingleton(largest)
  return (
    examples
    | beam.FlatMap(_visits_of_ads, by_visit, max_items_per_user, seed)
    | beam.combiners.Top.SmallestPerKey(max_users_per_item)
    | beam.FlatMap(_row, alpha, neighbors, min_support)
  )


def _most(sizes: Iterable[int]) -> int:
  return max(sizes, default=0)


def _largest(example: Example) -> int:
  """Distinct ads of the largest visit."""
  _, visit, ad = example
  pairs = np.unique(np.stack([visit, ad]), axis=1)
  return int(np.unique(pairs[0], return_counts=True)[1].max(initial=0))


def _visits_of_ads(
  example: Example, largest: int, max_items: int, seed: int
) -> Iterator[tuple[int, Visit]]:
  """Each ad of each visit with that visit. A user is one visit where no visit holds two ads."""
  user, visit, ad = example
  visit = visit if largest > 1 else np.full(len(ad), user)
  order = np.lexsort((ad, visit))
  visit = visit[order]
  ad = ad[order]
  begin = np.flatnonzero(np.append(True, visit[1:] != visit[:-1])[: len(visit)])
  # Not strict: `np.split` makes one empty part of a user without events, and there is no visit.
  for number, ads in zip(visit[begin].tolist(), np.split(ad, begin[1:]), strict=False):
    ads = np.unique(ads)
    if len(ads) > max_items:
      ads = np.sort(ads[np.argsort(priority(number, ads, seed, swing.OF_A_VISIT))[:max_items]])
    held = tuple(ads.tolist())
    # Beam has signed integers only. With the highest bit turned round, the order stays the same.
    first = (priority(number, ads, seed, swing.OF_AN_AD) ^ np.uint64(1 << 63)).view(np.int64)
    for row, of_ad in enumerate(held):
      yield of_ad, (int(first[row]), number, held)


def _row(
  of_ad: tuple[int, list[Visit]], alpha: float, neighbors: int, min_support: int
) -> Iterator[Row]:
  """The neighbours of an ad from its visits, where it has any."""
  ad, visits = of_ad
  # By number, the order in which `fit_swing` adds up: the sums are the same to the bit.
  visits = sorted(visits, key=lambda visit: visit[1])
  ads, member = np.unique(np.concatenate([held for _, _, held in visits]), return_inverse=True)
  start = np.append(0, np.cumsum([len(held) for _, _, held in visits]))
  rows = np.arange(len(visits), dtype=np.int32)
  # A catalogue of the ads of these visits alone, numbered from 0, in which the ad is `own`.
  own = np.searchsorted(ads, [ad]).astype(np.int32)
  cells = blocks.similar(
    Groups(rows, start, member.astype(np.int32)), Groups(own, np.array([0, len(rows)]), rows), 0, 1,
    alpha=alpha, min_support=max(min_support, 2), pairs_at_once=_PAIRS,
  )  # fmt: skip
  if len(cells.ad_C):
    yield ad, ads[cells.other_C[:neighbors]].tolist(), cells.similarity_C[:neighbors].tolist()


def assemble(rows: Iterable[Row], num_ads: int, neighbors: int) -> swing.Neighbors:
  """The rows of all ads, in any order, as one table."""
  ads_NK = np.full((num_ads, neighbors), -1, np.int32)
  similarity_NK = np.zeros((num_ads, neighbors), np.float32)
  for ad, others, similarity in rows:
    ads_NK[ad, : len(others)] = others
    similarity_NK[ad, : len(others)] = similarity
  return swing.Neighbors(ads_NK, similarity_NK)
