"""The head of a level: scores of its codes, and log-probabilities that need not hold all of them.

The float32 scores of all codes of all targets are among the largest arrays of a training step. What
is asked of them is little: the score of one code, and the logarithm of their sum. `code_logp` takes
the codes some at a time and keeps a running maximum and a running sum (the online softmax of
Milakov and Gimelshein, arXiv:1805.02867). Its backward pass makes each piece's scores again.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gr4ad_jax.models.layers import NEG, Linear, product
from gr4ad_jax.models.outputs import next_code_logp
from gr4ad_jax.models.remat import RECOMPUTED

BY_ROWS = -1  # a piece: as many codes as have `_SCORES` scores
# Where --head_piece leaves it open, on accelerators: 64 MiB of float32, which are 1,024 codes of
# 16,384 rows, and all codes of few rows. Its speed is not measured.
_SCORES = 2**24
_LANES = 128  # a TPU's arrays are kept in so many columns


def piece_of(asked: int) -> int:
  """Codes of a piece by --head_piece; 0: no pieces, all codes at once."""
  if asked:
    return asked
  return 0 if jax.default_backend() == "cpu" else BY_ROWS


class LevelHead(Linear):
  """A linear map to the float32 scores of a level's codes.

  The scores are float32 because bfloat16 ones lose the tail of a softmax over 16k codes.

  Attributes:
    piece: most codes whose scores `logp` holds at once; 0: all; or BY_ROWS.
  """

  bias: bool = True
  out_dtype: jnp.dtype | None = jnp.float32
  piece: int = 0

  @property
  def in_pieces(self) -> bool:
    """Whether `logp` keeps no scores, where the parameters are there to be cut."""
    return self.piece == BY_ROWS or 0 < self.piece < self.features

  def logp(self, h: jax.Array, code_BM: jax.Array) -> jax.Array:
    """Log-probability of codes under the softmax over all codes of the level: [B, M] float32.

    Args:
      h: states [B, M, D], or [B, D] where one state serves all M sequences.
      code_BM: codes, from 0 to V - 1.
    """
    # While parameters are made, the call makes them. Quantised kernels have scales, which the
    # pieces do not know; only a search has such kernels, and it scores few sequences.
    if not self.in_pieces or self.is_initializing() or self.has_variable("scales", "kernel"):
      return next_code_logp(self(h), code_BM)
    # A row is a state: [B, D] with M codes each, or [B · M, D] with one code each.
    code_RC = code_BM if h.ndim == code_BM.ndim else code_BM.reshape(-1, 1)
    x_RD = h.reshape(-1, h.shape[-1])
    kernel_DV = self.get_variable("params", "kernel").astype(h.dtype)
    bias_V = self.get_variable("params", "bias").astype(jnp.float32)
    piece = self.piece
    if piece == BY_ROWS:
      piece = max(_LANES, _SCORES // len(x_RD) // _LANES * _LANES)
    return code_logp(piece, x_RD, kernel_DV, bias_V, code_RC).reshape(code_BM.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def code_logp(
  piece: int, x_RD: jax.Array, kernel_DV: jax.Array, bias_V: jax.Array, code_RC: jax.Array
) -> jax.Array:
  """Log-probability of C codes of each row under softmax(x @ kernel + bias), [R, C] float32.

  It equals `next_code_logp` of those scores up to rounding, and so do its gradients. Of the scores
  it never holds more than [R, piece].

  Args:
    piece: most codes of a piece, at least 1.
    x_RD: states, R rows of them.
    kernel_DV: of the head, in the dtype of the states.
    bias_V: of the head, float32.
    code_RC: codes, from 0 to V - 1.
  """
  return _forward(piece, x_RD, kernel_DV, bias_V, code_RC)[0]


@dataclasses.dataclass(frozen=True)
class _Pieces:
  """V codes as P pieces of K.

  On one device a piece is a run of codes, so that it is read, and its gradient written, where it
  lies. Over several, piece p holds the codes p, p + P, p + 2P and so on: a kernel whose columns are
  cut over devices thus gives each device a share of every piece, where runs would leave all but one
  idle.

  Attributes:
    codes: V.
    number: P.
    size: K.
    apart: whether a piece's codes stand apart.
  """

  codes: int
  number: int
  size: int
  apart: bool

  @classmethod
  def of(cls, piece: int, codes: int) -> "_Pieces":
    number = -(-codes // piece)
    return cls(codes, number, -(-codes // number), number > 1 and jax.device_count() > 1)

  def cut(self, x: jax.Array, fill: float = 0.0) -> jax.Array:
    """Columns [..., V] as `take` wants them, filled up to P · K."""
    missing = self.number * self.size - self.codes
    x = jnp.pad(x, (*((0, 0),) * (x.ndim - 1), (0, missing)), constant_values=fill)
    if not self.apart:
      return x
    # (..., K, P): code k · P + p
    return jnp.moveaxis(x.reshape(*x.shape[:-1], self.size, self.number), -1, 0)

  def whole(self, x: jax.Array) -> jax.Array:
    """Undoes `cut`."""
    if self.apart:
      x = jnp.moveaxis(x, 0, -1)
      x = x.reshape(*x.shape[:-2], -1)
    return x[..., : self.codes]

  def take(self, x: jax.Array, number: jax.Array | int) -> jax.Array:
    """The columns of a piece, [..., K]."""
    if self.apart:
      return x[number]
    return jax.lax.dynamic_slice_in_dim(x, number * self.size, self.size, axis=-1)

  def put(self, x: jax.Array, part: jax.Array, number: jax.Array | int) -> jax.Array:
    """What was cut, with these columns of a piece."""
    if self.apart:
      return x.at[number].set(part)
    return jax.lax.dynamic_update_slice_in_dim(x, part, number * self.size, axis=-1)

  def named(self, code_RC: jax.Array, number: jax.Array | int) -> jax.Array:
    """Which code of a piece each code is, [R, C, K] bool; none where it is of another."""
    own_K = jnp.arange(self.size)
    own_K = own_K * self.number + number if self.apart else own_K + number * self.size
    # (R, C, 1) == (K,) -> (R, C, K)
    return code_RC[..., None] == own_K

  def over(self, add: Callable, carry: Any) -> Any:
    """What `add`, (carry, number) -> carry, makes of all pieces."""
    if self.number == 1:
      return add(carry, 0)
    return jax.lax.fori_loop(0, self.number, lambda number, carry: add(carry, number), carry)


def _scores(x_RD: jax.Array, kernel_DK: jax.Array, bias_K: jax.Array) -> jax.Array:
  """Float32 scores [R, K] of a piece's codes."""
  return product("rd,dk->rk", x_RD, kernel_DK) + bias_K


def _forward(piece, x_RD, kernel_DV, bias_V, code_RC):
  pieces = _Pieces.of(piece, kernel_DV.shape[1])
  kernel = pieces.cut(kernel_DV)
  # Codes that there are not, at the end, have a probability of 0.
  bias = pieces.cut(bias_V, NEG)

  def add(carry, number):
    top_R, total_R, own_RC = carry
    score_RK = _scores(x_RD, pieces.take(kernel, number), pieces.take(bias, number))
    # What was summed so far is brought under the new maximum. The first one is -inf: exp gives 0.
    higher_R = jnp.maximum(top_R, score_RK.max(-1))
    total_R = total_R * jnp.exp(top_R - higher_R)
    total_R += jnp.exp(score_RK - higher_R[:, None]).sum(-1)
    # A masked sum finds a code's own score, as in `next_code_logp`: (R, 1, K) -> (R, C).
    named_RCK = pieces.named(code_RC, number)
    own_RC += jnp.where(named_RCK, score_RK[:, None], 0.0).sum(-1)
    return higher_R, total_R, own_RC

  rows = len(x_RD)
  begin = (
    jnp.full(rows, -jnp.inf, jnp.float32),
    jnp.zeros(rows, jnp.float32),
    jnp.zeros(code_RC.shape, jnp.float32),
  )
  top_R, total_R, own_RC = pieces.over(add, begin)
  log_total_R = top_R + jnp.log(total_R)
  return own_RC - log_total_R[:, None], (x_RD, kernel_DV, bias_V, code_RC, log_total_R)


def _backward(piece, kept, cotangent_RC):
  x_RD, kernel_DV, bias_V, code_RC, log_total_R = kept
  pieces = _Pieces.of(piece, kernel_DV.shape[1])
  kernel = pieces.cut(kernel_DV)
  bias = pieces.cut(bias_V, NEG)
  # Each of a row's C codes takes the same log-sum off.
  of_total_R1 = cotangent_RC.sum(-1, keepdims=True)

  def add(carry, number):
    dx_RD, dkernel, dbias = carry
    kernel_DK = pieces.take(kernel, number)
    with jax.named_scope(RECOMPUTED):
      score_RK = _scores(x_RD, kernel_DK, pieces.take(bias, number))
    p_RK = jnp.exp(score_RK - log_total_R[:, None])
    # (R, C, 1) where named -> (R, K): what the row's own codes get.
    named_RCK = pieces.named(code_RC, number)
    own_RK = jnp.where(named_RCK, cotangent_RC[..., None], 0.0).sum(1)
    dscore_RK = own_RK - p_RK * of_total_R1
    # Rounded before the products, as `layers.product` does and for its reason.
    rounded_RK = dscore_RK.astype(x_RD.dtype)
    dx_RD += product("rk,dk->rd", rounded_RK, kernel_DK)
    dkernel = pieces.put(dkernel, jnp.einsum("rd,rk->dk", x_RD, rounded_RK), number)
    return dx_RD, dkernel, pieces.put(dbias, dscore_RK.sum(0), number)

  begin = (jnp.zeros(x_RD.shape, jnp.float32), jnp.zeros_like(kernel), jnp.zeros_like(bias))
  dx_RD, dkernel, dbias = pieces.over(add, begin)
  # Codes are whole numbers: there is no gradient of them.
  return dx_RD.astype(x_RD.dtype), pieces.whole(dkernel), pieces.whole(dbias), None


code_logp.defvjp(_forward, _backward)
