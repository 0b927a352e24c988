"""Many settings of the list objectives from one start, each for one round, with one compiled step.

What is tried are arguments of the step, and the requests' lists lie on the device, so a pass takes
what its steps take: on an accelerator less than a run of its own needs to be compiled. Objectives,
optimiser, order and lists are those of `PreferenceTask` with --refresh_steps of the run's length
or more.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.config import Config, ConfigError, PreferenceConfig, load_config, with_knobs
from gr4ad_jax.data.ecpm import LEAST_VALUE
from gr4ad_jax.evaluation import metrics, protocols, report_tables
from gr4ad_jax.examples.order import TrainingOrder
from gr4ad_jax.preference.preference_run import PreferenceTask, reward_model_of
from gr4ad_jax.preference.preference_task import PreferenceBatch, list_loss, make_preference_loss
from gr4ad_jax.ranking import list_cache, scoring
from gr4ad_jax.requests import request_task
from gr4ad_jax.requests.candidates import NO_REFERENCE, Candidates
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.studies import sweep_table
from gr4ad_jax.training import loop
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training.state import Optimizer, TrainState
from gr4ad_jax.training.step import Step, make_train_step
from gr4ad_jax.training.trainer import Trainer
from gr4ad_jax.value.rewards import Rewarder
from gr4ad_jax.zoo import registry

OBJECTIVES = ("dpo", "sdpo", "grpo", "xent", "rspo", "unified")
ARGUMENTS = ("preference_weight", "beta", "delta", "z_max", "grpo_clip", "grpo_kl")  # of the step
REWARDS = ("value_exponent", "reward_prior", "reward_power")  # made anew of the same estimates
KNOBS = ("objective", "reference", *ARGUMENTS, *REWARDS, "learning_rate", "epochs", "seed")
START = None  # stands for a setting: the parameters that all others start from
_ROWS = 64
_TOLD = 20  # steps between words of progress


def read_settings(path: str, config: Config) -> list[dict]:
  """The settings to try: a JSON list of objects, each some of KNOBS.

  Raises:
    ConfigError: no such file, not such a list, or a knob that is unknown or not allowed.
  """
  try:
    with open(path, encoding="utf-8") as file:
      found = json.load(file)
  except (OSError, ValueError) as error:
    raise ConfigError(f"--settings={path} is not allowed: {error}") from error
  if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
    raise ConfigError(f"--settings={path} is not allowed: a JSON list of objects, at least one")
  for number, one in enumerate(found):
    where = f"--settings={path}, entry {number}"
    for name in one:
      if name not in KNOBS:
        raise ConfigError(f"{where}: {name!r} is not allowed: any of {', '.join(KNOBS)}")
    try:
      chosen = registry.validate(with_knobs(config, one))
    except (ConfigError, TypeError) as error:
      raise ConfigError(f"{where}: {error}") from error
    if chosen.objective.objective not in OBJECTIVES:
      name = chosen.objective.objective
      raise ConfigError(
        f"{where}: objective={name!r} is not allowed: any of {', '.join(OBJECTIVES)}"
      )
  return found


class SettingTask(PreferenceTask):
  """A setting as a task: its lists lie on the device, its numbers are arguments of the step.

  Args:
    config: of the setting.
    inputs: data, tokenizer and features of the start.
    examples: requests in the order of the sweep.
    lists: of all these requests, ascending, with the rewards of the setting.
    step: of all settings, compiled once: (state, lists, rows of the batch, knobs) -> (state,
      metrics).
  """

  def __init__(self, config: Config, inputs: Inputs, examples: np.ndarray,
               lists: PreferenceBatch, step: Callable):  # fmt: skip
    super().__init__(config, inputs)
    t = self.training
    # The order of this setting's own epochs and seed.
    self.order = TrainingOrder(examples, t.batch_size, t.seed, t.data_order == "shuffled")
    self._requests = np.sort(examples)
    self._lists = lists
    self._step = step

  def prepare(self) -> None:
    """Nothing: the parameters are the start's."""

  def make_batch(self, requests: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Where the requests stand among the lists."""
    del draw
    # Requests are sorted, so their place is found by bisection.
    return np.searchsorted(self._requests, requests)

  def make_step(self, optimizer: Optimizer, shardings: TrainState) -> Step:
    """The step of all settings, with the numbers of this one."""
    del optimizer, shardings
    p = self.config.preference
    t = self.training
    # One of the objectives has share 1. As a number it is an argument, and no program
    # is compiled for it.
    share = [self.config.objective.objective == name for name in OBJECTIVES]
    knobs = {name: jnp.asarray(getattr(p, name), jnp.float32) for name in ARGUMENTS} | {
      "share": jnp.asarray(share, jnp.float32),
      "reference": jnp.asarray(p.reference),
      "learning_rate": jnp.asarray(t.learning_rate, jnp.float32),
      "steps": jnp.asarray(self.total_steps, jnp.int32),
      "seed": jnp.asarray(t.seed, jnp.uint32),
    }
    return lambda state, rows: self._step(state, self._lists, rows, knobs)


class Sweep:
  """Trains and scores settings, one after the other, by the one trainer.

  Args:
    config: what the settings have in common; --init_from is the start. One device works.
    inputs: data, tokenizer and features of the start.
    told: hears what is done, how much of it, and of how much.

  Raises:
    ConfigError, DataError, FileNotFoundError: what a run by these settings would refuse.
  """

  def __init__(
    self, config: Config, inputs: Inputs, told: Callable[[str, int, int], None] = lambda *_: None
  ):
    self._config = config
    self._inputs = inputs
    self._told = told
    self._task = task = PreferenceTask(config, inputs)
    self._start = request_task.load_params(load_config(config.training.init_from), task.model)
    self._requests = np.sort(task.order.examples)
    model = reward_model_of(config, inputs)
    self._estimates = _Remembered(model) if model else None
    self._ranker = request_task.make_ranker(task.model, inputs.index, inputs.ecpm, config.search)
    self._contexts = _Kept(inputs.contexts(config, "valid"))
    self._step = jax.jit(self._one_step, donate_argnums=0)

  def score(self, params: Any) -> dict:
    """Valid metrics of the lists by likelihood, and by log p + .3 log E[value]; entropy of the
    former.
    """
    requests = protocols.eval_requests(
      self._inputs.dataset, "valid", self._config.data.target_behavior
    )
    found = self._ranker.rank(params, self._contexts, requests.request, sweep_table.DEPTH)
    worth_RK = found.logp_RK + sweep_table.VALUE_POWER * np.log(
      np.maximum(found.value_RK, LEAST_VALUE)
    )
    # Padding goes to the end, whatever its value is.
    order = np.argsort(-np.where(found.ad_RK >= 0, worth_RK, -np.inf), axis=1, kind="stable")
    cuts = protocols.protocol_of(self._inputs.dataset.name).ks
    scored = {}
    for name, ad_RK in (
      ("valid", found.ad_RK),
      ("by_value", np.take_along_axis(found.ad_RK, order, axis=1)),
    ):
      ratios = metrics.per_request(ad_RK[:, : max(cuts)], requests, cuts)
      scored[name] = {metric: float(ratio.value) for metric, ratio in ratios.items()}
    return {**scored, "entropy": metrics.list_entropy(found.logp_RK)}

  def run(self, setting: Mapping[str, Any] | None) -> dict:
    """Trains one setting and scores it, or START."""
    return self.score(self._start if setting is START else self.train(setting))

  def train(self, setting: Mapping[str, Any]) -> Any:
    """Parameters after the passes of a setting.

    Raises:
      DivergedError: the loss stopped being finite.
      Stopped: asked to stop.
    """
    # The setting's numbers take the place of the config's, and everything else stays.
    config = with_knobs(self._config, dict(setting))
    lists = self._lists_with(config.preference)
    task = SettingTask(config, self._inputs, self._task.order.examples, lists, self._step)
    params = jax.tree.map(jnp.array, self._start)  # copies: the step takes its state's place
    optimizer = state_lib.make_optimizer(task.training, task.total_steps)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    trainer = Trainer(task, state)

    def on_progress(progress: loop.Progress) -> None:
      if progress.log:
        self._told("steps", progress.step, progress.total_steps)

    schedule = loop.Schedule(trainer.total_steps, _TOLD)
    result = loop.fit(state, trainer.step, trainer.make_batch, schedule, on_progress=on_progress)
    list_cache.go_on(result, f"the setting {dict(setting)}")
    return result.state.params

  def _one_step(self, state: TrainState, lists: PreferenceBatch, rows: jax.Array, knobs: Mapping):
    """The training step of a setting whose numbers are arguments."""
    config = self._config
    task = self._task
    # Rows of the lists on the device: no batch is sent.
    batch = jax.tree.map(lambda x: x[rows], lists)
    unknown = jnp.full_like(batch.reference_logp_BC, NO_REFERENCE)
    batch = batch._replace(
      reference_logp_BC=jnp.where(knobs["reference"], batch.reference_logp_BC, unknown)
    )
    # Traced values in a frozen config: the loss reads them as it would read numbers.
    p = dataclasses.replace(
      config.preference, reference=True, **{name: knobs[name] for name in ARGUMENTS}
    )
    loss = make_preference_loss(
      task.model, config.objective, p, self._inputs.ecpm, config.data.targets,
      functools.partial(_chosen, knobs["share"]),
    )  # fmt: skip
    training = dataclasses.replace(config.training, learning_rate=knobs["learning_rate"])
    optimizer = state_lib.make_optimizer(training, knobs["steps"])
    return make_train_step(loss, optimizer, knobs["seed"])(state, batch)

  def _lists_with(self, p: PreferenceConfig) -> PreferenceBatch:
    """The lists of all requests with the rewards of a setting."""
    return self._lists._replace(
      reward_BC=self._rewards(tuple(getattr(p, name) for name in REWARDS))
    )

  @functools.cached_property
  def _lists(self) -> PreferenceBatch:
    """The lists of all requests, on the device."""
    made, _ = self._candidates
    parts = [self._task.lists_of(made, some) for some in _batches(self._requests)]
    return jax.tree.map(lambda *x: jnp.asarray(np.concatenate(x)), *parts)

  @functools.cached_property
  def _candidates(self) -> tuple[Candidates, np.ndarray]:
    """The start's candidates of all requests, without rewards, and what a reward is told of
    their log p [R, C].
    """
    logp_parts = []

    def nothing(requests, ad_BC, logp_BC):
      del requests
      logp_parts.append(logp_BC)
      return np.zeros(ad_BC.shape, np.float32)

    maker = self._task.candidate_maker(nothing)
    number = len(self._requests)
    made = maker.make(
      self._start, self._requests, lambda done: self._told("candidates", done, number), _ROWS
    )
    return made, np.concatenate(logp_parts)

  @functools.lru_cache(maxsize=8)  # noqa: B019 - a sweep lives as long as its process
  def _rewards(self, values: tuple[float, ...]) -> jax.Array:
    preference = dataclasses.replace(
      self._config.preference, **dict(zip(REWARDS, values, strict=True))
    )
    made, logp_RC = self._candidates
    rewarder = Rewarder(preference, self._task.contexts, self._inputs.dataset.ads, self._estimates)
    rows = _batches(np.arange(len(self._requests)))
    parts = [rewarder(self._requests[some], made.ad_RC[some], logp_RC[some]) for some in rows]
    return jnp.asarray(np.concatenate(parts))


def _chosen(share, config, *lists) -> tuple[jax.Array, jax.Array]:
  """`list_loss` of the objective whose share is 1; the others' are 0."""
  found = [list_loss(name, config, *lists) for name in OBJECTIVES]
  # All objectives are computed, and all but one times 0: the price of one program for all.
  return tuple(sum(share[i] * one[part] for i, one in enumerate(found)) for part in (0, 1))


def _batches(numbers: np.ndarray) -> list[np.ndarray]:
  return [numbers[begin : begin + _ROWS] for begin in range(0, len(numbers), _ROWS)]


class _Remembered:
  """A reward model that is asked once for each batch of requests, whose ads are the same each
  time.
  """

  def __init__(self, model):
    self._model = model
    self._known = {}

  def estimate(self, requests_B, ads_BC):
    key = requests_B.tobytes()
    if key not in self._known:
      self._known[key] = self._model.estimate(requests_B, ads_BC)
    return self._known[key]


class _Kept:
  """Contexts whose batches are made once, and then lie on the device."""

  def __init__(self, contexts):
    self._contexts = contexts
    self._known = {}

  def batch(self, requests):
    key = requests.tobytes()
    if key not in self._known:
      self._known[key] = jax.tree.map(jnp.asarray, self._contexts.batch(requests))
    return self._known[key]


class Results:
  """What a sweep found, in <folder>/sweep.json and sweep.md; settings that stand there are not
  trained again.

  Args:
    folder: where they lie.
    config: of the sweep: results of other lists, another start or another model stay beside its
      own, apart from them.

  Raises:
    ConfigError: a sweep.json that is none.
  """

  def __init__(self, folder: str, config: Config):
    self._folder = folder
    self._common = json.loads(json.dumps(scoring.shaping(config)))  # in JSON's types
    self._path = os.path.join(folder, "sweep.json")
    self.found: list[dict] = []
    if os.path.exists(self._path):
      try:
        with open(self._path, encoding="utf-8") as file:
          self.found = json.load(file)["found"]
      except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
          f"--workdir={folder} is not allowed: its sweep.json is none ({error})"
        ) from error

  def has(self, setting: Mapping | None) -> bool:
    """Whether a setting was tried with the common settings of this sweep."""
    return any(one["setting"] == setting and one["common"] == self._common for one in self.found)

  def add(self, setting: Mapping | None, scores: Mapping) -> None:
    """Keeps the scores of a setting; both files are written anew."""
    self.found.append({"setting": setting, "common": self._common, **scores})
    report_tables.write_json(self._path, {"found": self.found})
    report_tables.write_text(
      os.path.join(self._folder, "sweep.md"), sweep_table.format_markdown(self.found)
    )
