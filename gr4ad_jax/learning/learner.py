"""The learner: reads a stream, predicts what comes, learns from it, and promotes what is good.

A round is some groups of visits. At its beginning the learner's latest checkpoint, the one in use
and the run's own predict the round's requests; the guard then promotes the latest, or puts it aside
and goes back to the one in use. Then the round is learned from, and saved.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.config import ConfigError
from gr4ad_jax.features.batches import slot_features
from gr4ad_jax.learning import guard, prequential
from gr4ad_jax.learning.drift import Drift
from gr4ad_jax.learning.examples import Group
from gr4ad_jax.learning.learn_task import ENDLESS, LearnTask
from gr4ad_jax.learning.lists import Lists
from gr4ad_jax.learning.prequential import Prediction
from gr4ad_jax.learning.promotions import Promotions
from gr4ad_jax.locks import InUseError, Lock
from gr4ad_jax.requests import request_task
from gr4ad_jax.training import loop
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training.checkpoint import Checkpointer
from gr4ad_jax.training.preemption import Preemption
from gr4ad_jax.training.state import TrainState
from gr4ad_jax.training.trainer import Trainer
from gr4ad_jax.training.writers import open_writers

_LEARNED = 256  # requests of before the stream that features are compared with
_LEFT_OUT = "left out"  # how a round ended that taught nothing
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Round:
  """How a round fared.

  Attributes:
    step: steps done.
    visits: that this process has learned from.
    rate: of them a second, waiting left out.
    lag: events of the stream that were not read.
    verdict: on the checkpoint that the round began with; None: it began with the run's own.
  """

  step: int
  visits: int
  rate: float
  lag: int
  verdict: guard.Verdict | None


@dataclasses.dataclass(frozen=True)
class Learned:
  """How a call of `Learner.run` ended.

  Attributes:
    state: the last state.
    status: 'ended', all that the stream holds was learned from but for a rest that makes no round;
      or 'stopped', as was asked for. Both are saved.
  """

  state: TrainState
  status: str


class Learner:
  """Learns from a task's stream.

  Args:
    task: of a run and a stream.
    guarded: whether checkpoints are promoted and refused; else the learner only learns.
    depth: ads a list of the predictions.
    on_predicted: hears of each group's predictions.
    on_round: hears of each round.
  """

  def __init__(
    self,
    task: LearnTask,
    *,
    guarded: bool = True,
    depth: int = guard.AT,
    on_predicted: Callable[[Group, Prediction], None] = lambda *_: None,
    on_round: Callable[[Round], None] = lambda _: None,
  ):
    self._task = task
    self._guarded = guarded
    self._depth = depth
    self._on_predicted = on_predicted
    self._on_round = on_round
    self.promotions = Promotions(task.folder)
    self._in_use: tuple[int | None, Any] = None, None  # a step and its parameters
    self._seconds = 0.0
    self._visits = 0

  def run(self, follow: bool = True) -> Learned:
    """Learns until it is asked to stop (SIGTERM, Ctrl-C).

    Args:
      follow: whether to wait for more at the stream's end; else it ends there.

    Raises:
      ConfigError: another process learns in this directory; or as `run.load_params`.
      DataError: the stream is not the one that was learned from.
    """
    task = self._task
    # Around all of it: what asks for a stop while visits are gathered or judged is heard as well.
    with (
      _alone(task.folder),
      Preemption() as preemption,
      Checkpointer(task.checkpoints) as checkpointer,
    ):
      state = self._started(checkpointer)
      writer = open_writers(task.folder, int(state.step))
      try:
        return self._rounds(state, checkpointer, writer, preemption, follow)
      finally:
        writer.close()

  def _started(self, checkpointer: Checkpointer) -> TrainState:
    """The learner's last checkpoint, else the run's parameters and a fresh optimiser."""
    task = self._task
    self._trainer = trainer = Trainer(task)
    self._start = request_task.load_params(task.config, task.model)
    self._lists = Lists(task.model, task.inputs.ecpm, task.config.search, task.ads.index)
    learned = task.inputs.learned(task.config)
    # Evenly spread over what was learned, so that all its seasons are in it.
    some = task.contexts.batch(learned[:: max(1, len(learned) // _LEARNED)])
    self._drift = Drift(some, slot_features(task.config.data))
    if checkpointer.steps:
      restored = checkpointer.restore(state_lib.abstract(trainer.state))
      task.source.restore(restored.data)
      return restored.state
    return self._at(trainer.state, task.first_step, self._start)

  def _at(self, state: TrainState, step: int, params: Any, opt_state: Any = None) -> TrainState:
    """A state of given parameters. Without those of an optimiser it has a fresh one."""
    # Copies, in the state's places: steps donate what they are given.
    placed = jax.tree.map(lambda x, like: jax.device_put(jnp.copy(x), like.sharding), params,
                          state.params)  # fmt: skip
    if opt_state is None:
      fresh = self._trainer.optimizer.init(placed)
      opt_state = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), fresh,
                               state.opt_state)  # fmt: skip
    number = jax.device_put(jnp.asarray(step, state.step.dtype), state.step.sharding)
    return TrainState(number, placed, opt_state)

  def _rounds(
    self, state, checkpointer: Checkpointer, writer, preemption: Preemption, follow: bool
  ) -> Learned:
    task = self._task
    source = task.source
    length = task.config.learn.round_groups
    while True:
      step = int(state.step)
      # The round of the step's group, whose bounds are multiples of its length.
      first = source.group_of(step) // length * length
      begin = task.first_step + first * source.steps_per_group
      end = begin + length * source.steps_per_group
      stopped = functools.partial(preemption.asked, step)
      whole = source.gather(first, length, stopped if follow else lambda: True)
      # All up to here is saved, so this is the place to stop: the round need not be judged first.
      if stopped():
        return Learned(state, "stopped")
      if not whole:
        return Learned(state, "ended")
      began = time.monotonic()
      verdict = None
      # A learner that was stopped inside a round goes on with it, and does not judge it twice.
      if step == begin:  # else it was judged before the learner was stopped
        groups = source.groups(first, length)
        judged = self._judged(state, groups, writer, stopped)
        if judged is None:
          return Learned(state, "stopped")
        state, verdict = judged
        if task.config.learn.refit_steps:
          # As a new run begins.
          state = self._at(state, step, self._trainer.state.params)
      state, status = self._learned(state, first, end, checkpointer, writer)
      if status == "preempted":
        return Learned(state, "stopped")
      self._seconds += time.monotonic() - began
      # Groups of a day have as many as came on that day.
      if status != _LEFT_OUT:
        self._visits += sum(len(group.visits) for group in source.groups(first, length))
      self._tell(end, verdict)

  def _learned(self, state, first: int, end: int, checkpointer, writer) -> tuple[TrainState, str]:
    """Takes the steps of a round, up to `end`. A round that the learner cannot bear is left out."""
    task = self._task
    trainer = self._trainer
    source = task.source
    try:
      # With lists a batch has one of two forms, and each is compiled when it first comes.
      if not task.config.learn.list_weight:
        trainer.compile(state)
      schedule = loop.Schedule(ENDLESS, task.training.log_every, 0, end, end)
      result = loop.fit(
        state, trainer.step, trainer.make_batch, schedule,
        checkpointer=checkpointer, writer=writer, cost=trainer.cost, position=source.state,
      )  # fmt: skip
      return result.state, result.status
    except loop.DivergedError as error:
      if error.of_data:
        # Data that are not finite would fail again after going back.
        raise
      _log.warning("the learner goes back: %s", error)
    source.forget(first, task.config.learn.round_groups)
    state = self._back(trainer.state, end)
    # Saved at the round's end, so that a kill now does not meet the same round again.
    checkpointer.save(state, data=source.state(end))
    checkpointer.wait()
    return state, _LEFT_OUT

  def _judged(
    self, state, groups: Sequence[Group], writer, stopped: Callable[[], bool]
  ) -> tuple[TrainState, Any] | None:
    """The state to learn the groups from, and what the guard found of the one that came; None: it
    was asked to stop meanwhile, and nothing is changed.
    """
    task = self._task
    step = int(state.step)
    is_start = step == task.first_step
    params = {guard.CANDIDATE: state.params, guard.START: self._start}
    # At the learner's own step the parameters in use are the candidate itself.
    if self._guarded and self.promotions.in_use not in (None, step):
      params[guard.IN_USE] = self._params_in_use(state)
    if is_start:
      del params[guard.START]  # it is the candidate
    found = []
    for group in groups:
      found.append(self._predicted(group, params))
      # A list takes long beside a busy server, and whoever waits would wait for all of them.
      if stopped():
        return None
    lists = {name: np.concatenate([one.ad_RK[name] for one in found]) for name in params}
    requests = prequential.joined([one.requests for one in found])
    bound = task.config.learn.guard_bound
    verdict = guard.judge(lists, requests, len(task.ads), bound)
    if verdict.requests:
      told = prequential.scalars(lists, requests, groups[0].visits[0].begin)
      self._write(step, told, verdict, groups, found, writer)
    if is_start or not self._guarded:
      return state, None
    # What made the candidate is the round before this one.
    before = groups[0].number - len(groups)
    if not verdict.requests:
      return state, verdict
    if verdict.promote:
      # With the neighbours by which it was judged.
      self.promotions.promote(step, task.source.keep_neighbors(groups[0].number))
      self._in_use = None, None
      return state, verdict
    place = self.promotions.put_aside(step)
    _log.warning(
      "checkpoint %d is refused: recall@10 %.4f on %d requests, %.4f below what is in use; "
      "it lies in %s, and the learner goes back",
      step, verdict.recall[guard.CANDIDATE], verdict.requests, -verdict.worst, place,
    )  # fmt: skip
    # Before the state goes back, so that what made it worse is not drawn again.
    task.source.forget(before, len(groups))
    return self._back(state, step), verdict

  def _predicted(self, group: Group, params: Mapping[str, Any]) -> Prediction:
    """Lists of a group's visits by several parameters, in batches of one shape."""
    examples = group.examples
    places, requests = examples.requests()
    rows = self._task.training.batch_size
    found = {name: [] for name in params}
    for begin in range(0, len(places), rows):
      some = places[begin : begin + rows]
      batch = examples.batch(np.resize(some, rows))  # filled up with copies
      for name, one in params.items():
        lists = self._lists.rank(one, batch, self._depth)
        found[name].append([column[: len(some)] for column in lists])
    none = np.full((0, self._depth), -1, np.int32), np.zeros((0, self._depth), np.float32)
    columns = {
      name: [np.concatenate(parts) for parts in zip(none, *batches, strict=True)]
      for name, batches in found.items()
    }
    ad_RK, logp_RK = ({name: both[at] for name, both in columns.items()} for at in range(2))
    prediction = Prediction(group.visits, places, requests, ad_RK, logp_RK)
    self._on_predicted(group, prediction)
    return prediction

  def _params_in_use(self, state: TrainState) -> Any:
    step = self.promotions.in_use
    if self._in_use[0] != step:
      with Checkpointer(self.promotions.checkpoints, read_only=True) as kept:
        self._in_use = step, kept.restore_params(state_lib.abstract(state.params), step)
    return self._in_use[1]

  def _back(self, like: TrainState, step: int) -> TrainState:
    """The state in use, at another step: what has come since is left out."""
    used = self.promotions.in_use if self._guarded else None
    if used is None:
      return self._at(like, step, self._start)
    with Checkpointer(self.promotions.checkpoints, read_only=True) as kept:
      found = kept.restore(state_lib.abstract(like), used).state
    return self._at(like, step, found.params, found.opt_state)

  def _write(
    self, step: int, told: dict[str, float], verdict, groups, found: Sequence[Prediction], writer
  ) -> None:
    """Metrics of a round's predictions, and of drift."""
    scalars = told | {"guard/promoted": float(verdict.promote)}
    batch = groups[0].examples.batch(found[0].places) if len(found[0].places) else None
    if batch is not None:
      first = found[0]
      ours = first.ad_RK[guard.CANDIDATE], first.requests
      measured = self._drift.measure(
        batch, first.logp_RK[guard.CANDIDATE], *ours, verdict.recall[guard.CANDIDATE]
      )
      scalars |= {f"drift/{name}": value for name, value in measured.items()}
    source = self._task.source
    scalars |= source.told
    scalars["stream/lag"] = source.feed.lag
    writer.write(step, scalars)

  def _tell(self, step: int, verdict) -> None:
    rate = self._visits / self._seconds if self._seconds else 0.0
    lag = self._task.source.feed.lag
    self._on_round(Round(step, self._visits, rate, lag, verdict))


@contextlib.contextmanager
def _alone(folder: str) -> Iterator[None]:
  """A block in which no other process learns in a folder. Raises ConfigError where one does."""
  os.makedirs(folder, exist_ok=True)
  try:
    with Lock(os.path.join(folder, "lock")):
      yield
  except InUseError as error:
    raise ConfigError(f"another process learns in {folder}") from error
