"""Words meet pixels: the base's word-pixel fusion, and BSC, which goes both ways.

The base is that of LAVT (Yang et al., CVPR 2022) and RMSIN (Liu et al., CVPR 2024). BSC,
"bidirectional spatial correlation", is rebuilt from the abstract of arXiv:2502.08486: only that
vision and language are aligned in both directions is published.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.btdnet.layers import CrossAttention, LayerNorm, instance_norm
from gr4ad_jax.models.layers import NEG, Linear, product

POOLS = (1, 2, 4, 8)  # rows and columns of the pooled maps that the words read


def pool_matrix(size: int, parts: int) -> np.ndarray:
  """Averages an axis of `size` cells in `parts` runs: [parts, size] float32, each row sums to 1.

  Run i goes from floor(i size / parts) to ceil((i + 1) size / parts), so runs overlap where the
  division is not even, and repeat where there are more runs than cells.
  """
  matrix = np.zeros((parts, size), np.float32)
  for i in range(parts):
    first = i * size // parts
    # Division rounded up: `//` rounds down, and the signs turn that round.
    end = -(-(i + 1) * size // parts)
    matrix[i, first:end] = 1 / (end - first)
  return matrix


def pooled(x_BHWC: jax.Array) -> jax.Array:
  """Means of a map over grids of POOLS: [B, sum of squares, C], coarsest first."""
  B, H, W, C = x_BHWC.shape
  parts = []
  for size in POOLS:
    rows = jnp.asarray(pool_matrix(H, size), x_BHWC.dtype)
    cols = jnp.asarray(pool_matrix(W, size), x_BHWC.dtype)
    # Pooled by rows and by columns, two products: (s, H) and (t, W) around the map.
    mean = jnp.einsum("sh,bhwc,tw->bstc", rows, x_BHWC, cols)
    parts.append(mean.reshape(B, size * size, C))
  return jnp.concatenate(parts, axis=1)


def read_words(
  q_BPC: jax.Array, k_BNC: jax.Array, u_BNC: jax.Array, mask_BN: jax.Array
) -> jax.Array:
  """softmax over words of q k^T / sqrt(C), times u: [B, P, C]. Masked words have no weight."""
  # A sum of C products spreads by the root of C, which is divided away.
  logits_BPN = product("bpc,bnc->bpn", q_BPC, k_BNC) / np.sqrt(q_BPC.shape[-1])
  # (B, N) -> (B, 1, N): the same words are hidden from all pixels.
  logits_BPN = jnp.where(mask_BN[:, None], logits_BPN, NEG)
  weights_BPN = jax.nn.softmax(logits_BPN).astype(u_BNC.dtype)
  return product("bpn,bnc->bpc", weights_BPN, u_BNC).astype(u_BNC.dtype)


class WordReader(nn.Module):
  """G: what each pixel takes from the words.

  base: Q = IN(V W_q), K = L W_k, U = L W_v; G = IN(softmax_words(Q K^T / sqrt(C)) U W_o).
  BSC: G = softmax_words((V W_q)(L' W_k)^T / sqrt(C)) L' W_v.

  Attributes:
    correlated: BSC's form; else the base's.
    language_norm: the base's outer IN. It takes away what the sentence says to all pixels alike; a
      model that is trained from scratch learns far slower with it.
  """

  correlated: bool
  language_norm: bool

  @nn.compact
  def __call__(self, x_BPC: jax.Array, words_BNE: jax.Array, mask_BN: jax.Array) -> jax.Array:
    C = x_BPC.shape[-1]
    q = Linear(C, ("embed", "heads"), name="query")(x_BPC)
    k = Linear(C, ("embed", "heads"), name="key")(words_BNE)
    u = Linear(C, ("embed", "heads"), name="value")(words_BNE)
    if self.correlated:
      return read_words(q, k, u, mask_BN)
    # Normed over the pixels, a query says how its pixel differs from the others.
    read = read_words(instance_norm(q), k, u, mask_BN)
    read = Linear(C, ("heads", "embed"), name="out")(read)
    return instance_norm(read) if self.language_norm else read


class GatedFusion(nn.Module):
  """Words into pixels: F = GELU((GELU(V W_1) * G) W_2), V <- V + tanh(W_b ReLU(W_a F)) * F.

  Attributes:
    correlated, language_norm: as of `WordReader`.
  """

  correlated: bool
  language_norm: bool

  @nn.compact
  def __call__(self, x_BPC: jax.Array, words_BNE: jax.Array, mask_BN: jax.Array):
    """Returns: the pixels [B, P, C] with what they took, and LN(F), the stage's output."""
    C = x_BPC.shape[-1]
    g = WordReader(self.correlated, self.language_norm, name="reader")(x_BPC, words_BNE, mask_BN)
    seen = nn.gelu(Linear(C, ("embed", "mlp"), name="see")(x_BPC), approximate=False)
    fused = nn.gelu(Linear(C, ("mlp", "embed"), name="fuse")(seen * g), approximate=False)
    gate = nn.relu(Linear(C, ("embed", "mlp"), name="gate_in")(fused))
    gate = jnp.tanh(Linear(C, ("mlp", "embed"), name="gate_out")(gate))
    # Residual: at a gate of 0 the pixels pass as they are.
    return x_BPC + gate * fused, LayerNorm(name="norm")(fused)


class VisionToWords(nn.Module):
  """BSC's other way: L' <- L' + tanh(g) LN(softmax_P((L' W_q)(P W_k)^T / sqrt(d)) P W_v W_o).

  P are the map's means over grids of 1, 2, 4 and 8. g starts at 0, so a pretrained text encoder is
  not disturbed at first.
  """

  @nn.compact
  def __call__(self, words_BNE: jax.Array, x_BHWC: jax.Array) -> jax.Array:
    read = CrossAttention(words_BNE.shape[-1], name="read")(words_BNE, pooled(x_BHWC))
    init = nn.with_logical_partitioning(nn.initializers.zeros, ())
    # One number for the whole map. At 0 its own gradient is not 0, since tanh is steepest there.
    gate = jnp.tanh(self.param("gate", init, ())).astype(words_BNE.dtype)
    return words_BNE + gate * LayerNorm(name="norm")(read)
