"""A run from its config: where it starts, how it is judged, what is restored; everything lies in
the workdir.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from gr4ad_jax.config import CHECKPOINTS, Config, ConfigError, SearchConfig, is_trained, load_config
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.decoding.item_ranker import ItemRanker
from gr4ad_jax.decoding.ranker import Ranker
from gr4ad_jax.evaluation import metrics, protocols
from gr4ad_jax.models.zoo import registry
from gr4ad_jax.models.zoo.items import ItemModel
from gr4ad_jax.parallel import distributed, row_tables
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.sid.index import SidIndex
from gr4ad_jax.training import inputs as inputs_lib
from gr4ad_jax.training import loop, preemption, prefetch, rewards
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training import workdir as workdir_lib
from gr4ad_jax.training.checkpoint import Checkpointer
from gr4ad_jax.training.cost import StepCost
from gr4ad_jax.training.inputs import Inputs
from gr4ad_jax.training.preference_run import PreferenceTrainer, reward_model_of
from gr4ad_jax.training.profiling import StepProfiler
from gr4ad_jax.training.state import TrainState
from gr4ad_jax.training.trainer import Trainer, init_params
from gr4ad_jax.training.writers import open_writers

BEST_METRIC = "recall@10"
PROFILE = "profile"  # of a workdir


def checkpoint_dir(config: Config) -> str:
  """Where a run's checkpoints lie."""
  return os.path.join(config.workdir, CHECKPOINTS)


def best_metric(config: Config) -> str | None:
  """What ranks checkpoints: nothing where valid is learned from, since it then judges no model."""
  return None if "valid" in config.training.fitted else BEST_METRIC


def scored_step(config: Config) -> int:
  """Step of the checkpoint that `load_params` takes as the best. Raises FileNotFoundError where
  there is none.
  """
  with Checkpointer(
    checkpoint_dir(config), best_metric=best_metric(config), read_only=True
  ) as checkpointer:
    return checkpointer.resolve("best")


def load_params(config: Config, model: nn.Module, which: int | str = "best") -> Any:
  """Parameters of a trained run: the best on valid, the last, or those of a step.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    ConfigError: the checkpoint holds another model.
  """
  mesh = mesh_lib.local_mesh()
  target = state_lib.abstract_params(lambda: init_params(model, config), mesh)
  with Checkpointer(
    checkpoint_dir(config), best_metric=best_metric(config), read_only=True
  ) as checkpointer:
    return checkpointer.restore_params(target, which)


def make_ranker(
  model: nn.Module, index: SidIndex, ecpm: EcpmBins, search: SearchConfig
) -> Ranker | ItemRanker:
  """What ranks ads by a model: beam search over UA-SIDs, or the scores of all ads."""
  return ItemRanker(model) if isinstance(model, ItemModel) else Ranker(model, index, ecpm, search)


def valid_evaluation(
  config: Config, inputs: Inputs, model: nn.Module
) -> Callable[[Any], dict[str, float]]:
  """Params -> recall, NDCG and revenue at the protocol's cuts, on a fixed sample of valid requests.

  Of a job of several processes each ranks its share; all must call it, and get the same.
  """
  requests = protocols.eval_requests(inputs.dataset, "valid", config.data.target_behavior)
  rows = np.random.default_rng(0).permutation(len(requests))[: config.training.eval_requests]
  requests = requests.take(np.sort(rows))
  ks = protocols.protocol_of(inputs.dataset.name).ks
  contexts = inputs.contexts(config, "valid")
  ranker = make_ranker(model, inputs.index, inputs.ecpm, config.search)

  share = distributed.share(len(requests))

  def evaluate(params) -> dict[str, float]:
    # No device holds the table: all rank all together.
    if isinstance(ranker, ItemRanker) and row_tables.mesh_of(params):
      ad_RK = ranker.rank(params, contexts, requests.request, max(ks)).ad_RK
    else:
      ranking = ranker.rank(mesh_lib.local_copy(params), contexts, requests.request[share], max(ks))
      ad_RK = distributed.gather(ranking.ad_RK)[: len(requests)]
    return {
      name: float(ratio.value) for name, ratio in metrics.per_request(ad_RK, requests, ks).items()
    }

  return evaluate


def make_trainer(config: Config, inputs: Inputs) -> Trainer:
  """The trainer of --objective. Raises what its class says."""
  if config.objective.objective == "vsl":
    return Trainer(config, inputs)
  return PreferenceTrainer(config, inputs)


def check_start(config: Config) -> None:
  """Checks what can be checked before the data are read.

  Raises:
    ConfigError: a --model that is not known or does not suit --objective; an --init_from that holds
      no trained run, or one with another model, codes or data.
  """
  objective, kind = config.objective.objective, registry.find(config)
  if objective != "vsl" and not getattr(kind, "learns_lists", False):
    raise ConfigError(
      f"--objective={objective} is not allowed: --model={config.model.model} learns no lists"
    )
  if (
    objective != "vsl" and config.model.history_bias
  ):  # the search's log p, the reference, lacks the bias' normaliser
    raise ConfigError(
      f"--history_bias=true is not allowed: --objective={objective} compares log-probabilities"
    )
  start = config.training.init_from
  if not start:
    return
  if not is_trained(start):
    raise ConfigError(
      f"--init_from={start} is not allowed: it holds no whole checkpoint; train it first"
    )
  about, free = (
    ("sid", "model", "items"),
    ["dropout", "compute_dtype", "swing_memory_mb", "swing_path"],
  )
  free += registry.unread(config)
  for knob, ours, theirs in workdir_lib.changes(config, load_config(start), about, but=free):
    raise ConfigError(
      f"--{knob}={ours} is not allowed: the run in --init_from={start} has {theirs}"
    )


def check_objective(config: Config, inputs: Inputs) -> None:
  """What a list objective needs beside the data: a reward, and its model.

  Raises:
    ConfigError, DataError: see `rewards.resolve`.
    FileNotFoundError: no reward model was trained where one is needed.
  """
  if config.objective.objective != "vsl":
    rewards.resolve(config.preference, inputs.dataset.ads)
    reward_model_of(config, inputs)


def start(config: Config, told: Callable[[str, int, int], None] | None = None) -> Inputs:
  """Reads and checks all input, then writes config, tokenizer and features into the workdir.

  Of a job of several processes the first one does so; the others wait, and read the workdir, which
  all share. `told` hears what is fitted, how much of it is done, and of how much.

  Args:
    config: of the run.
    told: hears what is fitted, how much of it is done, and of how much.

  Raises:
    ConfigError, DataError, OSError: input that is refused, or a run that another process trains;
      nothing was written then.
  """
  if jax.process_index() == 0:
    with workdir_lib.alone(config):  # first of all: another training would write what is read here
      inputs = inputs_lib.prepare_inputs(config, told=told)
      inputs_lib.check_same_log(config, inputs.dataset)
      check_objective(config, inputs)
      workdir_lib.save_config(config)  # not before all input is known to be good
      inputs_lib.save_inputs(config, inputs)
  distributed.barrier("inputs")
  if jax.process_index():
    inputs = inputs_lib.prepare_inputs(config, config.workdir)
    inputs_lib.check_same_log(config, inputs.dataset, started=True)
  if not distributed.same(inputs_lib.digest_of_files(config)):
    raise ConfigError(
      f"--workdir={config.workdir} is not allowed: its files differ from process to process; "
      "share it"
    )
  return inputs


def _start_state(config: Config, trainer: Trainer, checkpointer: Checkpointer) -> TrainState:
  state = trainer.state  # 1. fresh parameters
  if checkpointer.steps:
    return checkpointer.restore(
      state_lib.abstract(state)
    ).state  # 3. the run's own last whole checkpoint wins
  if config.training.init_from:  # 2. the best ones of another run
    start = load_config(config.training.init_from)
    with Checkpointer(
      checkpoint_dir(start), best_metric=best_metric(start), read_only=True
    ) as other:
      state = state.replace(params=other.restore_params(state_lib.abstract(state.params)))
  return state


def train(
  config: Config,
  inputs: Inputs,
  on_progress: Callable[[loop.Progress], None] | None = None,
  on_round: Callable[[str, int, int], None] = lambda *_: None,
  on_compiled: Callable[[StepCost], None] = lambda _: None,
) -> loop.FitResult:
  """Trains a run, from its last whole checkpoint where there is one.

  Args:
    config: of the run.
    inputs: data, tokenizer and features.
    on_progress: told after every step.
    on_round: told of what is done between steps: what, how much of it is done, how much there is.
    on_compiled: told what a step costs, once it is compiled.

  Raises:
    DivergedError: the loss stopped being finite.
    ConfigError: the workdir's checkpoints hold another model, the devices cannot share a batch,
      --profile_steps goes past the end, or another process trains the run.
  """
  with workdir_lib.alone(config), _gone(config):
    return _train(config, inputs, on_progress, on_round, on_compiled)


@contextlib.contextmanager
def _gone(config: Config) -> Iterator[None]:
  """Tells a file that vanished under a training from a path that the user got wrong: the disk is
  to blame.
  """
  try:
    yield
  except FileNotFoundError as error:
    if error.errno is None:  # a message of this library's own
      raise
    raise OSError(f"{config.workdir} lost a file while it was trained: {error}") from error


def _train(
  config: Config,
  inputs: Inputs,
  on_progress: Callable[[loop.Progress], None] | None,
  on_round: Callable[[str, int, int], None],
  on_compiled: Callable[[StepCost], None],
) -> loop.FitResult:
  t, trainer = config.training, make_trainer(config, inputs)
  if t.profiled[1] > trainer.total_steps:
    raise ConfigError(
      f"--profile_steps={t.profile_steps} is not allowed: the run has {trainer.total_steps} steps"
    )
  judged = best_metric(config) and inputs.has_targets(config, "valid")
  evaluate = valid_evaluation(config, inputs, trainer.model) if judged else None
  traced = StepProfiler(os.path.join(config.workdir, PROFILE), *t.profiled)
  distributed.barrier(
    "trainer"
  )  # collective operations do not wait long for a process that was slower up to here
  with (
    Checkpointer(checkpoint_dir(config), best_metric=best_metric(config)) as checkpointer,
    traced as profiler,
  ):
    state = _start_state(config, trainer, checkpointer)
    writer = open_writers(config.workdir, int(state.step))
    try:
      while True:
        until = 0
        if int(state.step) < trainer.total_steps:
          until = trainer.begin_round(state, writer, on_round)
          trainer.compile(state, on_compiled)
        result = loop.fit(
          state,
          trainer.step,
          trainer.make_batch,
          loop.Schedule(
            trainer.total_steps, t.log_every, t.eval_every if evaluate else 0, t.save_every, until
          ),
          checkpointer=checkpointer,
          writer=writer,
          evaluate_fn=(lambda state: evaluate(state.params)) if evaluate else None,
          on_progress=on_progress,
          cost=trainer.cost,
          profiler=profiler,
          workers=prefetch.threads(t.loader_threads),
        )
        state = result.state
        if result.status == "preempted" or int(state.step) >= trainer.total_steps:
          return result
    finally:
      writer.close()
      preemption.release()
