"""Cross-attention to a context whose keys are its values, as one kernel a direction.

The context is by far the largest operand: four queries of a lazy layer read 225 slots. Written as
products, its forward pass reads it twice, for the scores and for the mean, and its backward pass
makes two gradients of it and reads it three times more. Here a program holds the slots of one
request and one group of heads, and reads them once (after FlashAttention, Dao et al.,
arXiv:2205.14135). In the backward pass it adds their gradient to that of the layers that came
later, in place.

The beams of a search are hundreds of queries on 512 slots. There a program takes some of them; on
CUDA the slots then go past it in pieces, under a running maximum and a running sum (the online
softmax of Milakov and Gimelshein, arXiv:1805.02867). No score leaves the kernel. So many queries
have their backward pass as products.

Written in Pallas, it becomes Triton on CUDA and Mosaic on TPU. On CPU it is interpreted, for tests.
`layers.attend` is the reference. No accelerator has timed it.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gr4ad_jax.knobs import ConfigError
from gr4ad_jax.models.attention_kernels import at_once, backward_kernel, forward_kernel, run
from gr4ad_jax.models.layers import NEG, attend, product
from gr4ad_jax.models.remat import RECOMPUTED


def is_fused(asked: str, width: int) -> bool:
  """Whether --cross_attention is the kernel for heads of a width; what does not fit is `attend`'s.

  Args:
    asked: 'auto', 'plain' or 'fused'. 'auto' is the kernel on a single accelerator. Over several
      devices the compiler cuts products by itself, but no kernel.
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
  return fits and (asked == "fused" or (asked == "auto" and accelerators == 1))


@jax.custom_vjp
def fused_attend(
  q_BQHd: jax.Array, kv_BSGd: jax.Array, mask_BS: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """`layers.attend` with keys that are the values, for widths that `is_fused` allows.

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
  if shared and mask_BS.dtype == bool and is_fused(asked, q_BQHd.shape[-1]):
    return fused_attend(q_BQHd, k_BSGd, mask_BS)
  return attend(q_BQHd, k_BSGd, v_BSGd, mask_BS[:, None]), None


def _by_group(q_BQHd: jax.Array, groups: int) -> jax.Array:
  """Queries by the group that they read, [B, X, G · d]: X = Q · H / G of them a group.

  With one head a group, as in the presets, they lie so already.
  """
  B, Q, H, d = q_BQHd.shape
  split = q_BQHd.reshape(B, Q, groups, H // groups, d)
  return split.swapaxes(2, 3).reshape(B, -1, groups * d)


def _by_query(x_BXC: jax.Array, q_BQHd: jax.Array, groups: int) -> jax.Array:
  """Undoes `_by_group`, shaped as the queries."""
  B, Q, H, d = q_BQHd.shape
  split = x_BXC.reshape(B, Q, H // groups, groups, d)
  return split.swapaxes(2, 3).reshape(q_BQHd.shape)


def _inputs(q_BQHd, kv_BSGd, mask_BS) -> tuple[jax.Array, jax.Array, jax.Array]:
  B, S, G, d = kv_BSGd.shape
  hidden_B1S = jnp.where(mask_BS, 0.0, NEG)[:, None]
  return _by_group(q_BQHd, G), kv_BSGd.reshape(B, S, G * d), hidden_B1S


def _forward(q_BQHd, kv_BSGd, mask_BS):
  B, Q, _, d = q_BQHd.shape
  (read_BXC,) = run(forward_kernel, d, "q", *_inputs(q_BQHd, kv_BSGd, mask_BS))
  read_BQHd = _by_query(read_BXC, q_BQHd, kv_BSGd.shape[2])
  return (read_BQHd.reshape(B, Q, -1), kv_BSGd), (q_BQHd, kv_BSGd, mask_BS)


def _backward(kept, cotangents):
  q_BQHd, kv_BSGd, mask_BS = kept
  dread_BQD, later_BSGd = cotangents
  inputs = _inputs(q_BQHd, kv_BSGd, mask_BS)
  _, S, G, d = kv_BSGd.shape
  dread_BXC = _by_group(dread_BQD.reshape(q_BQHd.shape), G)
  later_BSC = later_BSGd.reshape(inputs[1].shape)
  if at_once(inputs[0].shape[1], S):
    dq_BXC, dkv_BSC = run(backward_kernel, d, "qk", *inputs, dread_BXC, later_BSC)
  else:
    dq_BXC, dkv_BSC = _backward_products(*inputs, dread_BXC, later_BSC, d)
  # A mask has no gradient.
  return _by_query(dq_BXC, q_BQHd, G), dkv_BSC.reshape(kv_BSGd.shape), None


def _backward_products(q_BXC, kv_BSC, hidden_B1S, dread_BXC, later_BSC, d: int):
  """What `backward_kernel` computes, written as products."""
  q_BXGd, kv_BSGd, dread_BXGd = (x.reshape(*x.shape[:2], -1, d) for x in (q_BXC, kv_BSC, dread_BXC))
  scale = 1 / d**0.5
  hidden_B11S = hidden_B1S[:, None]
  with jax.named_scope(RECOMPUTED):
    score_BGXS = product("bxgd,bsgd->bgxs", q_BXGd, kv_BSGd) * scale
  p_BGXS = jax.nn.softmax(jnp.where(hidden_B11S < 0, hidden_B11S, score_BGXS))
  dp_BGXS = product("bxgd,bsgd->bgxs", dread_BXGd, kv_BSGd)
  ds_BGXS = p_BGXS * (dp_BGXS - (p_BGXS * dp_BGXS).sum(-1, keepdims=True)) * scale
  p_BGXS = p_BGXS.astype(kv_BSC.dtype)
  ds_BGXS = ds_BGXS.astype(kv_BSC.dtype)
  dq_BXGd = jnp.einsum("bgxs,bsgd->bxgd", ds_BGXS, kv_BSGd)
  dkv_BSGd = product("bgxs,bxgd->bsgd", ds_BGXS, q_BXGd)
  dkv_BSGd += product("bgxs,bxgd->bsgd", p_BGXS, dread_BXGd)
  dkv_BSC = (dkv_BSGd.reshape(kv_BSC.shape) + later_BSC).astype(kv_BSC.dtype)
  return dq_BXGd.reshape(q_BXC.shape), dkv_BSC


fused_attend.defvjp(_forward, _backward)
