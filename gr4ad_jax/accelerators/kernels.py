"""The fused cross-attention on this device, against the products that it stands for.

First whether it computes the same, forward and backward, then how long both take. The sizes are
those of a training step.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.benchmarks import timing
from gr4ad_jax.config import Config, ConfigError
from gr4ad_jax.models.cross_attention import fused_attend, is_fused
from gr4ad_jax.models.layers import attend
from gr4ad_jax.models.outputs import compute_dtype

# Norm of the difference over norm of the reference. Two ways of summing in bfloat16 are apart by
# its rounding, 2^-9 a number, and a gradient is a product of several such. Accelerators multiply
# float32 as TF32 or bfloat16, so the bound is the same for it.
_MOST = 2e-2


def measure(config: Config, repetitions: int) -> dict:
  """Differences and seconds, by the queries of a request.

  Args:
    config: model, slots, targets, requests of a step.
    repetitions: timings of either, in turn.

  Returns:
    A dict for JSON: "machine", "dtype", and "queries", a dict for each number of queries.

  Raises:
    ConfigError: sizes that the kernel does not take.
    RuntimeError: it does not compute the same.
  """
  data = config.data
  levels = len(config.sid.codebooks)
  B = config.training.batch_size
  # Queries of a request -> requests. A lazy layer's are the levels with the eCPM token. A late
  # one's are the first level, all later ones of all targets, and those of the branch without codes.
  # A search's are its beams, of fewer requests.
  counts = {
    levels + 1: B,
    1 + data.targets * levels + levels + 1: B,
    max(config.search.beams): max(1, B // 16),
  }
  found = {
    str(queries): _compared(config, queries, counts[queries], repetitions)
    for queries in sorted(counts)
  }
  return {
    "machine": timing.machine(),
    "dtype": str(compute_dtype(config.model)),
    "repetitions": repetitions,
    "queries": found,
  }


def _compared(config: Config, queries: int, requests: int, repetitions: int) -> dict:
  """The figures of one number of queries a request, of so many requests."""
  c = config.model
  data = config.data
  slots = 1 + data.history_slots + data.neighbor_slots + data.rising_slots
  d = c.width // c.heads
  shapes = {"B": requests, "Q": queries, "S": slots, "H": c.heads, "d": d}
  if c.kv_split == 2 or not is_fused("fused", d):
    raise ConfigError(f"--width={c.width} is not allowed: the kernel does not take {shapes}")
  dtype = compute_dtype(c)
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  B = requests
  q = draw(B, queries, c.heads, d)
  kv = draw(B, slots, c.kv_groups, d)
  cotangent = draw(B, queries, c.width)
  mask = jnp.asarray(rng.random((B, slots)) < 0.8).at[:, 0].set(True)
  ways = {
    "fused": lambda q, kv, mask: fused_attend(q, kv, mask)[0],
    "plain": lambda q, kv, mask: attend(q, kv, kv, mask[:, None]),
  }
  runs = {name: _with_gradients(way) for name, way in ways.items()}
  results = {name: run(q, kv, mask, cotangent) for name, run in runs.items()}  # compiles
  apart = {
    name: _apart(ours, theirs)
    for name, ours, theirs in zip(("read", "dq", "dkv"), *results.values(), strict=True)
  }
  if not max(apart.values()) < _MOST:
    raise RuntimeError(f"the kernel is not the products at {shapes}: apart by {apart}")

  def timer(run: Callable) -> Callable[[], float]:
    def timed() -> float:
      begin = time.perf_counter()
      jax.block_until_ready(run(q, kv, mask, cotangent))
      return time.perf_counter() - begin

    return timed

  seconds = timing.interleaved({name: timer(run) for name, run in runs.items()}, repetitions)
  return {"shapes": shapes, "apart": apart} | {
    name: timing.spread(values) for name, values in seconds.items()
  }


def _with_gradients(way: Callable) -> Callable:
  """(q, kv, mask, cotangent) -> (read, dq, dkv), compiled at its first call."""

  def run(q, kv, mask, cotangent):
    read, back = jax.vjp(lambda q, kv: way(q, kv, mask), q, kv)
    return read, *back(cotangent)

  return jax.jit(run)


def _apart(ours: jax.Array, theirs: jax.Array) -> float:
  """Norm of the difference over the norm of the second; NaN where a number is not finite."""
  ours = np.asarray(ours, np.float64)
  theirs = np.asarray(theirs, np.float64)
  return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def summary(figures: dict) -> str:
  """The figures of `measure` in words."""
  lines = [f"machine  {figures['machine']}, {figures['dtype']}"]
  for one in figures["queries"].values():
    ratio = one["plain"]["median"] / one["fused"]["median"]
    lines.append(
      f"{one['shapes']}: apart by {max(one['apart'].values()):.1e} at most; forward and gradients "
      f"{1e3 * one['fused']['median']:.2f} ms, as products {1e3 * one['plain']['median']:.2f} ms "
      f"({ratio:.2f} times)"
    )
  return "\n".join(lines)
