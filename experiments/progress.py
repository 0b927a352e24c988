"""How a long job tells where it stands: rate and ETA, on one line of a terminal."""

import sys
import time
from typing import Any

from gr4ad_jax.training import loop
from gr4ad_jax.training.cost import StepCost, in_words

from . import log_lines


def duration(seconds: float) -> str:
  """Minutes and seconds: `3:07`."""
  return "unknown" if seconds == float("inf") else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def remaining(left: float, rate: float) -> str:
  """How long what is left takes, at so much a second."""
  return duration(left / rate if rate else float("inf"))


def tell(line: str) -> None:
  """A line of what a job is at, on standard error: absl's handler of the log leaves out what is
  no warning.
  """
  print(line, file=sys.stderr, flush=True)


def show_cost(cost: StepCost) -> None:
  """Three lines at the start of a training: parameters, memory, floating-point operations."""
  print("\n".join(in_words(cost)), flush=True)


def show_progress(progress: loop.Progress) -> None:
  """One line that is rewritten on a terminal; one every --log_every steps elsewhere."""
  tty = sys.stdout.isatty()
  if not (progress.log or tty or progress.valid):
    return
  line = (
    f"step {progress.step}/{progress.total_steps}  loss {progress.metrics['loss']:.3f}  "
    f"{progress.steps_per_second:.2f} steps/s"
  )
  for unit, rate in progress.units_per_second.items():
    line += f", {rate:,.0f} {unit}/s"
  if progress.utilization is not None:
    line += f", MFU {100 * progress.utilization:.1f} %"
  line += f"  ETA {duration(progress.eta_seconds)}"
  if progress.valid:
    line += "  valid " + "  ".join(f"{name} {value:.4f}" for name, value in progress.valid.items())
  kept = progress.valid or progress.step == progress.total_steps
  if tty:
    print(f"\r\033[K{line}", end="\n" if kept else "", flush=True)
    return
  numbers = {
    "step": progress.step,
    "total_steps": progress.total_steps,
    "steps_per_second": progress.steps_per_second,
    "eta_seconds": progress.eta_seconds,
  }
  numbers |= {f"{unit}_per_second": rate for unit, rate in progress.units_per_second.items()}
  numbers |= progress.metrics
  numbers |= {f"valid/{name}": value for name, value in progress.valid.items()}
  log_lines.say(line, **numbers)


def show_learning(one: Any) -> None:
  """A line a round of a learner (`learning.learner.Round`)."""
  line = f"step {one.step}  {one.visits} visits, {one.rate:.1f}/s  {one.lag} events behind"
  if one.verdict and one.verdict.requests:
    recall = "  ".join(f"{name} {value:.4f}" for name, value in one.verdict.recall.items())
    line += f"  {'promoted' if one.verdict.promote else 'refused'}: recall@10 {recall}"
  print(line, flush=True)


class RoundProgress:
  """The same for what is done between steps, such as making candidates; elsewhere than on a
  terminal, now and then.

  What is done within `quiet_seconds` is passed over in silence.
  """

  def __init__(self, every_seconds: float = 10.0, quiet_seconds: float = 0.0):
    self._every = every_seconds
    self._quiet = quiet_seconds
    self._began = None
    self._told = 0.0

  def __call__(self, what: str, done: int, total: int) -> None:
    """Hears that `done` of `total` are made."""
    now = time.monotonic()
    tty = sys.stdout.isatty()
    last = done >= total
    self._began = self._began or (now, done)
    since, first = self._began
    if now - since >= self._quiet and (tty or last or now - self._told >= self._every):
      self._told = now
      rate = (done - first) / max(now - since, 1e-9)
      line = f"{what} {done}/{total}  {rate:.0f}/s  ETA {remaining(total - done, rate)}"
      if tty:
        print(f"\r\033[K{line}", end="\n" if last else "", flush=True)
      else:
        log_lines.say(line, what=what, done=done, total=total, per_second=rate)
    if last:
      self._began = None
