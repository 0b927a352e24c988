"""Decoder block, Fuse and the LazyAR stack (docs/design/method.md §2.2 and §2.3)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gr4ad_jax.config import ModelConfig
from gr4ad_jax.models.context import Context
from gr4ad_jax.models.layers import GatedFFN, Linear, RMSNorm, attend
from gr4ad_jax.models.remat import rematerialized

Cache = tuple[
  jax.Array, jax.Array
]  # self-attention keys and values of earlier levels, [B, M, t, H, d] each


class DecoderBlock(nn.Module):
  """Cross-attention to the context, causal self-attention over levels, gated feed-forward;
  pre-normed and residual.

  Attributes:
    config: model settings.
    kv: which key/value set of the context this layer reads.
  """

  config: ModelConfig
  kv: int

  @nn.compact
  def __call__(self, h_BMTD: jax.Array, context: Context, train: bool, cache: Cache | None = None):
    """Runs the block on M sequences a request.

    Args:
      h_BMTD: states of all levels, or, with a cache, of the next level alone (T = 1).
      context: the request's keys and values.
      train: apply dropout.
      cache: self-attention keys and values of the levels before.

    Returns:
      The new states [B, M, T, D] and the cache extended by these levels.
    """
    B, M, T, D = h_BMTD.shape
    H, head = self.config.heads, D // self.config.heads
    drop = nn.Dropout(self.config.dropout, broadcast_dims=(1, 2), deterministic=not train)

    q = Linear(D, name="cross_q")(RMSNorm(name="cross_norm")(h_BMTD)).reshape(B, M * T, H, head)
    read = attend(q, context.keys[self.kv], context.values[self.kv], context.mask_BS[:, None])
    h_BMTD += drop(Linear(D, ("mlp", "embed"), name="cross_out")(read.reshape(B, M, T, D)))

    qkv = Linear(3 * D, name="self_qkv")(RMSNorm(name="self_norm")(h_BMTD)).reshape(
      B, M, T, 3, H, head
    )
    q, k, v = qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]
    if cache is not None:
      k, v = (jnp.concatenate([old, new], axis=2) for old, new in zip(cache, (k, v), strict=True))
    levels = k.shape[2]
    causal = jnp.arange(levels - T, levels)[:, None] >= jnp.arange(levels)  # (T, levels)
    flat = [x.reshape(B * M, x.shape[2], H, head) for x in (q, k, v)]
    read = attend(*flat, causal[None]).reshape(B, M, T, D)
    h_BMTD += drop(Linear(D, ("mlp", "embed"), name="self_out")(read))

    h_BMTD += drop(
      GatedFFN(self.config.ffn_multiple * D, name="ffn")(RMSNorm(name="ffn_norm")(h_BMTD))
    )
    return h_BMTD, (k, v)


class Fuse(nn.Module):
  """W_f [ m * (W_g s) ; s ]: injects the previous code into the lazy state."""

  @nn.compact
  def __call__(self, m: jax.Array, s: jax.Array) -> jax.Array:
    D = s.shape[-1]
    gated = jnp.broadcast_to(m, s.shape) * Linear(D, name="gate")(s)
    return Linear(D, ("mlp", "embed"), name="out")(jnp.concatenate([gated, s], axis=-1))


class LazyDecoder(nn.Module):
  """L blocks, the first K lazy. With K = 0 tokens enter at the bottom: the standard autoregressive
  decoder.

  Attributes:
    config: model settings.
    positions: levels that the decoder writes, the eCPM token included.
    remat: what is kept of a block for the backward pass, a name of `remat.POLICIES`.
  """

  config: ModelConfig
  positions: int
  remat: str = "none"

  def setup(self):
    c = self.config
    block = rematerialized(DecoderBlock, self.remat, (3,))
    self.blocks = [
      block(c, i * c.kv_layers // c.layers, name=f"block_{i}") for i in range(c.layers)
    ]
    self.fuse = Fuse()
    self.out_norm = RMSNorm()
    self.level = self.param(
      "level",
      nn.with_logical_partitioning(nn.initializers.normal(1.0), (None, "embed")),
      (self.positions, c.width),
    )

  def lazy(self, context: Context, *, train: bool) -> jax.Array:
    """Parallel stage: m^(K) [B, 1, T, D], without any token; once a request, for all beams."""
    B = context.mask_BS.shape[0]
    level = self.level.astype(context.slots_BSD.dtype)
    m_B1TD = jnp.broadcast_to(level, (B, 1, *level.shape))
    for block in self.blocks[: self.config.lazy_layers]:
      m_B1TD, _ = block(m_B1TD, context, train)
    return m_B1TD

  def late(
    self, h_BMTD: jax.Array, context: Context, *, train: bool, caches: list[Cache] | None = None
  ):
    """Layers K+1 to L and the output norm. Returns the states and one cache a layer."""
    after = []
    for i, block in enumerate(self.blocks[self.config.lazy_layers :]):
      h_BMTD, cache = block(h_BMTD, context, train, caches[i] if caches else None)
      after.append(cache)
    return self.out_norm(h_BMTD), after

  def __call__(
    self, m_B1TD, tokens_BMTD, context, *, train: bool, caches: list[Cache] | None = None
  ):
    """Autoregressive stage: Fuse, then `late`.

    Args:
      m_B1TD: lazy states of the levels at hand.
      tokens_BMTD: embeddings of the previous level's code (BOS first).
      context: the request's keys and values.
      train: apply dropout.
      caches: one a late layer when decoding level by level.
    """
    return self.late(self.fuse(m_B1TD, tokens_BMTD), context, train=train, caches=caches)
