"""A chain of multi-token-prediction (MTP) modules, one for each level after the first.

After DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, section 2.2, equations 21 to 23. The first
L - T + 1 blocks run once a request, and give the state of the first level. The module of a later
level reads the state of the level before and the code that was chosen there: a projection of
[norm(h); norm(code)], and one block.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from gr4ad_jax.config import Config, ConfigError, ModelConfig
from gr4ad_jax.models.context import Context
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.models.layers import Linear, RMSNorm
from gr4ad_jax.models.lazy_decoder import Cache, DecoderBlock, one_by_one
from gr4ad_jax.models.remat import rematerialized


class ChainDecoder(nn.Module):
  """A decoder with the interface of `LazyDecoder`. Its caches are the states of the levels so far.

  Attributes:
    config: model settings.
    levels: T. The eCPM token, which comes after them, has a projection and no block.
    remat: what is kept of a block for the backward pass, a name of `remat.POLICIES`.
  """

  config: ModelConfig
  levels: int
  remat: str = "none"

  def setup(self):
    c = self.config
    T = self.levels
    # Argument 3 of a block's call is `train`, a Python bool that remat must not trace.
    block = rematerialized(DecoderBlock, self.remat, (3,))
    self.blocks = [
      # Layer i reads one of the `kv_layers` projections of the context, neighbours the same.
      block(c, i * c.kv_layers // c.layers, name=f"block_{i}")
      for i in range(c.layers)
    ]
    # T modules: one for each later level, and one for the value, which has no block.
    self.joins = [Linear(c.width, name=f"join_{t}") for t in range(1, T + 1)]
    self.state_norms = [RMSNorm(name=f"state_norm_{t}") for t in range(1, T + 1)]
    self.code_norms = [RMSNorm(name=f"code_norm_{t}") for t in range(1, T + 1)]
    self.out_norm = RMSNorm()
    init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("embed",))
    self.first = self.param("first", init, (c.width,))

  def lazy(self, context: Context, *, train: bool) -> jax.Array:
    """The state of the first level, repeated for all T + 1 levels: [B, 1, T + 1, D]."""
    shape = (context.mask_BS.shape[0], 1, 1, self.config.width)
    h = jnp.broadcast_to(self.first.astype(context.slots_BSD.dtype), shape)
    # The last T - 1 blocks are the modules' own.
    for block in self.blocks[: len(self.blocks) - self.levels + 1]:
      h, _, keys = block(h, context, train)
      context = context.read(block.kv, keys)
    return jnp.broadcast_to(h, (*shape[:2], self.levels + 1, shape[3]))

  def late(
    self, h_BMTD: jax.Array, context: Context, *, train: bool, caches: list[Cache] | None = None
  ):
    """The output norm alone: without codes there is only the state of the first level."""
    del context, train, caches
    return self.out_norm(h_BMTD), []

  def __call__(
    self, m_B1TD, tokens_BMTD, context, *, train: bool, caches: list[Cache] | None = None
  ):
    """The states of the levels at hand, and the caches with these levels added.

    Arguments as of `LazyDecoder`. The number of caches says which level comes next.
    """
    # In training the first level comes alone, without caches; then all others come at once.
    states = [h for (h,) in caches or ()]
    out = []
    for t in range(tokens_BMTD.shape[2]):
      level = len(states)
      token = tokens_BMTD[:, :, t : t + 1]
      # The first level reads no code: its token, the start vector, gives the shape alone.
      if level == 0:
        h = jnp.broadcast_to(m_B1TD[:, :, :1], token.shape)
      else:
        h = self._module(level, states[-1], token, context, train)
      # The next module reads the state as it is; only what goes to the heads has the output norm.
      states.append(h)
      out.append(self.out_norm(h))
    return jnp.concatenate(out, axis=2), [(h,) for h in states]

  # The states of all that training asks for.
  together = one_by_one

  def _module(
    self, level: int, h: jax.Array, token: jax.Array, context: Context, train: bool
  ) -> jax.Array:
    """Equation 21, and then, for a level that has codes, a block: the state of `level`.

    Args:
      level: 1 to T.
      h: state of the level before, [B, M, 1, D].
      token: embedded code of the level before, of the same shape.
      context: the request's keys and values.
      train: apply dropout.
    """
    both = jnp.concatenate(
      [self.state_norms[level - 1](h), self.code_norms[level - 1](token)], axis=-1
    )
    h = self.joins[level - 1](both)
    if level < self.levels:
      h, _, _ = self.blocks[len(self.blocks) - self.levels + level](h, context, train)
    return h


class DeepSeekMTP(GR4AD):
  """GR4AD with a chain of MTP modules in place of the LazyAR decoder.

  GR4AD's own MTP branch has no layers here: it reads the state of the first level at every level.
  """

  reads: ClassVar[frozenset[str]] = GR4AD.reads - {"lazy_layers"}

  @classmethod
  def build(cls, config: Config, num_ads: int) -> "DeepSeekMTP":
    """The module of a config. Raises ConfigError for fewer layers than levels."""
    del num_ads
    levels = len(config.sid.codebooks)
    if config.model.layers < levels:
      raise ConfigError(
        f"--layers={config.model.layers} is not allowed: {levels} or more, a module a level"
      )
    return cls(
      dataclasses.replace(config.model, lazy_layers=0), config.sid.codebooks, config.training.remat
    )

  def make_decoder(self) -> nn.Module:
    return ChainDecoder(self.config, len(self.codebooks), self.remat)
