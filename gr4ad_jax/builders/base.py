"""What the builders share: an ad table and an event log as two TFDS configs, written from memory
and read back.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from gr4ad_jax.builders.stored import StoredBuilder
from gr4ad_jax.config import DataConfig
from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.promotions import Promotions
from gr4ad_jax.data.schema import SPLITS, AdTable, DataError, Dataset, EventLog, Report
from gr4ad_jax.reading import column_files

tfds = optional("tensorflow_datasets")

AD_TEXTS = ("ad_id", "text", "account_id", "category", "conversion_type", "form")
EVENT_COLUMNS = {
  "request": np.int32,
  "ad": np.int32,
  "time": np.int64,
  "behavior": np.int32,
  "value": np.float32,
  "quantity": np.float32,
}
PARTS = ("ads", "events")


class TableBuilder(StoredBuilder, skip_registration=True):
  """A data set in two configs: `ads` (an example is an ad) and `events` (an example is a user's
  events of a split).

  The files are ArrayRecord, in the tables' order, and TensorFlow is not needed. A subclass reads
  and checks its source.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First version."}
  PRICED_BY_SALES = False  # whether prices and dates of ads are made from the events of train
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name="ads", description="Split 'ads': one example an ad."),
    tfds.core.BuilderConfig(
      name="events", description="Splits train, valid, test: one example a user."
    ),
  ]

  def __init__(self, *, data: DataConfig | None = None, tables: Dataset | None = None, **kwargs):
    """Args: data: the source and its options; tables: what `read` gave, where it was called
    already.
    """
    self._data = data or DataConfig(dataset=type(self).name)
    self._tables = tables
    super().__init__(**kwargs)

  @classmethod
  def sources(cls, data: DataConfig) -> dict[str, str]:
    """Source files by the name of their field. Raises DataError where one is not set or not
    there.
    """
    raise DataError(f"{cls.__name__} names no source")

  @classmethod
  def options(cls, data: DataConfig) -> dict[str, Any]:
    """Options that change what `read` gives, JSON-able."""
    return {}

  @classmethod
  def read(cls, data: DataConfig) -> Dataset:
    """The data set from its source, with its report. Raises DataError for the first thing that
    is wrong.
    """
    raise DataError(f"{cls.__name__} reads no source")

  @classmethod
  def promotions(cls, data: DataConfig, dataset: Dataset) -> Promotions:
    """What was displayed and mailed, for --promotions. Raises DataError where it is not known."""
    raise DataError(f"--promotions is not allowed: {cls.name} tells nothing of them")

  @classmethod
  def fingerprint(cls, data: DataConfig) -> str:
    """16 hex digits that change with the source's bytes and with the options."""
    # Name, version and options are hashed as JSON with sorted keys, so that equal options are equal
    # bytes.
    made = hashlib.sha256(
      json.dumps([cls.name, str(cls.VERSION), cls.options(data)], sort_keys=True).encode()
    )
    for field, path in cls.sources(data).items():
      # The ending is in the hash: the same bytes as another kind of file are read differently.
      for part in column_files.part_files(path):
        with open(part, "rb") as source:
          content = hashlib.file_digest(source, "sha256").hexdigest()
        made.update(f"{field}{os.path.splitext(part)[1]}{content}".encode())
    return made.hexdigest()[:16]

  def stored(self) -> AdTable | EventLog:
    """The prepared part, read back.

    Raises:
      DataError: what is read is not what was written. Damaged files may raise what TFDS and
        ArrayRecord raise.
    """
    part = self._stored_ads() if self.builder_config.name == "ads" else self._stored_events()
    # What was damaged on disk since it was written is noticed here.
    if digest(part) != self.info.metadata["digest"]:
      raise DataError(f"{self.data_dir}: the contents are not those that were written")
    return part

  def _info(self):
    features = tfds.features
    if self.builder_config.name == "ads":
      columns = {name: features.Text() for name in AD_TEXTS}
      columns |= {"price": features.Scalar(np.float32), "created": features.Scalar(np.int64)}
      # A table without vectors stores vectors of length 0.
      columns["vector"] = features.Tensor(shape=(None,), dtype=np.float32)
    else:
      columns = {
        name: features.Tensor(shape=(None,), dtype=kind) for name, kind in EVENT_COLUMNS.items()
      }
      columns["user_id"] = features.Text()
    return self._stored_info(columns)

  def _split_generators(self, dl_manager):
    tables = self._tables or self.read(self._data)
    if self.builder_config.name == "ads":
      self.info.metadata["digest"] = digest(tables.ads)
      return {"ads": self._generate_examples(tables, "ads")}
    self.info.metadata.update(
      digest=digest(tables.events),
      behaviors=list(tables.behaviors),
      report=dataclasses.asdict(tables.report),
    )
    # TFDS cannot write an empty split.
    present = [split for split in SPLITS if tables.report.events[split]]
    return {split: self._generate_examples(tables, split) for split in present}

  def _generate_examples(self, tables: Dataset, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    yield from (
      _ad_examples(tables.ads)
      if split == "ads"
      else _user_examples(tables.events, SPLITS.index(split))
    )

  def _stored_ads(self) -> AdTable:
    columns = self._columns("ads")
    # All examples have one length, since the table has vectors for all ads or for none.
    vectors_ND = np.stack(columns["vector"])
    return AdTable(
      price=np.array(columns["price"], np.float32),
      created=np.array(columns["created"], np.int64),
      vectors=vectors_ND if vectors_ND.shape[1] else None,
      **{name: _decoded(columns[name]) for name in AD_TEXTS},
    )

  def _stored_events(self) -> EventLog:
    # An empty split was not written, and is not there to be read.
    splits = {split: self._columns(split) for split in SPLITS if split in self.info.splits}
    # Every user has a visit in train, so its users are all that there are.
    user_id = _decoded(splits["train"]["user_id"])
    row_of = {user: row for row, user in enumerate(user_id)}
    joined: dict[str, list[np.ndarray]] = {name: [] for name in (*EVENT_COLUMNS, "user", "split")}
    for split, columns in splits.items():
      size = [len(ads) for ads in columns["ad"]]
      joined["user"].append(
        np.repeat([row_of[user] for user in _decoded(columns["user_id"])], size)
      )
      joined["split"].append(np.full(sum(size), SPLITS.index(split)))
      for name in EVENT_COLUMNS:
        joined[name] += columns[name]
    flat = {name: np.concatenate(pieces) for name, pieces in joined.items()}
    # Splits were stored apart; by request they stand as in the log.
    order = np.argsort(flat["request"], kind="stable")
    kinds = EVENT_COLUMNS | {"user": np.int32, "behavior": np.int8, "split": np.int8}
    return EventLog(
      user_id=user_id, **{name: flat[name][order].astype(kinds[name]) for name in flat}
    )

  def _columns(self, split: str) -> dict[str, list]:
    source = self.as_data_source(split)
    examples = source.__getitems__(list(range(len(source))))
    return {name: [example[name] for example in examples] for name in examples[0]}


def digest(part: AdTable | EventLog) -> str:
  """SHA-256 over all columns of a table."""
  # The column's name and shape are hashed with it, so that bytes cannot move from one to the next.
  made = hashlib.sha256()
  for field in dataclasses.fields(part):
    column = getattr(part, field.name)
    made.update(f"{field.name}{'' if column is None else column.shape}".encode())
    if column is not None:
      made.update(
        json.dumps(column.tolist()).encode() if column.dtype == object else column.tobytes()
      )
  return made.hexdigest()


def report(
  ads: AdTable, events: EventLog, rows: int, merged: int = 0, dropped: dict[str, int] | None = None,
  noted: dict[str, int] | None = None,
) -> Report:  # fmt: skip
  """Counts the tables; `rows`, `merged`, `dropped` and `noted` are those of `Report`.

  Raises:
    DataError: the events, the rows merged and those dropped are not all rows of the source.
  """
  set_aside = merged + sum((dropped or {}).values())
  # Rows must not get lost without a word.
  if len(events) + set_aside != rows:
    raise DataError(
      f"{rows} rows were read, but {len(events)} became events and {set_aside} were set aside"
    )
  # The first event of each request says which split it is of.
  first_R = np.unique(events.request, return_index=True)[1]
  event_count = np.bincount(events.split, minlength=len(SPLITS))
  request_count = np.bincount(events.split[first_R], minlength=len(SPLITS))
  return Report(
    ads=len(ads),
    users=len(events.user_id),
    events={split: int(count) for split, count in zip(SPLITS, event_count, strict=True)},
    requests={split: int(count) for split, count in zip(SPLITS, request_count, strict=True)},
    rows=rows,
    merged=merged,
    dropped=dropped or {},
    noted=noted or {},
  )


def _ad_examples(ads: AdTable) -> Iterator[tuple[int, dict[str, Any]]]:
  # TFDS has no missing value; an empty one stands for it.
  no_vector = np.zeros(0, np.float32)
  for row in range(len(ads)):
    example = {name: getattr(ads, name)[row] for name in (*AD_TEXTS, "price", "created")}
    yield row, example | {"vector": no_vector if ads.vectors is None else ads.vectors[row]}


def _user_examples(events: EventLog, split: int) -> Iterator[tuple[int, dict[str, Any]]]:
  # Events of a split are in order of user, so each user's are a run.
  chosen = np.flatnonzero(events.split == split)
  user = events.user[chosen]
  begin = np.flatnonzero(np.append(True, user[1:] != user[:-1]))
  columns = {
    name: getattr(events, name)[chosen].astype(kind) for name, kind in EVENT_COLUMNS.items()
  }
  for first, end in zip(begin, np.append(begin[1:], len(chosen)), strict=True):
    example = {name: column[first:end] for name, column in columns.items()}
    yield int(user[first]), example | {"user_id": events.user_id[user[first]]}


def _decoded(texts: list[bytes]) -> np.ndarray:
  return np.array([text.decode() for text in texts], object)
