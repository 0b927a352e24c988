"""Metrics that add up: ratios of sums, over micro-batches, steps, devices and processes."""

import dataclasses
from typing import Any

import flax.struct
import numpy as np

from gr4ad_jax.parallel import distributed


@flax.struct.dataclass
class Ratio:
  """A metric whose value is a ratio of two sums, such as intersection over union.

  A mean of such ratios over batches is not the ratio over all examples. So the sums are kept apart
  until the value is asked for.

  Attributes:
    numerator: sum over the examples seen, a scalar.
    denominator: likewise.
  """

  numerator: Any
  denominator: Any

  def merge(self, other: "Ratio") -> "Ratio":
    """Over the examples of both."""
    return Ratio(self.numerator + other.numerator, self.denominator + other.denominator)

  @property
  def value(self) -> float:
    """The ratio; NaN where nothing was counted."""
    return float(self.numerator) / float(self.denominator) if self.denominator else float("nan")


def is_ratio(metric: Any) -> bool:
  """Whether a metric adds up; else it is a scalar of one step."""
  return isinstance(metric, Ratio)


def mean_of_parts(metrics: dict[str, Any], parts: int) -> dict[str, Any]:
  """Metrics of a step by their sums over its micro-batches: means of the scalars, ratios as they
  are.
  """
  return {name: x if is_ratio(x) else x / parts for name, x in metrics.items()}


class Window:
  """Ratios since the last metric line, in double precision on the host.

  Args:
    saved: what `state` gave, of a run that goes on.
  """

  def __init__(self, saved: dict[str, list[float]] | None = None):
    # What a checkpoint kept of the line that was not written yet.
    self._sums = {name: Ratio(*pair) for name, pair in (saved or {}).items()}

  def add(self, metrics: dict[str, Any]) -> dict[str, float]:
    """Takes in a step's metrics, read from the devices.

    Returns:
      Values by name: scalars as they are, ratios over the window. A ratio of which nothing was
      counted is no number, and left out.
    """
    values = {}
    for name, metric in metrics.items():
      if not is_ratio(metric):
        values[name] = float(metric)
        continue
      one = Ratio(float(metric.numerator), float(metric.denominator))
      known = self._sums.get(name)
      self._sums[name] = known.merge(one) if known else one
      # A ratio of which nothing was counted yet has no value, and is left out.
      if self._sums[name].denominator:
        values[name] = self._sums[name].value
    return values

  def clear(self) -> None:
    """A line was written: the next one counts anew."""
    self._sums = {}

  def state(self) -> dict[str, list[float]]:
    """The sums, as JSON, to be kept with a checkpoint between two lines."""
    return {name: list(dataclasses.astuple(ratio)) for name, ratio in self._sums.items()}


def over_processes(ratios: dict[str, Ratio]) -> dict[str, float]:
  """Values of ratios whose sums each process has of its own examples. All must call it.

  Args:
    ratios: of this process; numbers or arrays of one number.
  """
  # In one order on all processes, since only numbers are sent.
  names = sorted(ratios)
  sums_N2 = np.asarray([[float(x) for x in dataclasses.astuple(ratios[n])] for n in names])
  # Bytes pass through the devices as they are, where doubles would be rounded to single precision.
  # [1, bytes] of each process become [P, bytes].
  bytes_PN = distributed.gather(np.frombuffer(sums_N2.tobytes(), np.uint8)[None])
  total_N2 = np.frombuffer(np.ascontiguousarray(bytes_PN), np.float64).reshape(-1, len(names), 2)
  return {name: Ratio(*pair).value for name, pair in zip(names, total_N2.sum(0), strict=True)}
