"""Two-tower retrieval: the vector of a user and that of an ad meet in an inner product alone.

Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys
2019: vectors of length 1, a temperature, and --item_loss=inbatch. It is the first stage of the DLRM
stack, the system that the paper compares with. --reranker is the second.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from gr4ad_jax.features.batches import RequestBatch
from gr4ad_jax.models import knobs
from gr4ad_jax.models.layers import Dropout, Linear, attend
from gr4ad_jax.zoo.items import ItemModel, history_ads, score_all

TEMPERATURE = 0.07


class TwoTower(ItemModel):
  """A tower for users and one for ads; see `ItemModel`.

  The tower of users reads the profile, and the ads of the history with features of behaviour. It
  has one state a request, which it gives for every place. So it cannot learn from places inside the
  history.
  """

  reads: ClassVar[frozenset[str]] = (
    ItemModel.reads - {"inner_targets", "inner_positions"} | knobs.FEATURES | {"heads", "dropout"}
  )

  def make_layers(self):
    D = self.config.width
    self.slot_in = Linear(2 * D, bias=True)
    self.slot_kv = Linear(2 * D)
    self.user_in = Linear(2 * D, bias=True)
    self.query = Linear(D)
    self.user_hidden = Linear(2 * D, bias=True)
    self.user_out = Linear(D)
    self.ad_hidden = Linear(2 * D, bias=True)
    self.ad_out = Linear(D)
    self.dropout = Dropout(self.config.dropout)

  def states(self, batch: RequestBatch, *, train: bool = False) -> jax.Array:
    ads_BS = history_ads(batch)
    B, S = ads_BS.shape
    heads = self.config.heads
    user = nn.relu(self.user_in(batch.user_features_BF.astype(self.dtype)))
    about = jnp.concatenate(
      [self.embed(ads_BS), batch.slot_features_BSF.astype(self.dtype)], axis=-1
    )
    slots = self.dropout(nn.relu(self.slot_in(about)), deterministic=not train)
    keys, values = (x.reshape(B, S, heads, -1) for x in jnp.split(self.slot_kv(slots), 2, axis=-1))
    query = self.query(user).reshape(B, 1, heads, -1)
    # One query a request, (B, 1, heads, d). Without a history attention would give the mean of all
    # slots, which are padding: the product with `any` makes that 0.
    seen_BS = ads_BS >= 0
    read = attend(query, keys, values, seen_BS[:, None])[:, 0] * seen_BS.any(-1, keepdims=True)
    # Beside attention the plain mean of the history, which needs no query to be learned first.
    mean = jnp.einsum("bs,bsd->bd", seen_BS.astype(self.dtype), values.reshape(B, S, -1))
    mean /= jnp.maximum(seen_BS.sum(-1, keepdims=True), 1)
    hidden = nn.relu(self.user_hidden(jnp.concatenate([user, read, mean], axis=-1)))
    state_BD = _unit(
      self.user_out(self.dropout(hidden, deterministic=not train)).astype(jnp.float32)
    )
    # (B, 1, D) -> (B, S + 1, D): the one state stands at every place.
    return jnp.broadcast_to(state_BD[:, None], (B, S + 1, state_BD.shape[-1]))

  def vectors(self, ad: jax.Array) -> jax.Array:
    """The vectors of the ad tower over the temperature, [..., D] float32.

    Their inner product with a state, which has length 1, is the cosine over the temperature.
    """
    return self._tower(self.embed(jnp.maximum(ad, 0)))

  def _tower(self, embedded: jax.Array) -> jax.Array:
    out = self.ad_out(nn.relu(self.ad_hidden(embedded))) + embedded
    return _unit(out.astype(jnp.float32)) / TEMPERATURE

  def scores(self, states_PD: jax.Array) -> jax.Array:
    # Of the table as it lies, not looked up row by row: each device makes the vectors of its own
    # rows.
    return score_all(
      states_PD, self._tower(self.table.astype(self.dtype)), self.num_ads, self.dtype
    )


def _unit(x: jax.Array) -> jax.Array:
  """Vectors of length 1 along the last axis."""
  # The constant is for vectors of zeros, which stay zeros.
  return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)
