"""Cross-attention to a context whose keys are its values, as one kernel a direction.

The context is by far the largest operand: four queries of a lazy layer read 225 slots. Written as
products, its forward pass reads it twice, for the scores and for the mean, and its backward pass
makes two gradients of it and reads it three times more. Here a program holds the slots of one
request and one group of heads, and reads them once (after FlashAttention, Dao et al.,
arXiv:2205.14135; the slots fit whole, so nothing goes round in pieces). In the backward pass it
adds their gradient to that of the layers that came later, in place.

Written in Pallas, it becomes Triton on CUDA and Mosaic on TPU. On CPU it is interpreted, for tests.
`layers.attend` is the reference. No accelerator has timed it.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu

from gr4ad_jax.knobs import ConfigError
from gr4ad_jax.models.layers import NEG, attend
from gr4ad_jax.models.remat import RECOMPUTED

# Most scores of a program, queries times slots: 64 KiB in float32, and there are a few such arrays.
# With more queries the products have enough to do for each slot that they read.
_MOST_SCORES = 16_384
_LANES = 128  # a TPU's blocks are of so many columns, or of all


def is_fused(asked: str, queries: int, slots: int, width: int) -> bool:
  """Whether --cross_attention is the kernel for some sizes; what does not fit is `attend`'s.

  Args:
    asked: 'auto', 'plain' or 'fused'. 'auto' is the kernel on a single accelerator. Over several
      devices the compiler cuts products by itself, but no kernel.
    queries: of a group, Q · H / G.
    slots: keys of a request.
    width: of a head.

  Raises:
    ConfigError: 'fused' on several accelerators.
  """
  # A CPU's devices may be several: what is interpreted is cut like any other operation.
  accelerators = 0 if jax.default_backend() == "cpu" else jax.device_count()
  if asked == "fused" and accelerators > 1:
    raise ConfigError(
      f"--cross_attention=fused is not allowed: it is of one device, and there are {accelerators}"
    )
  # Triton's blocks have powers of two as sizes, and its products 16 rows at least.
  fits = width >= 16 and width == pl.next_power_of_2(width)
  fits &= _padded(queries) * _padded(slots) <= _MOST_SCORES
  return fits and (asked == "fused" or (asked == "auto" and accelerators == 1))


@jax.custom_vjp
def fused_attend(
  q_BQHd: jax.Array, kv_BSGd: jax.Array, mask_BS: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """`layers.attend` with keys that are the values, for sizes that `is_fused` allows.

  Args:
    q_BQHd: queries; H is a multiple of G.
    kv_BSGd: keys, and values.
    mask_BS: bool, False hides a slot from all queries of its request.

  Returns:
    [B, Q, H · d], in the dtype of the values; and the keys as they came. The layer that reads them
    next should take these: the backward pass then hands one gradient from layer to layer, and each
    kernel adds its own in place. Else there would be a gradient a layer, and passes to sum them.
  """
  return _forward(q_BQHd, kv_BSGd, mask_BS)[0]


def cross_attend(
  asked: str, q_BQHd: jax.Array, k_BSGd: jax.Array, v_BSGd: jax.Array, mask_BS: jax.Array,
  *, shared: bool,
) -> tuple[jax.Array, jax.Array | None]:  # fmt: skip
  """Attention of all queries of a request to its context, by --cross_attention.

  Args:
    asked: as of `is_fused`.
    q_BQHd: queries.
    k_BSGd: keys.
    v_BSGd: values.
    mask_BS: bool, False hides a slot; or log weights, as `attend` takes them, which no kernel does.
    shared: whether the values are the keys (S_kv = 1).

  Returns:
    [B, Q, H · d]; and the keys for the next layer, as of `fused_attend`, or None: those that came.
  """
  _, Q, H, d = q_BQHd.shape
  _, S, G, _ = k_BSGd.shape
  if shared and mask_BS.dtype == bool and is_fused(asked, Q * (H // G), S, d):
    return fused_attend(q_BQHd, k_BSGd, mask_BS)
  return attend(q_BQHd, k_BSGd, v_BSGd, mask_BS[:, None]), None


def _padded(size: int) -> int:
  """The power of two that a block of Triton's has for a size."""
  return max(16, pl.next_power_of_2(size))


# What a program sees: n groups of heads (one, but on TPU), X queries of each, S slots.


def _load(ref, slots: int, group: int, d: int) -> jax.Array:
  """The columns of a group, [rows, d]; zeros in rows that fill up a block."""
  if ref.shape[0] == slots:
    return ref[:, group * d : (group + 1) * d]
  row = jax.lax.broadcasted_iota(jnp.int32, ref.shape, 0)
  return plgpu.load(ref, mask=row < slots, other=0.0)


def _scores(q_Xd, kv_Sd, hidden_ref, slots: int) -> jax.Array:
  """Float32 scores [X, S]: NEG where a slot is hidden, -inf where there is none."""
  if hidden_ref.shape[1] == slots:
    hidden_1S = hidden_ref[...]
  else:
    column = jax.lax.broadcasted_iota(jnp.int32, hidden_ref.shape, 1)
    hidden_1S = plgpu.load(hidden_ref, mask=column < slots, other=-jnp.inf)
  score_XS = _dot(q_Xd, kv_Sd, 1, 1) * (1 / q_Xd.shape[1] ** 0.5)
  # (1, S) -> (X, S). No sum: a query that sees nothing reads all slots alike, as in `attend`.
  return jnp.where(hidden_1S < 0, hidden_1S, score_XS)


def _dot(a, b, of_a: int, of_b: int) -> jax.Array:
  """Product of two matrices over axis `of_a` of one and `of_b` of the other, summed in float32."""
  axes = (((of_a,), (of_b,)), ((), ()))
  return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _softmax(score_XS) -> tuple[jax.Array, jax.Array]:
  """Weights before they are divided, and what divides them, [X, 1]."""
  weight_XS = jnp.exp(score_XS - score_XS.max(axis=1, keepdims=True))
  return weight_XS, weight_XS.sum(axis=1, keepdims=True)


def _forward_kernel(q_ref, kv_ref, hidden_ref, read_ref, *, slots: int):
  groups, _, d = q_ref.shape
  for group in range(groups):
    kv_Sd = _load(kv_ref, slots, group, d)
    weight_XS, total_X1 = _softmax(_scores(q_ref[group], kv_Sd, hidden_ref, slots))
    read_Xd = _dot(weight_XS.astype(kv_Sd.dtype), kv_Sd, 1, 0) / total_X1
    read_ref[group] = read_Xd.astype(read_ref.dtype)


def _backward_kernel(
  q_ref, kv_ref, hidden_ref, dread_ref, later_ref, dq_ref, dkv_ref, *, slots: int
):
  groups, _, d = q_ref.shape
  for group in range(groups):
    q_Xd = q_ref[group]
    dread_Xd = dread_ref[group]
    kv_Sd = _load(kv_ref, slots, group, d)
    with jax.named_scope(RECOMPUTED):
      score_XS = _scores(q_Xd, kv_Sd, hidden_ref, slots)
    weight_XS, total_X1 = _softmax(score_XS)
    p_XS = weight_XS / total_X1
    # With o = Σ p v: dp = do · v, and of the softmax ds = p (dp - Σ p dp).
    dp_XS = _dot(dread_Xd, kv_Sd, 1, 1)
    ds_XS = p_XS * (dp_XS - (p_XS * dp_XS).sum(axis=1, keepdims=True)) * (1 / d**0.5)
    ds_XS = ds_XS.astype(kv_Sd.dtype)
    dq_ref[group] = _dot(ds_XS, kv_Sd, 1, 0).astype(dq_ref.dtype)
    # A slot's gradient as a key, as a value, and of the layers that read it later: `later_ref` and
    # `dkv_ref` are one array.
    dkv_Sd = _dot(ds_XS, q_Xd, 0, 0) + _dot(p_XS.astype(kv_Sd.dtype), dread_Xd, 0, 0)
    dkv_Sd += _load(later_ref, slots, group, d).astype(jnp.float32)
    dkv_Sd = dkv_Sd.astype(dkv_ref.dtype)
    if dkv_ref.shape[0] == slots:
      dkv_ref[:, group * d : (group + 1) * d] = dkv_Sd
    else:
      row = jax.lax.broadcasted_iota(jnp.int32, dkv_ref.shape, 0)
      plgpu.store(dkv_ref, dkv_Sd, mask=row < slots)


def _groups_a_program(groups: int, d: int) -> int:
  """Groups of heads that a TPU's program takes: the fewest that fill its lanes, else all."""
  fitting = [n for n in range(1, groups) if groups % n == 0 and n * d % _LANES == 0]
  return fitting[0] if fitting else groups


def _call(kernel, platform: str, arrays: tuple, outputs: str) -> list[jax.Array]:
  """Runs a kernel over requests and groups.

  Args:
    kernel: `_forward_kernel` or `_backward_kernel`.
    platform: 'tpu', 'cuda' or 'cpu', where it is interpreted in CUDA's form.
    arrays: q [B, G, X, d], kv [B, S, G · d], hidden [B, 1, S]; for the backward pass what is
      known of the gradients, shaped as q and kv are.
    outputs: one letter each: 'q' or 'k', what it is shaped as.
  """
  q_BGXd, kv_BSC, hidden_B1S = arrays[:3]
  B, G, X, d = q_BGXd.shape
  S = kv_BSC.shape[1]
  n = _groups_a_program(G, d) if platform == "tpu" else 1
  rows = S if platform == "tpu" else _padded(S)
  of_q = pl.BlockSpec((None, n, X, d), lambda b, g: (b, g, 0, 0))
  of_kv = pl.BlockSpec((None, rows, n * d), lambda b, g: (b, 0, g))
  of_hidden = pl.BlockSpec((None, 1, rows), lambda b, g: (b, 0, 0))
  like = {"q": (q_BGXd, of_q), "k": (kv_BSC, of_kv)}
  options = {
    "tpu": pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
    "cuda": plgpu.CompilerParams(num_warps=8 if X * rows > 4096 else 4, num_stages=1),
    "cpu": None,
  }
  # Scores and mean are two products; their gradients are three, and the scores again.
  products = 2 if kernel is _forward_kernel else 5
  shapes = [jax.ShapeDtypeStruct(like[name][0].shape, like[name][0].dtype) for name in outputs]
  moved = sum(x.size * x.dtype.itemsize for x in (*arrays, *shapes))
  cost = pl.CostEstimate(2 * products * B * G * X * S * d, B * G * X * S, moved)
  return pl.pallas_call(
    functools.partial(kernel, slots=S),
    out_shape=shapes,
    grid=(B, G // n),
    in_specs=[of_q, of_kv, of_hidden, of_q, of_kv][: len(arrays)],
    input_output_aliases={4: 1} if len(arrays) == 5 else {},
    out_specs=[like[name][1] for name in outputs],
    compiler_params=options[platform],
    cost_estimate=cost,
    interpret=platform == "cpu",
    name=kernel.__name__.strip("_"),
  )(*arrays)


def _on_platform(kernel, outputs: str, *arrays) -> list[jax.Array]:
  """`_call` in the form of the platform that the program is lowered for."""
  X = arrays[0].shape[2]

  def of(platform):
    def run(*arrays):
      # Queries that fill up a block of CUDA's see everything, and have no gradient.
      missing = 0 if platform == "tpu" else _padded(X) - X
      widths = ((0, 0), (0, 0), (0, missing), (0, 0))
      wide = [jnp.pad(x, widths) if x.ndim == 4 else x for x in arrays]
      found = _call(kernel, platform, tuple(wide), outputs)
      return [x[:, :, :X] if x.ndim == 4 else x for x in found]

    return run

  return jax.lax.platform_dependent(*arrays, tpu=of("tpu"), cuda=of("cuda"), default=of("cpu"))


def _by_group(q_BQHd: jax.Array, groups: int) -> jax.Array:
  """Queries by the group that they read, [B, G, X, d]: X = Q · H / G of them a group."""
  B, Q, H, d = q_BQHd.shape
  return q_BQHd.reshape(B, Q, groups, H // groups, d).swapaxes(1, 2).reshape(B, groups, -1, d)


def _by_query(x_BGXd: jax.Array, queries: int) -> jax.Array:
  """Undoes `_by_group`: [B, Q, H, d]."""
  B, G, _, d = x_BGXd.shape
  return x_BGXd.reshape(B, G, queries, -1, d).swapaxes(1, 2).reshape(B, queries, -1, d)


def _inputs(q_BQHd, kv_BSGd, mask_BS) -> tuple[jax.Array, jax.Array, jax.Array]:
  B, S, G, d = kv_BSGd.shape
  hidden_B1S = jnp.where(mask_BS, 0.0, NEG)[:, None]
  return _by_group(q_BQHd, G), kv_BSGd.reshape(B, S, G * d), hidden_B1S


def _forward(q_BQHd, kv_BSGd, mask_BS):
  B, Q, _, _ = q_BQHd.shape
  (read_BGXd,) = _on_platform(_forward_kernel, "q", *_inputs(q_BQHd, kv_BSGd, mask_BS))
  return (_by_query(read_BGXd, Q).reshape(B, Q, -1), kv_BSGd), (q_BQHd, kv_BSGd, mask_BS)


def _backward(kept, cotangents):
  q_BQHd, kv_BSGd, mask_BS = kept
  dread_BQD, later_BSGd = cotangents
  inputs = _inputs(q_BQHd, kv_BSGd, mask_BS)
  dread_BGXd = _by_group(dread_BQD.reshape(q_BQHd.shape), kv_BSGd.shape[2])
  later_BSC = later_BSGd.reshape(inputs[1].shape)
  dq_BGXd, dkv_BSC = _on_platform(_backward_kernel, "qk", *inputs, dread_BGXd, later_BSC)
  # A mask has no gradient.
  return _by_query(dq_BGXd, q_BQHd.shape[1]), dkv_BSC.reshape(kv_BSGd.shape), None


fused_attend.defvjp(_forward, _backward)
