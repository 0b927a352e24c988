"""The decoder: its block (docs/design/method.md §2.2), and the LazyAR stack with Fuse (§2.3).

Of the L layers the first K are lazy: they see no code that was generated, so a request runs them
once. The other layers, the late ones, run for each of its sequences.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gr4ad_jax.config import ModelConfig
from gr4ad_jax.models.context import Context
from gr4ad_jax.models.cross_attention import cross_attend
from gr4ad_jax.models.layers import GatedFFN, Linear, RMSNorm, attend, attention
from gr4ad_jax.models.remat import rematerialized

# Keys and values of one layer's self-attention for the t levels before: [B, M, t, H, d] each.
Cache = tuple[jax.Array, jax.Array]


class DecoderBlock(nn.Module):
  """One layer: cross-attention to the context, causal self-attention over the levels, feed-forward.

  Each part reads the normed state and adds to it (pre-norm, residual).

  Attributes:
    config: model settings.
    kv: which of the context's L_kv pairs of keys and values this layer reads.
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
      cache: keys and values of the levels before; None: there are none.

    Returns:
      The new states [B, M, T, D]; the cache with these levels added; and what `Context.read` takes.
    """
    B, M, T, D = h_BMTD.shape
    H = self.config.heads
    head = D // self.config.heads
    # One dropout mask a request, (B, 1, 1, D), for all of its sequences and levels.
    drop = nn.Dropout(self.config.dropout, broadcast_dims=(1, 2), deterministic=not train)

    # The M sequences and their T levels become one axis of queries, all to the same S + 1 keys. So
    # keys and values are never repeated for a beam.
    q = Linear(D, name="cross_q")(RMSNorm(name="cross_norm")(h_BMTD)).reshape(B, M * T, H, head)
    read, keys = cross_attend(
      self.config.cross_attention,
      q,
      context.keys[self.kv],
      context.values[self.kv],
      context.mask_BS,
      shared=self.config.kv_split == 1,
    )
    h_BMTD += drop(Linear(D, ("mlp", "embed"), name="cross_out")(read.reshape(B, M, T, D)))
    if self.is_mutable_collection("intermediates"):  # who asks for the weights pays for them
      weights_BQS = attention(q, context.keys[self.kv], context.mask_BS[:, None])
      self.sow("intermediates", "cross", weights_BQS.reshape(B, M, T, -1))

    qkv = Linear(3 * D, name="self_qkv")(RMSNorm(name="self_norm")(h_BMTD)).reshape(
      B, M, T, 3, H, head
    )
    q = qkv[..., 0, :, :]
    k = qkv[..., 1, :, :]
    v = qkv[..., 2, :, :]
    if cache is not None:
      k, v = (jnp.concatenate([old, new], axis=2) for old, new in zip(cache, (k, v), strict=True))
    # The T queries stand at the end of all levels so far. (T, 1) >= (levels,) -> (T, levels).
    levels = k.shape[2]
    causal = jnp.arange(levels - T, levels)[:, None] >= jnp.arange(levels)
    # Sequences do not see each other: each is a row of its own, and each head has its own keys.
    flat = [x.reshape(B * M, x.shape[2], H, head) for x in (q, k, v)]
    read = attend(*flat, causal[None]).reshape(B, M, T, D)
    h_BMTD += drop(Linear(D, ("mlp", "embed"), name="self_out")(read))

    h_BMTD += drop(
      GatedFFN(self.config.ffn_multiple * D, name="ffn")(RMSNorm(name="ffn_norm")(h_BMTD))
    )
    return h_BMTD, (k, v), keys


class Fuse(nn.Module):
  """Brings the previous code into the lazy state: W_f [ m ⊙ W_g s ; s ] (§2.3)."""

  @nn.compact
  def __call__(self, m: jax.Array, s: jax.Array) -> jax.Array:
    """Fuses lazy states m [B, 1, T, D] with embedded codes s [B, M, T, D]: [B, M, T, D]."""
    D = s.shape[-1]
    # Here the request's one state becomes M: (B, 1, T, D) -> (B, M, T, D).
    gated = jnp.broadcast_to(m, s.shape) * Linear(D, name="gate")(s)
    return Linear(D, ("mlp", "embed"), name="out")(jnp.concatenate([gated, s], axis=-1))


class LazyDecoder(nn.Module):
  """L blocks, of which the first K are lazy (§2.3).

  With K = 0 the codes enter at the bottom, and it is the usual autoregressive decoder.

  Attributes:
    config: model settings.
    positions: levels that the decoder writes, with the eCPM token: T + 1.
    remat: what is kept of a block for the backward pass, a name of `remat.POLICIES`.
  """

  config: ModelConfig
  positions: int
  remat: str = "none"

  def setup(self):
    c = self.config
    # Argument 3 of a block's call is `train`, a Python bool that remat must not trace.
    block = rematerialized(DecoderBlock, self.remat, (3,))
    # Layer i reads block ⌊i · L_kv / L⌋ of the context (§2.1): neighbouring layers share one.
    self.blocks = [
      block(c, i * c.kv_layers // c.layers, name=f"block_{i}") for i in range(c.layers)
    ]
    self.fuse = Fuse()
    self.out_norm = RMSNorm()
    # p_t of §2.3: all that a lazy layer knows of the level that it works for.
    self.level = self.param(
      "level",
      nn.with_logical_partitioning(nn.initializers.normal(1.0), (None, "embed")),
      (self.positions, c.width),
    )

  def lazy(self, context: Context, *, train: bool) -> jax.Array:
    """The parallel stage: m^(K) of all positions, [B, 1, positions, D], without any code.

    A request computes it once for all of its sequences.
    """
    B = context.mask_BS.shape[0]
    level = self.level.astype(context.slots_BSD.dtype)
    m_B1TD = jnp.broadcast_to(level, (B, 1, *level.shape))
    for block in self.blocks[: self.config.lazy_layers]:
      m_B1TD, _, keys = block(m_B1TD, context, train)
      context = context.read(block.kv, keys)
    return m_B1TD

  def late(
    self, h_BMTD: jax.Array, context: Context, *, train: bool, caches: list[Cache] | None = None
  ):
    """Layers K + 1 to L, and the output norm.

    Args:
      h_BMTD: states that go into layer K + 1.
      context: the request's keys and values.
      train: apply dropout.
      caches: one a late layer, of the levels before; None: there are none.

    Returns:
      The states [B, M, T, D], and one cache a late layer, with these levels added.
    """
    after = []
    for i, block in enumerate(self.blocks[self.config.lazy_layers :]):
      h_BMTD, cache, keys = block(h_BMTD, context, train, caches[i] if caches else None)
      context = context.read(block.kv, keys)
      after.append(cache)
    return self.out_norm(h_BMTD), after

  def __call__(
    self, m_B1TD, tokens_BMTD, context, *, train: bool, caches: list[Cache] | None = None
  ):
    """The autoregressive stage: Fuse, then `late`, which says what is returned.

    Args:
      m_B1TD: lazy states of the T levels at hand.
      tokens_BMTD: for each of them, the embedded code of the level before. That of the first level
        is the start vector.
      context: the request's keys and values.
      train: apply dropout.
      caches: one a late layer, where levels come one after the other; None: none came before.
    """
    return self.late(self.fuse(m_B1TD, tokens_BMTD), context, train=train, caches=caches)
