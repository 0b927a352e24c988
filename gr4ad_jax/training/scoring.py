"""A trained run, scored beside the simple methods under its data set's protocol."""

import os
from collections.abc import Sequence

from gr4ad_jax.config import Config, ConfigError, load_config
from gr4ad_jax.decoding.ranker import Ranker, Ranking
from gr4ad_jax.evaluation import baselines, plots, protocols, tables
from gr4ad_jax.training import run
from gr4ad_jax.training.inputs import Inputs, prepare_inputs


def rank_run(config: Config, inputs: Inputs, requests: protocols.EvalRequests, k: int) -> Ranking:
  """The k best ads of each request by a trained run, from its best checkpoint."""
  model = run.build_model(config)
  ranker = Ranker(model, inputs.index, inputs.ecpm, config.search)
  params = run.load_params(config, model)
  return ranker.rank(params, inputs.contexts(config, requests.split), requests.request, k)


def rank_beside(workdirs: Sequence[str], config: Config, requests: protocols.EvalRequests, k: int) -> dict:
  """{folder name: rankings} of other runs on the same data; runs whose names differ by `_seed<n>` alone are one system.

  Raises:
    ConfigError: a run on another data set.
    FileNotFoundError: a folder that holds no run.
  """
  systems: dict[str, list] = {}
  for workdir in workdirs:
    other = load_config(workdir)
    if other.data.dataset != config.data.dataset:
      raise ConfigError(f"--beside={workdir} is not allowed: a run on {config.data.dataset}, not {other.data.dataset}")
    name = os.path.basename(os.path.normpath(workdir)).split("_seed")[0]
    systems.setdefault(name, []).append(rank_run(other, prepare_inputs(other), requests, k).ad_RK)
  return systems


def evaluate_run(config: Config, inputs: Inputs, split: str, beside: Sequence[str] = ()) -> tuple[dict, Ranking]:
  """Scores a run, writes eval/metrics.json and the plots of its workdir.

  Args:
    config: of the run.
    inputs: its data, tokenizer and features.
    split: 'valid' or 'test'.
    beside: workdirs of other runs for the same table.

  Returns:
    What `tables.results` found, and the run's ranking of the split's requests.
  """
  requests = protocols.eval_requests(inputs.dataset, split, config.data.target_behavior)
  k = max(protocols.protocol_of(inputs.dataset.name).ks)
  ranking = rank_run(config, inputs, requests, k)
  simple, skipped = baselines.rank_all(inputs.dataset, requests, k)
  systems = {"gr4ad": ranking.ad_RK} | rank_beside(beside, config, requests, k) | simple
  seen = {"gr4ad": "biased" if config.model.history_bias else "left"}
  found = tables.results(inputs.dataset, split, systems, config.data.target_behavior, skipped, seen)
  folder = os.path.join(config.workdir, "eval")
  tables.write_json(os.path.join(folder, "metrics.json"), found)
  plots.plot_comparison(found, os.path.join(folder, "comparison.png"))
  curve = os.path.join(config.workdir, "metrics.jsonl")
  if os.path.exists(curve):
    plots.plot_training(curve, os.path.join(folder, "training.png"))
  return found, ranking
