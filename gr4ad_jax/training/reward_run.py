"""Trains the reward model of a run; all of it lies in <workdir>/reward.

checkpoints/<step>/, knobs.json, folds.npz, scale.npz, calibration.json, metrics.jsonl, report.json
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax import files
from gr4ad_jax.config import CHECKPOINTS, Config, ConfigError, RewardConfig
from gr4ad_jax.data.batches import TrainingOrder
from gr4ad_jax.data.ecpm import LEAST_VALUE
from gr4ad_jax.data.pair_batches import LabeledPairs, PairSampler
from gr4ad_jax.data.pair_features import FEATURES, USER_FEATURES
from gr4ad_jax.evaluation.calibration import Calibration
from gr4ad_jax.models.piecewise import feature_edges
from gr4ad_jax.models.zoo.ranker import Ranker
from gr4ad_jax.objectives import pointwise
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.training import loop, prefetch
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training import workdir as workdir_lib
from gr4ad_jax.training.checkpoint import Checkpointer
from gr4ad_jax.training.inputs import Inputs
from gr4ad_jax.training.step import LossFn, make_train_step
from gr4ad_jax.training.writers import open_writers

FOLDER = "reward"
CALIBRATION = "calibration.json"  # written last: its presence says that the model is whole
_KNOBS, _SCALE = "knobs.json", "scale.npz"
_FREE = ("reward_epochs",)
_SAMPLE = 512  # requests that the scale of the features is taken from


@dataclasses.dataclass(frozen=True)
class Scale:
  """What turns features and values into what the ranker reads.

  Attributes:
    pair: [F, bins + 1] float32, edges of the pair features.
    user: [F, bins + 1] float32, edges of the user features.
    value: mean clipped value of the training lines, money: the unit of the value head.
    clip: values count up to this, money.
    codes: digest of the UA-SIDs and of the features' names.
  """

  pair: np.ndarray
  user: np.ndarray
  value: float
  clip: float
  codes: str

  @property
  def edges(self) -> dict[str, np.ndarray]:
    """As the ranker takes them."""
    return {"pair": self.pair, "user": self.user}

  def save(self, folder: str) -> None:
    """Writes scale.npz."""
    files.save_arrays(os.path.join(folder, _SCALE), **dataclasses.asdict(self))

  @classmethod
  def load(cls, folder: str) -> "Scale":
    """Reads what `save` wrote. Raises as `files.load_arrays` does."""
    names = ("pair", "user", "value", "clip", "codes")
    pair, user, value, clip, codes = files.load_arrays(os.path.join(folder, _SCALE), *names)
    return cls(pair, user, float(value), float(clip), str(codes))


def folder_of(config: Config) -> str:
  """Where the reward model of a run lies."""
  return os.path.join(config.workdir, FOLDER)


def read_digest(inputs: Inputs) -> str:
  """SHA-256 of the UA-SIDs and of the features' names: what a ranker is trained to read."""
  made = hashlib.sha256(np.ascontiguousarray(inputs.index.codes_NT).tobytes())
  made.update(repr((FEATURES, USER_FEATURES)).encode())
  return made.hexdigest()


def build_ranker(config: Config, inputs: Inputs) -> Ranker:
  """The module of a config."""
  return Ranker(config.reward, config.sid.codebooks, len(inputs.dataset.ads))


def split_requests(config: Config, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
  """Requests that are learned from, and those kept for calibration: the last of some users who
  have two or more.
  """
  requests = np.sort(inputs.learned(config))
  user = inputs.lines.request_user[requests]
  last = np.append(user[1:] != user[:-1], True)
  again = np.append(False, user[1:] == user[:-1])
  rng = np.random.default_rng([config.training.seed, 1])
  chosen = rng.random(int(user.max()) + 1) < config.reward.reward_calibration
  kept = last & again & chosen[user]
  return requests[~kept], requests[kept]


def make_reward_loss(model: Ranker, config: RewardConfig, scale: Scale) -> LossFn:
  """(params, batch, key) -> (loss, metrics)."""
  edges = jax.tree.map(jnp.asarray, scale.edges)

  def loss_fn(params, batch: LabeledPairs, key: jax.Array):
    logit_BC, log_value_BC = model.apply(
      {"params": params}, batch.pairs, edges, train=True, rngs={"dropout": key}
    )
    purchase = pointwise.purchase_loss(logit_BC, batch.bought_BC, batch.weight_BC)
    weight_BC = jnp.where(batch.bought_BC, batch.weight_BC, 0.0)
    value = pointwise.value_loss(
      log_value_BC, batch.value_BC / scale.value, weight_BC, config.reward_value_power
    )
    bought = weight_BC.sum() / batch.weight_BC.sum()
    loss = (
      purchase / jax.lax.stop_gradient(jnp.maximum(bought, 1e-6))
      + config.reward_value_weight * value
    )
    return loss, {"purchase": purchase, "value": value}

  return loss_fn


class RewardTrainer:
  """The parts of the training: order of the data, batches, step, optimiser and a fresh state on the
  mesh.

  Args:
    config: of the run.
    inputs: data, tokenizer and features.
  """

  def __init__(self, config: Config, inputs: Inputs):
    self.config, self.inputs, c = config, inputs, config.reward
    requests, self.held_out = split_requests(config, inputs)
    self.sampler = PairSampler(
      inputs.contexts(config, "train"), c, inputs.ecpm.clip, config.training.seed
    )
    self.scale = self._fit_scale(requests)
    self.model, self.mesh = build_ranker(config, inputs), mesh_lib.make_mesh(config.training.mesh)
    self.order = TrainingOrder(requests, config.data.batch_size, config.training.seed)
    self.total_steps = max(1, round(self.order.steps_per_epoch * c.reward_epochs))
    training = dataclasses.replace(
      config.training, learning_rate=c.reward_learning_rate, weight_decay=c.reward_weight_decay
    )
    self.optimizer = state_lib.make_optimizer(training, self.total_steps)
    self.state = state_lib.init_state(self.init_params, self.optimizer, self.mesh)
    loss_fn = make_reward_loss(self.model, c, self.scale)
    shardings = state_lib.shardings_of(self.state)
    self.step = make_train_step(loss_fn, self.optimizer, config.training.seed, 1, shardings)

  def _fit_scale(self, requests: np.ndarray) -> Scale:
    some = requests[:: max(1, len(requests) // _SAMPLE)]
    sample, c = self.sampler.batch(some), self.config.reward
    real = sample.weight_BC > 0
    value = (
      float(sample.value_BC[sample.bought_BC & real].mean())
      if (sample.bought_BC & real).any()
      else 1.0
    )
    return Scale(
      feature_edges(sample.pairs.pair_features_BCF[real], c.reward_bins),
      feature_edges(sample.pairs.user_features_BF, c.reward_bins),
      max(value, LEAST_VALUE),
      self.inputs.ecpm.clip,
      read_digest(self.inputs),
    )

  def init_params(self) -> Any:
    """Fresh parameters; the same for the same seed."""
    batch = self.sampler.batch(self.order.requests[:1])
    return self.model.init(
      jax.random.key(self.config.training.seed), batch.pairs, self.scale.edges
    )["params"]

  def make_batch(self, step: int) -> LabeledPairs:
    """This process' rows of a step, put on the mesh."""
    requests, draw = self.order.step(step, jax.process_index(), jax.process_count())
    return mesh_lib.put_batch(self.sampler.batch(requests, draw), self.mesh)


def checkpoints_of(config: Config) -> str:
  """Where the checkpoints of the reward model lie."""
  return os.path.join(folder_of(config), CHECKPOINTS)


def is_finished(config: Config) -> bool:
  """Whether a run has a reward model that is trained and calibrated."""
  return os.path.exists(os.path.join(folder_of(config), CALIBRATION))


def check_knobs(config: Config) -> None:
  """Raises ConfigError where the run's reward model is being trained, or was, with other
  settings.
  """
  path = os.path.join(folder_of(config), _KNOBS)
  if not os.path.exists(path) or not os.path.isdir(checkpoints_of(config)):
    return
  saved = files.load_json(path)
  for name, ours in dataclasses.asdict(config.reward).items():
    if saved.get(name, ours) != ours and name not in _FREE:
      raise ConfigError(
        f"--{name}={ours} is not allowed: the reward model in {folder_of(config)} has {saved[name]}"
      )


def train(
  config: Config, inputs: Inputs, on_progress: Callable[[loop.Progress], None] | None = None
) -> loop.FitResult:
  """Trains and calibrates a run's reward model, from its last whole checkpoint where there is one.

  Args:
    config: of the run; its UA-SIDs and features must lie in its workdir (`inputs.save_inputs`).
    inputs: data, tokenizer and features.
    on_progress: told after every step.

  Raises:
    DivergedError: the loss stopped being finite.
    ConfigError: it was begun with other settings, or another process trains in the run's directory.
  """
  check_knobs(config)
  with workdir_lib.alone(config):
    return _train(config, inputs, on_progress)


def _train(
  config: Config, inputs: Inputs, on_progress: Callable[[loop.Progress], None] | None
) -> loop.FitResult:
  folder, t = folder_of(config), config.training
  trainer = RewardTrainer(config, inputs)
  os.makedirs(folder, exist_ok=True)
  trainer.scale.save(folder)
  files.write_json(os.path.join(folder, _KNOBS), dataclasses.asdict(config.reward))
  state = trainer.state
  with Checkpointer(checkpoints_of(config)) as checkpointer:
    if checkpointer.steps:
      state = checkpointer.restore(state_lib.abstract(state)).state
    writer = open_writers(folder, int(state.step))
    try:
      schedule = loop.Schedule(trainer.total_steps, t.log_every, 0, t.save_every)
      result = loop.fit(
        state, trainer.step, trainer.make_batch, schedule, checkpointer=checkpointer, writer=writer,
        on_progress=on_progress, workers=prefetch.threads(t.loader_threads),
      )  # fmt: skip
    finally:
      writer.close()
  if result.status == "done":
    made = _calibration(trainer, result.state.params)
    files.write_json(os.path.join(folder, CALIBRATION), dataclasses.asdict(made))
  return result


def _calibration(trainer: RewardTrainer, params: Any) -> Calibration:
  """The correction that the visits kept aside ask for."""
  apply = jax.jit(trainer.model.apply)
  edges, value = trainer.scale.edges, trainer.scale.value
  columns = []
  for begin in range(0, len(trainer.held_out), trainer.config.data.batch_size):
    batch = trainer.sampler.batch(trainer.held_out[begin : begin + trainer.config.data.batch_size])
    logit, log_value = jax.device_get(apply({"params": params}, batch.pairs, edges))
    real = batch.weight_BC > 0
    columns.append(
      [
        x[real]
        for x in (
          logit,
          batch.bought_BC,
          batch.weight_BC,
          np.exp(log_value) * value,
          batch.value_BC,
        )
      ]
    )
  if not columns:
    return Calibration.identity()
  return Calibration.fit(*(np.concatenate(column) for column in zip(*columns, strict=True)))
