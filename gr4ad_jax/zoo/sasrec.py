"""SASRec: causal self-attention over the ads of the history. It scores single ads.

Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018. With a softmax loss:
Klenitskiy and Vasilev, "Turning Dross Into Gold Loss: is BERT4Rec really better than SASRec?",
RecSys 2023.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from gr4ad_jax.features.batches import RequestBatch
from gr4ad_jax.models.layers import Dropout, Linear, RMSNorm, attend
from gr4ad_jax.models.remat import rematerialized
from gr4ad_jax.zoo.items import ItemModel, history_ads


class SASRecBlock(nn.Module):
  """One layer: attention among the places of a history, and a feed-forward of two maps.

  Both read the normed state and add to it. What a place sees is in the mask.

  Attributes:
    heads: attention heads.
    hidden: width of the feed-forward.
    dropout: rate.
  """

  heads: int
  hidden: int
  dropout: float

  @nn.compact
  def __call__(self, x_BPD: jax.Array, mask_BPP: jax.Array, train: bool) -> jax.Array:
    """The states of the P places after the layer. The mask is as of `causal_mask`."""
    B, P, D = x_BPD.shape
    drop = Dropout(self.dropout, deterministic=not train)
    qkv = Linear(3 * D, name="qkv")(RMSNorm(name="attention_norm")(x_BPD)).reshape(
      B, P, 3, self.heads, -1
    )
    # (B, P, 3, H, d): queries, keys and values of each head.
    read = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], mask_BPP)
    x_BPD += drop(Linear(D, ("mlp", "embed"), name="attention_out")(read))
    hidden = nn.relu(Linear(self.hidden, bias=True, name="ffn_in")(RMSNorm(name="ffn_norm")(x_BPD)))
    return x_BPD + drop(Linear(D, ("mlp", "embed"), bias=True, name="ffn_out")(drop(hidden)))


class SASRec(ItemModel):
  """Causal transformer over a start token and the history; see `ItemModel`."""

  reads: ClassVar[frozenset[str]] = ItemModel.reads | {
    "layers",
    "heads",
    "ffn_multiple",
    "dropout",
    "remat",
  }

  def make_layers(self):
    c = self.config
    # Argument 3 of a block's call is `train`, a Python bool that remat must not trace.
    block = rematerialized(SASRecBlock, self.remat, (3,))
    self.blocks = [
      block(c.heads, c.ffn_multiple * c.width, c.dropout, name=f"block_{i}")
      for i in range(c.layers)
    ]
    self.norm = RMSNorm()
    init = nn.with_logical_partitioning(nn.initializers.normal(c.width**-0.5), ("embed",))
    self.bos = self.param("bos", init, (c.width,))
    self.places = PlaceEmbedding(name="places")
    self.dropout = Dropout(c.dropout)

  def states(self, batch: RequestBatch, *, train: bool = False) -> jax.Array:
    ads_BS = history_ads(batch)
    B, S = ads_BS.shape
    # The vectors of ads start with a norm of about 1, which suits scores. √D gives their elements
    # a size of about 1, beside which those of start and places are small.
    x = self.embed(ads_BS) * jnp.sqrt(self.config.width).astype(self.dtype)
    start = jnp.broadcast_to(self.bos.astype(self.dtype), (B, 1, self.config.width))
    x = self.places(jnp.concatenate([start, x], axis=1))
    x = self.dropout(x, deterministic=not train)
    mask_BPP = causal_mask(ads_BS)
    for block in self.blocks:
      x = block(x, mask_BPP, train)
    return self.norm(x).astype(jnp.float32)


class PlaceEmbedding(nn.Module):
  """Adds a learned vector to each place, by its number from the oldest on."""

  @nn.compact
  def __call__(self, x_BPD: jax.Array) -> jax.Array:
    # As large as the places of its first input, [P, D]: a model is for one number of slots.
    init = nn.with_logical_partitioning(
      nn.initializers.normal(x_BPD.shape[-1] ** -0.5), (None, "embed")
    )
    table = self.param("table", init, x_BPD.shape[1:])
    return x_BPD + table.astype(x_BPD.dtype)


def causal_mask(ads_BS: jax.Array) -> jax.Array:
  """What each place sees: itself and the places before it, [B, S + 1, S + 1] bool.

  Axis 1 is who sees, axis 2 who is seen. Padding is seen by none. The start, place 0, is always
  real, so that every place sees something.
  """
  B, S = ads_BS.shape
  real_BP = jnp.concatenate([jnp.ones((B, 1), bool), ads_BS >= 0], axis=1)
  # (1, P, P) & (B, 1, P) -> (B, P, P)
  return jnp.tril(jnp.ones((S + 1, S + 1), bool))[None] & real_BP[:, None]
