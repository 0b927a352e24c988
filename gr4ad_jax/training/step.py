"""One optimiser step as a pure, jitted function."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.training import sums
from gr4ad_jax.training.state import Optimizer, TrainState

Metrics = dict[str, jax.Array | sums.Ratio]
LossFn = Callable[[Any, Any, jax.Array], tuple[jax.Array, Metrics]]
Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def make_train_step(
  loss_fn: LossFn, optimizer: Optimizer, seed: int, accumulate: int = 1, state_shardings: Any = None
) -> Step:
  """Builds `step(state, batch) -> (state, metrics)`; the given state is donated, so its buffers are
  gone afterwards.

  Args:
    loss_fn: (params, batch, key) -> (scalar loss, metrics); the loss is a mean over the batch, a
      metric a scalar or a `sums.Ratio`.
    optimizer: the optimiser.
    seed: with the step number it fixes all randomness of a step, so a resumed run is the same run.
    accumulate: micro-batches that the leading axis B is split into; their mean gradient makes the
      step. Each is normalised by targets of its own, so a masked or weighted mean differs slightly
      from that of the full batch.
    state_shardings: of the state, before and after (`shardings_of(state)`); None: as the compiler
      finds best.

  Returns:
    The step. Its metrics are those of the loss, and the scalars `loss`, `grad_norm` (before the
    limit), `learning_rate`, and `finite`, True where loss and gradient are.
  """

  if state_shardings is not None:
    # The parameters come whole for the computation, and their gradients go back to their places.
    loss_fn = gathering(loss_fn, state_shardings.params)

  def gradient(params, batch, key):
    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, key)
    if state_shardings is not None:
      grads = jax.lax.with_sharding_constraint(grads, state_shardings.params)
    return grads, {**metrics, "loss": loss}

  gradient_of = gradient if accumulate == 1 else _accumulated(gradient, accumulate)

  def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
    key = step_key(seed, state.step)
    grads, metrics = gradient_of(state.params, batch, key)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    norm = optax.tree.norm(grads)
    metrics |= {
      "grad_norm": norm,
      "learning_rate": optimizer.learning_rate(state.step),
      # Decided on the device, so that the loop reads one flag and not all gradients.
      "finite": jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm),
    }
    return TrainState(
      state.step + 1, optax.apply_updates(state.params, updates), opt_state
    ), metrics

  return jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, None))


def _accumulated(gradient: Callable, parts: int) -> Callable:
  """`gradient`, (params, batch, key) -> (gradients, metrics), taken over so many micro-batches."""

  def accumulated(params, batch, key):
    def micro(total, inputs):
      part, number = inputs
      # A key of its own for each part: else all of them would drop the same units.
      found = gradient(params, part, jax.random.fold_in(key, number))
      return jax.tree.map(jnp.add, total, found), None

    split = jax.tree.map(lambda x: _split(x, parts), batch)
    # The sums begin at zeros of the gradient's shapes, which tracing tells without computing.
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], split), key)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    # A scan, so that one micro-batch's activations are held at a time.
    (grads, metrics), _ = jax.lax.scan(micro, zeros, (split, jnp.arange(parts)))
    grads = jax.tree.map(lambda x: x / parts, grads)
    return grads, sums.mean_of_parts(metrics, parts)

  return accumulated


def gathering(loss_fn: LossFn, shardings: Any) -> LossFn:
  """A loss that computes with `mesh.gathered` parameters."""
  return lambda params, batch, key: loss_fn(mesh_lib.gathered(params, shardings), batch, key)


def step_key(seed: int, step: jax.Array) -> jax.Array:
  """The key of all randomness of a step."""
  # `rbg` is the generator that draws fastest on accelerators; a step's key follows from its number.
  return jax.random.fold_in(jax.random.key(seed, impl="rbg"), step)


def _split(x: jax.Array, parts: int) -> jax.Array:
  """[B, ...] -> [parts, B / parts, ...]; part i is rows i, i + parts, …, so a device's run of
  rows stays on it.
  """
  if x.shape[0] % parts:
    raise ValueError(f"a batch of {x.shape[0]} rows cannot be split into {parts} micro-batches")
  return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
