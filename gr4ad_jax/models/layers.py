"""Plain functions and thin modules that every model here is made of.

Activations flow in the compute dtype; parameters are float32.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from gr4ad_jax.models import quantized

NEG = -1e9  # a masked logit: far below any real one, and finite, so that gradients stay finite


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float = 1e-6) -> jax.Array:
  """Root-mean-square norm over the last axis, taken in float32 (bf16 squares lose small
  activations).
  """
  x32 = x.astype(jnp.float32)
  x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
  return (x32 * scale).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """An einsum of two arrays of one dtype, float32; its gradients are products of that dtype.

  Left to itself the gradient is a product of a float32 cotangent with, say, a bfloat16 operand,
  which an accelerator computes at float32's pace. The cotangent is rounded instead, as that of
  every other product is.

  Args:
    spec: as `jnp.einsum` takes it, with `->`.
    x: first operand.
    y: second operand.
  """
  return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _product_forward(spec, x, y):
  return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32), (x, y)


def _product_backward(spec, operands, cotangent):
  x, y = operands
  cotangent = cotangent.astype(x.dtype)
  (dx,) = jax.linear_transpose(lambda x: jnp.einsum(spec, x, y), x)(cotangent)
  (dy,) = jax.linear_transpose(lambda y: jnp.einsum(spec, x, y), y)(cotangent)
  return dx, dy


product.defvjp(_product_forward, _product_backward)


def attend(q_BQHd: jax.Array, k_BSGd: jax.Array, v_BSGd: jax.Array, mask: jax.Array) -> jax.Array:
  """Grouped-query attention.

  Args:
    q_BQHd: queries; H is a multiple of G.
    k_BSGd: keys.
    v_BSGd: values.
    mask: boolean, broadcasts to [B, Q, S]; False hides a key.

  Returns:
    [B, Q, H·d].
  """
  B, Q, H, d = q_BQHd.shape
  G = k_BSGd.shape[2]
  q = q_BQHd.reshape(B, Q, G, H // G, d)
  logits = product("bqghd,bsgd->bghqs", q, k_BSGd) / jnp.sqrt(d).astype(jnp.float32)
  logits = jnp.where(mask[:, None, None], logits, NEG)  # (B, 1, 1, Q, S)
  # Softmax in f32: bf16 sums drift over long contexts. Dividing after the product saves a pass over
  # [Q, S].
  weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
  total_BQGH1 = jnp.einsum("bghqs->bqgh", weights)[..., None]
  read = product("bghqs,bsgd->bqghd", weights.astype(v_BSGd.dtype), v_BSGd)
  return (read / total_BQGH1).astype(v_BSGd.dtype).reshape(B, Q, H * d)


class Linear(nn.Module):
  """A linear map of the last axis, flattened to one 2-D matmul (3-D ones are slow on CPU).

  Attributes:
    features: output width.
    axes: logical names of the kernel's two axes (parallel/mesh.py).
    bias: add a bias.
    out_dtype: dtype of what comes out, bias added; None: the input's. Logits ask for float32: the
      matmul sums in it anyway, and a bfloat16 logit of 8 has steps of 1/16.
  """

  features: int
  axes: tuple[str | None, str | None] = ("embed", "mlp")
  bias: bool = False
  out_dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.with_logical_partitioning(
      nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal"), self.axes
    )
    kernel = self.param("kernel", init, (x.shape[-1], self.features))
    flat = x.reshape(-1, x.shape[-1])
    if self.has_variable("scales", "kernel"):
      scale_F = self.get_variable("scales", "kernel")
      out = quantized.matmul(flat, kernel, scale_F, self.out_dtype or x.dtype)
    elif self.out_dtype is None:
      out = jnp.matmul(flat, kernel.astype(x.dtype))
    else:
      out = product("ni,io->no", flat, kernel.astype(x.dtype)).astype(self.out_dtype)
    if self.bias:
      init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
      out += self.param("bias", init, (self.features,)).astype(out.dtype)
    return out.reshape(*x.shape[:-1], self.features)


class Dropout(nn.Module):
  """`nn.Dropout` for masks of full size, with a quarter of its random bits: they took a quarter of
  SASRec's step.

  An element takes a byte of them, so the rate is the nearest multiple of 1/256; what is kept is
  scaled by that, and the mean stays.

  Attributes:
    rate: share that is dropped, below 1 - 1/512.
    deterministic: drop nothing; given here or in the call.
  """

  rate: float
  deterministic: bool | None = None

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool | None = None) -> jax.Array:
    deterministic = nn.merge_param("deterministic", self.deterministic, deterministic)
    dropped = round(256 * self.rate)
    if deterministic or not dropped:
      return x
    *axes, D = x.shape
    words = jax.random.bits(self.make_rng("dropout"), (*axes, -(-D // 4)), jnp.uint32)
    bytes_ = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*axes, -1)[..., :D]
    return jnp.where(bytes_ >= dropped, x * jnp.asarray(256 / (256 - dropped), x.dtype), 0)


class RMSNorm(nn.Module):
  """`rms_norm` with its learned scale."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return rms_norm(
      x,
      self.param(
        "scale", nn.with_logical_partitioning(nn.initializers.ones, (None,)), (x.shape[-1],)
      ),
    )


class GatedFFN(nn.Module):
  """W_o [ silu(W_g x) * W_u x ]: the gated feed-forward of docs/design/method.md §2.2."""

  hidden: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    gate_up = Linear(2 * self.hidden, name="in_proj")(x)
    gate, up = jnp.split(gate_up, 2, axis=-1)
    return Linear(x.shape[-1], ("mlp", "embed"), name="out_proj")(nn.silu(gate) * up)
