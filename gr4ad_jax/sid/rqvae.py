"""RQ-VAE: an autoencoder whose latent vector is a sum of codes, one from each level.

It may take the place of residual k-means. The idea is of Zeghidour et al., "SoundStream", 2021. As
a tokenizer of items it stands in Rajput et al., "Recommender Systems with Generative Retrieval",
NeurIPS 2023 (TIGER).

A codebook *collapses* when few of its codes are used. Two things are done against that. Codes start
as k-means centroids of the first latents. And a code that was the nearest of no ad for a hundred
steps starts anew. In the last hundred steps none does, so that all can settle.
"""

import dataclasses
import functools
import logging
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gr4ad_jax.sid import kmeans
from gr4ad_jax.sid.nearest import Sliceable
from gr4ad_jax.sid.params import flat, nested

COMMITMENT = 0.25  # weight of the latent's pull towards its codes
BATCH = 1024
LEARNING_RATE = 1e-3
RESTART = 100  # steps after which unused codes start anew
CHUNK = 8192  # vectors encoded at once


class Mlp(nn.Module):
  """One hidden layer with ReLU.

  Attributes:
    hidden: its width.
    width: of what comes out.
  """

  hidden: int
  width: int

  @nn.compact
  def __call__(self, x_ND: jax.Array) -> jax.Array:
    """[N, D] -> [N, width]."""
    return nn.Dense(self.width, name="out")(nn.relu(nn.Dense(self.hidden, name="hidden")(x_ND)))


@dataclasses.dataclass(frozen=True)
class Encoder:
  """The trained encoder: vectors -> latents. The tokenizer codes these as it else codes vectors.

  Attributes:
    params: of `Mlp`, by slash-joined name, float32.
  """

  params: dict[str, np.ndarray]

  def __call__(self, x_ND: Sliceable) -> np.ndarray:
    """[N, D] vectors -> [N, width] float32 latents, by chunks."""
    hidden, width = self.params["out/kernel"].shape
    params = nested(self.params)
    parts = [np.zeros((0, width), np.float32)]
    for at in range(0, x_ND.shape[0], CHUNK):
      parts.append(np.asarray(_encode(hidden, width, params, x_ND[at : at + CHUNK])))
    return np.concatenate(parts)


def expected_shapes(width: int, content: int) -> dict[str, tuple[int, ...]]:
  """Name and shape of each parameter of an encoder, so that a saved one can be checked.

  Args:
    width: of its latents.
    content: width of the vectors that it takes.
  """
  init = Mlp(hidden_width(content), width).init
  params = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, content)))["params"]
  return {name: leaf.shape for name, leaf in flat(params).items()}


def hidden_width(content: int) -> int:
  """Width of the hidden layers, of encoder and decoder, for vectors so wide."""
  return 2 * content


class Quantized(NamedTuple):
  """N latents as sums of codes.

  Attributes:
    loss_N: float32, summed over levels: |sg(r) - e|² + COMMITMENT · |r - sg(e)|² of residual r and
      code e. sg stops the gradient: the first term moves the code, the second the latent.
    coded_ND: the sums. Their gradient is passed on to the latents as it is (*straight through*), as
      the choice of a code has none.
    numbers: of the codes, [N] int32 a level.
    residuals: what each level had to code, [N, D] a level.
  """

  loss_N: jax.Array
  coded_ND: jax.Array
  numbers: list[jax.Array]
  residuals: list[jax.Array]


def quantize(z_ND: jax.Array, codes: list[jax.Array]) -> Quantized:
  """Residual quantisation, by the nearest code at each level (docs/design/method.md §1.2).

  Args:
    z_ND: latents.
    codes: one [C_t, D] codebook a level.
  """
  residual = z_ND
  total = jnp.zeros_like(z_ND)
  loss = jnp.zeros(len(z_ND))
  numbers = []
  residuals = []
  for table in codes:
    # (C,) - (N, C) -> (N, C): |r - e|² less |r|², which is the same for all codes of a row.
    number = jnp.argmin((table * table).sum(axis=1) - 2 * residual @ table.T, axis=1)
    code = table[number]
    numbers.append(number)
    residuals.append(residual)
    loss += jnp.square(jax.lax.stop_gradient(residual) - code).sum(axis=1)
    loss += COMMITMENT * jnp.square(residual - jax.lax.stop_gradient(code)).sum(axis=1)
    # The next level's loss shall not move this level's code.
    residual = residual - jax.lax.stop_gradient(code)
    total = total + code
  # The value is `total`, the gradient that of z.
  return Quantized(loss, z_ND + jax.lax.stop_gradient(total - z_ND), numbers, residuals)


def fit(
  x_ND: np.ndarray,
  codebooks: tuple[int, ...],
  *,
  width: int,
  steps: int,
  seed: int,
  log: logging.Logger | None = None,
) -> tuple[Encoder, tuple[np.ndarray, ...]]:
  """Trains encoder, codebooks and decoder with Adam on squared errors.

  Errors are in units of the vectors' variance: who always guesses the mean makes an error of 1.

  Args:
    x_ND: [N, D] vectors of the ads.
    codebooks: codes of each quantised level.
    width: of the latent.
    steps: optimiser steps, with a batch of at most `BATCH` vectors each.
    seed: of initialisation and batches. The same seed gives the same codes.
    log: is told the errors now and then.

  Returns:
    The encoder, and one [C_t, width] float32 codebook a level.

  Raises:
    ValueError: vectors that are not finite.
  """
  x_ND = jnp.asarray(x_ND, jnp.float32)
  N = len(x_ND)
  # 0 where all vectors are equal: then 1, so that nothing is divided by 0.
  scale = float(jnp.square(x_ND - x_ND.mean(axis=0)).sum(axis=1).mean()) or 1.0
  rng = np.random.default_rng(seed)
  params = _start(x_ND, codebooks, width, seed, rng)
  state = params, _optimiser(steps).init(params)
  # Codes that were the nearest of some ad since the last restart.
  used = [jnp.zeros(size, bool) for size in codebooks]
  for number in range(steps):
    # With replacement: there are no epochs, and the last batch is as large as all others.
    rows = rng.integers(N, size=min(BATCH, N))
    state, used, (rebuilt, quantised), coded = _train_step(
      width, steps, scale, state, used, x_ND[rows]
    )
    if log and (number % RESTART == 0 or number == steps - 1):
      log.info(
        "RQ-VAE step %d of %d: error %.4f, levels %.4f",
        number + 1,
        steps,
        float(rebuilt),
        float(quantised),
      )
    # Not in the last hundred steps: a code that has just moved could not settle.
    if number % RESTART == RESTART - 1 and number < steps - RESTART:
      # Adam keeps the moments of a code that starts anew.
      params, opt_state = state
      orders = [rng.permutation(len(rows)) for _ in codebooks]
      params["codes"], used = _restarted(params["codes"], used, coded.residuals, orders)
      state = params, opt_state
  params = jax.device_get(state[0])
  return Encoder(flat(params["encoder"])), tuple(params["codes"])


def _start(
  x_ND: jax.Array, codebooks: tuple[int, ...], width: int, seed: int, rng: np.random.Generator
) -> dict:
  """Parameters to begin with: random networks, and codes by k-means of what these make of ads."""
  N, D = x_ND.shape
  encoder = Mlp(hidden_width(D), width)
  decoder = Mlp(hidden_width(D), D)
  first, second = jax.random.split(jax.random.key(seed))
  params = {
    "encoder": encoder.init(first, x_ND[:1])["params"],
    "decoder": decoder.init(second, jnp.zeros((1, width)))["params"],
  }
  residual = np.asarray(
    encoder.apply({"params": params["encoder"]}, x_ND[rng.permutation(N)[: 16 * BATCH]])
  )
  # Codes start where the untrained encoder puts a sample of ads, level by level of what is left.
  params["codes"] = []
  for level, size in enumerate(codebooks):
    centroids_CD, number = kmeans.balanced_kmeans(residual, size, iterations=5, seed=seed + level)
    residual = residual - centroids_CD[number]
    params["codes"].append(jnp.asarray(centroids_CD))
  return params


def _optimiser(steps: int) -> optax.GradientTransformation:
  """Adam, its learning rate falling by a cosine to 0 at the last step."""
  return optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def _train_step(width, steps, scale, state, used, x_BD):
  """One step.

  Returns:
    The state, which codes were used, the errors of the reconstruction and of the levels, and the
    batch's codes.
  """
  params, opt_state = state
  D = x_BD.shape[1]

  def loss_of(params):
    z_BD = Mlp(hidden_width(D), width).apply({"params": params["encoder"]}, x_BD)
    coded = quantize(z_BD, params["codes"])
    rebuilt_BD = Mlp(hidden_width(D), D).apply({"params": params["decoder"]}, coded.coded_ND)
    rebuilt = jnp.square(rebuilt_BD - x_BD).sum(axis=1).mean() / scale
    quantised = coded.loss_N.mean() / scale
    return rebuilt + quantised, ((rebuilt, quantised), coded)

  (_, (errors, coded)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
  updates, opt_state = _optimiser(steps).update(grads, opt_state, params)
  # (C,) marked at the (B,) codes that are some ad's nearest; marks add up until the next restart.
  used = [used_C.at[codes_B].set(True) for used_C, codes_B in zip(used, coded.numbers, strict=True)]
  return (optax.apply_updates(params, updates), opt_state), used, errors, coded


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _restarted(codes, used, residuals, orders):
  """Codebooks whose unused codes are residuals of the last batch, and codes all marked as unused.

  Shapes do not depend on how many codes are unused. So one program serves all restarts, and nothing
  comes to the host.

  Args:
    codes: a [C, D] codebook a level.
    used: [C] bool a level.
    residuals: [B, D] a level.
    orders: permutations of the B rows, one a level: which residual goes first.
  """
  fresh = []
  for table_CD, used_C, residual_BD, order_B in zip(codes, used, residuals, orders, strict=True):
    # An unused code's number among the unused ones. What stands at a used code is not looked at.
    nth_C = jnp.cumsum(~used_C) - 1
    # Where there are more codes than residuals, these repeat.
    new_CD = residual_BD[order_B[nth_C % len(order_B)]]
    fresh.append(jnp.where(used_C[:, None], table_CD, new_CD))  # (C, 1) chooses rows of (C, D)
  return fresh, [jnp.zeros_like(used_C) for used_C in used]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(hidden, width, params, x_ND):
  return Mlp(hidden, width).apply({"params": params}, x_ND)
