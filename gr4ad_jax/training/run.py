"""A run from its config: model, parameters, training; everything lies in the workdir."""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gr4ad_jax.config import CHECKPOINTS, Config, ConfigError
from gr4ad_jax.data.batches import TrainingOrder, zero_batch
from gr4ad_jax.decoding.ranker import Ranker
from gr4ad_jax.evaluation import metrics, protocols
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.training import loop
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training.checkpoint import Checkpointer
from gr4ad_jax.training.inputs import Inputs
from gr4ad_jax.training.step import make_train_step
from gr4ad_jax.training.vsl_task import make_vsl_loss
from gr4ad_jax.training.writers import open_writers

BEST_METRIC = "recall@10"


def build_model(config: Config) -> GR4AD:
  """The module of a config."""
  return GR4AD(config.model, config.sid.codebooks, config.training.remat)


def init_params(model: GR4AD, config: Config) -> Any:
  """Fresh parameters, boxed with their logical axes; the same for the same seed."""
  batch = zero_batch(config.data, len(config.sid.codebooks))
  return model.init(jax.random.key(config.training.seed), batch, batch.target_codes_BMT)["params"]


def checkpoint_dir(config: Config) -> str:
  """Where a run's checkpoints lie."""
  return os.path.join(config.workdir, CHECKPOINTS)


def best_metric(config: Config) -> str | None:
  """What ranks checkpoints: nothing where valid is learned from, since it then judges no model."""
  return None if "valid" in config.training.fitted else BEST_METRIC


def check_batch_size(config: Config) -> None:
  """Raises ConfigError where a step's requests cannot be shared out over the devices and micro-batches."""
  devices, accumulate = jax.device_count(), config.training.accumulate
  if config.data.batch_size % (devices * accumulate):
    raise ConfigError(
      f"--batch_size={config.data.batch_size} is not allowed: a multiple of {devices * accumulate}, "
      f"{devices} device{'s' * (devices > 1)} times --accumulate={accumulate}"
    )


def scored_step(config: Config) -> int:
  """Step of the checkpoint that `load_params` takes as the best. Raises FileNotFoundError where there is none."""
  with Checkpointer(checkpoint_dir(config), best_metric=best_metric(config), read_only=True) as checkpointer:
    return checkpointer.resolve("best")


def load_params(config: Config, model: GR4AD, which: int | str = "best") -> Any:
  """Parameters of a trained run: the best on valid, the last, or those of a step.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    ConfigError: the checkpoint holds another model.
  """
  mesh = mesh_lib.make_mesh(jax.local_devices()[:1])
  target = state_lib.abstract_params(lambda: init_params(model, config), mesh)
  with Checkpointer(checkpoint_dir(config), best_metric=best_metric(config), read_only=True) as checkpointer:
    return checkpointer.restore_params(target, which)


def valid_evaluation(config: Config, inputs: Inputs, model: GR4AD) -> Callable[[Any], dict[str, float]]:
  """Params -> recall, NDCG and revenue at the protocol's cuts, on a fixed sample of valid requests."""
  requests = protocols.eval_requests(inputs.dataset, "valid", config.data.target_behavior)
  rows = np.random.default_rng(0).permutation(len(requests))[: config.training.eval_requests]
  requests = requests.take(np.sort(rows))
  ks = protocols.protocol_of(inputs.dataset.name).ks
  contexts = inputs.contexts(config, "valid")
  ranker = Ranker(model, inputs.index, inputs.ecpm, config.search)

  def evaluate(params) -> dict[str, float]:
    ranking = ranker.rank(params, contexts, requests.request, max(ks))
    return {name: float(ratio.value) for name, ratio in metrics.per_request(ranking.ad_RK, requests, ks).items()}

  return evaluate


class Trainer:
  """The parts of a training: order of the data, batches, step, optimiser and a fresh state on the mesh.

  Args:
    config: of the run.
    inputs: data, tokenizer and features.

  Raises:
    ConfigError: the devices cannot share a batch.
  """

  def __init__(self, config: Config, inputs: Inputs):
    check_batch_size(config)
    self.config, t = config, config.training
    self.model, self.mesh = build_model(config), mesh_lib.make_mesh()
    self.order = TrainingOrder(inputs.requests(*t.fitted), config.data.batch_size, t.seed)
    self.contexts = inputs.contexts(config, "train")
    steps = max(1, round(self.order.steps_per_epoch * t.epochs))
    self.total_steps = min(steps, t.max_steps) if t.max_steps else steps
    self.optimizer = state_lib.make_optimizer(t, self.total_steps)
    self.state = state_lib.init_state(lambda: init_params(self.model, config), self.optimizer, self.mesh)
    loss_fn = make_vsl_loss(self.model, config.objective, inputs.ecpm)
    shardings = state_lib.shardings_of(self.state)
    self.step = make_train_step(loss_fn, self.optimizer, t.seed, t.accumulate, shardings)

  def make_batch(self, step: int):
    """This process' rows of a step, put on the mesh."""
    requests, draw = self.order.step(step, jax.process_index(), jax.process_count())
    return mesh_lib.put_batch(self.contexts.batch(requests, draw), self.mesh)


def train(config: Config, inputs: Inputs, on_progress: Callable[[loop.Progress], None] | None = None) -> loop.FitResult:
  """Trains a run, from its last whole checkpoint where there is one.

  Args:
    config: of the run.
    inputs: data, tokenizer and features.
    on_progress: told after every step.

  Raises:
    DivergedError: the loss stopped being finite.
    ConfigError: the workdir's checkpoints hold another model, or the devices cannot share a batch.
  """
  t, trainer = config.training, Trainer(config, inputs)
  state = trainer.state  # 1. fresh parameters
  judged = best_metric(config) and inputs.has_targets(config, "valid")
  evaluate = valid_evaluation(config, inputs, trainer.model) if judged else None
  schedule = loop.Schedule(trainer.total_steps, t.log_every, t.eval_every if evaluate else 0, t.save_every)
  with Checkpointer(checkpoint_dir(config), best_metric=best_metric(config)) as checkpointer:
    if checkpointer.steps:
      # 2. the run's own last whole checkpoint wins
      state = checkpointer.restore(state_lib.abstract(state)).state
    writer = open_writers(config.workdir, int(state.step))
    try:
      return loop.fit(
        state,
        trainer.step,
        trainer.make_batch,
        schedule,
        checkpointer=checkpointer,
        writer=writer,
        evaluate_fn=(lambda state: evaluate(state.params)) if evaluate else None,
        on_progress=on_progress,
      )
    finally:
      writer.close()
