"""The head of a level: scores of its codes, and log-probabilities that need not hold all of them.

The float32 scores of all codes of all targets are among the largest arrays of a training step. What
is asked of them is little: the score of one code, and the logarithm of their sum. `code_logp` takes
the codes some at a time and keeps a running maximum and a running sum (the online softmax of
Milakov and Gimelshein, arXiv:1805.02867). Its backward pass makes each piece's scores again.
"""

import functools

import jax
import jax.numpy as jnp

from gr4ad_jax.models.layers import NEG, Linear, product
from gr4ad_jax.models.outputs import next_code_logp
from gr4ad_jax.models.remat import RECOMPUTED

# Codes of a piece on accelerators, where --head_piece leaves it open. With 16,384 rows its scores
# are 64 MiB of float32. Its speed is not measured.
PIECE = 1024


def piece_of(asked: int) -> int:
  """Codes of a piece by --head_piece; 0: no pieces, all codes at once."""
  if asked:
    return asked
  return 0 if jax.default_backend() == "cpu" else PIECE


class LevelHead(Linear):
  """A linear map to the float32 scores of a level's codes.

  The scores are float32 because bfloat16 ones lose the tail of a softmax over 16k codes.

  Attributes:
    piece: most codes whose scores `logp` holds at once; 0: all.
  """

  bias: bool = True
  out_dtype: jnp.dtype | None = jnp.float32
  piece: int = 0

  @property
  def in_pieces(self) -> bool:
    """Whether `logp` makes its scores in pieces, where the parameters are there to be cut."""
    return 0 < self.piece < self.features

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
    return code_logp(self.piece, x_RD, kernel_DV, bias_V, code_RC).reshape(code_BM.shape)


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


def _cut(piece: int, kernel_DV: jax.Array, bias_V: jax.Array):
  """Kernel and bias as P pieces of K codes: numbers [P], kernels [P, D, K], biases [P, K].

  Piece p holds the codes p, p + P, p + 2P and so on. A kernel whose columns are cut over devices
  thus gives each device a share of every piece; runs of neighbouring codes would leave all but one
  device idle. Codes that there are not, at the end, have a bias of NEG, and so a probability of 0.
  """
  D, V = kernel_DV.shape
  P = -(-V // piece)
  K = -(-V // P)
  missing = P * K - V
  kernel_DKP = jnp.pad(kernel_DV, ((0, 0), (0, missing))).reshape(D, K, P)
  bias_KP = jnp.pad(bias_V, (0, missing), constant_values=NEG).reshape(K, P)
  return jnp.arange(P), kernel_DKP.transpose(2, 0, 1), bias_KP.T


def _whole(pieces_PXK: jax.Array, codes: int) -> jax.Array:
  """Pieces [P, ..., K] as the columns that `_cut` took them from: [..., V]."""
  joined = jnp.moveaxis(pieces_PXK, 0, -1)  # (..., K, P): code k · P + p
  return joined.reshape(*joined.shape[:-2], -1)[..., :codes]


def _scores(x_RD: jax.Array, kernel_DK: jax.Array, bias_K: jax.Array) -> jax.Array:
  """Float32 scores [R, K] of a piece's codes."""
  return product("rd,dk->rk", x_RD, kernel_DK) + bias_K


def _named(code_RC: jax.Array, number: jax.Array, P: int, K: int) -> jax.Array:
  """Which code of piece `number` each code is, [R, C, K] bool; none where it is of another."""
  # (R, C, 1) == (K,) -> (R, C, K)
  return code_RC[..., None] == jnp.arange(K) * P + number


def _forward(piece, x_RD, kernel_DV, bias_V, code_RC):
  pieces = _cut(piece, kernel_DV, bias_V)
  P, _, K = pieces[1].shape

  def add(carry, one):
    top_R, total_R, own_RC = carry
    number, kernel_DK, bias_K = one
    score_RK = _scores(x_RD, kernel_DK, bias_K)
    # What was summed so far is brought under the new maximum. The first one is -inf: exp gives 0.
    higher_R = jnp.maximum(top_R, score_RK.max(-1))
    total_R = total_R * jnp.exp(top_R - higher_R)
    total_R += jnp.exp(score_RK - higher_R[:, None]).sum(-1)
    # A masked sum finds a code's own score, as in `next_code_logp`: (R, 1, K) -> (R, C).
    named_RCK = _named(code_RC, number, P, K)
    own_RC += jnp.where(named_RCK, score_RK[:, None], 0.0).sum(-1)
    return (higher_R, total_R, own_RC), None

  rows = len(x_RD)
  begin = (
    jnp.full(rows, -jnp.inf, jnp.float32),
    jnp.zeros(rows, jnp.float32),
    jnp.zeros(code_RC.shape, jnp.float32),
  )
  (top_R, total_R, own_RC), _ = jax.lax.scan(add, begin, pieces)
  log_total_R = top_R + jnp.log(total_R)
  return own_RC - log_total_R[:, None], (x_RD, kernel_DV, bias_V, code_RC, log_total_R)


def _backward(piece, kept, cotangent_RC):
  x_RD, kernel_DV, bias_V, code_RC, log_total_R = kept
  pieces = _cut(piece, kernel_DV, bias_V)
  P, _, K = pieces[1].shape
  # Each of a row's C codes takes the same log-sum off.
  of_total_R1 = cotangent_RC.sum(-1, keepdims=True)

  def add(dx_RD, one):
    number, kernel_DK, bias_K = one
    with jax.named_scope(RECOMPUTED):
      score_RK = _scores(x_RD, kernel_DK, bias_K)
    p_RK = jnp.exp(score_RK - log_total_R[:, None])
    # (R, C, 1) where named -> (R, K): what the row's own codes get.
    named_RCK = _named(code_RC, number, P, K)
    own_RK = jnp.where(named_RCK, cotangent_RC[..., None], 0.0).sum(1)
    dscore_RK = own_RK - p_RK * of_total_R1
    # Rounded before the products, as `layers.product` does and for its reason.
    rounded_RK = dscore_RK.astype(x_RD.dtype)
    dx_RD += product("rk,dk->rd", rounded_RK, kernel_DK)
    dkernel_DK = jnp.einsum("rd,rk->dk", x_RD, rounded_RK)
    return dx_RD, (dkernel_DK, dscore_RK.sum(0))

  zeros_RD = jnp.zeros(x_RD.shape, jnp.float32)
  dx_RD, (dkernel_PDK, dbias_PK) = jax.lax.scan(add, zeros_RD, pieces)
  V = kernel_DV.shape[1]
  # Codes are whole numbers: there is no gradient of them.
  return dx_RD.astype(x_RD.dtype), _whole(dkernel_PDK, V), _whole(dbias_PK, V), None


code_logp.defvjp(_forward, _backward)
