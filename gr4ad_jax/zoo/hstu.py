"""HSTU: gated attention without a softmax, with a bias by distance in places and in time.

It reads the ads of the history and scores single ads.

Zhai et al., "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for
Generative Recommendations", ICML 2024, section 3.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from gr4ad_jax.features.batches import SLOT_FEATURES, RequestBatch
from gr4ad_jax.models import knobs
from gr4ad_jax.models.layers import Dropout, Linear, RMSNorm, product
from gr4ad_jax.models.remat import rematerialized
from gr4ad_jax.zoo.items import ItemModel, history_ads
from gr4ad_jax.zoo.sasrec import PlaceEmbedding, causal_mask

TIME_BUCKETS = 64
_GAP = SLOT_FEATURES.index("gap_days")


class RelativeBias(nn.Module):
  """A learned scalar by the distance in places, and one by the logarithm of that in time."""

  @nn.compact
  def __call__(self, days_BP: jax.Array) -> jax.Array:
    """The bias of each pair of places: [B, P, P] float32; axis 1 is who sees, axis 2 who is seen.

    Args:
      days_BP: how many days before the request each place was.
    """
    P = days_BP.shape[1]
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None,))
    place = self.param("place", init, (P,))
    time = self.param("time", init, (TIME_BUCKETS,))
    # Row i, column j: how many places j lies before i. What is later has 0, and the mask hides it.
    distance_PP = jnp.clip(jnp.arange(P)[:, None] - jnp.arange(P), 0, P - 1)
    # An earlier place j is more days before the request: days_j - days_i is at least 0. What is
    # later (masked) has 0. (B, 1, P) - (B, P, 1) -> (B, P, P).
    hours_BPP = jnp.maximum(days_BP[:, None] - days_BP[:, :, None], 0) * 24
    # Buckets by the logarithm, five for each factor of e. The last is from about 34 years on.
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
    """The states of the P places after the block.

    `days_BP` is as of `RelativeBias`, the mask as of `sasrec.causal_mask`.
    """
    B, P, D = x_BPD.shape
    made = nn.silu(Linear(4 * D, name="uvqk")(RMSNorm(name="in_norm")(x_BPD)))
    # One product for all four, as in the paper.
    u, v, q, k = jnp.split(made, 4, axis=-1)
    v, q, k = (y.reshape(B, P, self.heads, -1) for y in (v, q, k))
    logits = product("bphd,bqhd->bhpq", q, k)
    logits += RelativeBias(name="bias")(days_BP)[:, None]
    # No softmax, whose weights always sum to 1: how many ads of a kind the history holds is kept.
    # Dividing by the number of places, a constant, keeps the sums small. All of it is in float32,
    # as a softmax would be.
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
    # Argument 4 of a block's call is `train`, a Python bool that remat must not trace.
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
    # features/history.py makes the feature log1p(days) / 2; this is its inverse. The start, place
    # 0, is given the time of the oldest ad.
    days_BS = jnp.expm1(2 * batch.slot_features_BSF[..., _GAP])
    days_BP = jnp.concatenate([days_BS[:, :1], days_BS], axis=1)
    mask_BPP = causal_mask(ads_BS)
    for block in self.blocks:
      x = block(x, days_BP, mask_BPP, train)
    return self.norm(x).astype(jnp.float32)
