"""What a run computes before it trains, and keeps in its workdir: tokenizer, index, features, eCPM
bins.

tokenizer/  tokenizer.npz
index/      codes.npz, ads.npz
features/   neighbors.npz, folds.npz, trends.npz, ecpm.json, events.npz, names.json, log.json,
            with --promotions promotions.npz, with --retriever retriever.npz
"""

import dataclasses
import hashlib
import logging
import os
from typing import Any

import numpy as np

from gr4ad_jax import families, files
from gr4ad_jax.builders import held_out
from gr4ad_jax.builders.prepare import load_dataset
from gr4ad_jax.config import Config, ConfigError, is_published, is_trained, load_config
from gr4ad_jax.data import ad_store
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.data.promotions import Promotions
from gr4ad_jax.data.schema import LARGEST, SPLITS, DataError, Dataset, EventLog
from gr4ad_jax.evaluation import protocols
from gr4ad_jax.features import feature_names
from gr4ad_jax.features.batches import RequestContexts
from gr4ad_jax.features.lines import Lines, build_lines
from gr4ad_jax.features.neighbors import CoVisitNeighbors, NeighborFolds
from gr4ad_jax.features.trends import Trends
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.requests import known_events, renewal
from gr4ad_jax.sid.tokenizer import Tokenizer
from gr4ad_jax.swing.swing import Told

_log = logging.getLogger(__name__)
_TOWERS = "gr4ad_jax.requests.retriever"  # by name: it is made of this module's parts


@dataclasses.dataclass(frozen=True)
class Inputs:
  """A data set, seen through a run's tokenizer and features."""

  dataset: Dataset
  tokenizer: Tokenizer
  index: SidIndex
  lines: Lines
  neighbors: NeighborFolds
  ecpm: EcpmBins

  def requests(self, *splits: str) -> np.ndarray:
    """Request numbers of the given splits, ascending."""
    return np.flatnonzero(
      np.isin(self.lines.request_split, [SPLITS.index(split) for split in splits])
    )

  def learned(self, config: Config) -> np.ndarray:
    """Request numbers that a run learns from, ascending; by time with --data_order=time."""
    requests = learned_requests(self.lines, config)
    if config.training.data_order == "time":
      return requests[np.argsort(self.lines.request_time[requests], kind="stable")]
    return requests

  def learned_lines(self, config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Request, user and ad row of each line that a run learns from, [L] each; a user's stand
    together, by time.
    """
    lines = self.lines
    learned_L = np.isin(lines.request, self.learned(config))
    request_L = lines.request[learned_L]
    return request_L, lines.request_user[request_L], lines.ad[learned_L]

  def examples(self, config: Config) -> np.ndarray:
    """Request numbers that make up an epoch: what is learned from; or, with --examples=users, each
    user's last of it.

    Then also those before it, `history_slots` visits apart: where a visit is of one ad, each is in
      a history once.
    """
    requests = self.learned(config)
    if config.training.examples == "requests":
      return requests
    ascending = np.sort(requests)
    # Ascending requests are in order of user, then time.
    user = self.lines.request_user[ascending]
    last = np.searchsorted(user, user, side="right") - 1
    # Every `history_slots`-th one counted from a user's last: the histories of these do not
    # overlap.
    return ascending[(last - np.arange(len(user))) % config.data.history_slots == 0]

  def has_targets(self, config: Config, split: str) -> bool:
    """Whether a split holds anything to predict."""
    outcomes = self.lines.outcomes
    depth = protocols.target_depth(self.dataset.behaviors, config.data.target_behavior)
    here_P = self.lines.request_split[outcomes.request] == SPLITS.index(split)
    return bool((here_P & (outcomes.depth >= depth)).any())

  def contexts(self, config: Config, split: str) -> RequestContexts:
    """The batches of a split; 'train' means all that is learned from.

    Popularity counts what is visible there (never the day of the request itself): for test, and
    where valid is learned from, train and valid; otherwise train.
    """
    # A split sees the splits before it; what is learned from sees all that is fitted.
    shown_L = self.lines.request_split[self.lines.request] < max(
      SPLITS.index(split), len(config.training.fitted)
    )
    trends = Trends.fit(self.lines, len(self.dataset.ads), shown_L)
    depth = protocols.target_depth(self.dataset.behaviors, config.data.target_behavior)
    ads = self.dataset.ads
    codes_NT = self.index.codes_NT
    # Neighbours were fitted on the learned users, so those leave their own visits out by folds.
    held_out = split not in ("train", *config.training.fitted)
    about = self.lines, codes_NT, ads.price, trends, self.neighbors, config.data
    shops = {"promotions": self.dataset.promotions, "user_ids": self.dataset.events.user_id}
    return RequestContexts(*about, depth, held_out, ads.account_N, ads.created, **shops)

  def counts(self) -> Trends:
    """Popularity for use, not for training: all that is known counts."""
    return Trends.fit(self.lines, len(self.dataset.ads))


def learned_requests(lines: Lines, config: Config) -> np.ndarray:
  """Request numbers of the fitted splits within --period, ascending."""
  requests = np.flatnonzero(lines.request_split < len(config.training.fitted))
  if config.training.period == (0.0, 1.0):
    return requests
  # The rank of each request in order of time: an argsort of an argsort is the inverse of the order.
  rank = np.argsort(np.argsort(lines.request_time[requests], kind="stable"))
  # Shares of requests, not of the time between the first and the last.
  begin, end = (round(share * len(requests)) for share in config.training.period)
  return requests[(rank >= begin) & (rank < end)]


def source_of(config: Config) -> str:
  """Workdir whose tokenizer and features a run takes: its own once trained, else --init_from's;
  empty: none.
  """
  return config.workdir if is_trained(config.workdir) else config.training.init_from


def tokenizer_of(
  config: Config, dataset: Dataset, source: str = "", told: Told | None = None
) -> tuple[Tokenizer, SidIndex]:
  """The tokenizer and index of `source`, else of a trained run or of --init_from; where there is
  none, fitted anew, or renewed by --append or --refresh.

  Nothing is written; `told` hears what is fitted, how much of it is done, and of how much.

  Raises:
    ConfigError: that run was trained on another ad table.
    DataError: ads that cannot be encoded, or a log without co-occurrence.
  """
  if not source and _renews(config):
    return renewal.renewed(config, dataset, told)
  source = source or source_of(config)
  held_out.check_source(config, source)
  # UA-SIDs belong to an ad table. With another one, rows would name other ads.
  if source:
    tokenizer_dir, index_dir = (os.path.join(source, name) for name in ("tokenizer", "index"))
    if not ad_store.same_ads(ad_store.load_ads(index_dir), dataset.ads):
      flag = "workdir" if source == config.workdir else "init_from"
      raise ConfigError(
        f"--{flag}={source} is not allowed: its run was trained on another ad table"
      )
    return Tokenizer.load(tokenizer_dir), SidIndex.load(index_dir)
  known_N = held_out.known_ads(dataset, config.data.held_out_ads)
  tokenizer, codes_NT = renewal.fitted(
    dataset, known_N, config.sid, config.training.seed, log=_log, told=told
  )
  return tokenizer, SidIndex.build(codes_NT, tokenizer.codebooks)


def _renews(config: Config) -> bool:
  """Whether a run makes its UA-SIDs from published ones; once trained it has its own."""
  return bool(renewal.asked(config.sid)) and not is_trained(config.workdir)


def save_tokenizer(config: Config, dataset: Dataset, tokenizer: Tokenizer, index: SidIndex) -> None:
  """Keeps tokenizer, index and ad table in the workdir, in place of older ones; a trained run
  keeps what it has.
  """
  if is_trained(config.workdir):
    return
  tokenizer_dir, index_dir = (os.path.join(config.workdir, name) for name in ("tokenizer", "index"))
  tokenizer.save(tokenizer_dir)
  ad_store.save_ads(dataset.ads, index_dir)
  # Last, since its presence says that the others are whole.
  index.save(index_dir)


def prepare_inputs(config: Config, source: str = "", told: Told | None = None) -> Inputs:
  """Loads the data set, then takes tokenizer and features from the workdir, or fits them on what is
  learned from.

  Nothing is written in the workdir (see `save_inputs`), so input that is refused leaves nothing
  there. Only a trained run's tokenizer and features are taken: before its first checkpoint they
  follow data, settings and seed.

  Args:
    config: of the run.
    source: workdir that tokenizer and features are taken from in any case.
    told: hears what is fitted, how much of it is done, and of how much.

  Raises:
    DataError: bad data.
    ConfigError: the workdir's run, or --retriever's, does not suit the data.
  """
  if config.data.examples_path:
    # Imported here, as it is made of this module's parts.
    from gr4ad_jax.requests import example_inputs

    return example_inputs.prepare(config, source, told)
  # The fits below take long, so what is refused is refused here.
  retrieves = bool(config.data.retriever) and not (source or is_trained(config.workdir))
  if retrieves:
    families.part(f"{_TOWERS}:check")(config)
  dataset = load_dataset(config.data)
  # Features are by row of the ad table, which a renewal changes.
  if not (source or _renews(config)):
    source = source_of(config)
  tokenizer, index = tokenizer_of(config, dataset, source, told)
  lines = build_lines(dataset.events, len(dataset.ads), dataset.attribution_days)
  _check_numbers(dataset, lines)
  if source:
    neighbors, ecpm = load_features(source)
  else:
    # Splits that are not fitted must not shape what the model reads.
    fitted = np.isin(lines.request, learned_requests(lines, config))
    request_L = lines.request[fitted]
    ad_L = lines.ad[fitted]
    user_L = lines.request_user[request_L]
    folds = config.data.neighbor_folds
    neighbors = NeighborFolds.fit(request_L, user_L, ad_L, len(dataset.ads), folds)
    if retrieves:
      towers = families.part(f"{_TOWERS}:load")(config, dataset.ads)
      neighbors = dataclasses.replace(neighbors, retriever=towers)
    outcomes = lines.outcomes
    learned_P = np.isin(outcomes.request, learned_requests(lines, config))
    ecpm = EcpmBins.fit(outcomes.value[learned_P], config.model.ecpm_bins)
  return Inputs(dataset, tokenizer, index, lines, neighbors, ecpm)


def _check_numbers(dataset: Dataset, lines: Lines) -> None:
  """Raises DataError for money that is not finite, or too large to compute with in float32."""
  columns = {
    "value": (lines.value, lines.ad),
    "price": (dataset.ads.price, np.arange(len(dataset.ads))),
  }
  for name, (column, ad) in columns.items():
    unknown = np.isnan(column) if name == "price" else np.zeros(len(column), bool)
    # `~(x <= LARGEST)` is true of NaN, which `x > LARGEST` is not.
    bad = np.flatnonzero(~(np.abs(column) <= LARGEST) & ~unknown)  # NaN is in no order
    if len(bad):
      which = dataset.ads.ad_id[ad[bad[0]]]
      raise DataError(
        f"column {name!r}: {column[bad[0]]:g}, of ad {str(which)!r}, is not allowed: at most "
        f"{LARGEST:g}"
      )


def load_features(workdir: str) -> tuple[NeighborFolds, EcpmBins]:
  """The neighbours and eCPM bins that a trained run keeps; a published one has no folds, since
  nobody trains from it.

  Raises:
    ConfigError: the run's features are not those of this code (`feature_names.check`).
  """
  folder = os.path.join(workdir, "features")
  data = load_config(workdir).data
  feature_names.check(folder, data)
  if is_published(workdir):
    return NeighborFolds.of(CoVisitNeighbors.load(folder)), EcpmBins.load(folder)
  return NeighborFolds.load(folder), EcpmBins.load(folder)


def load_promotions(config: Config) -> Promotions | None:
  """The promotions that a run keeps; None without --promotions."""
  if not config.data.promotions:
    return None
  return Promotions.load(os.path.join(config.workdir, "features"))


def check_same_log(config: Config, dataset: Dataset, started: bool = False) -> None:
  """Raises ConfigError where the workdir holds a run of another event log that was trained, or
  `started`. A log that has grown is the same log: all events that the run knows are still in it.
  """
  if not (started or is_trained(config.workdir)):
    return
  if _load_log(config, "digest") == log_digest(dataset.events):
    # The cheap comparison first: the digest of the log as it was.
    return
  # A log that grew has another digest, and still has every event that the run knew.
  if known_events.all_in(os.path.join(config.workdir, "features"), dataset.events):
    _log.warning("the event log has grown since %s was trained", config.workdir)
    return
  raise ConfigError(
    f"--workdir={config.workdir} is not allowed: its run was trained on another event log"
  )


def save_inputs(config: Config, inputs: Inputs) -> None:
  """Keeps in the workdir all that a recommender needs besides the parameters; a trained run
  keeps what it has.
  """
  dataset = inputs.dataset
  features_dir = os.path.join(config.workdir, "features")
  if is_trained(config.workdir):
    return
  save_tokenizer(config, dataset, inputs.tokenizer, inputs.index)
  inputs.neighbors.save(features_dir)
  inputs.ecpm.save(features_dir)
  # Popularity of all that is known, for use; a training counts again by split.
  inputs.counts().save(features_dir)
  known_events.save(features_dir, dataset.events)
  feature_names.save(features_dir, config.data)
  if dataset.promotions is not None:
    dataset.promotions.save(features_dir)
  about = {"behaviors": list(dataset.behaviors), "digest": log_digest(dataset.events)}
  files.write_json(os.path.join(features_dir, "log.json"), about)


def digest_of_files(config: Config) -> bytes:
  """SHA-256 over the files of tokenizer and index in the workdir."""
  made = hashlib.sha256()
  for name in ("tokenizer/tokenizer.npz", "index/codes.npz"):
    with open(os.path.join(config.workdir, name), "rb") as file:
      made.update(file.read())
  return made.digest()


def load_behaviors(config: Config) -> tuple[str, ...]:
  """Behaviours of a run's data, shallowest first."""
  return tuple(_load_log(config, "behaviors"))


def _load_log(config: Config, key: str) -> Any:
  return files.load_fields(os.path.join(config.workdir, "features", "log.json"), key)[0]


def log_digest(events: EventLog) -> str:
  """SHA-256 over the numeric columns of a log."""
  made = hashlib.sha256()
  for field in dataclasses.fields(events):
    column = getattr(events, field.name)
    # User ids are objects whose bytes are addresses, so they add nothing.
    made.update(b"" if column.dtype == object else np.ascontiguousarray(column).tobytes())
  return made.hexdigest()
