"""A log of any size to a folder of examples (`folder`), which may be stopped and gone on with.

In order: each file of the log becomes a piece that is partitioned by user; every partition is
counted; the users are numbered, and columns of the whole log are written; popularity and neighbours
are fitted; every partition's examples are made. A pool of processes does what is of a partition.
What is made lies beside its place until all of it is whole. A later call reads the files that are
new, and makes the examples that they add or change.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gr4ad_jax import checksums, files
from gr4ad_jax.config import Config, ConfigError
from gr4ad_jax.data.schema import SPLITS, AdTable, DataError
from gr4ad_jax.examples import beam, columns, fitting, folder, spool
from gr4ad_jax.examples.folder import MANIFEST, READING, SHAPING, ExampleFolder
from gr4ad_jax.examples.making import make
from gr4ad_jax.examples.pool import Pool
from gr4ad_jax.examples.records import FORMS, LAYOUT
from gr4ad_jax.examples.stages import OUTCOMES, Job, count, place, summed
from gr4ad_jax.knobs import shown
from gr4ad_jax.locks import Lock
from gr4ad_jax.reading import column_files, tables
from gr4ad_jax.remote import inputs as remote_inputs

Told = Callable[[str, int, int], None]  # of what, how much is done, of how much
_EVENT_BYTES = 400  # memory that an event of a partition takes while it is worked on
_BYTES = {".csv": 40, ".parquet": 8}  # of an event in a file, at least: an estimate for partitions


@dataclasses.dataclass(frozen=True)
class Options:
  """How a folder of examples is made.

  Attributes:
    workers: processes of the pool; 0: this process alone.
    memory_mb: MiB that each of them may take for its partition; it decides the number of
      partitions, in the first call.
    form: of the examples, one of `records.FORMS`; kept from the first call.
    shard_days: days of a shard; 0: all of a call. Kept from the first call.
    partitions: parts of the users; 0: by `memory_mb`. Kept from the first call.
    beam: options of a Beam pipeline that counts and makes the partitions in place of the pool, on
      workers that share the folder; None: the pool does.
  """

  workers: int = 0
  memory_mb: int = 512
  form: str = "bytes"
  shard_days: int = 0
  partitions: int = 0
  beam: tuple[str, ...] | None = None


def check(config: Config, options: Options) -> Config:
  """The config with local paths; raises ConfigError, naming a flag, or DataError: missing files."""
  data = config.data
  if data.dataset != "ad_log":
    raise ConfigError(f"--dataset={data.dataset} is not allowed: examples are made of an ad_log")
  if data.ad_age:
    raise ConfigError("--ad_age=True is not allowed: examples hold no ages")
  if data.retriever:
    raise ConfigError(f"--retriever={data.retriever} is not allowed: examples hold co-visits")
  if data.until or config.training.period != (0.0, 1.0):
    name = "until" if data.until else "period"
    value = data.until or shown(config.training.period)
    raise ConfigError(f"--{name}={value} is not allowed: examples are made of the whole log")
  if options.form not in FORMS:
    raise ConfigError(f"--form={options.form} is not allowed: one of {', '.join(FORMS)}")
  for name, low in (("workers", 0), ("memory_mb", 64), ("shard_days", 0), ("partitions", 0)):
    value = getattr(options, name)
    if value < low:
      raise ConfigError(f"--{name}={value} is not allowed: a whole number, at least {low}")
  config = dataclasses.replace(config, data=remote_inputs.local_sources(data))
  tables.source_files(config.data)
  return config


def prepare(
  out: str, config: Config, options: Options, told: Told = lambda *_: None
) -> ExampleFolder:
  """Makes the examples of a log, or adds those of its new files.

  Args:
    out: the folder; it may hold what an earlier call made, or began.
    config: the log, and what examples are made by.
    options: how they are made.
    told: hears how far each stage is.

  Raises:
    ConfigError: a setting that is not allowed, or another than that of the folder.
    DataError: bad data; or a log of which a file that was read has changed.
    InUseError: another process is at it.
    OSError: the disk refuses, or workers die again and again.
  """
  config = check(config, options)
  data = config.data
  cells = column_files.read_file(data.ads_path, tables.AD_COLUMNS, tables.AD_OPTIONAL)
  ads = tables.ad_table(cells)
  os.makedirs(out, exist_ok=True)
  with Lock(os.path.join(out, ".lock")):
    known = ExampleFolder.open(out) if os.path.exists(os.path.join(out, MANIFEST)) else None
    begun = _begun(out, config, options, known)
    _check_ads(out, ads, known)
    pieces = _spooled(out, config, begun, ads, known, told)
    if known and len(pieces) == len(known.manifest["parts"]):
      return known
    if not sum(piece.events for piece in pieces):
      rows = sum(piece.rows for piece in pieces)
      reason = f"no event is left, the ad table lacks the ads of all {rows} rows"
      raise DataError(f"{data.events_path}: {reason}")
    folder.save_ads(out, ads)
    return _made(out, config, options, begun, ads, pieces, known, told)


def _begun(
  out: str, config: Config, options: Options, known: ExampleFolder | None
) -> dict[str, Any]:
  """The settings that the folder keeps from its first call on.

  Raises:
    ConfigError: this call has others.
  """
  path = os.path.join(out, "begun.json")
  wanted = folder.settings_of(config) | {"form": options.form, "shard_days": options.shard_days}
  if not os.path.exists(path):
    parts = options.partitions or _partitions(config.data.events_path, options.memory_mb)
    files.write_json(path, wanted | {"partitions": parts})
  begun = files.load_json(path)
  given = wanted | ({"partitions": options.partitions} if options.partitions else {})
  for name, value in given.items():
    if begun[name] != value:
      what = "were made" if known else "were begun"
      raise ConfigError(
        f"--{name}={shown(value)} is not allowed: the examples in {out} {what} with "
        f"{shown(begun[name])}; name another --out"
      )
  return begun


def _partitions(path: str, memory_mb: int) -> int:
  """Parts of the users, so that one of them fits into memory; twice that, as some are larger."""
  # Twice as much, because a hash spreads users evenly, and not their events.
  events = sum(
    os.path.getsize(part) / _BYTES[os.path.splitext(part)[1]]
    for part in column_files.part_files(path)
  )
  return max(8, int(np.ceil(2 * events * _EVENT_BYTES / (memory_mb << 20))))


def _check_ads(out: str, ads: AdTable, known: ExampleFolder | None) -> None:
  """Raises DataError where the ad table is not the one of before, with more ads at its end."""
  if known is None:
    return
  before = known.ads.ad_id
  if len(ads) < len(before) or (ads.ad_id[: len(before)] != before).any():
    raise DataError(
      f"{out}: the ad table is another: the {len(before)} ads of before must stand first, in their "
      "order"
    )


def _spooled(
  out: str, config: Config, begun: dict, ads: AdTable, known: ExampleFolder | None, told: Told
) -> list[spool.Piece]:
  """Reads the files of the log that are not in the spool yet.

  Raises:
    DataError: bad data, or a file that was read before and is another now, or gone.
  """
  data = config.data
  log = os.path.join(out, "log")
  os.makedirs(log, exist_ok=True)
  parts = column_files.part_files(data.events_path)
  fixed = len(known.manifest["parts"]) if known else 0
  pieces: list[spool.Piece] = []
  for number, part in enumerate(parts):
    piece = spool.found(log, number)
    if not (piece and _is_of(piece, part, ads)):
      if number < fixed:
        raise DataError(f"{part}: is not the file that examples in {out} were made of ({number})")
      break
    pieces.append(piece)
  if len(parts) < fixed:
    raise DataError(f"{data.events_path}: lacks files that examples in {out} were made of")
  rules = tables.EventRules(data.behaviors, data.on_unknown_ad, data.session_gap_minutes)
  read = {part: number for number, part in enumerate(parts) if number >= len(pieces)}
  rows = sum(piece.rows for piece in pieces)
  for part, cells in column_files.read_parts(
    data.events_path, tables.EVENT_COLUMNS, tables.EVENT_OPTIONAL, lambda part: part in read
  ):
    told("files read", len(pieces), len(parts))
    about = log, len(pieces), part, cells, ads, rules, begun["partitions"], rows
    pieces.append(spool.add(*about))
    rows += pieces[-1].rows
  told("files read", len(parts), len(parts))
  return pieces


def _is_of(piece: spool.Piece, part: str, ads: AdTable) -> bool:
  """Whether a piece is of a file as it is now, and names ads by rows that they still have."""
  return (
    piece.name == os.path.basename(part)
    and piece.digest == checksums.digest(part)
    and piece.ads_digest == spool.digest_of_ids(ads.ad_id[: piece.ads])
  )


def _made(
  out: str, config: Config, options: Options, begun: dict, ads: AdTable, pieces, known, told
) -> ExampleFolder:  # fmt: skip
  """Runs the stages on all pieces, and puts what they made into its place."""
  generation = known.manifest["generation"] + 1 if known else 0
  names = f"tables-{generation:04d}", f"shards-{generation:04d}"
  places = [os.path.join(out, name) for name in names]
  # These are whole, but no manifest names them: a call was stopped between the two.
  for path in places:
    shutil.rmtree(path, ignore_errors=True)
  job = Job(
    log=os.path.join(out, "log"),
    tables=places[0] + ".part",
    shards=places[1] + ".part",
    pieces=len(pieces),
    later=len(known.manifest["parts"]) if known else 0,
    partitions=begun["partitions"],
    num_ads=len(ads),
    config=config.data,
    fitted=len(config.training.fitted),
    form=options.form,
    shard_days=options.shard_days,
    first_shard=known.manifest["next_shard"] if known else 0,
    before=known.tables if known else "",
    token=_token(pieces, ads),
  )
  _go_on(job)
  columns.save(job.tables, "ads/price", ads.price)
  levels = known.column("levels") if known and options.form == "bytes" else None
  with Pool(options.workers) as pool:
    sizes = _stages(job, options, pool, levels, told)
  made = fitting.gather(job)
  manifest = _manifest(job, begun, ads, pieces, known, sizes, names, generation, made)
  _sweep(job, {shard["file"] for shard in made})
  for part, path in zip((job.tables, job.shards), places, strict=True):
    os.rename(part, path)
  # What was written through a map must be on the disk, too, before the manifest counts on it.
  os.sync()
  files.write_json(os.path.join(out, MANIFEST), manifest)
  for scratch in ("counted", "visits", "made"):
    shutil.rmtree(os.path.join(places[0], scratch), ignore_errors=True)
  if known:
    shutil.rmtree(known.tables)
  return ExampleFolder.open(out)


def _stages(
  job: Job, options: Options, pool: Pool, levels: np.ndarray | None, told: Told
) -> dict[str, int]:
  """All that is done with the pieces, in order; returns how many users, requests, … there are."""

  def each(task: Callable, words: str, by_beam: bool = True) -> None:
    """Does a task of every partition."""
    arguments = [(job, partition) for partition in range(job.partitions)]
    told(words, 0, job.partitions)
    by_beam = by_beam and options.beam is not None
    results = beam.run(task, arguments, options.beam) if by_beam else pool.run(task, arguments)
    for done, _ in enumerate(results, 1):
      told(words, done, job.partitions)

  each(count, "partitions counted")
  sizes = fitting.number(job)
  if not os.path.exists(os.path.join(job.tables, "placed.json")):
    fitting.allocate(job, sizes)
    # Not by Beam: partitions write to pages of the same files, which machines must not share.
    each(place, "partitions placed", by_beam=False)
    # Written last: it says that all partitions are placed.
    columns.write_note(os.path.join(job.tables, "placed.json"), {})
  fitting.fit_trends(job, told)
  fitting.fit_neighbors(job, job.config.neighbor_folds, pool, told)
  fitting.fit_levels(job, levels)
  each(make, "partitions made")
  return sizes


def _token(pieces: Sequence[spool.Piece], ads: AdTable) -> str:
  """SHA-256 of what the tables and shards are made of, beside settings."""
  about = LAYOUT, [dataclasses.asdict(piece) for piece in pieces]
  made = hashlib.sha256(json.dumps(about).encode())
  made.update(ads.price.tobytes())
  return made.hexdigest()


def _go_on(job: Job) -> None:
  """Keeps what an earlier call made of the same pieces and settings; else begins anew."""
  path = os.path.join(job.tables, "begun.json")
  about = json.loads(json.dumps(dataclasses.asdict(job)))  # tuples as lists, as they are read back
  if os.path.exists(path) and columns.read_note(path) == about:
    return
  for part in (job.tables, job.shards):
    shutil.rmtree(part, ignore_errors=True)
  columns.write_note(path, about)


def _sweep(job: Job, shards: set[str]) -> None:
  """Takes away what a worker that was killed had begun, beside what is whole."""
  os.makedirs(job.shards, exist_ok=True)
  for name in set(os.listdir(job.shards)) - shards:
    os.remove(os.path.join(job.shards, name))
  for at, _, names in os.walk(job.tables):
    for name in names:
      if ".part" in name:
        os.remove(os.path.join(at, name))


def _manifest(job, begun, ads, pieces, known, sizes, names, generation, made) -> dict[str, Any]:
  """What the folder says of itself."""
  before = known.manifest["shards"] if known else []
  shards = [*before, *({"folder": names[1]} | shard for shard in made)]
  rows = sum(piece.rows for piece in pieces)
  events = sum(piece.events for piece in pieces)
  by_split = summed(job)
  report = {
    "ads": len(ads),
    "users": int(sizes["users"]),
    "events": dict(zip(SPLITS, by_split[0].tolist(), strict=True)),
    "requests": dict(zip(SPLITS, by_split[1].tolist(), strict=True)),
    "rows": rows,
    "dropped": {tables.UNKNOWN_AD: rows - events} if rows > events else {},
  }
  keep = (*SHAPING, *READING, "fit_splits")
  return {
    "form": begun["form"],
    "settings": {name: begun[name] for name in keep} | {"shard_days": begun["shard_days"]},
    "features": folder.features(),
    "parts": [dataclasses.asdict(piece) for piece in pieces],
    "generation": generation,
    "tables": names[0],
    "requests": int(sizes["requests"]),
    "outcomes": int(len(columns.load(job.tables, f"outcomes/{next(iter(OUTCOMES))}"))),
    "made": sum(shard["records"] for shard in made),
    "next_shard": 1 + max((shard["number"] for shard in shards), default=-1),
    "shards": shards,
    "report": report,
  }
