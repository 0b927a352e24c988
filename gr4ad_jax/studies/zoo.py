"""Several models under one protocol: each trained and ranked once a seed, all of them in one
table.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from gr4ad_jax.config import Config, SearchConfig, ServeConfig, with_knobs
from gr4ad_jax.evaluation import protocols, report_tables
from gr4ad_jax.ranking import scoring, seen_ads
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.requests import request_task
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.requests.request_task import RequestTask
from gr4ad_jax.runs import run
from gr4ad_jax.studies.runner import Runner
from gr4ad_jax.training import loop
from gr4ad_jax.zoo import registry

_TIMED_ROWS = 64
_TIMED_CALLS = 7
_COST = "cost.json"
_SECOND = ("rerank", "neighbor", "seen")  # knobs of the search that no checkpoint is judged by


class Zoo:
  """Trains and compares models. Rows that differ in what is done with the trained model alone share
  the first's runs.

  Args:
    folder: where the runs lie, as <folder>/<name>/seed<n>, with each row's rankings, and the table.
    configs: name of a row -> its config; workdir and seed are set here. The first is what the
      others are compared with. --retriever may name an earlier row.
    seeds: of every row.
    train: how a run is trained: (task, on_progress) -> fit result.
  """

  def __init__(
    self,
    folder: str,
    configs: Mapping[str, Config],
    seeds: Sequence[int],
    train: Callable = run.train,
  ):
    self._folder = folder
    self._configs = dict(configs)
    self._seeds = tuple(seeds)
    self._train = train
    self._runner = Runner(self._timed)

  def run(self) -> dict:
    """Trains what is not trained, scores all on test; writes zoo.json, zoo.md.

    Returns:
      What `report_tables.results` found, the simple rows included, and `cost`: row -> parameters,
      train minutes, decode ms.

    Raises:
      Stopped: asked to stop; the same call goes on.
    """
    rankings = {}
    unseen = {}
    costs = {}
    inputs = None
    for name, config in self._configs.items():
      for seed in self._seeds:
        # Rows that share a training share its runs.
        one = self._of_seed(self._trained_as(name), config, seed)
        folder = self._of_seed(name, config, seed).workdir
        rankings.setdefault(name, []).append(self._runner.ranking(one, "test", folder))
        other = seen_ads.unseen(one)
        # Where seen ads are left out anyway, both lists are one.
        ad_RK = rankings[name][-1]
        if other != one:
          ad_RK = self._runner.ranking(other, "test", folder, one.workdir, name="test_unseen")
        unseen.setdefault(name, []).append(ad_RK)
      first = self._of_seed(self._trained_as(name), config, self._seeds[0])
      inputs = self._runner.inputs(first)
      inputs_lib.check_same_log(first, inputs.dataset)
      costs[name] = self._cost(first, inputs)
    config = next(iter(self._configs.values()))
    requests = protocols.eval_requests(inputs.dataset, "test", config.data.target_behavior)
    seen = {name: seen_ads.treatment(config) for name, config in self._configs.items()}
    found = scoring.table(config, inputs.dataset, requests, rankings, unseen, seen)
    found["cost"] = costs
    found["settings"] = {
      name: scoring.settings_of(config) for name, config in self._configs.items()
    }
    report_tables.write_json(os.path.join(self._folder, "zoo.json"), found)
    report_tables.write_text(os.path.join(self._folder, "zoo.md"), format_markdown(found))
    return found

  def _of_seed(self, name: str, config: Config, seed: int) -> Config:
    folder = os.path.join(self._folder, name, f"seed{seed}")
    knobs = {"seed": seed}
    towers = config.data.retriever
    if towers in self._configs:
      # A row in place of a run: its own of the same seed, which stands earlier in the table.
      knobs["retriever"] = os.path.join(self._folder, self._trained_as(towers), f"seed{seed}")
    return dataclasses.replace(with_knobs(config, knobs), workdir=folder)

  def _trained_as(self, name: str) -> str:
    """The first row whose training is this row's."""
    own = _training_of(self._configs[name])
    return next(other for other, config in self._configs.items() if _training_of(config) == own)

  def _timed(self, task: RequestTask) -> loop.FitResult:
    """Trains a run, and keeps how long its steps took."""
    rates = []

    def on_progress(progress: loop.Progress) -> None:
      rates.append((progress.steps_per_second, progress.total_steps))

    result = self._train(task, on_progress)
    if result.status == "done" and rates and rates[-1][0]:
      # The last one counts: it is the mean over the whole run.
      rate, steps = rates[-1]
      path = os.path.join(task.folder, _COST)
      report_tables.write_json(path, {"train_minutes": steps / rate / 60})
    return result

  def _cost(self, config: Config, inputs: Inputs) -> dict:
    """Parameters, minutes of the training's steps alone, and milliseconds a request of a batch
    of 64.
    """
    model = registry.build(config, len(inputs.dataset.ads))
    params = request_task.load_params(config, model)
    ranker = request_task.make_ranker(model, inputs.index, inputs.ecpm, config.search)
    requests = protocols.eval_requests(inputs.dataset, "test", config.data.target_behavior).request
    batch = inputs.contexts(config, "test").batch(np.resize(requests, _TIMED_ROWS))
    k = max(protocols.protocol_of(inputs.dataset.name).ks)
    seconds = []
    for _ in range(_TIMED_CALLS + 1):  # the first compiles
      # Dispatched work is not done work: the clock waits for it.
      begin = time.monotonic()
      jax.block_until_ready(ranker.search(params, batch, k))
      seconds.append(time.monotonic() - begin)
    path = os.path.join(config.workdir, _COST)
    cost = {}
    if os.path.exists(path):
      with open(path, encoding="utf-8") as file:
        cost = json.load(file)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return cost | {
      "parameters": parameters,
      # The median passes over a call that something else held up.
      "decode_ms": 1e3 * float(np.median(seconds[1:])) / _TIMED_ROWS,
    }


def _training_of(config: Config) -> Config:
  """What of a config shapes the trained model: of the search, what valid is ranked by where it
  judges checkpoints.
  """
  search = SearchConfig()
  if "valid" not in config.training.fitted:
    second = {name: value for name, value in vars(search).items() if name.startswith(_SECOND)}
    search = dataclasses.replace(config.search, **second)
  return dataclasses.replace(config, search=search, serving=ServeConfig(), workdir="")


def format_markdown(found: Mapping) -> str:
  """The table of results, and one of costs."""
  rows = [["system", "parameters", "train minutes", "decode ms a request"]]
  for name, cost in found["cost"].items():
    minutes = f"{cost['train_minutes']:.1f}" if "train_minutes" in cost else ""
    rows.append([name, f"{cost['parameters']:,}", minutes, f"{cost['decode_ms']:.2f}"])
  words = (
    "Steps alone, compilation and evaluation left out; search of batches of "
    f"{_TIMED_ROWS}, contexts ready."
  )
  return "\n".join([report_tables.format_table(found), words, "", *report_tables.aligned(rows), ""])
