"""Context processor: slots of a request become the keys and values that every decoder layer reads.

Source: docs/design/method.md §2.1.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from gr4ad_jax.config import ModelConfig
from gr4ad_jax.models.layers import Linear, RMSNorm
from gr4ad_jax.models.piecewise import encode

EDGES = (
  "slot_edges",
  "user_edges",
)  # parameters that are fitted to the data before the training, and not by it


@flax.struct.dataclass
class Context:
  """One request's context, computed once and read by all of its sequences.

  Attributes:
    keys: L_kv arrays [B, S+1, G, d_head]; slot 0 is the user's profile.
    values: L_kv arrays of the same shape.
    mask_BS: [B, S+1] bool.
    slots_BSD: [B, S, D] slot states, without the profile and without dropout: the copy path ranks
      by their details.
  """

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]
  mask_BS: jax.Array
  slots_BSD: jax.Array


class ContextProcessor(nn.Module):
  """Linear maps and one hidden layer a slot; no attention among slots, no K/V projection in the
  decoder.

  Attributes:
    config: model settings.
    num_kinds: slot kinds.
  """

  config: ModelConfig
  num_kinds: int

  @nn.compact
  def __call__(
    self, slot_codes_BSD, slot_kind_BS, slot_features_BSF, user_features_BF, train: bool
  ) -> Context:
    """Builds the context.

    Args:
      slot_codes_BSD: summed embeddings of each slot's UA-SID.
      slot_kind_BS: int32; 0 is padding.
      slot_features_BSF: behaviour and popularity features.
      user_features_BF: profile features.
      train: apply dropout.
    """
    c = self.config
    D, dtype = c.width, slot_codes_BSD.dtype
    user = Linear(2 * D, bias=True, name="user_in")(
      self._numbers("user_edges", user_features_BF).astype(dtype)
    )
    kind_BSF = jax.nn.one_hot(slot_kind_BS, self.num_kinds, dtype=dtype)
    features = self._numbers("slot_edges", slot_features_BSF).astype(dtype)
    about = jnp.concatenate([slot_codes_BSD, features, kind_BSF], axis=-1)
    hidden = Linear(2 * D, name="slots_in")(about) + user[:, None]
    slots = Linear(D, ("mlp", "embed"), name="slots_out")(nn.relu(hidden))
    read = nn.Dropout(c.dropout, broadcast_dims=(1,))(slots, deterministic=not train)
    profile = Linear(D, ("mlp", "embed"), name="user_out")(nn.relu(user))
    both = jnp.concatenate([profile[:, None], read], axis=1)  # (B, 1 + S, D)
    head = D // c.heads
    blocks = Linear(c.kv_layers * c.kv_split * c.kv_groups * head, name="blocks")(both)
    blocks = blocks.reshape(*both.shape[:2], c.kv_layers, c.kv_split, c.kv_groups * head)
    normed = [
      [RMSNorm(name=f"norm_{i}_{j}")(blocks[:, :, i, j]) for j in range(c.kv_split)]
      for i in range(c.kv_layers)
    ]
    split = [[x.reshape(*both.shape[:2], c.kv_groups, head) for x in pair] for pair in normed]
    mask = jnp.concatenate([jnp.ones_like(slot_kind_BS[:, :1], bool), slot_kind_BS > 0], axis=1)
    return Context(tuple(p[0] for p in split), tuple(p[-1] for p in split), mask, slots)

  def _numbers(self, name: str, x: jax.Array) -> jax.Array:
    """Features [..., F], and beside them their piecewise linear encoding; edges that were not
    fitted leave it 0.
    """
    bins, F = self.config.feature_bins, x.shape[-1]
    if not bins:
      return x
    # One axis, so that weight decay leaves them alone.
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, (None,))
    edges = jax.lax.stop_gradient(self.param(name, zeros, (F * (bins + 1),)))
    return jnp.concatenate([x, encode(x, edges.reshape(F, bins + 1))], axis=-1)
