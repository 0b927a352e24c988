"""A ranker of (request, ad) pairs: how likely the ad is bought, and what it then brings.

It multiplies features with each other (crosses, of DCN-v2: Wang et al., "DCN V2", WWW 2021), and
lets the ad attend to the user's history (DIN: Zhou et al., "Deep Interest Network", KDD 2018).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gr4ad_jax.config import RewardConfig
from gr4ad_jax.features.pair_features import PairBatch
from gr4ad_jax.models.layers import Linear, RMSNorm, attend
from gr4ad_jax.models.piecewise import encode


class Ranker(nn.Module):
  """Two heads over pairs of a request and an ad.

  Attributes:
    config: sizes.
    codebooks: codes a level.
    num_ads: ads that have an embedding of their own. Those beyond are known by their codes alone.
  """

  config: RewardConfig
  codebooks: tuple[int, ...]
  num_ads: int

  def setup(self):
    c = self.config
    D = c.reward_width
    init = nn.initializers.normal(0.05)
    vocab = nn.with_logical_partitioning(init, ("vocab", "embed"))
    self.codes = [
      self.param(f"codes_{t}", vocab, (size, D)) for t, size in enumerate(self.codebooks)
    ]
    self.ids = (
      self.param("ids", vocab, (min(self.num_ads, c.reward_ids) + 1, D)) if c.reward_ids else None
    )
    self.pair_in = Linear(2 * D)
    self.user_in = Linear(2 * D, bias=True)
    self.ad_in = Linear(2 * D)
    self.slot_in = Linear(2 * D)
    self.null_slot = Linear(2 * D)
    self.query = Linear(D)
    self.read_in = Linear(2 * D)
    self.crosses = [Linear(2 * D, bias=True) for _ in range(c.reward_crosses)]
    self.deep = [Linear(2 * D, bias=True), Linear(D, bias=True)]
    self.value_deep = Linear(D, bias=True)
    self.purchase_out = Linear(1, bias=True)
    self.value_out = Linear(1, bias=True)
    self.norm = RMSNorm()
    self.value_norm = RMSNorm()
    self.dropout = nn.Dropout(c.reward_dropout)

  def embed(self, codes: jax.Array, row: jax.Array, train: bool) -> jax.Array:
    """Embeddings [..., D] of ads by their UA-SIDs [..., T] and their rows [...].

    The embedding of the row is added to those of the codes. Padding (-1) and rows from `num_ads` on
    have none. In training some others are left out, so that codes alone must do as well.
    """
    # One table a level. An ad is the sum of its codes' vectors, so ads of one prefix
    # are alike at first.
    x = sum(table[codes[..., t]] for t, table in enumerate(self.codes))
    if self.ids is None:
      return x
    # Row 0 of the table is for no ad. Where there are fewer buckets than ads, ads share one.
    buckets = self.ids.shape[0] - 1
    known = (row >= 0) & (row < self.num_ads)
    own = self.ids[jnp.where(known, 1 + row % buckets, 0)]
    if train:
      known &= jax.random.bernoulli(
        self.make_rng("dropout"), 1 - self.config.reward_dropout, row.shape
      )
    return x + jnp.where(known[..., None], own, 0.0)

  def __call__(
    self, pairs: PairBatch, edges: dict, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Scores ads.

    Args:
      pairs: B requests with C ads each.
      edges: 'pair' and 'user', of `piecewise.feature_edges`.
      train: apply dropout.

    Returns:
      The logit of p(purchase), and the logarithm of E[value | purchase] over the scale of the
      values: [B, C] float32 each.
    """
    B, C, _ = pairs.pair_features_BCF.shape
    ad_BCD = self.embed(pairs.ad_codes_BCT, pairs.ad_row_BC, train)
    slot_BSD = self.embed(pairs.slot_codes_BST, pairs.slot_row_BS, train)
    # Numbers come as how far they have gone through each of the fitted pieces.
    user = self.user_in(encode(pairs.user_features_BF, edges["user"]))
    slots = self.slot_in(jnp.concatenate([slot_BSD, pairs.slot_features_BSF], axis=-1))
    # A slot made of the user alone, which is always real, so that an ad has something to attend to
    # where there is no history.
    slots = jnp.concatenate([self.null_slot(nn.relu(user))[:, None], slots], axis=1)
    mask = jnp.concatenate([jnp.ones((B, 1), bool), pairs.slot_row_BS >= 0], axis=1)
    # Two of (B, 1 + S, 1, D): one head, whose axis attention expects.
    keys, values = jnp.split(slots[:, :, None], 2, axis=-1)
    heads = self.config.reward_heads
    query = self.query(ad_BCD).reshape(B, C, heads, -1)
    split = (B, -1, heads, query.shape[-1])
    # The C ads of a request are queries to its 1 + S slots, which are projected once for them all.
    read_BCD = attend(query, keys.reshape(split), values.reshape(split), mask[:, None])
    x = self.pair_in(encode(pairs.pair_features_BCF, edges["pair"])) + user[:, None]
    # The product says how alike the ad is to what it found in the history.
    x += self.ad_in(ad_BCD) + self.read_in(jnp.concatenate([read_BCD, read_BCD * ad_BCD], axis=-1))
    x = self.norm(x)
    # DCN-v2: x_{l+1} = x_0 ⊙ (W x_l + b) + x_l. Each layer raises the order of the products by one.
    crossed = x
    for layer in self.crosses:
      crossed = x * layer(crossed) + crossed
    hidden = self.dropout(nn.relu(self.deep[0](x)), deterministic=not train)
    hidden = nn.relu(self.deep[1](hidden))
    both = self.dropout(jnp.concatenate([crossed, hidden], axis=-1), deterministic=not train)
    # Both heads read the same; the value has a layer of its own.
    value = nn.relu(self.value_deep(self.value_norm(both)))
    return self.purchase_out(both)[..., 0], self.value_out(value)[..., 0]
