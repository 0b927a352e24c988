"""Learning from a stream as a task: the model of a trained run, and batches of what comes next."""

import dataclasses
import functools
import os

import jax
import numpy as np

from gr4ad_jax.config import Config, ConfigError, is_trained
from gr4ad_jax.evaluation import protocols
from gr4ad_jax.features.histories import Histories
from gr4ad_jax.features.neighbors import CoVisitNeighbors, NeighborFolds
from gr4ad_jax.features.state import State
from gr4ad_jax.features.trends import Trends
from gr4ad_jax.learning.examples import Known
from gr4ad_jax.learning.feed import Feed
from gr4ad_jax.learning.known_ads import KnownAds
from gr4ad_jax.learning.promotions import LEARNER
from gr4ad_jax.learning.stream_source import StreamSource
from gr4ad_jax.learning.visits import Visits
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.people.neighbors import GrowingNeighbors
from gr4ad_jax.preference.preference_task import make_preference_loss, with_lists
from gr4ad_jax.preference.waiting_lists import WaitingLists
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.requests.request_task import RequestTask
from gr4ad_jax.runs import run
from gr4ad_jax.streams.stream import Stream
from gr4ad_jax.training.state import Optimizer, TrainState
from gr4ad_jax.training.step import LossFn, Step
from gr4ad_jax.training.task import Evaluate, Told
from gr4ad_jax.zoo import registry
from gr4ad_jax.zoo.gr4ad_items import GR4ADItems
from gr4ad_jax.zoo.items import ItemModel

ENDLESS = 2**31 - 1  # steps: the largest that a state counts


class LearnTask(RequestTask):
  """Goes on from a trained run with the visits of a stream, by VSL, and with --list_weight from the
  lists with rewards in it, by VSL and RSPO under the unified weights.

  Its checkpoints and metrics lie in a folder of their own; the run's stay as they are.

  Args:
    config: of the run; its section `learn` says how.
    inputs: of the run.
    stream: where events and ads come from.
    folder: where its checkpoints and metrics lie; empty: `promotions.LEARNER` of the
      run's directory.

  Attributes:
    ads: those of the run and of the stream.
    known: what contexts read beside the users' histories.
    first_step: the run's step, from which the learner counts on: so no two checkpoints of a run
      have one number.
  """

  def __init__(self, config: Config, inputs: Inputs, stream: Stream, folder: str = ""):
    training = dataclasses.replace(config.training, eval_every=0, init_from="")
    # The run's schedule has come to its end. A stream has none: the rate stays. A refit is a short
    # run, by the run's own schedule.
    if not config.learn.refit_steps:
      training = dataclasses.replace(
        training, learning_rate=config.learn.learn_rate, schedule="constant"
      )
    super().__init__(dataclasses.replace(config, training=training), inputs)
    # After `super`, which takes the run's own directory.
    self.folder = folder or os.path.join(config.workdir, LEARNER)
    self.first_step = run.scored_step(config)
    self._stream = stream
    dataset = inputs.dataset
    features = os.path.join(config.workdir, "features")
    neighbors = CoVisitNeighbors.load(features)
    self.ads = KnownAds(
      dataset.ads, inputs.index.codes_NT, inputs.tokenizer, config.serving.overlay
    )
    # A server's neighbours: those of all users, with no fold left out.
    depth = protocols.target_depth(dataset.behaviors, config.data.target_behavior)
    self.known = Known(
      self.ads, NeighborFolds.of(neighbors), config.data, depth, dataset.attribution_days
    )
    # The run's whole log, whatever its splits: all of it is known when the stream begins.
    histories = Histories(dataset.events, 60 * config.data.session_gap_minutes)
    self._state = State(config.data, self.ads, neighbors, histories, Trends.load(features))

  @classmethod
  def check(cls, config: Config) -> None:
    """Raises ConfigError for what nothing can be learned from, or by."""
    if not is_trained(config.workdir):
      raise ConfigError(
        f"--workdir={config.workdir} is not allowed: it holds no whole checkpoint to go on from"
      )
    if config.data.promotions:
      raise ConfigError(
        f"--workdir={config.workdir} is not allowed: it has --promotions, of which a stream tells "
        "nothing"
      )
    if issubclass(registry.find(config), (ItemModel, GR4ADItems)):
      raise ConfigError(
        f"--model={config.model.model} is not allowed: it has a row for each ad, and new ones come"
      )
    if config.learn.list_weight:
      _check_lists(config)
    if config.learn.refit_steps % config.learn.round_groups:
      raise ConfigError(
        f"--refit_steps={config.learn.refit_steps} is not allowed: a multiple of "
        f"--round_groups={config.learn.round_groups}"
      )

  @classmethod
  def over(
    cls, config: Config, stream: Stream, told: Told | None = None, folder: str = ""
  ) -> "LearnTask":
    """The task of a trained run and a stream. Only reads.

    Raises:
      ConfigError, DataError, OSError: as `RequestTask.open`.
    """
    cls.check(config)
    inputs = inputs_lib.prepare_inputs(config, config.workdir, told)
    inputs_lib.check_same_log(config, inputs.dataset)
    return cls(config, inputs, stream, folder)

  @functools.cached_property
  def source(self) -> StreamSource:
    """Groups of visits."""
    config = self.config
    visits = Visits(self._state, 60 * config.data.session_gap_minutes)
    feed = Feed(self._stream, visits, self.ads, self.inputs.dataset.behaviors)
    # Old requests are replayed beside new visits, so that what was learned is not forgotten.
    old = self.inputs.contexts(config, "train"), self.inputs.learned(config)
    t = self.training
    about = config.learn, t.batch_size, t.seed, self.first_step
    every = config.learn.neighbor_visits
    # What the run learned from, which its neighbours know. Without the knob nobody asks for it.
    (request_L, _, ad_L) = (
      self.inputs.learned_lines(config) if every else np.zeros((3, 0), np.int32)
    )
    neighbors = GrowingNeighbors(self.known.neighbors, request_L, ad_L, every)
    lists = None
    if config.learn.list_weight:
      lists = WaitingLists(self._stream, self.ads, self.inputs.tokenizer.codebooks)
    p = config.preference
    # As many candidates as a proposer with the same settings makes.
    width = config.data.targets + p.policy_candidates + len(p.pipelines) * p.other_candidates
    return StreamSource(feed, self.known, *old, *about, neighbors, lists, width)

  def make_loss(self) -> LossFn:
    """VSL; with --list_weight also the unified objective of lists, where a batch has some."""
    config = self.config
    loss = super().make_loss()
    if not config.learn.list_weight:
      return loss
    unified = dataclasses.replace(config.objective, objective="unified")
    of_lists = make_preference_loss(
      self.model, unified, config.preference, self.inputs.ecpm, config.data.targets
    )
    return with_lists(loss, of_lists, config.learn.list_weight)

  @property
  def total_steps(self) -> int:
    """Over which the rate falls: a refit's. Else as many as there can be: a stream has no end."""
    return self.config.learn.refit_steps or ENDLESS

  def make_step(self, optimizer: Optimizer, shardings: TrainState) -> Step:
    """The step of any run. The rate that it tells is that of the refit which it is of."""
    steps = self.config.learn.refit_steps
    if steps:
      told = optimizer.learning_rate
      # The optimiser counts from its own beginning, the state from the run's.
      optimizer = optimizer._replace(
        learning_rate=lambda step: told((step - self.first_step) % steps)
      )
    return super().make_step(optimizer, shardings)

  def evaluation(self, split: str) -> Evaluate | None:
    """None: what comes next judges (`guard`)."""
    del split
    return None

  def save(self) -> None:
    """Nothing: the run's files are there."""


def _check_lists(config: Config) -> None:
  """Raises ConfigError where lists cannot be learned from."""
  refused = f"--list_weight={config.learn.list_weight:g} is not allowed"
  if config.learn.refit_steps:
    raise ConfigError(f"{refused}: --refit_steps learns from visits alone")
  if not registry.find(config).learns_lists:
    raise ConfigError(f"{refused}: --model={config.model.model} learns no lists")
  # The search's log p, the reference, lacks the bias' normaliser.
  if config.model.history_bias:
    raise ConfigError(f"{refused}: with --history_bias log-probabilities cannot be compared")
  sizes = mesh_lib.parse(config.training.mesh, jax.device_count())
  parts = sizes[mesh_lib.DATA] * sizes[mesh_lib.FSDP] * config.training.accumulate
  if config.learn.list_rows % parts:
    raise ConfigError(
      f"--list_rows={config.learn.list_rows} is not allowed: a multiple of {parts}, as --batch_size"
    )
