"""What BTDNet's parts are made of: norms, attention of several heads, convolutions, resizing.

Maps are `[B, H, W, C]`: H rows and W columns, from the image's upper left corner; C channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.models.layers import NEG, Linear, product


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
  """Layer norm over the last axis, taken in float32; of x's dtype."""
  x32 = x.astype(jnp.float32)
  x32 = x32 - x32.mean(axis=-1, keepdims=True)
  x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
  return (x32 * scale + bias).astype(x.dtype)


def instance_norm(x_BPC: jax.Array, epsilon: float = 1e-5) -> jax.Array:
  """Each channel of an image has mean 0 and variance 1 over its pixels; nothing is learned.

  What is the same at all pixels is gone afterwards.
  """
  x32 = x_BPC.astype(jnp.float32)
  x32 = x32 - x32.mean(axis=1, keepdims=True)
  # A channel that is the same at all pixels has variance 0; epsilon keeps its root finite.
  x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=1, keepdims=True) + epsilon)
  return x32.astype(x_BPC.dtype)


def attention(
  q_BQHd: jax.Array, k_BKHd: jax.Array, v_BKHd: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
  """softmax(q k^T / sqrt(d) + bias) v, head by head.

  Args:
    q_BQHd: queries.
    k_BKHd: keys.
    v_BKHd: values.
    bias: float32, broadcasts to [B, H, Q, K]; None: none.

  Returns:
    [B, Q, H·d].
  """
  B, Q, H, d = q_BQHd.shape
  logits_BHQK = product("bqhd,bkhd->bhqk", q_BQHd, k_BKHd) / np.sqrt(d)
  if bias is not None:
    logits_BHQK = logits_BHQK + bias
  # In float32: a bfloat16 sum of many keys drifts.
  weights_BHQK = jax.nn.softmax(logits_BHQK)
  read = product("bhqk,bkhd->bqhd", weights_BHQK.astype(v_BKHd.dtype), v_BKHd)
  return read.astype(v_BKHd.dtype).reshape(B, Q, H * d)


def key_bias(mask_BK: jax.Array) -> jax.Array:
  """A bias that hides keys: 0 where the mask is true, else `layers.NEG`. [B, 1, 1, K] float32."""
  # The axes of heads and queries are for `attention`, to be broadcast.
  return jnp.where(mask_BK, 0.0, NEG)[:, None, None]


def split_heads(x: jax.Array, heads: int) -> jax.Array:
  """[..., C] -> [..., H, C / H]."""
  return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def resize(x_BHWC: jax.Array, height: int, width: int) -> jax.Array:
  """Bilinear resizing, float32 inside; sample points lie at the centres of the cells."""
  if x_BHWC.shape[1:3] == (height, width):
    return x_BHWC
  shape = (x_BHWC.shape[0], height, width, x_BHWC.shape[3])
  return jax.image.resize(x_BHWC.astype(jnp.float32), shape, "bilinear").astype(x_BHWC.dtype)


def depth_to_space(x_BHWC: jax.Array, factor: int) -> jax.Array:
  """[B, H, W, r·r·c] -> [B, r·H, r·W, c]: a cell's channels are its r × r pixels, row by row."""
  B, H, W, C = x_BHWC.shape
  out = C // factor**2
  # (B, H, W, r, r, c) -> (B, H, r, W, r, c): a pixel's row stands beside the row of its cell.
  x = x_BHWC.reshape(B, H, W, factor, factor, out)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, H * factor, W * factor, out)


def coordinates(height: int, width: int) -> np.ndarray:
  """Places of a map's cells, [H, W, 8] float32.

  The channels are x and y, which run from -1 to 1, right and down; sin(pi x), cos(pi x), sin(pi y),
  cos(pi y); x y and x^2 - y^2, which tell corners from edges.
  """
  # Places are the centres of the cells, so none is at -1 or 1 itself.
  y_H = (np.arange(height) + 0.5) / height * 2 - 1
  x_W = (np.arange(width) + 0.5) / width * 2 - 1
  y_HW, x_HW = np.meshgrid(y_H, x_W, indexing="ij")
  waves = [f(np.pi * z) for z in (x_HW, y_HW) for f in (np.sin, np.cos)]
  corners = [x_HW * y_HW, x_HW**2 - y_HW**2]
  return np.stack([x_HW, y_HW, *waves, *corners], axis=-1).astype(np.float32)


class LayerNorm(nn.Module):
  """`layer_norm` with its learned scale and bias."""

  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (x.shape[-1],)
    boxed = nn.with_logical_partitioning
    scale = self.param("scale", boxed(nn.initializers.ones, (None,)), shape)
    bias = self.param("bias", boxed(nn.initializers.zeros, (None,)), shape)
    return layer_norm(x, scale, bias, self.epsilon)


class Conv(nn.Module):
  """A convolution over rows and columns.

  Attributes:
    features: channels that come out.
    size: rows and columns of the kernel.
    stride: step between places, both ways.
    bias: add a bias.
    padding: "SAME" or "VALID"; SAME adds zeros around, at a stride of 2 and size 3 one each side.
  """

  features: int
  size: int = 3
  stride: int = 1
  bias: bool = False
  padding: str = "SAME"

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    init = nn.with_logical_partitioning(
      nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal"),
      (None, None, "embed", "mlp"),
    )
    kernel = self.param("kernel", init, (self.size, self.size, x_BHWC.shape[-1], self.features))
    # Both sides alike, whatever the stride: XLA's SAME would add a lone row below and right.
    around = (self.size // 2,) * 2 if self.padding == "SAME" else (0, 0)
    out = jax.lax.conv_general_dilated(
      x_BHWC,
      kernel.astype(x_BHWC.dtype),
      (self.stride, self.stride),
      (around, around),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    if self.bias:
      init = nn.with_logical_partitioning(nn.initializers.zeros, ("mlp",))
      out += self.param("bias", init, (self.features,)).astype(out.dtype)
    return out


class MLP(nn.Module):
  """W_2 GELU(W_1 x), the exact GELU."""

  hidden: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    h = Linear(self.hidden, ("embed", "mlp"), bias=True, name="up")(x)
    h = nn.gelu(h, approximate=False)
    return Linear(x.shape[-1], ("mlp", "embed"), bias=True, name="down")(h)


class SelfAttention(nn.Module):
  """Queries, keys and values in one product, attention, and the output's map.

  The columns of `qkv` are those of all queries, then of all keys, then of all values.

  Attributes:
    heads: heads (H), a divisor of the width.
  """

  heads: int

  @nn.compact
  def __call__(self, x_BNC: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Args: x_BNC: tokens; bias: as of `attention`."""
    C = x_BNC.shape[-1]
    qkv = Linear(3 * C, ("embed", "heads"), bias=True, name="qkv")(x_BNC)
    # (B, N, 3C) -> three of (B, N, H, C / H).
    q, k, v = (split_heads(part, self.heads) for part in jnp.split(qkv, 3, axis=-1))
    return Linear(C, ("heads", "embed"), bias=True, name="out")(attention(q, k, v, bias))


class CrossAttention(nn.Module):
  """Queries of one set of tokens read another, one head.

  Attributes:
    width: of what comes out; queries and keys are as wide.
  """

  width: int

  @nn.compact
  def __call__(
    self, x_BQC: jax.Array, y_BKE: jax.Array, mask_BK: jax.Array | None = None
  ) -> jax.Array:
    """Args: x_BQC: what asks; y_BKE: what is read; mask_BK: tokens of it that count."""
    q = Linear(self.width, ("embed", "heads"), name="query")(x_BQC)
    k = Linear(self.width, ("embed", "heads"), name="key")(y_BKE)
    v = Linear(self.width, ("embed", "heads"), name="value")(y_BKE)
    bias = None if mask_BK is None else key_bias(mask_BK)
    # One head: an axis of length 1 before the width.
    read = attention(q[:, :, None], k[:, :, None], v[:, :, None], bias)
    return Linear(self.width, ("heads", "embed"), name="out")(read)


class StochasticDepth(nn.Module):
  """Leaves a branch out, for whole rows of the batch, and scales the others up to keep the mean.

  Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.

  Attributes:
    rate: share of the rows that lose the branch.
  """

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    if not train or not self.rate:
      return x
    # One draw a row, (B, 1, …, 1).
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, shape)
    return jnp.where(kept, x / jnp.asarray(1 - self.rate, x.dtype), 0)
