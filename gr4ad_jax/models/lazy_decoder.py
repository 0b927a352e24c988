"""The decoder: its block (docs/design/method.md §2.2), and the LazyAR stack with Fuse (§2.3).

Of the L layers the first K are lazy: they see no code that was generated, so a request runs them
once. The other layers, the late ones, run for each of its sequences.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

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

  It takes one array of states, or several, *parts*, that are kept apart by self-attention alone.
  All else maps rows, so rows of all parts go through it together: parameters and context are read
  once, and their gradients are made once.

  Attributes:
    config: model settings.
    kv: which of the context's L_kv pairs of keys and values this layer reads.
  """

  config: ModelConfig
  kv: int

  @nn.compact
  def __call__(
    self, h, context: Context, train: bool, cache: Cache | None = None,
    follows: tuple[tuple[int, ...], ...] = ((),),
  ):  # fmt: skip
    """Runs the block.

    Args:
      h: states of all levels of M sequences a request, [B, M, T, D]; or, with a cache, of the next
        level alone (T = 1). Or a tuple of parts, each [B, M, T, D] with an M and a T of its own.
      context: the request's keys and values.
      train: apply dropout.
      cache: keys and values of the levels before; None: there are none. Not with parts.
      follows: for each part the numbers of those whose levels come before its own. Such a part has
        a single sequence, or its first M sequences are meant.

    Returns:
      The new states, as they came; the cache with these levels added, of several parts None; and
      what `Context.read` takes.
    """
    parts = h if isinstance(h, tuple) else (h,)
    shapes = [part.shape for part in parts]
    B, *_, D = shapes[0]
    H = self.config.heads
    head = D // H
    drop = self._dropped([M * T for _, M, T, _ in shapes], train)

    # The M sequences and their T levels become one axis of queries, all to the same S + 1 keys. So
    # keys and values are never repeated for a beam.
    h_BRD = _joined([part.reshape(B, -1, D) for part in parts])
    q = Linear(D, name="cross_q")(RMSNorm(name="cross_norm")(h_BRD)).reshape(B, -1, H, head)
    read, keys = cross_attend(
      self.config.cross_attention,
      q,
      context.keys[self.kv],
      context.values[self.kv],
      context.mask_BS,
      shared=self.config.kv_split == 1,
    )
    h_BRD += drop(Linear(D, ("mlp", "embed"), name="cross_out")(read))
    if self.is_mutable_collection("intermediates"):  # who asks for the weights pays for them
      weights_BQS = attention(q, context.keys[self.kv], context.mask_BS[:, None])
      for x, shape in zip(_cut(weights_BQS, shapes), shapes, strict=True):
        self.sow("intermediates", "cross", x.reshape(*shape[:3], -1))

    qkv = Linear(3 * D, name="self_qkv")(RMSNorm(name="self_norm")(h_BRD))
    qkv = [
      part.reshape(*shape[:3], 3, H, head)
      for part, shape in zip(_cut(qkv, shapes), shapes, strict=True)
    ]
    found = [_among(qkv, number, before, cache) for number, before in enumerate(follows)]
    read = _joined([read.reshape(B, -1, D) for read, _ in found])
    h_BRD += drop(Linear(D, ("mlp", "embed"), name="self_out")(read))

    h_BRD += drop(
      GatedFFN(self.config.ffn_multiple * D, name="ffn")(RMSNorm(name="ffn_norm")(h_BRD))
    )
    after = tuple(x.reshape(shape) for x, shape in zip(_cut(h_BRD, shapes), shapes, strict=True))
    return (after, None, keys) if isinstance(h, tuple) else (after[0], found[0][1], keys)

  def _dropped(self, rows: list[int], train: bool):
    """Dropout of states [B, R, D]: one mask a request, for all sequences and levels of a part.

    Args:
      rows: of each part, R in all.
      train: apply it.
    """
    # Its masks are (B, 1, 1, D).
    drop = nn.Dropout(self.config.dropout, broadcast_dims=(1, 2), deterministic=not train)
    if not train or not self.config.dropout or len(rows) == 1:
      return lambda x_BRD: drop(x_BRD[:, :, None])[:, :, 0]
    ends = np.cumsum(rows)
    part_R1 = np.searchsorted(ends, np.arange(ends[-1]), side="right")[:, None]
    masks = []

    def dropped(x_BRD):
      B, _, D = x_BRD.shape
      if not masks:
        # The masks of a part are drawn one after the other, and then those of the next: as if the
        # parts came one by one.
        ones_B11D = jnp.ones((B, 1, 1, D), x_BRD.dtype)
        drawn = [drop(ones_B11D)[:, 0] for _ in range(3 * len(rows))]
        masks.extend([drawn[i::3] for i in range(3)])
      of_part = masks.pop(0)
      # Chosen by a row's part, so that no mask of all rows is made.
      kept = of_part[-1]
      for number in reversed(range(len(rows) - 1)):
        kept = jnp.where(part_R1 <= number, of_part[number], kept)
      return x_BRD * kept

    return dropped


def _among(qkv: list[jax.Array], number: int, follows: tuple[int, ...], cache: Cache | None):
  """Causal self-attention of a part: what its levels read, [B, M, T, D], and its keys and values
  with those before.

  Args:
    qkv: queries, keys and values of all parts, [B, M, T, 3, H, d].
    number: of the part.
    follows: numbers of the parts before it.
    cache: as of the call.
  """
  B, M, T, _, H, head = qkv[number].shape
  q, k, v = (qkv[number][..., i, :, :] for i in range(3))
  before = [] if cache is None else [cache]
  for other in follows:
    # A single sequence is that of all: (B, 1, T, H, d) -> (B, M, T, H, d).
    first = qkv[other][:, :M]
    old = (first[..., i, :, :] for i in (1, 2))
    before.append(tuple(jnp.broadcast_to(x, (B, M, *x.shape[2:])) for x in old))
  if before:
    k, v = (jnp.concatenate(x, axis=2) for x in zip(*before, (k, v), strict=True))
  # The T queries stand at the end of all levels so far. (T, 1) >= (levels,) -> (T, levels).
  levels = k.shape[2]
  causal = jnp.arange(levels - T, levels)[:, None] >= jnp.arange(levels)
  # Sequences do not see each other: each is a row of its own, and each head has its own keys.
  flat = [x.reshape(B * M, x.shape[2], H, head) for x in (q, k, v)]
  return attend(*flat, causal[None]).reshape(B, M, T, H * head), (k, v)


def _joined(parts: list[jax.Array]) -> jax.Array:
  """Rows of all parts, [B, R, D]."""
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _cut(x_BRF: jax.Array, shapes: list[tuple[int, ...]]) -> list[jax.Array]:
  """The rows of each part, by its shape [B, M, T, D]."""
  ends = np.cumsum([M * T for _, M, T, _ in shapes])
  return jnp.split(x_BRF, ends[:-1], axis=1) if len(shapes) > 1 else [x_BRF]


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
    # Arguments 3 and 5 of a block's call are `train` and `follows`, which remat must not trace.
    block = rematerialized(DecoderBlock, self.remat, (3, 5))
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
      m_B1TD, _, keys = block(m_B1TD, context, train, None, ((),))
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
      h_BMTD, cache, keys = block(h_BMTD, context, train, caches[i] if caches else None, ((),))
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

  def together(
    self, m_B1TD, bos_B11D, tokens_BMTD, valued: int, context: Context, *, train: bool
  ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """All states that training asks for, in one pass of the late layers (`DecoderBlock`'s parts).

    `one_by_one` says what they are.
    """
    first_B11D = self.fuse(m_B1TD[:, :, :1], bos_B11D)
    if valued == tokens_BMTD.shape[1]:
      parts = (first_B11D, self.fuse(m_B1TD[:, :, 1:], tokens_BMTD))
      follows = ((), (0,))
    else:
      # All M run through levels 1 to T - 1 (T is 2 or more), the first `valued` through level T.
      parts = (
        first_B11D,
        self.fuse(m_B1TD[:, :, 1:-1], tokens_BMTD[:, :, :-1]),
        self.fuse(m_B1TD[:, :, -1:], tokens_BMTD[:, :valued, -1:]),
      )
      follows = ((), (0,), (0, 1))
    # L_MTP (docs/design/method.md §3.1): the late layers run on m^(K) itself, no code fused in.
    h = (*parts, m_B1TD)
    for block in self.blocks[self.config.lazy_layers :]:
      h, _, keys = block(h, context, train, None, (*follows, ()))
      context = context.read(block.kv, keys)
    first_B11D, later_BMTD, *last, free_B1TD = [self.out_norm(x) for x in h]
    last_BVD = last[0][:, :, 0] if last else later_BMTD[:, :, -1]
    return first_B11D[:, 0, 0], later_BMTD, last_BVD, free_B1TD


def one_by_one(
  decoder: nn.Module, m_B1TD, bos_B11D, tokens_BMTD, valued: int, context: Context, *, train: bool
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """All states that training asks for, by a decoder's call and its `late`: its `together`, where it
  has no better way.

  Args:
    decoder: bound.
    m_B1TD: lazy states of all T + 1 levels.
    bos_B11D: what the first level reads in place of a code.
    tokens_BMTD: embedded codes of the T levels: what levels 1 to T read.
    valued: how many sequences, from the first on, go through level T, that of the eCPM token.
    context: the request's keys and values.
    train: apply dropout.

  Returns:
    States of the first level [B, D], which has seen no code and so is that of all sequences; of
    levels 1 to T - 1 at least, [B, M, T - 1 or T, D]; of level T, [B, valued, D]; and those of all
    levels without any code, [B, 1, T + 1, D].
  """
  _, M, T, _ = tokens_BMTD.shape

  def decode(begin, tokens_BMTD, caches):
    m = m_B1TD[:, :, begin : begin + tokens_BMTD.shape[2]]
    return decoder(m, tokens_BMTD, context, train=train, caches=caches)

  first_B11D, caches = decode(0, bos_B11D, None)
  # The one first level is what every sequence attends to: (B, 1, 1, H, d) -> (B, M, 1, H, d).
  caches = jax.tree.map(lambda x: jnp.broadcast_to(x, (x.shape[0], M, *x.shape[2:])), caches)
  if valued == M:
    later_BMTD, _ = decode(1, tokens_BMTD, caches)
    last_BVD = later_BMTD[:, :, -1]
  else:
    later_BMTD, caches = decode(1, tokens_BMTD[:, :, :-1], caches)
    caches = jax.tree.map(lambda x: x[:, :valued], caches)
    last_BVD = decode(T, tokens_BMTD[:, :valued, -1:], caches)[0][:, :, 0]
  free_B1TD, _ = decoder.late(m_B1TD, context, train=train)
  return first_B11D[:, 0, 0], later_BMTD, last_BVD, free_B1TD
