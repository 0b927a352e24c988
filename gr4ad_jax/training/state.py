"""Train state, optimiser and initialisation, sharded from the start."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from gr4ad_jax.config import TrainConfig
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.parallel import row_tables


@flax.struct.dataclass
class TrainState:
  """All that changes from step to step.

  Attributes:
    step: int32 scalar, optimiser steps done; also the number of the next batch.
    params: pytree of float32 parameters.
    opt_state: the optimiser's moments and counts.
  """

  step: jax.Array
  params: Any
  opt_state: Any


class Optimizer(NamedTuple):
  """An optax transformation, with its schedule to report.

  Attributes:
    init: params -> opt_state.
    update: (grads, opt_state, params) -> (updates, opt_state).
    learning_rate: steps done -> learning rate of the next step.
  """

  init: Callable
  update: Callable
  learning_rate: Callable[[jax.Array], jax.Array]


def make_optimizer(config: TrainConfig, total_steps: int) -> Optimizer:
  """AdamW with linear warm-up, a schedule after it, and a limit on the global gradient norm.

  The schedule is a cosine to 0 at `total_steps`; or without an end, for a run that goes on as its
  log grows: constant, or falling with 1 / √step.

  Decay is for arrays of two axes or more: kernels and code tables. Biases, norm scales and other
    vectors have none.
  Warm-up takes at most half of the run, so that a short trial run still reaches its peak. With
  `table_optimizer` = 'adagrad' the table of ads has `scale_by_row_adagrad` instead, under the same
  schedule with a peak
  of its own, and no decay: a row without gradient stays as it is.

  Args:
    config: rates and limits; clip_norm = 0 means no limit.
    total_steps: length of the run, steps; read by the cosine alone.
  """
  endless = config.schedule != "cosine"
  # Both may be traced. A run without an end has no half.
  warmup = config.warmup_steps if endless else jnp.minimum(config.warmup_steps, total_steps // 2)

  def schedule(step, peak):
    # Counted from 1, so that the very first step has a rate above 0.
    rise = jnp.minimum(1.0, (step + 1) / jnp.maximum(warmup, 1))
    if config.schedule == "constant":
      return peak * rise
    # It joins the warm-up at its last step, at the peak.
    if config.schedule == "inverse_sqrt":
      begin = jnp.maximum(warmup, 1)
      return peak * rise * jnp.sqrt(begin / jnp.maximum(step + 1, begin))
    progress = jnp.clip((step - warmup) / jnp.maximum(total_steps - warmup, 1), 0.0, 1.0)
    return peak * rise * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))

  learning_rate = functools.partial(schedule, peak=config.learning_rate)
  rule = optax.adamw(
    learning_rate,
    weight_decay=config.weight_decay,
    # Decay is for matrices. Biases, norms and scales are arrays of one axis.
    mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params),
  )
  if config.table_optimizer == "adagrad":
    table_rate = functools.partial(schedule, peak=config.table_learning_rate)
    row_adagrad = optax.chain(scale_by_row_adagrad(), optax.scale_by_learning_rate(table_rate))
    rule = optax.partition({"table": row_adagrad, "rest": rule}, _parts)
  chain = optax.chain(
    # Before the rule, over the gradients of all parameters together.
    optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
    rule,
  )
  return Optimizer(chain.init, chain.update, learning_rate)


class RowAdagradState(NamedTuple):
  """Attributes: square_sum: pytree of [N], for each row the sum over the steps of its gradient's
  mean square.
  """

  square_sum: Any


def scale_by_row_adagrad(epsilon: float = 1e-8) -> optax.GradientTransformation:
  """Adagrad with one accumulator a row of a table: updates g / (√(sum of mean g²) + ε).

  A row of gradient 0 gets an update of 0. The accumulator is cut over the mesh as the rows are.

  Source: Lerer et al., "PyTorch-BigGraph: A Large-scale Graph Embedding System", SysML 2019; in
    production use,
  Mudigere et al., "Software-Hardware Co-design for Fast and Scalable Training of Deep Learning
  Recommendation Models", ISCA 2022.
  """

  def init(params):
    return RowAdagradState(jax.tree.map(lambda p: jnp.zeros(p.shape[:1], p.dtype), params))

  def update(grads, state, params=None):
    del params
    # [N, ...] -> [N]: the mean over all axes but the row's.
    total = jax.tree.map(
      lambda s, g: s + jnp.square(g).mean(tuple(range(1, g.ndim))), state.square_sum, grads
    )
    # (N,) -> (N, 1, …), as many axes as the gradient has.
    scaled = jax.tree.map(
      lambda s, g: g / (jnp.sqrt(s) + epsilon).reshape(-1, *[1] * (g.ndim - 1)), total, grads
    )
    return scaled, RowAdagradState(total)

  return optax.GradientTransformation(init, update)


def _parts(params: Any) -> dict[str, str]:
  # By the top of the tree: the table of ads is one parameter of the model.
  return {name: "table" if name == row_tables.NAME else "rest" for name in params}


def abstract_params(init_fn: Callable[[], Any], mesh: Mesh) -> Any:
  """Shapes, dtypes and shardings of the parameters that `init_fn` would make: the target of a
  restore.
  """
  return _placed(jax.eval_shape(init_fn), mesh)


def abstract_state(init_fn: Callable[[], Any], optimizer: Optimizer, mesh: Mesh) -> TrainState:
  """Shapes, dtypes and shardings of `init_state(init_fn, optimizer, mesh)`, without computing
  it.
  """
  return _placed(jax.eval_shape(lambda: _fresh(init_fn, optimizer)), mesh)


def init_state(init_fn: Callable[[], Any], optimizer: Optimizer, mesh: Mesh) -> TrainState:
  """Initialises the state on its devices; no device ever holds more than its part.

  Args:
    init_fn: () -> params, pure; may be boxed with logical axis names (`model.init(key,
      …)["params"]`).
    optimizer: whose moments take the sharding of their parameters.
    mesh: the mesh.

  Returns:
    The unboxed state at step 0.
  """
  # First shapes, then shardings, then the values, made where they belong.
  shardings = shardings_of(abstract_state(init_fn, optimizer, mesh))
  # Logical axis names box the arrays; the state has them bare.
  return jax.jit(lambda: nn.meta.unbox(_fresh(init_fn, optimizer)), out_shardings=shardings)()


def shardings_of(tree: Any) -> Any:
  """The sharding of every array of a state, abstract or on devices."""
  return jax.tree.map(lambda array: array.sharding, tree)


def abstract(tree: Any) -> Any:
  """Shapes, dtypes and shardings of a state, or of a part of one, without its values: the target
  of a restore.
  """
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)


def _fresh(init_fn, optimizer) -> TrainState:
  params = init_fn()
  # Moments are made of the boxed parameters, so they carry the same names of axes.
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def _placed(boxed: Any, mesh: Mesh) -> Any:
  def place(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return jax.tree.map(place, nn.meta.unbox(boxed), mesh_lib.param_shardings(boxed, mesh))


def is_finite(params: Any) -> bool:
  """Whether all numbers are finite that this process has of parameters; a job's other processes
  look at theirs.
  """
  return all(
    bool(np.isfinite(np.asarray(shard.data)).all())
    for leaf in jax.tree.leaves(params)
    for shard in leaf.addressable_shards
  )
