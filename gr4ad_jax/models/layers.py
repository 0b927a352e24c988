"""Plain functions and thin modules that every model here is made of.

Activations flow in the compute dtype (--compute_dtype), parameters are float32. What is summed over
many numbers, such as a norm or a softmax, is summed in float32.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from gr4ad_jax.models import quantized

# A masked logit: far below any real one, so that its exp is 0. It is finite: where all logits of a
# softmax are masked, -inf - -inf would be NaN, and so would the gradients.
NEG = -1e9


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float = 1e-6) -> jax.Array:
  """Root-mean-square norm over the last axis: x / √(mean x² + ε) · scale, in the dtype of x.

  It is taken in float32, since squares in bfloat16 lose small activations.
  """
  x32 = x.astype(jnp.float32)
  x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
  return (x32 * scale).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """An einsum of two arrays of one dtype that is summed to float32.

  Its gradients are products in the dtype of the operands. Left to itself, a gradient would be the
  product of a float32 cotangent (the gradient of what comes out) with, say, a bfloat16 operand, and
  an accelerator computes that at the pace of float32. So the cotangent is rounded first, as that of
  every other product is.

  Args:
    spec: as `jnp.einsum` takes it, with `->`.
    x: first operand.
    y: second operand.

  Returns:
    float32, of the shape that `spec` says.
  """
  return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _product_forward(spec, x, y):
  return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32), (x, y)


def _product_backward(spec, operands, cotangent):
  x, y = operands
  cotangent = cotangent.astype(x.dtype)
  # An einsum is linear in each operand, so its gradient is its transpose, with the other one held.
  # The einsums here give the operands' dtype, and so take a cotangent of that dtype.
  (dx,) = jax.linear_transpose(lambda x: jnp.einsum(spec, x, y), x)(cotangent)
  (dy,) = jax.linear_transpose(lambda y: jnp.einsum(spec, x, y), y)(cotangent)
  return dx, dy


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
  """max(x, 0), whose backward pass asks the result alone.

  The layer that reads the result keeps it anyway. So x, as large as the context's hidden layer,
  need not be kept beside it.
  """
  return jnp.maximum(x, 0)


def _relu_forward(x):
  y = jnp.maximum(x, 0)
  return y, y


def _relu_backward(y, cotangent):
  # Not `y > 0`: of that XLA makes `x > 0`, and keeps x.
  return (jnp.where(y == 0, 0, cotangent),)


relu.defvjp(_relu_forward, _relu_backward)


def attend(q_BQHd: jax.Array, k_BSGd: jax.Array, v_BSGd: jax.Array, mask: jax.Array) -> jax.Array:
  """Grouped-query attention: H / G query heads share one head of keys and values.

  Args:
    q_BQHd: queries; H is a multiple of G.
    k_BSGd: keys.
    v_BSGd: values.
    mask: three axes that broadcast to [B, Q, S]. Boolean: False hides a key. Float32: the logarithm
      of a key's weight, which is 0 for a plain key and `NEG` for a hidden one; so one can ask by
      gradients what a key is worth. A query that sees no key gets the mean of all values.

  Returns:
    [B, Q, H · d], in the dtype of the values.
  """
  B, Q, H, d = q_BQHd.shape
  G = k_BSGd.shape[2]
  # Heads that share a group stand side by side: head h reads group h // (H / G).
  q = q_BQHd.reshape(B, Q, G, H // G, d)
  logits = product("bqghd,bsgd->bghqs", q, k_BSGd) / jnp.sqrt(d).astype(jnp.float32)
  logits = _masked(logits, mask)
  # A softmax in float32: bfloat16 sums drift over long contexts. The greatest logit is taken off
  # so that exp cannot overflow. It cancels in read / total, so its gradient is 0 and is not
  # computed. Dividing after the product with the values saves a pass over [Q, S].
  weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
  total_BQGH1 = jnp.einsum("bghqs->bqgh", weights)[..., None]
  read = product("bghqs,bsgd->bqghd", weights.astype(v_BSGd.dtype), v_BSGd)
  return (read / total_BQGH1).astype(v_BSGd.dtype).reshape(B, Q, H * d)


def attention(q_BQHd: jax.Array, k_BSGd: jax.Array, mask: jax.Array) -> jax.Array:
  """The weights by which `attend` reads, as a mean over the heads: [B, Q, S] float32.

  For whoever wants to look at them: `attend` itself never holds them divided.

  Arguments as of `attend`. Each query's weights sum to 1.
  """
  B, Q, H, d = q_BQHd.shape
  G = k_BSGd.shape[2]
  q = q_BQHd.reshape(B, Q, G, H // G, d)
  logits = product("bqghd,bsgd->bghqs", q, k_BSGd) / jnp.sqrt(d).astype(jnp.float32)
  return jax.nn.softmax(_masked(logits, mask)).mean(axis=(1, 2))


def _masked(logits_BGHQS: jax.Array, mask: jax.Array) -> jax.Array:
  """Logits under a mask as `attend` takes it."""
  mask = mask[:, None, None]  # (B, Q, S) -> (B, 1, 1, Q, S)
  if mask.dtype == bool:
    return jnp.where(mask, logits_BGHQS, NEG)
  return logits_BGHQS + mask


class Linear(nn.Module):
  """A linear map of the last axis, [..., in] -> [..., features].

  All leading axes are flattened to one, because a 2-D product is faster on CPU than a 3-D one.

  Attributes:
    features: output width.
    axes: logical names of the kernel's two axes (parallel/mesh.py).
    bias: add a bias.
    out_dtype: dtype of what comes out, with the bias; None: that of the input. Logits ask for
      float32: the product is summed in it anyway, and a bfloat16 logit of 8 has steps of 1/16.
    bias_init: of the bias.
  """

  features: int
  axes: tuple[str | None, str | None] = ("embed", "mlp")
  bias: bool = False
  out_dtype: jnp.dtype | None = None
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.with_logical_partitioning(
      nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal"), self.axes
    )
    kernel = self.param("kernel", init, (x.shape[-1], self.features))
    flat = x.reshape(-1, x.shape[-1])
    # Scales exist where `quantized.quantize` has made the kernel a low-precision one: for search.
    if self.has_variable("scales", "kernel"):
      scale_F = self.get_variable("scales", "kernel")
      out = quantized.matmul(flat, kernel, scale_F, self.out_dtype or x.dtype)
    elif self.out_dtype is None:
      out = jnp.matmul(flat, kernel.astype(x.dtype))
    else:
      out = product("ni,io->no", flat, kernel.astype(x.dtype)).astype(self.out_dtype)
    if self.bias:
      # The bias is cut over devices as the kernel's output is.
      init = nn.with_logical_partitioning(self.bias_init, self.axes[1:])
      out += self.param("bias", init, (self.features,)).astype(out.dtype)
    return out.reshape(*x.shape[:-1], self.features)


class Dropout(nn.Module):
  """`nn.Dropout` for masks as large as the input, with a quarter of its random bits.

  Drawing those bits took a quarter of SASRec's step. An element takes one byte of them here, so the
  rate is the nearest multiple of 1/256. What is kept is scaled by that rate, so the mean stays.

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
    # ⌈D / 4⌉ words of 32 bits become (..., ⌈D / 4⌉, 4) bytes, then (..., D); a rest is cut off.
    words = jax.random.bits(self.make_rng("dropout"), (*axes, -(-D // 4)), jnp.uint32)
    bytes_ = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*axes, -1)[..., :D]
    # A byte is evenly 0 to 255, so `dropped` of its 256 values are below `dropped`.
    return jnp.where(bytes_ >= dropped, x * jnp.asarray(256 / (256 - dropped), x.dtype), 0)


class RMSNorm(nn.Module):
  """`rms_norm` with a learned scale, one number for each of the last axis."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return rms_norm(
      x,
      self.param(
        "scale", nn.with_logical_partitioning(nn.initializers.ones, (None,)), (x.shape[-1],)
      ),
    )


class GatedFFN(nn.Module):
  """W_o [ silu(W_g x) ⊙ W_u x ]: the gated feed-forward of docs/design/method.md §2.2.

  Attributes:
    hidden: width between the two maps.
  """

  hidden: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    # W_g and W_u as one product.
    gate_up = Linear(2 * self.hidden, name="in_proj")(x)
    gate, up = jnp.split(gate_up, 2, axis=-1)
    return Linear(x.shape[-1], ("mlp", "embed"), name="out_proj")(nn.silu(gate) * up)
