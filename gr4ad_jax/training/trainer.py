"""What a training consists of: the model, its parameters, the order of the data, batches, step
and optimiser.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.config import Config, ConfigError
from gr4ad_jax.data import cooccurrence
from gr4ad_jax.data.batches import PADDING, TrainingOrder, zero_batch
from gr4ad_jax.models import context, piecewise
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.models.zoo import registry
from gr4ad_jax.models.zoo.gr4ad_items import GR4ADItems
from gr4ad_jax.models.zoo.items import ItemHead, ItemModel
from gr4ad_jax.parallel import distributed, row_tables
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.training import row_step
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training.cost import StepCost, compile_step
from gr4ad_jax.training.inputs import Inputs
from gr4ad_jax.training.item_task import make_item_loss, with_item_loss
from gr4ad_jax.training.state import TrainState
from gr4ad_jax.training.step import LossFn, make_train_step
from gr4ad_jax.training.vsl_task import make_vsl_loss
from gr4ad_jax.training.writers import Writer

_SAMPLE = 512  # requests that the edges of features are fitted on


def init_params(model: nn.Module, config: Config) -> Any:
  """Fresh parameters, boxed with their logical axes; the same for the same seed."""
  batch = zero_batch(config.data, len(config.sid.codebooks))
  sequences = () if isinstance(model, ItemModel) else (batch.target_codes_BMT,)
  return model.init(jax.random.key(config.training.seed), batch, *sequences)["params"]


def check_mesh(config: Config) -> None:
  """Raises ConfigError where devices, model or a step's requests do not fit --mesh."""
  text, devices = config.training.mesh, jax.device_count()
  try:
    sizes = mesh_lib.parse(text, devices)
    mesh_lib.make_mesh(text)
  except ValueError as error:
    raise ConfigError(f"--mesh={text} is not allowed: {error}") from error
  for knob, axis in (("width", mesh_lib.FSDP), ("heads", mesh_lib.TENSOR)):
    if (size := getattr(config.model, knob)) % sizes[axis]:
      raise ConfigError(
        f"--mesh={text} is not allowed: {axis}:{sizes[axis]} does not divide --{knob}={size}"
      )
  if jax.local_device_count() % sizes[mesh_lib.TENSOR]:
    raise ConfigError(
      f"--mesh={text} is not allowed: tensor:{sizes[mesh_lib.TENSOR]} does not divide the "
      f"{jax.local_device_count()} devices of a process"
    )
  shards, accumulate = sizes[mesh_lib.DATA] * sizes[mesh_lib.FSDP], config.training.accumulate
  if config.data.batch_size % (shards * accumulate):
    raise ConfigError(
      f"--batch_size={config.data.batch_size} is not allowed: a multiple of {shards * accumulate}, "
      f"{shards} part{'s' * (shards > 1)} of --mesh={text} times --accumulate={accumulate}"
    )


class Trainer:
  """The parts of a training by VSL: order of the data, batches, step, optimiser and a fresh state
  on the mesh.

  Args:
    config: of the run.
    inputs: data, tokenizer and features.

  Raises:
    ConfigError: the devices cannot share a batch, or --table_optimizer asks for a table that the
      model has not.
  """

  def __init__(self, config: Config, inputs: Inputs):
    check_mesh(config)
    self.config, self.inputs, t = config, inputs, config.training
    self.model, self.mesh = (
      registry.build(config, len(inputs.dataset.ads)),
      mesh_lib.make_mesh(config.training.mesh),
    )
    shuffled = t.data_order == "shuffled"
    self.order = TrainingOrder(inputs.examples(config), config.data.batch_size, t.seed, shuffled)
    self.contexts = inputs.contexts(config, "train")
    steps = max(1, round(self.order.steps_per_epoch * t.epochs))
    self.total_steps = min(steps, t.max_steps) if t.max_steps else steps
    self.optimizer = state_lib.make_optimizer(t, self.total_steps)
    self._start_ND, self._edges = self._start_vectors(), self._fit_edges()
    self.state = state_lib.init_state(self.init_params, self.optimizer, self.mesh)
    shardings = state_lib.shardings_of(self.state)
    if t.table_optimizer != "adamw" and row_tables.NAME not in self.state.params:
      model = config.model.model
      raise ConfigError(
        f"--table_optimizer={t.table_optimizer} is not allowed: --model={model} has no table of ads"
      )
    loss_fn = self.make_loss()
    if row_step.allowed(t, loss_fn):
      self.step = row_step.make_row_step(loss_fn, self.optimizer, t.seed, shardings)
    else:
      self.step = make_train_step(loss_fn, self.optimizer, t.seed, t.accumulate, shardings)
    self.cost: StepCost | None = None  # known once it is compiled

  def init_params(self) -> Any:
    """Fresh parameters, the edges of features fitted; vectors of ads, and with them those of
    codes, by --item_start.
    """
    params = init_params(self.model, self.config)
    for name, edges in self._edges.items():
      params["processor"][name] = params["processor"][name].replace_boxed(
        jnp.asarray(edges.ravel())
      )
    if self._start_ND is not None:
      table, index, made_ND = params[row_tables.NAME], self.inputs.index, self._start_ND
      params[row_tables.NAME] = table.replace_boxed(table.unbox().at[: len(made_ND)].set(made_ND))
      if isinstance(self.model, GR4ADItems):
        for level, mean_VD in enumerate(
          cooccurrence.code_means(made_ND, index.codes_NT, index.codebooks)
        ):
          codes, kernel = params[f"codes_{level}"], params[f"head_{level}"]["kernel"]
          params[f"codes_{level}"] = codes.replace_boxed(
            codes.unbox() + mean_VD * np.sqrt(mean_VD.shape[1])
          )
          params[f"head_{level}"]["kernel"] = kernel.replace_boxed(kernel.unbox() + mean_VD.T)
    return params

  def _fit_edges(self) -> dict[str, np.ndarray]:
    """Edges of the context's features (`models/context.py`), from some of what is learned from;
    none where unused.
    """
    bins, data = self.config.model.feature_bins, self.config.data
    if not bins or not data.behavior_features or not isinstance(self.model, GR4AD):
      return {}
    requests = np.sort(self.order.requests)
    sample = self.contexts.batch(requests[:: max(1, len(requests) // _SAMPLE)])
    slots = sample.slot_features_BSF[sample.slot_kind_BS != PADDING]
    found = slots if len(slots) else sample.slot_features_BSF[0], sample.user_features_BF
    return {
      name: piecewise.feature_edges(x, bins) for name, x in zip(context.EDGES, found, strict=True)
    }

  def _start_vectors(self) -> np.ndarray | None:
    """[N, D] vectors of ads by --item_start, made before anything is traced; None: random, or no
    such model.
    """
    inputs, width = self.inputs, self.config.model.width
    if self.config.items.item_start == "random" or not isinstance(self.model, ItemHead):
      return None
    (_, user_L, ad_L), ads = inputs.learned_lines(self.config), inputs.dataset.ads
    taken_ND = cooccurrence.ppmi_vectors(user_L, ad_L, len(ads), width)
    if self.config.items.item_start == "ppmi":
      return taken_ND
    return cooccurrence.joined(taken_ND, inputs.tokenizer.embed(ads), width)

  def make_loss(self) -> LossFn:
    """The loss of the training step."""
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
    lines = self.inputs.lines
    taken = lines.ad[np.isin(lines.request, self.order.requests)]
    count_N = np.bincount(taken, minlength=self.model.num_ads) + 1.0  # no ad has a share of 0
    return make_item_loss(self.model, count_N / count_N.sum())

  def make_batch(self, step: int) -> Any:
    """This process' rows of a step, put on the mesh."""
    requests, draw = self.order.step(step, jax.process_index(), jax.process_count())
    return mesh_lib.put_batch(self.contexts.batch(requests, draw), self.mesh)

  def compile(self, state: TrainState, told: Callable[[StepCost], None] = lambda _: None) -> None:
    """Compiles the step ahead, once, and tells what it costs.

    Then all processes begin together, since a collective operation does not wait long.
    """
    if self.cost is None:
      batch = self.make_batch(int(state.step))
      self.step, self.cost = compile_step(self.step, state, batch, self.config.training)
      told(self.cost)
      distributed.barrier("compiled")

  def begin_round(
    self, state: TrainState, writer: Writer, told: Callable[[str, int, int], None]
  ) -> int:
    """What is done before the steps from `state.step` on; returns the step at which it is to be
    done again.
    """
    del state, writer, told
    return self.total_steps
