"""Context processor: the slots of a request become keys and values for all decoder layers.

A slot is one ad of what is known of the user: of the history, of its neighbours, or one that rises.
Source: docs/design/method.md §2.1.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from gr4ad_jax.config import ModelConfig
from gr4ad_jax.models.layers import Linear, RMSNorm, relu
from gr4ad_jax.models.piecewise import encode

# Parameters that are fitted to the data before the first step. No step changes them.
EDGES = ("slot_edges", "user_edges")


@flax.struct.dataclass
class Context:
  """The context of each request, computed once and read by all of its sequences.

  Attributes:
    keys: L_kv arrays [B, S + 1, G, d], with d = D / H the width of a head. Slot 0 is the user's
      profile.
    values: L_kv arrays of the same shape.
    mask_BS: [B, S + 1] bool, False in padding. The profile is always real, so no query is left
      without a key. Reasons put logarithms of weights in its place, see `layers.attend`.
    slots_BSD: [B, S, D] states of the slots, without the profile and without dropout. The copy path
      tells slots apart by them.
  """

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]
  mask_BS: jax.Array
  slots_BSD: jax.Array

  def read(self, number: int, keys: jax.Array | None) -> "Context":
    """The context for the next layer, after one has read pair `number`.

    Args:
      number: of the pair.
      keys: what the layer's cross-attention gave for it (`cross_attention.cross_attend`), keys and
        values in one; None: nothing changes.
    """
    if keys is None:
      return self
    pairs = list(self.keys)
    pairs[number] = keys
    return self.replace(keys=tuple(pairs), values=tuple(pairs))


class ContextProcessor(nn.Module):
  """Turns slots into keys and values by linear maps and one hidden layer a slot.

  No slot attends to another, and the decoder's layers have no projection of their own for keys and
  values. So all of this is computed once a request, whatever the number of beams.

  Attributes:
    config: model settings.
    num_kinds: number of slot kinds, padding included.
  """

  config: ModelConfig
  num_kinds: int

  @nn.compact
  def __call__(
    self, slot_codes_BSD, slot_kind_BS, slot_features_BSF, user_features_BF, train: bool
  ) -> Context:
    """Builds the context.

    Args:
      slot_codes_BSD: sum of the embeddings of each slot's codes, in the compute dtype.
      slot_kind_BS: int32 kind of each slot; 0 is padding.
      slot_features_BSF: features of behaviour and popularity, float32.
      user_features_BF: features of the user's profile, float32.
      train: apply dropout.
    """
    c = self.config
    D = c.width
    dtype = slot_codes_BSD.dtype
    # x_j of §2.1: W_2 relu(W_1 [codes; features; kind] + W_u user). The numbers are encoded in
    # float32, and only then go to the compute dtype: bfloat16 would blur a number's place in its
    # piece. The user's term is made once a request: (B, 1, 2D) is added to (B, S, 2D).
    user = Linear(2 * D, bias=True, name="user_in")(
      self._numbers("user_edges", user_features_BF).astype(dtype)
    )
    kind_BSF = jax.nn.one_hot(slot_kind_BS, self.num_kinds, dtype=dtype)
    if train and c.feature_dropout:
      # A slot keeps all of its features or none, (B, S, 1). Numbers of 0 are those of an ad that
      # nothing is known of, so nothing is scaled up for what is kept.
      keep_BS1 = jax.random.bernoulli(
        self.make_rng("dropout"), 1 - c.feature_dropout, (*slot_kind_BS.shape, 1)
      )
      slot_features_BSF = jnp.where(keep_BS1, slot_features_BSF, 0)
    features = self._numbers("slot_edges", slot_features_BSF).astype(dtype)
    about = jnp.concatenate([slot_codes_BSD, features, kind_BSF], axis=-1)
    hidden = Linear(2 * D, name="slots_in")(about) + user[:, None]
    slots = Linear(D, ("mlp", "embed"), name="slots_out")(relu(hidden))
    # One dropout mask a request, (B, 1, D), for all of its slots.
    read = nn.Dropout(c.dropout, broadcast_dims=(1,))(slots, deterministic=not train)
    profile = Linear(D, ("mlp", "embed"), name="user_out")(relu(user))
    both = jnp.concatenate([profile[:, None], read], axis=1)  # (B, 1 + S, D)
    head = D // c.heads
    # One map makes all L_kv · S_kv blocks. Each is normed over all of its G · d numbers at once,
    # and only then cut into its G groups.
    blocks = Linear(c.kv_layers * c.kv_split * c.kv_groups * head, name="blocks")(both)
    blocks = blocks.reshape(*both.shape[:2], c.kv_layers, c.kv_split, c.kv_groups * head)
    normed = [
      [RMSNorm(name=f"norm_{i}_{j}")(blocks[:, :, i, j]) for j in range(c.kv_split)]
      for i in range(c.kv_layers)
    ]
    split = [[x.reshape(*both.shape[:2], c.kv_groups, head) for x in pair] for pair in normed]
    mask = jnp.concatenate([jnp.ones_like(slot_kind_BS[:, :1], bool), slot_kind_BS > 0], axis=1)
    # With S_kv = 1 first and last are the same block: the values are the keys.
    return Context(tuple(p[0] for p in split), tuple(p[-1] for p in split), mask, slots)

  def _numbers(self, name: str, x: jax.Array) -> jax.Array:
    """Features [..., F] with their piecewise linear encoding behind them: [..., F + F · bins].

    Edges that were not fitted are all 0, and leave the encoding 0.
    """
    bins = self.config.feature_bins
    F = x.shape[-1]
    if not bins:
      return x
    # The optimiser must not move the edges: stop_gradient keeps its updates away, and a single
    # axis its weight decay, which is for arrays of two axes or more.
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, (None,))
    edges = jax.lax.stop_gradient(self.param(name, zeros, (F * (bins + 1),)))
    return jnp.concatenate([x, encode(x, edges.reshape(F, bins + 1))], axis=-1)
