"""A folder of examples: what it says of itself, and its parts.

manifest.json   settings, source files with digests, the shards with counts and digests, a report;
                written last: what it does not name does not count
log/            the log, partitioned by user (`spool`)
ads/            the ad table
tables-0000/    of the whole log, mapped: its columns, requests, outcomes, popularity, neighbours
shards-0000/    the examples, as ArrayRecord; one such folder for each call that added days
"""

import dataclasses
import functools
import os
from typing import Any

import numpy as np

from gr4ad_jax import files
from gr4ad_jax.config import Config, ConfigError, DataConfig
from gr4ad_jax.data import ad_store
from gr4ad_jax.data.schema import AdTable, DataError, Dataset, EventLog, Report
from gr4ad_jax.examples import columns
from gr4ad_jax.examples.records import KEPT, LAYOUT, Codec
from gr4ad_jax.examples.stages import EVENTS
from gr4ad_jax.features.batches import USER_FEATURES
from gr4ad_jax.knobs import shown

MANIFEST = "manifest.json"
# Sizes and kinds of what is stored. A run with other ones would read something else.
SHAPING = (
  "history_slots", "neighbor_slots", "rising_slots", "neighbor_folds", "behavior_features",
  "behaviors", "attribution_days",
)  # fmt: skip
"""Knobs of the data that examples are made by, and that a run on them must have."""

READING = ("on_unknown_ad", "session_gap_minutes")
"""Knobs that say how the log was read."""


def features() -> dict[str, Any]:
  """Names of the features that an example holds, in their order, and how a record is laid out."""
  return {"slots": list(KEPT), "users": list(USER_FEATURES), "layout": LAYOUT}


def settings_of(config: Config) -> dict[str, Any]:
  """What examples of a config are made by."""
  knobs = {name: getattr(config.data, name) for name in (*SHAPING, *READING)}
  knobs["behaviors"] = list(config.data.behaviors)
  return knobs | {"fit_splits": config.training.fit_splits}


def save_ads(path: str, ads: AdTable) -> None:
  """Writes the ad table of a folder, and its vectors where it has some."""
  ad_store.save_ads(ads, os.path.join(path, "ads"))
  if ads.vectors is not None:
    with files.replacing(os.path.join(path, "ads", "vectors.npy"), summed=False) as part:
      np.save(part, ads.vectors)


@dataclasses.dataclass(frozen=True)
class ExampleFolder:
  """An opened folder of examples.

  Attributes:
    path: where it lies.
    manifest: what it says of itself.
  """

  path: str
  manifest: dict[str, Any]

  @classmethod
  def open(cls, path: str) -> "ExampleFolder":
    """Opens a whole folder.

    Raises:
      DataError: no folder of examples, one that was not made to its end, or of other features.
      DamagedError: a manifest that is not what was written, a shard that is missing or of another
        size.
    """
    name = os.path.join(path, MANIFEST)
    if not os.path.exists(name):
      raise DataError(
        f"{path}: no folder of examples, or one that is not whole: it has no {MANIFEST} "
        "(experiments.prepare makes it)"
      )
    folder = cls(path, files.load_json(name))
    # Columns are known by their place, so names in another order are refused too.
    if folder.manifest["features"] != features():
      raise DataError(
        f"{path}: the examples have other features, or another layout, than this code reads: "
        "prepare them anew"
      )
    for shard in folder.manifest["shards"]:
      where = folder.shard_path(shard)
      # The size is cheap to ask for at each opening; contents are looked at when they are read.
      if not os.path.exists(where) or os.path.getsize(where) != shard["bytes"]:
        raise files.DamagedError(
          f"{where} is missing, or not {shard['bytes']} bytes, as {MANIFEST} says"
        )
    return folder

  def shard_path(self, shard: dict[str, Any]) -> str:
    """Where a shard of the manifest lies."""
    return os.path.join(self.path, shard["folder"], shard["file"])

  @property
  def tables(self) -> str:
    """The folder of what was made of the whole log."""
    return os.path.join(self.path, self.manifest["tables"])

  def column(self, name: str) -> np.ndarray:
    """A column of the whole log, mapped."""
    return columns.load(self.tables, name)

  def check(self, config: Config) -> None:
    """Raises ConfigError where a run's settings are others than those the examples are made by."""
    ours = settings_of(config)
    for name, value in self.manifest["settings"].items():
      # How the log was read shapes it once, and no run reads it again.
      if name in ours and name not in READING and ours[name] != value:
        raise ConfigError(
          f"--{name}={shown(ours[name])} is not allowed: the examples in {self.path} were made "
          f"with {shown(value)}"
        )

  def codec(self, config: DataConfig) -> Codec:
    """How its examples are read."""
    form = self.manifest["form"]
    return Codec(config, form, self.column("levels") if form == "bytes" else None)

  @property
  def report(self) -> Report:
    """What reading the log did."""
    return Report(**self.manifest["report"])

  @functools.cached_property
  def ads(self) -> AdTable:
    """The ad table, in memory."""
    table = ad_store.load_ads(os.path.join(self.path, "ads"))
    vectors = os.path.join(self.path, "ads", "vectors.npy")
    if os.path.exists(vectors):
      table = dataclasses.replace(table, vectors=np.load(vectors, allow_pickle=False))
    return table

  def dataset(self) -> Dataset:
    """The data set: ads and ids of users in memory, the columns of the log mapped."""
    manifest = self.manifest
    # Mapped columns are numbers, so the ids are one text as bytes, with the end of each.
    text = self.column("users/text").tobytes()
    end_U = self.column("users/end").tolist()
    ids = [text[begin:end].decode() for begin, end in zip([0, *end_U[:-1]], end_U, strict=True)]
    log = EventLog(np.array(ids, object), **{name: self.column(f"log/{name}") for name in EVENTS})
    behaviors = tuple(manifest["settings"]["behaviors"])
    days = manifest["settings"]["attribution_days"]
    return Dataset("ad_log", self.ads, log, behaviors, self.report, days)
