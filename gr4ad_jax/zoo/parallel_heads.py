"""Fully parallel heads: all levels at once, and none sees the code of another.

So p(y | X) = Π_t p(s_t | X). After RPG: Hou et al., "Generating Long Semantic IDs in Parallel for
Recommendation", KDD 2025. There the levels are many and have no order. Here they are those of
GR4AD, so that only the factors of p(y | X) differ.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from gr4ad_jax.config import ModelConfig
from gr4ad_jax.models.context import Context
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.models.layers import RMSNorm
from gr4ad_jax.models.lazy_decoder import Cache, DecoderBlock, one_by_one
from gr4ad_jax.models.remat import rematerialized


class ParallelDecoder(nn.Module):
  """A decoder whose layers all run without codes, once a request. It has `LazyDecoder`'s interface.

  Attributes:
    config: model settings.
    positions: levels, with the eCPM token: T + 1.
    remat: what is kept of a block for the backward pass, a name of `remat.POLICIES`.
  """

  config: ModelConfig
  positions: int
  remat: str = "none"

  def setup(self):
    c = self.config
    # Argument 3 of a block's call is `train`, a Python bool that remat must not trace.
    block = rematerialized(DecoderBlock, self.remat, (3,))
    self.blocks = [
      block(c, i * c.kv_layers // c.layers, name=f"block_{i}") for i in range(c.layers)
    ]
    self.out_norm = RMSNorm()
    init = nn.with_logical_partitioning(nn.initializers.normal(1.0), (None, "embed"))
    self.level = self.param("level", init, (self.positions, c.width))

  def lazy(self, context: Context, *, train: bool) -> jax.Array:
    """The states of all levels, [B, 1, positions, D]: the whole work of this decoder."""
    level = self.level.astype(context.slots_BSD.dtype)
    h_B1TD = jnp.broadcast_to(level, (context.mask_BS.shape[0], 1, *level.shape))
    for block in self.blocks:
      h_B1TD, _, keys = block(h_B1TD, context, train)
      context = context.read(block.kv, keys)
    return self.out_norm(h_B1TD)

  def late(
    self, h_BMTD: jax.Array, context: Context, *, train: bool, caches: list[Cache] | None = None
  ):
    """The states as they are: no layer is left."""
    del context, train, caches
    return h_BMTD, []

  def __call__(
    self, m_B1TD, tokens_BMTD, context, *, train: bool, caches: list[Cache] | None = None
  ):
    """The same states for every sequence. Of the tokens only the shape is read."""
    del context, train, caches
    # (B, 1, T, D) -> (B, M, T, D)
    return jnp.broadcast_to(m_B1TD, tokens_BMTD.shape), []

  # The states of all that training asks for.
  together = one_by_one


class ParallelHeads(GR4AD):
  """GR4AD with levels that are independent of each other, given the context."""

  reads: ClassVar[frozenset[str]] = GR4AD.reads - {"lazy_layers"}

  def make_decoder(self) -> nn.Module:
    return ParallelDecoder(self.config, len(self.codebooks) + 1, self.remat)
