"""The request models as a task: UA-SID sequences by VSL, single ads, or both."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax import families
from gr4ad_jax.config import (
  Config,
  ConfigError,
  SearchConfig,
  is_published,
  is_trained,
  load_config,
)
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.decoding.item_ranker import ItemRanker
from gr4ad_jax.decoding.ranker import Ranker
from gr4ad_jax.evaluation import metrics, protocols
from gr4ad_jax.examples.loading import GrainSource
from gr4ad_jax.examples.order import OrderedSource, TrainingOrder
from gr4ad_jax.features.batches import PADDING, RequestContexts
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.models import context, piecewise
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.parallel import distributed, row_tables
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.requests import row_step
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.requests.item_task import make_item_loss, with_item_loss
from gr4ad_jax.requests.vsl_task import make_vsl_loss
from gr4ad_jax.runs import run
from gr4ad_jax.runs import workdir as workdir_lib
from gr4ad_jax.sid import report as sid_report
from gr4ad_jax.swing import cooccurrence
from gr4ad_jax.training.state import Optimizer, TrainState
from gr4ad_jax.training.step import LossFn, Metrics, Step
from gr4ad_jax.training.task import Evaluate, Task, Told
from gr4ad_jax.zoo import fresh, registry
from gr4ad_jax.zoo.gr4ad_items import GR4ADItems
from gr4ad_jax.zoo.items import ItemHead, ItemModel

BEST_METRIC = "recall@10"
_SAMPLE = 512  # requests that the edges of features are fitted on
# By name: what is learned from lists is built on this module.
_LISTS = "gr4ad_jax.preference.preference_run:PreferenceTask"


def init_params(model: nn.Module, config: Config, key: jax.Array | None = None) -> Any:
  """Fresh parameters, boxed with their logical axes; the same for the same seed."""
  key = jax.random.key(config.training.seed) if key is None else key
  return fresh.params(model, config.data, len(config.sid.codebooks), key)


def load_params(config: Config, model: nn.Module, which: int | str = "best") -> Any:
  """Parameters of a trained run: best on valid, last, or of a step. Raises as `run.load_params`."""
  return run.load_params(config, lambda: init_params(model, config), which)


def make_ranker(
  model: nn.Module, index: SidIndex, ecpm: EcpmBins, search: SearchConfig
) -> Ranker | ItemRanker:
  """What ranks ads by a model: beam search over UA-SIDs, or the scores of all ads."""
  return ItemRanker(model) if isinstance(model, ItemModel) else Ranker(model, index, ecpm, search)


def make(config: Config, inputs: Inputs) -> "RequestTask":
  """The task of --objective, on inputs that were prepared."""
  kind = RequestTask if config.objective.objective == "vsl" else families.part(_LISTS)
  return kind(config, inputs)


class RequestTask(Task):
  """Learns from what users took.

  Args:
    config: of the run.
    inputs: data, tokenizer and features.
  """

  shaping = ("sid", "model", "items")
  learning = ("data", "objective", "preference", "training")
  files = ("tokenizer", "index", "features")

  def __init__(self, config: Config, inputs: Inputs):
    super().__init__(config)
    self.inputs = inputs
    self.model = registry.build(config, len(inputs.dataset.ads))

  @classmethod
  def validate(cls, config: Config, base: Config | None = None) -> Config:
    """As `registry.validate`: a knob that --model does not read may not be changed."""
    return registry.validate(config, base)

  @classmethod
  def free(cls, config: Config) -> frozenset[str]:
    """What --model does not read; of a trained run also where codes and features came from."""
    kept = {"swing_path", "retriever"} if is_trained(config.workdir) else set()
    return registry.unread(config) | kept

  @classmethod
  def divided(cls, config: Config) -> Sequence[tuple[str, str, int]]:
    """Kernels are cut by their width over 'fsdp', by their heads over 'tensor'."""
    sizes = config.model
    return (mesh_lib.FSDP, "width", sizes.width), (mesh_lib.TENSOR, "heads", sizes.heads)

  @classmethod
  def best_metric(cls, config: Config) -> str | None:
    """Recall; nothing where valid is learned from, since it then judges no model."""
    return None if "valid" in config.training.fitted else BEST_METRIC

  @classmethod
  def check(cls, config: Config) -> None:
    """Raises ConfigError for a --model that is not known or does not suit --objective; an
    --init_from that holds no trained run, or one with another model, codes or data.
    """
    objective = config.objective.objective
    if objective != "vsl" and not getattr(registry.find(config), "learns_lists", False):
      raise ConfigError(
        f"--objective={objective} is not allowed: --model={config.model.model} learns no lists"
      )
    # The search's log p, the reference, lacks the bias' normaliser.
    if objective != "vsl" and config.model.history_bias:
      raise ConfigError(
        f"--history_bias=true is not allowed: --objective={objective} compares log-probabilities"
      )
    start = config.training.init_from
    if start:
      _check_start(config, start)

  @classmethod
  def open(cls, config: Config, told: Told | None = None, started: bool = False) -> "RequestTask":
    """Reads data, tokenizer and features, or fits the latter two."""
    inputs = inputs_lib.prepare_inputs(config, config.workdir if started else "", told)
    inputs_lib.check_same_log(config, inputs.dataset, started)
    task = make(config, inputs)
    if not started:
      task.check_inputs()
    return task

  def check_inputs(self) -> None:
    """Raises where something is missing beside the data, such as a reward. VSL needs no more."""

  def save(self) -> None:
    """Keeps tokenizer, index and features."""
    inputs_lib.save_inputs(self.config, self.inputs)

  def about(self) -> list[str]:
    """What was read, and how many ads have a UA-SID of their own."""
    dataset = self.inputs.dataset
    index = self.inputs.index
    lines = [
      f"{dataset.name}: {dataset.report}",
      f"UA-SIDs: {index.num_leaves} for {len(dataset.ads)} ads, codebooks {index.codebooks}",
    ]
    shared = sid_report.sharing(index, self.inputs.tokenizer.config.last_level)
    return [*lines, f"warning: {shared}"] if shared else lines

  @functools.cached_property
  def order(self) -> TrainingOrder:
    """Which requests make up a step."""
    t = self.training
    examples = self.inputs.examples(self.config)
    return TrainingOrder(examples, t.batch_size, t.seed, t.data_order == "shuffled")

  @functools.cached_property
  def contexts(self) -> RequestContexts:
    """Turns requests into batches."""
    return self.inputs.contexts(self.config, "train")

  @functools.cached_property
  def source(self) -> OrderedSource | GrainSource:
    """Batches of requests."""
    if self.training.loader_processes:
      return GrainSource(self.contexts, self.order, self.training.loader_processes)
    return OrderedSource(self.order, self.make_batch)

  def make_batch(self, requests: np.ndarray, draw: np.ndarray) -> Any:
    """The batch of some requests, in the epoch `draw`."""
    return self.contexts.batch(requests, draw)

  @staticmethod
  def units(batch: Any) -> dict[str, int]:
    """Requests; and tokens: context slots, and UA-SID codes of targets or candidates, padding
    included.
    """
    requests = getattr(batch, "requests", batch)
    rows, slots = requests.slot_kind_BS.shape
    return {"requests": rows, "tokens": rows * slots + requests.target_codes_BMT.size}

  def prepare(self) -> None:
    """Fits the edges of features and makes the vectors of ads that parameters start from."""
    _ = self._edges, self._start_ND

  def init(self, key: jax.Array) -> Any:
    """Fresh parameters, the edges of features fitted; vectors of ads, and with them those of
    codes, by --item_start.
    """
    params = init_params(self.model, self.config, key)
    for name, edges in self._edges.items():
      params["processor"][name] = params["processor"][name].replace_boxed(
        jnp.asarray(edges.ravel())
      )
    if self._start_ND is not None:
      table = params[row_tables.NAME]
      index = self.inputs.index
      made_ND = self._start_ND
      params[row_tables.NAME] = table.replace_boxed(table.unbox().at[: len(made_ND)].set(made_ND))
      if isinstance(self.model, GR4ADItems):
        means = cooccurrence.code_means(made_ND, index.codes_NT, index.codebooks)
        for level, mean_VD in enumerate(means):
          codes = params[f"codes_{level}"]
          kernel = params[f"head_{level}"]["kernel"]
          params[f"codes_{level}"] = codes.replace_boxed(
            codes.unbox() + mean_VD * np.sqrt(mean_VD.shape[1])
          )
          params[f"head_{level}"]["kernel"] = kernel.replace_boxed(kernel.unbox() + mean_VD.T)
    return params

  @functools.cached_property
  def _edges(self) -> dict[str, np.ndarray]:
    """Edges of the context's features (`models/context.py`), from some of what is learned from;
    none where unused.
    """
    bins = self.config.model.feature_bins
    data = self.config.data
    if not bins or not data.behavior_features or not isinstance(self.model, GR4AD):
      return {}
    requests = np.sort(self.order.examples)
    sample = self.contexts.batch(requests[:: max(1, len(requests) // _SAMPLE)])
    slots = sample.slot_features_BSF[sample.slot_kind_BS != PADDING]
    found = slots if len(slots) else sample.slot_features_BSF[0], sample.user_features_BF
    return {
      name: piecewise.feature_edges(x, bins) for name, x in zip(context.EDGES, found, strict=True)
    }

  @functools.cached_property
  def _start_ND(self) -> np.ndarray | None:
    """[N, D] vectors of ads by --item_start; None: random, or no such model."""
    inputs = self.inputs
    width = self.config.model.width
    if self.config.items.item_start == "random" or not isinstance(self.model, ItemHead):
      return None
    (_, user_L, ad_L) = inputs.learned_lines(self.config)
    ads = inputs.dataset.ads
    taken_ND = cooccurrence.ppmi_vectors(user_L, ad_L, len(ads), width)
    if self.config.items.item_start == "ppmi":
      return taken_ND
    return cooccurrence.joined(taken_ND, inputs.tokenizer.embed(ads), width)

  def make_loss(self) -> LossFn:
    """What `loss` calls: VSL, the item-level loss, or both, as the model has it."""
    if isinstance(self.model, ItemModel):
      return self._item_loss()
    objective = self.config.objective
    if not self.model.predicts_value:
      objective = dataclasses.replace(objective, lambda_ecpm=0.0, lambda_mtp=0.0)
    loss = make_vsl_loss(self.model, objective, self.inputs.ecpm)
    if isinstance(self.model, GR4ADItems):
      return with_item_loss(loss, self._item_loss(), objective.lambda_item)
    return loss

  def _item_loss(self) -> LossFn:
    outcomes = self.inputs.lines.outcomes
    taken = outcomes.ad[np.isin(outcomes.request, self.order.examples)]
    # No ad has a share of 0, whose logarithm would be infinite.
    count_N = np.bincount(taken, minlength=self.model.num_ads) + 1.0
    return make_item_loss(self.model, count_N / count_N.sum())

  @functools.cached_property
  def _loss(self) -> LossFn:
    return self.make_loss()

  def loss(self, params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
    """Of --objective and the model."""
    return self._loss(params, batch, key)

  def make_step(self, optimizer: Optimizer, shardings: TrainState) -> Step:
    """On the touched rows of a table of ads alone, where that is the same.

    Raises:
      ConfigError: --table_optimizer asks for a table that the model has not.
    """
    t = self.training
    if t.table_optimizer != "adamw" and row_tables.NAME not in shardings.params:
      model = self.config.model.model
      raise ConfigError(
        f"--table_optimizer={t.table_optimizer} is not allowed: --model={model} has no table of ads"
      )
    if row_step.allowed(t, self._loss):
      return row_step.make_row_step(self._loss, optimizer, t.seed, shardings)
    return super().make_step(optimizer, shardings)

  def evaluation(self, split: str) -> Evaluate | None:
    """Recall, NDCG and revenue at the protocol's cuts, on a fixed sample of a split's requests.

    Of a job of several processes each ranks its share.
    """
    config = self.config
    inputs = self.inputs
    if split in config.training.fitted or not inputs.has_targets(config, split):
      return None
    requests = protocols.eval_requests(inputs.dataset, split, config.data.target_behavior)
    rows = np.random.default_rng(0).permutation(len(requests))[: self.training.eval_requests]
    requests = requests.take(np.sort(rows))
    ks = protocols.protocol_of(inputs.dataset.name).ks
    contexts = inputs.contexts(config, split)
    ranker = make_ranker(self.model, inputs.index, inputs.ecpm, config.search)
    share = distributed.share(len(requests))

    def evaluate(params: Any) -> dict[str, float]:
      # No device holds the table: all rank all together.
      if isinstance(ranker, ItemRanker) and row_tables.mesh_of(params):
        ad_RK = ranker.rank(params, contexts, requests.request, max(ks)).ad_RK
      else:
        mine = requests.request[share]
        ranking = ranker.rank(mesh_lib.local_copy(params), contexts, mine, max(ks))
        ad_RK = distributed.gather(ranking.ad_RK)[: len(requests)]
      found = metrics.per_request(ad_RK, requests, ks)
      return {name: float(ratio.value) for name, ratio in found.items()}

    return evaluate


def _check_start(config: Config, start: str) -> None:
  """Raises ConfigError where the run in --init_from is not trained, or of another model."""
  if not is_trained(start):
    raise ConfigError(
      f"--init_from={start} is not allowed: it holds no whole checkpoint; train it first"
    )
  if is_published(start):
    raise ConfigError(
      f"--init_from={start} is not allowed: a published run is without what training needs, the "
      "neighbours by folds of users"
    )
  free = ["dropout", "compute_dtype", "head_piece", "cross_attention"]
  free += ["swing_memory_mb", "swing_path", "append", "refresh", *registry.unread(config)]
  saved = load_config(start)
  for knob, ours, theirs in workdir_lib.changes(config, saved, RequestTask.shaping, but=free):
    refused = f"--{knob}={ours} is not allowed"
    raise ConfigError(f"{refused}: the run in --init_from={start} has {theirs}")
