"""HSTU: pointwise-normalised attention with a relative bias of place and time, gated.

Zhai et al., "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for
Generative Recommendations", ICML 2024, section 3.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from gr4ad_jax.data.batches import SLOT_FEATURES, RequestBatch
from gr4ad_jax.models import knobs
from gr4ad_jax.models.layers import Dropout, Linear, RMSNorm, product
from gr4ad_jax.models.remat import rematerialized
from gr4ad_jax.models.zoo.items import ItemModel, history_ads
from gr4ad_jax.models.zoo.sasrec import PlaceEmbedding, causal_mask

TIME_BUCKETS = 64
_GAP = SLOT_FEATURES.index("gap_days")


class RelativeBias(nn.Module):
  """A learned scalar of the distance in places, and one of the logarithm of the distance in
  time.
  """

  @nn.compact
  def __call__(self, days_BP: jax.Array) -> jax.Array:
    """[B, P, P] float32 of places at `days_BP` before the request."""
    P = days_BP.shape[1]
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None,))
    place = self.param("place", init, (P,))
    time = self.param("time", init, (TIME_BUCKETS,))
    distance_PP = jnp.clip(jnp.arange(P)[:, None] - jnp.arange(P), 0, P - 1)
    hours_BPP = jnp.maximum(days_BP[:, None] - days_BP[:, :, None], 0) * 24
    bucket_BPP = jnp.clip(jnp.log1p(hours_BPP) * 5, 0, TIME_BUCKETS - 1).astype(jnp.int32)
    return place[distance_PP][None] + time[bucket_BPP]


class HSTUBlock(nn.Module):
  """Y = f2( norm( φ2(φ1(X)_q φ1(X)_k^T + bias) φ1(X)_v ) * φ1(X)_u ), equations 1 to 3.

  Attributes:
    heads: attention heads.
    dropout: rate.
  """

  heads: int
  dropout: float

  @nn.compact
  def __call__(
    self, x_BPD: jax.Array, days_BP: jax.Array, mask_BPP: jax.Array, train: bool
  ) -> jax.Array:
    B, P, D = x_BPD.shape
    made = nn.silu(Linear(4 * D, name="uvqk")(RMSNorm(name="in_norm")(x_BPD)))
    u, v, q, k = jnp.split(made, 4, axis=-1)
    v, q, k = (y.reshape(B, P, self.heads, -1) for y in (v, q, k))
    logits = product("bphd,bqhd->bhpq", q, k)
    logits += RelativeBias(name="bias")(days_BP)[:, None]
    # No softmax: how many alike ads stand in the history is kept. Float32, as of a softmax.
    weights = jnp.where(mask_BPP[:, None], nn.silu(logits), 0) / P
    read = jnp.einsum("bhpq,bqhd->bphd", weights.astype(v.dtype), v).reshape(B, P, D)
    out = Linear(D, ("mlp", "embed"), bias=True, name="out")(RMSNorm(name="read_norm")(read) * u)
    return x_BPD + Dropout(self.dropout, deterministic=not train)(out)


class HSTU(ItemModel):
  """HSTU blocks over a start token and the history; see `ItemModel`."""

  reads: ClassVar[frozenset[str]] = (
    ItemModel.reads | knobs.FEATURES | {"layers", "heads", "dropout", "remat"}
  )

  def make_layers(self):
    c = self.config
    block = rematerialized(HSTUBlock, self.remat, (4,))
    self.blocks = [block(c.heads, c.dropout, name=f"block_{i}") for i in range(c.layers)]
    self.norm = RMSNorm()
    init = nn.with_logical_partitioning(nn.initializers.normal(c.width**-0.5), ("embed",))
    self.bos = self.param("bos", init, (c.width,))
    self.places = PlaceEmbedding(name="places")
    self.dropout = Dropout(c.dropout)

  def states(self, batch: RequestBatch, *, train: bool = False) -> jax.Array:
    ads_BS = history_ads(batch)
    x = self.embed(ads_BS) * jnp.sqrt(self.config.width).astype(self.dtype)
    start = jnp.broadcast_to(self.bos.astype(self.dtype), (len(ads_BS), 1, self.config.width))
    x = self.dropout(self.places(jnp.concatenate([start, x], axis=1)), deterministic=not train)
    days_BS = jnp.expm1(2 * batch.slot_features_BSF[..., _GAP])  # as data/history.py made it
    days_BP = jnp.concatenate([days_BS[:, :1], days_BS], axis=1)
    mask_BPP = causal_mask(ads_BS)
    for block in self.blocks:
      x = block(x, days_BP, mask_BPP, train)
    return self.norm(x).astype(jnp.float32)
