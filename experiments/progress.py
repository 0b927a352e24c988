"""How a long job tells where it stands: rate and ETA, on one line of a terminal."""

import sys
import time

from gr4ad_jax.training import loop
from gr4ad_jax.training.cost import StepCost


def duration(seconds: float) -> str:
  """Minutes and seconds: `3:07`."""
  return "unknown" if seconds == float("inf") else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def show_cost(cost: StepCost) -> None:
  """Three lines at the start of a training: parameters, memory, floating-point operations."""
  print("\n".join(cost_lines(cost)), flush=True)


def cost_lines(cost: StepCost) -> list[str]:
  """What `show_cost` prints."""
  sizes = ", ".join(
    f"{name} {_bytes(size)}"
    for name, size in (
      ("arguments", cost.argument_bytes), ("temporaries", cost.temporary_bytes), ("peak", cost.peak_bytes),
    )
  )  # fmt: skip
  xla = "unknown" if cost.xla_flops is None else f"{_flops(cost.xla_flops)}"
  peak = "unknown" if cost.peak_flops is None else f"{cost.peak_flops / 1e12:,.1f} TFLOP/s"
  return [
    f"parameters: {cost.parameters:,}",
    f"memory of a device: {sizes}",
    f"a step: {_flops(cost.model_flops)} of the model, {xla} by XLA's count; peak of the devices {peak}",
  ]


def _bytes(size: int) -> str:
  return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _flops(count: float) -> str:
  return f"{count / 1e12:.2f} TFLOP" if count >= 1e12 else f"{count / 1e9:.3f} GFLOP"


def show_progress(progress: loop.Progress) -> None:
  """One line that is rewritten on a terminal; one every --log_every steps elsewhere."""
  tty = sys.stdout.isatty()
  if not (progress.log or tty or progress.valid):
    return
  line = (
    f"step {progress.step}/{progress.total_steps}  loss {progress.metrics['loss']:.3f}  "
    f"{progress.steps_per_second:.2f} steps/s"
  )
  if progress.requests_per_second:
    line += f", {progress.requests_per_second:,.0f} requests/s, {progress.tokens_per_second:,.0f} tokens/s"
  if progress.utilization is not None:
    line += f", MFU {100 * progress.utilization:.1f} %"
  line += f"  ETA {duration(progress.eta_seconds)}"
  if progress.valid:
    line += "  valid " + "  ".join(f"{name} {value:.4f}" for name, value in progress.valid.items())
  kept = progress.valid or progress.step == progress.total_steps
  print(f"\r\033[K{line}" if tty else line, end="\n" if kept or not tty else "", flush=True)


class RoundProgress:
  """The same for what is done between steps, such as making candidates; elsewhere than on a terminal, now and then."""

  def __init__(self, every_seconds: float = 10.0):
    self._every, self._began, self._told = every_seconds, None, 0.0

  def __call__(self, what: str, done: int, total: int) -> None:
    """Hears that `done` of `total` are made."""
    now, tty, last = time.monotonic(), sys.stdout.isatty(), done >= total
    self._began = self._began or (now, done)
    since, first = self._began
    if tty or last or now - self._told >= self._every:
      self._told = now
      rate = (done - first) / max(now - since, 1e-9)
      line = f"{what} {done}/{total}  {rate:.0f}/s  ETA {duration((total - done) / rate if rate else float('inf'))}"
      print(f"\r\033[K{line}" if tty else line, end="\n" if last or not tty else "", flush=True)
    if last:
      self._began = None
