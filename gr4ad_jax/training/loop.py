"""The training loop: step, log, evaluate, save; stop on NaN, and save first when asked to stop."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gr4ad_jax.data.schema import LARGEST
from gr4ad_jax.training.checkpoint import Checkpointer
from gr4ad_jax.training.cost import StepCost
from gr4ad_jax.training.preemption import Preemption
from gr4ad_jax.training.prefetch import Prefetcher
from gr4ad_jax.training.profiling import StepProfiler
from gr4ad_jax.training.state import TrainState
from gr4ad_jax.training.step import Metrics, Step
from gr4ad_jax.training.sums import Window
from gr4ad_jax.training.writers import Writer


class DivergedError(RuntimeError):
  """Loss or gradient stopped being finite; the message names the step and the last good checkpoint.

  Attributes:
    of_data: whether the data are to blame: then no other learning rate helps.
  """

  def __init__(self, message: str, blamed: str = ""):
    super().__init__(f"{message}; {blamed}" if blamed else message)
    self.of_data = bool(blamed)


@dataclasses.dataclass(frozen=True)
class Progress:
  """Where a run stands.

  Attributes:
    step: steps done.
    total_steps: steps of the whole run.
    steps_per_second: since this process' first step, evaluations and saves left out; 0 until it is
      known.
    eta_seconds: of the steps that remain, at that rate.
    metrics: of step `step`; ratios of sums are over the steps since the last metric line.
    valid: valid metrics, where the step was evaluated.
    log: whether `step` is one of every `log_every`, or the last.
    units_per_second: at that rate, by unit, such as {"requests": 900.0}; empty until it is known,
      or where the step's cost is not.
    utilization: model FLOPs utilisation at that rate, in [0, 1]; None where the peak of the devices
      is not known.
  """

  step: int
  total_steps: int
  steps_per_second: float
  eta_seconds: float
  metrics: dict[str, float]
  valid: dict[str, float]
  log: bool
  units_per_second: dict[str, float] = dataclasses.field(default_factory=dict)
  utilization: float | None = None


@dataclasses.dataclass(frozen=True)
class FitResult:
  """How a run ended.

  Attributes:
    state: the last state.
    status: 'done', the schedule's end (or `until`) reached; or 'preempted': saved after a request
      to stop; the same command goes on from there.
    valid_metrics: of the last evaluation of this process; empty where there was none.
    sums: of ratios since the last metric line, as `fit` takes them.
  """

  state: TrainState
  status: str
  valid_metrics: dict[str, float]
  sums: dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Schedule:
  """When things happen, in steps.

  Attributes:
    total_steps: length of the run, counted from step 0, resumed or not.
    log_every: between metric lines.
    eval_every: between evaluations; 0: only at the end.
    save_every: between checkpoints; evaluated steps and the last one are saved as well.
    until: step at which a call of `fit` returns, and saves, though the run goes on; 0: at the end
      of the run.
  """

  total_steps: int
  log_every: int = 20
  eval_every: int = 0
  save_every: int = 200
  until: int = 0

  @property
  def end(self) -> int:
    """Step at which `fit` returns."""
    return min(self.until or self.total_steps, self.total_steps)

  def last(self, step: int) -> bool:
    """Whether the run ends at `step`."""
    return step >= self.total_steps

  def logs(self, step: int) -> bool:
    """Whether `step` has a metric line."""
    return step % self.log_every == 0 or self.last(step)

  def evaluates(self, step: int) -> bool:
    """Whether `step` is evaluated."""
    return self.last(step) or bool(self.eval_every) and step % self.eval_every == 0

  def saves(self, step: int) -> bool:
    """Whether `step` is saved."""
    return step % self.save_every == 0 or step == self.end or self.evaluates(step)


def unusable(batch: Any) -> str:
  """Says which number of a batch is not finite, or has a square that is not, in float32; empty:
  none.
  """
  # Squares are asked for because the gradient's norm sums them.
  for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
    parts = [np.asarray(shard.data) for shard in getattr(leaf, "addressable_shards", ())] or [
      np.asarray(leaf)
    ]
    # Arrays on devices are looked at shard by shard: a process sees its own rows alone.
    for part in parts:
      if not np.issubdtype(part.dtype, np.floating):
        continue
      bad = part[~(np.abs(part) <= LARGEST)]  # NaN is in no order
      if bad.size:
        name = jax.tree_util.keystr(path)
        return f"its data hold {bad[0]:g} in {name}, which nothing can be learned from"
  return ""


class _Clock:
  """Rate of the steps, without compilation, evaluations and saves."""

  def __init__(self):
    self._steps = 0
    self._seconds = 0.0
    self._since = None

  def step_done(self) -> None:
    now = time.monotonic()
    # The first step after a pause has nothing to be measured from.
    if self._since is not None:
      self._seconds += now - self._since
      self._steps += 1
    self._since = now

  def pause(self) -> None:
    self._since = None

  @property
  def rate(self) -> float:
    return self._steps / self._seconds if self._seconds else 0.0


class _Run:
  """The bookkeeping of one call of `fit`, which says what its fields are."""

  def __init__(self, schedule, make_batch, checkpointer, writer, evaluate_fn, on_progress, cost,
               position, window):  # fmt: skip
    self.schedule = schedule
    self.make_batch = make_batch
    self.checkpointer = checkpointer
    self.writer = writer
    self.evaluate_fn = evaluate_fn
    self.on_progress = on_progress
    self.cost = cost
    self.position = position
    self.window = window
    self.clock = _Clock()
    self.valid_metrics: dict[str, float] = {}

  def fetch(self, step: int, metrics: Metrics) -> dict[str, float]:
    """Waits for the metrics of a step; raises DivergedError if they are not finite."""
    # Reading waits until the step is done; everything before it was only dispatched.
    found = jax.device_get(metrics)
    # It is no metric: it says whether the others can be used.
    finite = found.pop("finite")
    values = self.window.add(found)
    if not finite:
      saved = self.checkpointer.steps if self.checkpointer else []
      kept = (
        f"the last good checkpoint is step {saved[-1]}"
        if saved
        else "no checkpoint was saved before it"
      )
      message = f"loss {values['loss']}, gradient norm {values['grad_norm']} at step {step}; {kept}"
      # The batch is made again: it follows from the step's number.
      raise DivergedError(message, unusable(self.make_batch(step - 1)))
    self.clock.step_done()
    return values

  def report(self, step: int, metrics: dict[str, float], valid: dict[str, float]) -> None:
    """Tells the callback and, where a line is due, the writer."""
    logs = self.schedule.logs(step)
    rate = self.clock.rate
    cost = self.cost
    used = cost.utilization(rate) if cost and rate else None
    scalars = {}
    if logs:
      scalars = {f"train/{name}": value for name, value in metrics.items()}
      self.window.clear()
    if logs and used is not None:
      scalars["train/mfu"] = used
    scalars |= {f"valid/{name}": value for name, value in valid.items()}
    if self.writer and scalars:
      self.writer.write(step, scalars)
    if self.on_progress:
      total = self.schedule.total_steps
      eta = (total - step) / rate if rate else math.inf
      units = {name: rate * number for name, number in cost.units.items()} if cost and rate else {}
      self.on_progress(Progress(step, total, rate, eta, metrics, valid, logs, units, used))

  def boundary(self, step: int, state: TrainState, metrics: dict[str, float]) -> None:
    """Evaluates, if that is due; reports; saves.

    A run that is asked to stop at such a step evaluates too, some seconds: the resumed run begins
    after the step, so its metrics would be missing for good, and 'best' could be another step than
    the uninterrupted run's.
    """
    # The checkpoint that is saved below carries these metrics, and `best` is chosen by them.
    valid = {}
    if self.evaluate_fn and self.schedule.evaluates(step):
      valid = self.valid_metrics = {
        name: float(value) for name, value in self.evaluate_fn(state).items()
      }
    self.report(step, metrics, valid)
    if self.checkpointer:
      # Sums since the last line go with the checkpoint, so that a resumed run's next line is the
      # same.
      kept = {"sums": sums} if (sums := self.window.state()) else None
      self.checkpointer.save(state, data=self.position(step), metadata=kept, metrics=valid or None)
    # Evaluations and saves are no steps: the rate is that of steps alone.
    self.clock.pause()

  def go(
    self, state: TrainState, train_step: Step, batches: Prefetcher, preemption: Preemption,
    profiler: StepProfiler | None,
  ) -> tuple[TrainState, str]:  # fmt: skip
    """Takes the steps of `batches`; returns the last state, and 'done' or 'preempted'."""
    # The step whose metrics are still on their way.
    waiting = None
    for number, batch in batches:
      if profiler:
        profiler.begin(number, state)
      with jax.profiler.StepTraceAnnotation("train", step_num=number):
        state, metrics = train_step(state, batch)
      for metric in jax.tree.leaves(metrics):
        # on their way as soon as they are known: the fetch below finds them here
        metric.copy_to_host_async()
      step = number + 1
      if profiler:
        profiler.end(step, state)
      # The step before: the devices already work on this one.
      if waiting:
        self.report(waiting[0], self.fetch(*waiting), {})
      waiting = (step, metrics)
      # At the run's end the loop ends by itself, and is done.
      stop = preemption.asked(step) and not self.schedule.last(step)
      if stop or self.schedule.saves(step):
        self.boundary(step, state, self.fetch(*waiting))
        waiting = None
      if stop:
        return state, "preempted"
    return state, "done"


def fit(
  state: TrainState,
  train_step: Step,
  make_batch: Callable[[int], Any],
  schedule: Schedule,
  *,
  checkpointer: Checkpointer | None = None,
  writer: Writer | None = None,
  evaluate_fn: Callable[[TrainState], dict[str, float]] | None = None,
  on_progress: Callable[[Progress], None] | None = None,
  cost: StepCost | None = None,
  profiler: StepProfiler | None = None,
  workers: int = 1,
  position: Callable[[int], dict] = lambda step: {"next_step": step},
  sums: dict[str, list[float]] | None = None,
) -> FitResult:
  """Trains from `state.step` to the end of the schedule, or to its `until`.

  A step's batch and randomness depend on its number alone, and a stop waits for an evaluation that
  is due, so a run that is resumed from a checkpoint is, number by number, the run that was never
  stopped.

  Args:
    state: fresh or restored; donated.
    train_step: of `make_train_step`.
    make_batch: step number -> batch on the devices; called ahead of time, in several threads.
    schedule: when to stop, log, evaluate and save.
    checkpointer: keeps checkpoints; None: none are kept.
    writer: takes `train/…` and `valid/…` scalars, one line a step at most.
    evaluate_fn: state -> valid metrics; the checkpointer ranks by one of them.
    on_progress: called once a step, one step late.
    cost: of a step: turns the rate of steps into requests, tokens and utilisation, `train/mfu`.
    profiler: traces some of the steps.
    workers: threads that make batches.
    position: steps done -> where the data stand then, as JSON; kept with a checkpoint.
    sums: the metadata's `sums` of the checkpoint that the run goes on from: of ratios since the
      last metric line.

  Raises:
    DivergedError: a step's loss or gradient is not finite; the state of that step is not saved.
  """
  run = _Run(schedule, make_batch, checkpointer, writer, evaluate_fn, on_progress, cost,
             position, Window(sums))  # fmt: skip
  with (
    Preemption() as preemption,
    Prefetcher(make_batch, int(state.step), schedule.end, workers) as batches,
  ):
    try:
      state, status = run.go(state, train_step, batches, preemption, profiler)
    finally:
      # Also after an error: a save in the background must not be cut off.
      if checkpointer:
        checkpointer.wait()
  return FitResult(state, status, run.valid_metrics, run.window.state())
