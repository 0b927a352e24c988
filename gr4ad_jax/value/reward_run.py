"""Trains the reward model of a run; all of it lies in <workdir>/reward.

checkpoints/<step>/, knobs.json, folds.npz, scale.npz, calibration.json, metrics.jsonl, report.json
"""

import dataclasses
import functools
import hashlib
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax import files
from gr4ad_jax.config import CHECKPOINTS, Config, ConfigError, RewardConfig
from gr4ad_jax.data.ecpm import LEAST_VALUE
from gr4ad_jax.evaluation.calibration import Calibration
from gr4ad_jax.examples.order import OrderedSource, TrainingOrder
from gr4ad_jax.features import feature_names
from gr4ad_jax.models.piecewise import feature_edges
from gr4ad_jax.objectives import pointwise
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.runs import run
from gr4ad_jax.runs import workdir as workdir_lib
from gr4ad_jax.training import loop
from gr4ad_jax.training.step import LossFn, Metrics
from gr4ad_jax.training.task import Task, Told
from gr4ad_jax.value.pair_batches import LabeledPairs, PairSampler
from gr4ad_jax.zoo.ranker import Ranker

FOLDER = "reward"
CALIBRATION = "calibration.json"  # written last: its presence says that the model is whole
_KNOBS = "knobs.json"
_SCALE = "scale.npz"
# More epochs go on with the same model; every other knob makes another one.
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


def read_digest(config: Config, inputs: Inputs) -> str:
  """SHA-256 of the UA-SIDs and of the features' names: what a ranker is trained to read."""
  made = hashlib.sha256(np.ascontiguousarray(inputs.index.codes_NT).tobytes())
  names = feature_names.names(config.data)
  made.update(repr((names["pairs"], names["users"])).encode())
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
  # Requests ascend, so a user's are neighbours: his last one is where the next user differs.
  last = np.append(user[1:] != user[:-1], True)
  # A user with one request has nothing to be learned from if that is kept aside.
  again = np.append(False, user[1:] == user[:-1])
  # A stream of its own beside the one of training.
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
    # Values are learned from what was bought; of all else they are unknown, not 0.
    weight_BC = jnp.where(batch.bought_BC, batch.weight_BC, 0.0)
    value = pointwise.value_loss(
      log_value_BC, batch.value_BC / scale.value, weight_BC, config.reward_value_power
    )
    # The share of what was bought, by the weights an estimate for the whole table.
    bought = weight_BC.sum() / batch.weight_BC.sum()
    # Purchases are rare, so their loss is small. Divided by their share it stands beside the
    # value's.
    loss = (
      purchase / jax.lax.stop_gradient(jnp.maximum(bought, 1e-6))
      + config.reward_value_weight * value
    )
    return loss, {"purchase": purchase, "value": value}

  return loss_fn


class RewardTask(Task):
  """Learns p(purchase) and E[value | purchase] of pairs of a request and an ad.

  It lies in a folder of its own inside the run whose UA-SIDs and features it reads.

  Args:
    config: of the run; its UA-SIDs and features must lie in its workdir (`inputs.save_inputs`).
    inputs: data, tokenizer and features.
  """

  def __init__(self, config: Config, inputs: Inputs):
    super().__init__(config)
    c = config.reward
    self.inputs = inputs
    self.folder = folder_of(config)
    self.model = build_ranker(config, inputs)
    # Accumulation and row-wise optimisers are for the large table of ads, which this model lacks.
    # The run's own training, but for what is the reward model's to say. It starts afresh.
    self.training = dataclasses.replace(
      config.training, learning_rate=c.reward_learning_rate, weight_decay=c.reward_weight_decay,
      epochs=c.reward_epochs, max_steps=0, accumulate=1, table_optimizer="adamw", init_from="",
      remat="none",
    )  # fmt: skip

  @classmethod
  def open(cls, config: Config, told: Told | None = None, started: bool = False) -> "RewardTask":
    """Reads the run that it belongs to. Raises as `check_knobs` and `prepare_inputs` do."""
    del started
    check_knobs(config)
    inputs = inputs_lib.prepare_inputs(config, told=told)
    inputs_lib.check_same_log(config, inputs.dataset)
    return cls(config, inputs)

  def save(self) -> None:
    """Keeps the scale of what it reads, and its settings."""
    os.makedirs(self.folder, exist_ok=True)
    self.scale.save(self.folder)
    files.write_json(os.path.join(self.folder, _KNOBS), dataclasses.asdict(self.config.reward))

  @functools.cached_property
  def _split(self) -> tuple[np.ndarray, np.ndarray]:
    return split_requests(self.config, self.inputs)

  @functools.cached_property
  def sampler(self) -> PairSampler:
    """Draws the pairs of a request."""
    contexts = self.inputs.contexts(self.config, "train")
    return PairSampler(contexts, self.config.reward, self.inputs.ecpm.clip, self.training.seed)

  @functools.cached_property
  def scale(self) -> Scale:
    """Edges of the features and unit of the value, from some of what is learned from."""
    requests = self._split[0]
    # Spread evenly over all that is learned from.
    some = requests[:: max(1, len(requests) // _SAMPLE)]
    sample = self.sampler.batch(some)
    c = self.config.reward
    real = sample.weight_BC > 0
    bought = sample.bought_BC & real
    value = float(sample.value_BC[bought].mean()) if bought.any() else 1.0
    return Scale(
      feature_edges(sample.pairs.pair_features_BCF[real], c.reward_bins),
      feature_edges(sample.pairs.user_features_BF, c.reward_bins),
      # A mean of 0 would make the unit 0, and values infinite.
      max(value, LEAST_VALUE),
      self.inputs.ecpm.clip,
      read_digest(self.config, self.inputs),
    )

  @functools.cached_property
  def source(self) -> OrderedSource:
    """Batches of pairs."""
    order = TrainingOrder(self._split[0], self.training.batch_size, self.training.seed)
    return OrderedSource(order, self.sampler.batch)

  def init(self, key: jax.Array) -> Any:
    """Fresh parameters; the same for the same seed."""
    batch = self.sampler.batch(self._split[0][:1])
    return self.model.init(key, batch.pairs, self.scale.edges)["params"]

  @functools.cached_property
  def _loss(self) -> LossFn:
    return make_reward_loss(self.model, self.config.reward, self.scale)

  def loss(self, params: Any, batch: LabeledPairs, key: jax.Array) -> tuple[jax.Array, Metrics]:
    """As `make_reward_loss` says."""
    return self._loss(params, batch, key)

  def units(self, batch: LabeledPairs) -> dict[str, int]:
    """Requests, and pairs with padding."""
    return {"requests": len(batch.weight_BC), "pairs": batch.weight_BC.size}

  def finish(self, params: Any) -> None:
    """Writes the correction that the visits kept aside ask for."""
    made = self._calibration(mesh_lib.local_copy(params))
    if jax.process_index() == 0:
      files.write_json(os.path.join(self.folder, CALIBRATION), dataclasses.asdict(made))

  def _calibration(self, params: Any) -> Calibration:
    apply = jax.jit(self.model.apply)
    held_out = self._split[1]
    size = self.training.batch_size
    columns = []
    for begin in range(0, len(held_out), size):
      batch = self.sampler.batch(held_out[begin : begin + size])
      logit, log_value = jax.device_get(apply({"params": params}, batch.pairs, self.scale.edges))
      value = np.exp(log_value) * self.scale.value
      # Padding must not be calibrated on.
      real = batch.weight_BC > 0
      found = (logit, batch.bought_BC, batch.weight_BC, value, batch.value_BC)
      columns.append([x[real] for x in found])
    # No visit was kept aside, so nothing says that a correction is needed.
    if not columns:
      return Calibration.identity()
    return Calibration.fit(*(np.concatenate(column) for column in zip(*columns, strict=True)))


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
  # A knob that an older file lacks is taken to be as it is now.
  saved = files.load_json(path)
  for name, ours in dataclasses.asdict(config.reward).items():
    if saved.get(name, ours) != ours and name not in _FREE:
      raise ConfigError(
        f"--{name}={ours} is not allowed: the reward model in {folder_of(config)} has {saved[name]}"
      )


def train(config: Config, inputs: Inputs, *told: Any) -> loop.FitResult:
  """Trains and calibrates a run's reward model, from its last whole checkpoint where there is one.

  Args:
    config: of the run; its UA-SIDs and features must lie in its workdir (`inputs.save_inputs`).
    inputs: data, tokenizer and features.
    *told: as `run.train` takes them: of steps, of rounds, of the cost.

  Raises:
    DivergedError: the loss stopped being finite.
    ConfigError: it was begun with other settings, or another process trains in the run's directory.
  """
  check_knobs(config)
  with workdir_lib.alone(config):
    task = RewardTask(config, inputs)
    if task.training.profiled[1] > task.total_steps:  # a window of the run's own steps
      task.training = dataclasses.replace(task.training, profile_steps="")
    if jax.process_index() == 0:
      task.save()
    return run.train(task, *told)
