"""Opens a trained run for serving: reads everything, puts the parameters on the device, compiles
searches.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gr4ad_jax.answering.accounts import Accounts
from gr4ad_jax.answering.computing import Computer, Loaded, Searches
from gr4ad_jax.answering.fallback import PopularLists
from gr4ad_jax.answering.living import Living, live_folder
from gr4ad_jax.answering.terms import DayPlan, Ledger
from gr4ad_jax.builders.prepare import load_dataset
from gr4ad_jax.catalogue.catalog import AdCatalog
from gr4ad_jax.config import Config, ConfigError, check_trained, load_config
from gr4ad_jax.data import ad_store
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.data.schema import AdTable, Dataset
from gr4ad_jax.decoding import exclusion
from gr4ad_jax.decoding.searcher import Searcher, scaled
from gr4ad_jax.engine.neighbors_in_use import NeighborsInUse
from gr4ad_jax.engine.reload import CheckpointSource
from gr4ad_jax.features import feature_names
from gr4ad_jax.features.neighbors import CoVisitNeighbors
from gr4ad_jax.features.trends import Trends
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.reasons.reasoner import Reasoner
from gr4ad_jax.requests import inputs
from gr4ad_jax.runs import published
from gr4ad_jax.sid.tokenizer import Tokenizer
from gr4ad_jax.zoo import registry
from gr4ad_jax.zoo.gr4ad_items import GR4ADItems
from gr4ad_jax.zoo.items import ItemModel

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Opened:
  """The parts of an engine.

  Attributes:
    config: of the run and the server.
    catalog: the ads, with their index.
    living: the stream, and what is known of users by it.
    popular: the lists for when the model is too slow.
    searcher: compiled searches.
    computer: computes batches.
    searches: those that are compiled.
    source: where parameters come from.
    loaded: the parameters to begin with.
    accounts: budgets of the advertisers, on disk.
  """

  config: Config
  catalog: AdCatalog
  living: Living
  popular: PopularLists
  searcher: Searcher
  computer: Computer
  searches: Searches
  source: CheckpointSource
  neighbors: NeighborsInUse
  loaded: Loaded
  accounts: Accounts


def open_run(
  workdir: str, config: Config | None = None, checkpoint: int | str = "best",
  told: Callable[[int, int, float], None] = lambda *_: None, only_first: bool = False,
) -> Opened:  # fmt: skip
  """Opens a run.

  Args:
    workdir: the run's directory, or a name that `published.locate` knows. Changes of ads are kept
      in the `live` folder of `published.state_dir`.
    config: of the run, its search and serving sections as wanted; None: the run's own.
    checkpoint: 'best', 'last' or a step.
    told: hears of the compilation: programs ready, programs in all, seconds so far.
    only_first: compile the one search that can answer any request; the caller does the others.

  Raises:
    FileNotFoundError: no run, no such checkpoint, or the event log's source is gone.
    ConfigError: a setting that is not allowed, or an event log that is not the training's.
    DataError: the `live` folder belongs to another index or log.
    OSError: the stream cannot be reached.
  """
  config = _served_config(workdir, config)
  dataset = load_dataset(config.data)
  inputs.check_same_log(config, dataset)
  folder = {name: os.path.join(config.workdir, name) for name in ("index", "features", "tokenizer")}
  # Before anything large is read: features of other names, or in another order, cannot be served.
  feature_names.check(folder["features"], config.data)
  ads = ad_store.load_ads(folder["index"])
  catalog = _catalog(config, folder, ads)
  living = None
  try:
    trends = Trends.load(folder["features"])
    neighbors = CoVisitNeighbors.load(folder["features"])
    model = registry.build(config, len(ads))
    ecpm = EcpmBins.load(folder["features"])
    searcher = Searcher(model, ecpm, config.search, room=exclusion.ROOM)
    wanted = Searches(beam_schedules(config), tuple(sorted(config.serving.buckets)))
    accounts = Accounts.open(live_folder(config))
    ledger = _ledger(config, dataset, catalog, accounts)
    behaviors = inputs.load_behaviors(config)
    known = dataset.events, trends, neighbors, behaviors, ledger, inputs.load_promotions(config)
    living = Living(config, live_folder(config), catalog, *known)
    why = _reasoner(model, ecpm, neighbors, behaviors, catalog)
    computer = Computer(config, catalog, living.state, searcher, wanted, behaviors, ledger, why)
    source = CheckpointSource(config, model, checkpoint)
    step = source.newest()
    in_use = _neighbors_in_use(neighbors, source, step, catalog, living, why)
    loaded = Loaded(step, searcher.variables(source.load(step)))
    searches = wanted.first(config.search.beams) if only_first else wanted
    computer.prepare(loaded.variables, searches, told)
    popular = PopularLists.fit(dataset.events, len(ads), config.serving.fallback_segments)
    # Last: its threads read and write what was opened before.
    living.start()
  except BaseException:
    if living is not None:
      living.close()
    catalog.close()
    raise
  return Opened(
    config, catalog, living, popular, searcher, computer, searches, source, in_use, loaded, accounts
  )


def _reasoner(
  model: Any, ecpm: EcpmBins, neighbors: CoVisitNeighbors, behaviors: Sequence[str],
  catalog: AdCatalog,
) -> Reasoner | None:  # fmt: skip
  """What tells why ads are in an answer; None where the model gives no reasons."""

  def about(row: int) -> tuple[str, str]:
    ad = catalog.ad(row)
    return ad.ad_id, ad.text

  return Reasoner(model, ecpm, neighbors, behaviors, about) if isinstance(model, GR4AD) else None


def _neighbors_in_use(
  own: CoVisitNeighbors, source: CheckpointSource, step: int, catalog: AdCatalog, living: Living,
  why: Reasoner | None,
) -> NeighborsInUse:  # fmt: skip
  """Those of a checkpoint, given to all who read contexts."""
  takers = [living.state.use_neighbors, *([why.use_neighbors] if why else [])]
  found = NeighborsInUse(own, source, catalog.row, takers)
  found.use(found.read(step))
  return found


def _catalog(config: Config, folder: Mapping[str, str], ads: AdTable) -> AdCatalog:
  """The run's ads and what was changed since."""
  codes_NT = SidIndex.load(folder["index"]).codes_NT
  tokenizer = Tokenizer.load(folder["tokenizer"])
  place = live_folder(config)
  return AdCatalog.open(place, ads, codes_NT, tokenizer, overlay=config.serving.overlay)


def _served_config(workdir: str, config: Config | None) -> Config:
  """The config to serve a run by, checked; `config` and what is raised are as of `open_run`."""
  workdir = published.locate(workdir)
  saved = load_config(workdir)
  # What the server is asked to change is compared with what the run was trained with.
  config = registry.validate(dataclasses.replace(config or saved, workdir=workdir), base=saved)
  check_trained(workdir)
  if config.search.item_weight and issubclass(registry.find(config), GR4ADItems):
    weight = config.search.item_weight
    raise ConfigError(
      f"--item_weight={weight} is not allowed: the server ranks by UA-SIDs; serve with "
      "--item_weight=0"
    )
  for name in ("diversity", "quota_share"):
    if given := getattr(config.search, name):
      raise ConfigError(
        f"--{name}={given} is not allowed: the server does not steer lists; serve with --{name}=0"
      )
  if issubclass(registry.find(config), ItemModel):
    raise ConfigError(
      f"--workdir={workdir} is not allowed: its model, {config.model.model}, generates no UA-SIDs"
    )
  if config.serving.explore_spread and not registry.find(config).predicts_value:
    raise ConfigError(
      f"--explore_spread={config.serving.explore_spread:g} is not allowed: --model="
      f"{config.model.model} predicts no value"
    )
  return config


def _ledger(config: Config, dataset: Dataset, catalog: AdCatalog, accounts: Accounts) -> Ledger:
  """Who has had enough, with the budgets that accounts have. Days are planned as the log's went."""
  ledger = Ledger(
    lambda row: catalog.ad(row).account_id, DayPlan.of(dataset.events.time),
    config.serving.cap_times, config.serving.cap_days,
  )  # fmt: skip
  for account, budget in accounts.budgets.items():
    ledger.set_budget(account, budget)
  return ledger


def beam_schedules(config: Config) -> tuple[tuple[int, ...], ...]:
  """The widths that the server may search with, narrowest first."""
  return scaled(config.search.beams, config.serving.tabs_factors if config.serving.tabs else (1.0,))
