"""What a run computes before it trains, and keeps in its workdir: tokenizer, index, features, eCPM bins.

  tokenizer/  tokenizer.npz      index/  codes.npz, ads.npz      features/  neighbors.npz, trends.npz, behaviors.json, ecpm.json
"""

import dataclasses
import json
import logging
import os

import numpy as np

from gr4ad_jax.config import Config, ConfigError
from gr4ad_jax.data import ad_store, history
from gr4ad_jax.data.batches import RequestContexts
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.data.history import Lines
from gr4ad_jax.data.neighbors import Neighbors
from gr4ad_jax.data.prepare import load_dataset
from gr4ad_jax.data.schema import SPLITS, Dataset
from gr4ad_jax.data.trends import Trends
from gr4ad_jax.sid import tokenizer as tokenizer_lib
from gr4ad_jax.sid.index import SidIndex
from gr4ad_jax.sid.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Inputs:
  """A data set, seen through a run's tokenizer and features."""

  dataset: Dataset
  tokenizer: Tokenizer
  index: SidIndex
  lines: Lines
  neighbors: Neighbors
  ecpm: EcpmBins

  def requests(self, *splits: str) -> np.ndarray:
    """Request numbers of the given splits, ascending."""
    return np.flatnonzero(np.isin(self.lines.request_split, [SPLITS.index(split) for split in splits]))

  def contexts(self, config: Config, split: str) -> RequestContexts:
    """The batches of a split; 'train' means all that is learned from.

    Popularity counts what is visible there (never the day of the request itself): for test, and where valid is learned
    from, train and valid; otherwise train.
    """
    events = self.dataset.events
    fitted = len(config.training.fit_splits.split("+"))
    seen = events.split < max(SPLITS.index(split), fitted)
    trends = Trends.fit(events.time[seen], events.ad[seen], len(self.dataset.ads))
    behaviors, target = self.dataset.behaviors, config.data.target_behavior
    depth = behaviors.index(target) if target else 0
    return RequestContexts(self.lines, self.index.codes_NT, self.dataset.ads.price, trends, self.neighbors, config.data, depth)


def fit_tokenizer(config: Config, dataset: Dataset) -> tuple[Tokenizer, SidIndex]:
  """The run's tokenizer and index: those of the workdir, or fitted and kept there.

  Raises:
    ConfigError: the workdir was made from another ad table.
  """
  tokenizer_dir, index_dir = (os.path.join(config.workdir, name) for name in ("tokenizer", "index"))
  if os.path.exists(os.path.join(index_dir, "codes.npz")):
    if not ad_store.same_ads(ad_store.load_ads(index_dir), dataset.ads):
      raise ConfigError(f"--workdir={config.workdir} is not allowed: its run was made from another ad table")
    return Tokenizer.load(tokenizer_dir), SidIndex.load(index_dir)
  tokenizer, codes_NT = tokenizer_lib.fit(dataset.ads, dataset.events, config.sid, seed=config.training.seed, log=_log)
  index = SidIndex.build(codes_NT, tokenizer.codebooks)
  tokenizer.save(tokenizer_dir)
  ad_store.save_ads(dataset.ads, index_dir)
  index.save(index_dir)  # last: its presence says that the others are whole
  return tokenizer, index


def prepare_inputs(config: Config) -> Inputs:
  """Loads the data set, then takes tokenizer and features from the workdir, or fits them on train and keeps them.

  Raises:
    DataError: bad data.
    ConfigError: the workdir was made from another ad table.
  """
  dataset = load_dataset(config.data)
  tokenizer, index = fit_tokenizer(config, dataset)
  lines = history.build_lines(dataset.events, len(dataset.ads))
  features_dir = os.path.join(config.workdir, "features")
  if os.path.exists(os.path.join(features_dir, "ecpm.json")):
    neighbors, ecpm = Neighbors.load(features_dir), EcpmBins.load(features_dir)
  else:
    train = lines.request_split[lines.request] < len(config.training.fit_splits.split("+"))
    neighbors = Neighbors.fit(lines.request[train], lines.ad[train], len(dataset.ads))
    ecpm = EcpmBins.fit(lines.value[train], config.model.ecpm_bins)
    neighbors.save(features_dir)
    Trends.fit(dataset.events.time, dataset.events.ad, len(dataset.ads)).save(features_dir)  # for use: all that is known
    _save_behaviors(dataset.behaviors, features_dir)
    ecpm.save(features_dir)
  return Inputs(dataset, tokenizer, index, lines, neighbors, ecpm)


def _save_behaviors(behaviors: tuple[str, ...], directory: str) -> None:
  path = os.path.join(directory, "behaviors.json")
  with open(path + ".part", "w", encoding="utf-8") as file:
    json.dump(behaviors, file)
  os.replace(path + ".part", path)


def load_behaviors(config: Config) -> tuple[str, ...]:
  """Behaviours of a run's data, shallowest first."""
  with open(os.path.join(config.workdir, "features", "behaviors.json"), encoding="utf-8") as file:
    return tuple(json.load(file))
