"""Timing: interleaved repetitions, and the rate of `jnp.dot` as the roof.

The *roof* is the most that a program could reach: the rate of plain matrix products on the machine.
"""

import collections
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def plain_dots(matmuls: collections.Counter, seconds: float = 0.02) -> Callable[[], float]:
  """A timer of a program's matrix products, each alone, by `jnp.dot`.

  Where there is a batch axis, it is `jnp.matmul`.

  Args:
    matmuls: what `flops.matmuls_of` found.
    seconds: spent on each shape at each call, at least one run.

  Returns:
    () -> seconds that all products take, one after the other, at that rate.
  """
  runs = []
  for (b, m, k, n, dtype), times in matmuls.items():
    key = jax.random.key(0)
    x = jax.random.normal(key, (b, m, k) if b > 1 else (m, k), dtype)
    y = jax.random.normal(key, (b, k, n) if b > 1 else (k, n), dtype)
    dot = jax.jit(jnp.matmul if b > 1 else jnp.dot)
    jax.block_until_ready(dot(x, y))  # compiles
    runs.append((dot, x, y, times))

  def measure() -> float:
    total = 0.0
    for dot, x, y, times in runs:
      count = 0
      begin = time.perf_counter()
      # Small products run many times, as one alone would be too short to time.
      while count == 0 or time.perf_counter() - begin < seconds:
        jax.block_until_ready(dot(x, y))
        count += 1
      total += times * (time.perf_counter() - begin) / count
    return total

  return measure


def matmul_peak(
  sizes: tuple[int, ...] = (1024, 2048, 4096), dtype: str = "float32"
) -> Callable[[], float]:
  """A timer of the machine's roof: () -> seconds a FLOP of square `jnp.dot`.

  Of several sizes it is the best. A product of n by n takes 2 n³ FLOP.
  """
  dots = []
  # Which size is best differs by machine: small ones fit the caches, large ones fill all cores.
  for size in sizes:
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    dot = jax.jit(jnp.dot)
    jax.block_until_ready(dot(x, x))
    dots.append((dot, x, 2.0 * size**3))

  def measure() -> float:
    rates = []
    for dot, x, work in dots:
      begin = time.perf_counter()
      jax.block_until_ready(dot(x, x))
      rates.append((time.perf_counter() - begin) / work)
    return min(rates)

  return measure


def interleaved(timers: dict[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
  """Runs each timer in turn, `repetitions` times over: a machine's drift meets all of them alike.

  Returns:
    Name -> its seconds, in order of the repetitions.
  """
  seconds: dict[str, list[float]] = {name: [] for name in timers}
  # All timers, then all again: not one after the other, each with its own minutes.
  for _ in range(repetitions):
    for name, timer in timers.items():
      seconds[name].append(timer())
  return seconds


def spread(values: list[float]) -> dict[str, float]:
  """Median, least and greatest."""
  return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
  """Spread of the ratios of two interleaved rows of seconds, repetition by repetition."""
  return spread([a / b for a, b in zip(slow, fast, strict=True)])


def peak_memory() -> int:
  """Most bytes of memory that the process has held since its start."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts KiB


def machine() -> dict[str, Any]:
  """What the figures were measured on."""
  device = jax.devices()[0]
  return {
    "platform": device.platform,
    "device": device.device_kind,
    "devices": jax.device_count(),
    "cores": os.cpu_count(),
    "processor": platform.processor() or platform.machine(),
    "python": platform.python_version(),
    "jax": jax.__version__,
    "numpy": np.__version__,
  }
