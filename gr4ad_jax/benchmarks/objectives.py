"""What a list objective costs: RSPO, which is O(B·M²), against S-DPO, which is O(B·M).

Both stand in docs/reference/losses.md. They are measured alone, and in a training step of the
model.
"""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.benchmarks import timing
from gr4ad_jax.config import Config, ObjectiveConfig, PreferenceConfig
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.features.batches import zero_batch
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.objectives import dpo, rspo
from gr4ad_jax.preference.preference_task import PreferenceBatch, make_preference_loss
from gr4ad_jax.requests import request_task

NAMES = ("rspo", "sdpo")


def lists_of(requests: int, candidates: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Random log p of policy and reference, and rewards with a heavy tail, each [B, M] float32."""
  rng = np.random.default_rng(0)
  # The reference is near the policy, as it is after some steps of learning. A fifth of the rewards
  # is 0: equal ones, which RSPO passes over.
  policy = rng.normal(-8, 3, (requests, candidates))
  reference = policy + rng.normal(0, 0.3, policy.shape)
  reward = np.where(rng.random(policy.shape) < 0.8, rng.pareto(1.5, policy.shape), 0)
  return tuple(x.astype(np.float32) for x in (policy, reference, reward))


def _timer(fn: Callable, *args) -> Callable[[], float]:
  """() -> seconds of one call, up to the end of what it computes."""

  def measure() -> float:
    begin = time.perf_counter()
    jax.block_until_ready(fn(*args))
    return time.perf_counter() - begin

  return measure


def _alone(name: str, arrays: tuple) -> jax.stages.Compiled:
  """Loss and gradient of the policy's log-probabilities, compiled."""
  policy, reference, reward = map(jnp.asarray, arrays)
  objective = {
    "rspo": functools.partial(rspo.rspo_loss, beta=1.0, delta=1.0),
    "sdpo": functools.partial(dpo.softmax_dpo_loss, beta=1.0),
  }[name]
  compute = jax.value_and_grad(lambda policy: objective(policy, reference, reward).mean())
  return jax.jit(compute).lower(policy).compile()


def _in_the_model(name: str, config: Config, arrays: tuple) -> tuple[jax.stages.Compiled, tuple]:
  """Loss and gradient of a model's parameters on a batch of such lists, compiled.

  Returns:
    The program and its arguments.
  """
  _, reference, reward = arrays
  rng = np.random.default_rng(1)
  batch = zero_batch(config.data, len(config.sid.codebooks), len(reference))
  codes = np.stack(
    [rng.integers(0, v, reference.shape) for v in config.sid.codebooks], axis=-1
  ).astype(np.int32)
  # The first `targets` of the candidates stand for what was taken.
  taken = np.arange(reference.shape[1]) < config.data.targets
  batch = batch._replace(
    target_codes_BMT=codes,
    target_mask_BM=np.broadcast_to(taken, reference.shape).copy(),
    target_value_BM=reward,
    target_depth_BM=np.zeros(reference.shape, np.int32),
  )
  # Every candidate is real, and the reference has proposed all.
  lists = PreferenceBatch(batch, np.ones(reference.shape, bool), reference, reward)
  model = GR4AD.build(config, 0)
  params = jax.jit(lambda: jax.tree.map(lambda x: x, request_task.init_params(model, config)))()
  ecpm = EcpmBins(
    np.arange(1, config.model.ecpm_bins, dtype=np.float32), np.ones(config.model.ecpm_bins), 100.0
  )
  preference = PreferenceConfig(normalize_rows=False)
  targets = config.data.targets
  loss = make_preference_loss(model, ObjectiveConfig(objective=name), preference, ecpm, targets)
  arguments = (params, lists, jax.random.key(0))
  return jax.jit(jax.grad(loss, has_aux=True)).lower(*arguments).compile(), arguments


def measure(config: Config, repetitions: int, requests: int = 64, candidates: int = 512) -> dict:
  """Seconds of both objectives, interleaved, and the memory that they take beside arguments.

  Args:
    config: sizes of the model and its context.
    repetitions: of each.
    requests: B.
    candidates: M.
  """
  arrays = lists_of(requests, candidates)
  alone = {name: _alone(name, arrays) for name in NAMES}
  whole = {name: _in_the_model(name, config, arrays) for name in NAMES}
  timers = {f"{name} alone": _timer(compiled, arrays[0]) for name, compiled in alone.items()}
  timers |= {
    f"{name} in the model": _timer(compiled, *arguments)
    for name, (compiled, arguments) in whole.items()
  }
  timing.interleaved(timers, 1)  # warms up
  seconds = timing.interleaved(timers, repetitions)
  return {
    "machine": timing.machine(),
    "shapes": {"B": requests, "M": candidates, "D": config.model.width, "L": config.model.layers},
    "dtype": "float32",
    "repetitions": repetitions,
    "seconds": {name: timing.spread(values) for name, values in seconds.items()},
    "temporary_bytes": {
      name: compiled.memory_analysis().temp_size_in_bytes for name, compiled in alone.items()
    },
    "rspo_over_sdpo_alone": timing.ratio(seconds["rspo alone"], seconds["sdpo alone"]),
    "rspo_over_sdpo_in_the_model": timing.ratio(
      seconds["rspo in the model"], seconds["sdpo in the model"]
    ),
  }


def summary(figures: dict) -> str:
  """The figures of `measure` in words."""
  shapes = ", ".join(f"{name} = {value}" for name, value in figures["shapes"].items())
  lines = [f"machine  {figures['machine']}", f"forward and backward, {shapes}"]
  lines += [
    f"{name:<18} {1e3 * value['median']:9.2f} ms" for name, value in figures["seconds"].items()
  ]
  for name, size in figures["temporary_bytes"].items():
    lines.append(f"{name} alone takes {size / 1e6:.1f} MB beside its arguments")
  for where in ("alone", "in the model"):
    found = figures[f"rspo_over_sdpo_{where.replace(' ', '_')}"]
    lines.append(
      f"RSPO over S-DPO, {where}: {found['median']:.2f} x [{found['low']:.2f}, {found['high']:.2f}]"
    )
  return "\n".join(lines)
