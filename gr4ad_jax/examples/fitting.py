"""What is made of all partitions at once: numbers of users, popularity, neighbours, levels."""

import itertools
import os

import numpy as np

from gr4ad_jax.data.schema import SPLITS
from gr4ad_jax.examples import bundles, columns, making, mapped
from gr4ad_jax.examples.pool import Pool
from gr4ad_jax.examples.records import fit_levels as levels_of
from gr4ad_jax.examples.stages import (
  EVENTS,
  LINES,
  OUTCOMES,
  PLACES,
  REQUESTS,
  SIZES,
  Job,
  Numbers,
  counted,
  path_of,
)
from gr4ad_jax.features.counts import Counts
from gr4ad_jax.features.neighbors import Visits
from gr4ad_jax.features.trends import Trends

_CELLS = 2_000_000  # counts that are merged at once
_SAMPLE = 512  # requests that levels are fitted on
ALL = len(SPLITS)  # the counts of all splits


def number(job: Job) -> dict[str, int]:
  """Numbers the users of all partitions in the order in which the log names them, and says where
  each one's things stand. Returns how many of each there are.
  """
  names = ("first", "span", *SIZES)
  found = {p: dict(zip(names, arrays, strict=True)) for p, arrays in counted(job, *names)}
  first_U = np.concatenate([part["first"] for part in found.values()])
  # Users of all partitions in the order of their first row in the log: `order` sorts them so.
  order = np.argsort(first_U)
  number_U = np.empty(len(order), np.int64)
  number_U[order] = np.arange(len(order))
  firsts = {}
  totals = {"users": len(order)}
  for name in SIZES:
    size_U = np.concatenate([part[name] for part in found.values()])
    # What users before this one have, in that order, put back to the users' own places.
    before = np.empty(len(order), np.int64)
    before[order] = np.cumsum(size_U[order]) - size_U[order]
    firsts[name] = before
    totals[name] = int(size_U.sum())
  # The parts were joined in order of partition, and are cut again in the same one.
  at = 0
  for partition, part in found.items():
    here = slice(at, at + len(part["first"]))
    at = here.stop
    some = {name: first[here] for name, first in firsts.items()}
    Numbers(number_U[here], part["requests"], some).save(job.tables, partition)
  # Windows of shards are counted from the one of the first event.
  begin = min(int(part["span"][0]) for part in found.values())
  columns.save(job.tables, "first_window", making.windows(np.array([begin]), job.shard_days))
  return totals


def allocate(job: Job, sizes: dict[str, int]) -> None:
  """Makes the columns of the whole log, for `stages.place` and `making.make` to write."""
  for folder, names, size in (
    ("log", EVENTS, sizes["events"]),
    ("requests", REQUESTS, sizes["requests"]),
    ("outcomes", OUTCOMES, sizes["outcomes"]),
    ("lines", LINES, sizes["lines"]),
    ("places", PLACES, sizes["requests"]),
  ):
    for name, kind in names.items():
      # Bounds of R requests are R + 1 numbers.
      more = int(name == "outcome_first")  # of R + 1 requests
      columns.create(job.tables, f"{folder}/{name}", kind, size + more)
  columns.create(job.tables, "users/text", "u1", sizes["id_bytes"])
  columns.create(job.tables, "users/end", "i8", sizes["users"])
  columns.load(job.tables, "requests/outcome_first", write=True)[-1] = sizes["outcomes"]
  for name in PLACES:
    # -1 says that nobody has written here yet; `gather` looks for such places.
    columns.load(job.tables, f"places/{name}", write=True)[:] = -1


def fit_trends(job: Job, told) -> None:
  """Counts of ads, of as many splits as requests of each split see, and of all."""
  # This file is the last one of the last level.
  if os.path.exists(os.path.join(job.tables, "trends", str(ALL), "about.json")):
    return
  # What requests see; of all splits the counts are kept for the next days.
  seen = {bundles.shown(split, job.fitted) for split in range(len(SPLITS))}
  trends = Trends.empty(job.num_ads)
  # Counts of a level hold those of all levels before it, so each is added to what there is.
  for level in range(1, ALL + 1):
    waiting: list[Counts] = []
    held = 0
    for partition, (split, *cells) in counted(job, "split", *Counts._fields):
      told("partitions merged", partition + (level - 1) * job.partitions, ALL * job.partitions)
      here = split == level - 1
      waiting.append(Counts(*(column[here] for column in cells)))
      held += int(here.sum())
      # Many small parts together: each `adding` sorts all that there is.
      if held > _CELLS:
        trends = trends.adding(_joined(waiting))
        waiting = []
        held = 0
    # What is left below the limit.
    if waiting:
      trends = trends.adding(_joined(waiting))
    if level in seen | {ALL}:
      if level in seen and job.config.rising_slots:
        mapped.save_rising(job.tables, level, trends, job.config.rising_slots)
      mapped.save_trends(job.tables, level, trends)
  told("partitions merged", ALL * job.partitions, ALL * job.partitions)


def _joined(counts: list[Counts]) -> Counts:
  return Counts(*map(np.concatenate, zip(*counts, strict=True)))


def fit_neighbors(job: Job, folds: int, pool: Pool, told) -> None:
  """The co-visit neighbours of every fold, by blocks of ads."""
  done = os.path.join(job.tables, "neighbors", "about.json")
  if os.path.exists(done):
    return
  request_L = columns.load(job.tables, "lines/request")
  taken = Visits.of(request_L, columns.load(job.tables, "lines/ad"), job.num_ads)
  for name in ("first", "of_ad", "ad_first"):
    columns.save(job.tables, f"visits/{name}", getattr(taken, name))
  # A visit's user is that of its first line.
  user_V = columns.load(job.tables, "requests/user")[request_L[taken.first[:-1]]]
  columns.save(job.tables, "visits/user", user_V)
  blocks = list(itertools.pairwise(taken.blocks()))
  # Two large maps less while the tasks run.
  del taken
  tasks = []
  for fold in range(folds + 1):
    visits, kept_V = mapped.open_visits(job.tables, fold, folds)
    # Made here once, and sent along: each block needs the sums of all ads.
    mass_N = visits.mass(kept_V)
    tasks += [(job.tables, fold, folds, lo, hi, mass_N) for lo, hi in blocks]
  for name, kind in (("ids", "i4"), ("cosine", "f4")):
    # 32 neighbours an ad, as `CoVisitNeighbors.fit` keeps.
    columns.create(job.tables, f"neighbors/{name}", kind, folds + 1, job.num_ads, 32)
  ids = columns.load(job.tables, "neighbors/ids", write=True)
  cosine = columns.load(job.tables, "neighbors/cosine", write=True)
  for number_of, (task, found) in enumerate(pool.run(mapped.near, tasks)):
    told("blocks of neighbours", number_of, len(tasks))
    _, fold, _, lo, hi, _ = tasks[task]
    ids[fold, lo:hi], cosine[fold, lo:hi] = found
  told("blocks of neighbours", len(tasks), len(tasks))
  columns.write_note(done, {})


def gather(job: Job) -> list[dict]:
  """Writes where all examples lie, of what `making.make` has said; returns what is said of the new
  shards.

  Raises:
    RuntimeError: a request has no example.
  """
  found = []
  places = {name: columns.load(job.tables, f"places/{name}", write=True) for name in PLACES}
  for partition in range(job.partitions):
    found += columns.read_note(making.note_of(job, partition))
    path = path_of(job.tables, "made", partition)
    if os.path.exists(path):
      with np.load(path, allow_pickle=False) as saved:
        for name, column in places.items():
          column[saved["request"]] = saved[name]
  missing = int((places["row"] < 0).sum())
  if missing:
    raise RuntimeError(f"{missing} requests have no example")
  return found


def fit_levels(job: Job, before: np.ndarray | None) -> None:
  """The values that stand for all others in the form `bytes`: those of before, or of a sample."""
  if job.form != "bytes" or os.path.exists(os.path.join(job.tables, "levels.npy")):
    return
  levels_FV = before if before is not None else _sampled(job)
  columns.save(job.tables, "levels.part", levels_FV)
  # The rename makes it whole: a kill before it leaves `.part`, which is made anew.
  os.replace(os.path.join(job.tables, "levels.part.npy"), os.path.join(job.tables, "levels.npy"))


def _sampled(job: Job) -> np.ndarray:
  """Levels by some requests of the first bundle of each of the first partitions."""
  tables = mapped.load_tables(job)
  found = []
  for partition in range(min(job.partitions, 8)):
    part = job.read(partition)
    if part is None:
      continue
    numbers = Numbers.load(job.tables, partition)
    # One bundle a partition is enough of a sample, and no partition is read to its end.
    _, _, log = next(bundles.bundles(part.log))
    wanted_R = np.zeros(int(log.request[-1]) + 1, bool)
    wanted_R[:: max(1, len(wanted_R) * 8 // _SAMPLE)] = True
    log = bundles.renamed(log, numbers.user)
    found += [some.known for some in bundles.examples_of(log, tables, wanted_R)]
  first = found[0]
  return levels_of(first._replace(**{
    name: np.concatenate([getattr(known, name) for known in found])
    for name in ("slot_ad_BS", "slot_features_BSF")
  }))  # fmt: skip
