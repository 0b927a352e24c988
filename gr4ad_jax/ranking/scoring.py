"""A trained run, scored beside other runs and the simple methods under its data set's protocol."""

import dataclasses
import logging
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np

from gr4ad_jax.config import SECTIONS, Config, ConfigError, check_trained, load_config
from gr4ad_jax.data.schema import DataError, Dataset
from gr4ad_jax.decoding.ranker import Ranker, Ranking
from gr4ad_jax.evaluation import baselines, exposure, parts, plots, protocols, report_tables
from gr4ad_jax.index.left_out import LeftOut
from gr4ad_jax.ranking import reranking, seen_ads, steering
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.requests import request_task
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.runs import published, run
from gr4ad_jax.runs.workdir import FREE, changes
from gr4ad_jax.zoo import registry

_log = logging.getLogger(__name__)

# How a run is served changes none of its lists.
_SCORED = tuple(section for section in SECTIONS if section != "serving")
_PATHS = ("data_dir", "ads_path", "events_path", "examples_path")
_SHAPES_NOTHING = (
  "compute_dtype",
  "swing_path",
  *(name for name in FREE if name not in ("epochs", "max_steps")),
)


def rank_run(config: Config, inputs: Inputs, requests: protocols.EvalRequests, k: int) -> Ranking:
  """The k best ads of each request by a trained run, from its best checkpoint, by its --reranker
  and --seen_ads, then steered by its --diversity and --quota_share.
  """
  model = registry.build(config, len(inputs.dataset.ads))
  params = request_task.load_params(config, model)
  ranker = request_task.make_ranker(model, inputs.index, inputs.ecpm, config.search)
  left_out = seen_ads.left_out(config, inputs.dataset, requests)
  # A model that scores every ad has its candidates from all of them already.
  also = (
    {"also_RC": reranking.proposed(config, inputs, requests)} if isinstance(ranker, Ranker) else {}
  )
  contexts = inputs.contexts(config, requests.split)

  def rank(candidates: int, left_out: LeftOut | None) -> Ranking:
    # The chain runs backwards here: each stage says how many candidates it needs of the one before.
    deep = reranking.depth(config, candidates)
    found = ranker.rank(params, contexts, requests.request, deep, left_out=left_out, **also)
    return reranking.rerank(config, inputs, requests, found, candidates, left_out)

  how = steering.steering_of(config, inputs, requests.split)
  return steering.search(rank, how, config, k, len(requests), left_out)


def group_runs(config: Config, beside: Sequence[str]) -> dict[str, list[Config]]:
  """Other runs by the system that they are seeds of: folders whose names differ by `_seed<n>` alone
  are one system.

  Args:
    config: of the scored run; runs that share its name are further seeds of it, and searched as it
      is.
    beside: workdirs of the other runs.

  Returns:
    {system: configs}, the scored run's first, named after its model.

  Raises:
    ConfigError: a run twice, a name that the table has for another system, or seeds whose settings
      differ.
    FileNotFoundError: a folder that holds no trained run.
  """
  main = config.model.model
  # Seeds of one system differ in this ending of their names alone.
  stem = _stem(config.workdir)
  systems = {main: [config]}
  names = {_folder(config.workdir)}
  for workdir in map(published.locate, beside):
    refused = f"--beside={workdir} is not allowed"
    other = load_config(workdir)
    name = _stem(workdir)
    check_trained(workdir)
    if _folder(workdir) in names:
      raise ConfigError(f"{refused}: a run named {_folder(workdir)!r} is in the table already")
    names.add(_folder(workdir))
    if name == stem:
      name = main
      # A seed of the main run is searched as the main run is.
      other = dataclasses.replace(other, search=config.search)
    elif name in (main, *baselines.NAMES):
      raise ConfigError(f"{refused}: the table has a system {name!r} already; rename the folder")
    # In one table all systems are treated alike.
    other = seen_ads.treated_as(other, config)
    first = systems.setdefault(name, [other])[0]
    for knob, ours, theirs in changes(other, first, _SCORED, but=("seed", *_SHAPES_NOTHING)):
      raise ConfigError(
        f"{refused}: a seed of {name!r} with --{knob}={ours}, where {first.workdir} has {theirs}"
      )
    if other is not first:
      systems[name].append(other)
  return systems


def view_through(config: Config, inputs: Inputs) -> Inputs:
  """The data set of `inputs`, seen through another trained run's tokenizer and features.

  Raises:
    ConfigError: that run was made from another ad table or event log.
  """
  try:
    inputs_lib.check_same_log(config, inputs.dataset)
    tokenizer, index = inputs_lib.tokenizer_of(config, inputs.dataset)
  except ConfigError as error:
    raise ConfigError(str(error).replace("--workdir", "--beside", 1)) from error
  neighbors, ecpm = inputs_lib.load_features(config.workdir)
  promotions = inputs_lib.load_promotions(config)
  return dataclasses.replace(
    inputs, dataset=dataclasses.replace(inputs.dataset, promotions=promotions),
    tokenizer=tokenizer, index=index, neighbors=neighbors, ecpm=ecpm,
  )  # fmt: skip


def settings_of(config: Config) -> dict:
  """Every knob of a run by its name, but for where its data lie and how it is served."""
  knobs = {
    name: value for section in _SCORED for name, value in vars(getattr(config, section)).items()
  }
  return {name: value for name, value in knobs.items() if name not in _PATHS}


def shaping(config: Config) -> dict:
  """The knobs of `settings_of` that a ranking follows from: those that say where, how often or
  on what, left out.
  """
  return {name: value for name, value in settings_of(config).items() if name not in _SHAPES_NOTHING}


def evaluate_run(
  config: Config, inputs: Inputs, split: str, beside: Sequence[str] = (), users: int = 0
) -> tuple[dict, Ranking]:
  """Scores a run, writes eval/metrics.json and its plots (see `published.output_dir`), these where
  matplotlib is installed. Of some users alone eval/sample.json is written, and nothing drawn: who
  reads the other file takes it for the whole split.

  Args:
    config: of the run.
    inputs: its data, tokenizer and features.
    split: 'valid' or 'test'.
    beside: workdirs of other runs for the same table; see `group_runs`.
    users: how many users are scored (`EvalRequests.of_users`); 0: all.

  Returns:
    What `report_tables.results` found, with the checkpoint and the settings of the run; and its
    ranking of the split's requests.

  Raises:
    ConfigError: runs that cannot stand in one table: see `group_runs` and `view_through`; or one
      that has learned from the split.
    FileNotFoundError: a run without a checkpoint.
  """
  systems = group_runs(config, beside)
  runs = [seed for seeds in systems.values() for seed in seeds]
  for seed in runs:
    if split in seed.training.fitted:
      raise ConfigError(
        f"--split={split} is not allowed: the run in {seed.workdir} has learned from it"
      )
  inputs_lib.check_same_log(config, inputs.dataset)
  # Every run looks through its own tokenizer at the same data.
  # The run itself needs no other view. It comes last, so that its own inputs win.
  views = {seed.workdir: view_through(seed, inputs) for seed in runs[1:]} | {config.workdir: inputs}
  requests = protocols.eval_requests(inputs.dataset, split, config.data.target_behavior)
  if users:
    requests = requests.of_users(users)
  k = max(protocols.protocol_of(inputs.dataset.name).ks)
  rankings = {
    name: [rank_run(seed, views[seed.workdir], requests, k) for seed in seeds]
    for name, seeds in systems.items()
  }
  unseen = {
    name: [
      ranking if seen_ads.unseen(seed) == seed
      # A run that leaves seen ads out anyway is not ranked a second time.
      else rank_run(seen_ads.unseen(seed), views[seed.workdir], requests, k)
      for seed, ranking in zip(systems[name], seeds, strict=True)
    ]
    for name, seeds in rankings.items()
  }  # fmt: skip
  found = table(
    config, inputs.dataset, requests, _ads_of(rankings), _ads_of(unseen),
    {name: seen_ads.treatment(seeds[0]) for name, seeds in systems.items()},
    _vectors(inputs),
  )  # fmt: skip
  found |= {"checkpoint": run.scored_step(config), "settings": settings_of(config)}
  _write(config, found, sample=users > 0)
  return found, next(iter(rankings.values()))[0]


def _write(config: Config, found: dict, sample: bool) -> None:
  """Writes what was found. A sample has no pictures, and a file of its own."""
  folder = os.path.join(published.output_dir(config), "eval")
  name = "sample.json" if sample else "metrics.json"
  report_tables.write_json(os.path.join(folder, name), found)
  if not sample:
    _plot(config, found, folder)


def _plot(config: Config, found: dict, folder: str) -> None:
  """The pictures of an evaluation and, where the run tells of it, of its training."""
  try:
    plots.plot_comparison(found, os.path.join(folder, "comparison.png"))
    curve = os.path.join(config.workdir, "metrics.jsonl")
    if os.path.exists(curve):
      plots.plot_training(curve, os.path.join(folder, "training.png"))
  # Nobody asked for them by name, and the figures are there.
  except ImportError as error:
    _log.warning("no pictures in %s: %s", folder, error)


def table(
  config: Config, dataset: Dataset, requests: protocols.EvalRequests,
  ranked: Mapping[str, report_tables.Rankings], unseen: Mapping[str, report_tables.Rankings],
  seen: Mapping[str, str], vector_ND: np.ndarray | None = None,
) -> dict:  # fmt: skip
  """Models and the simple methods in one table, all treated alike.

  Args:
    config: says how seen ads are treated, and what counts as a target.
    dataset: whose requests.
    requests: of a split.
    ranked: name -> rankings, one a seed; the first is compared with the others.
    unseen: the same without ads seen before.
    seen: name -> treatment of seen ads, as the table says it.
    vector_ND: vectors of the ads, by which lists are alike; None: that is not told.

  Returns:
    See `report_tables.results`; with `exposure`, see `exposure.of_systems`, at the first cut.
  """
  k = max(protocols.protocol_of(dataset.name).ks)
  fitted = baselines.Baselines(dataset, requests)
  # Simple methods are treated twice: as the models of this table are, and without seen ads.
  as_is = seen_ads.left_out(config, dataset, requests)
  simple, skipped = baselines.rank_all(fitted, k, left_out=as_is)
  fresh, _ = baselines.rank_all(fitted, k, left_out=parts.seen_before(dataset, requests))
  alike = dict.fromkeys(simple, config.search.seen_ads)
  found = report_tables.results(
    dataset, requests.split, {**ranked, **simple}, config.data.target_behavior, skipped,
    {**seen, **alike}, unseen={**unseen, **fresh}, memory_RK=simple[parts.MEMORY_OF],
    requests=requests,
  )  # fmt: skip
  lists = {**ranked, **{name: [run] for name, run in simple.items()}}
  facts = exposure.Facts.of(dataset, requests, vector_ND)
  k = min(protocols.protocol_of(dataset.name).ks)
  return found | {"exposure": {"k": k, "systems": exposure.of_systems(lists, facts, k)}}


def _vectors(inputs: Inputs) -> np.ndarray | None:
  """Vectors of the ads; None where their encoder, or its file, is not here any more."""
  try:
    return inputs.tokenizer.embed(inputs.dataset.ads)
  except (ImportError, OSError, DataError):
    return None


def _ads_of(rankings: Mapping[str, Sequence[Ranking]]) -> dict[str, list[np.ndarray]]:
  return {name: [ranking.ad_RK for ranking in seeds] for name, seeds in rankings.items()}


def _folder(workdir: str) -> str:
  return os.path.basename(os.path.abspath(workdir))


def _stem(workdir: str) -> str:
  """Name of the system that a run is a seed of: its folder's, without `_seed<n>`."""
  return re.sub(r"_seed\d+$", "", _folder(workdir))
