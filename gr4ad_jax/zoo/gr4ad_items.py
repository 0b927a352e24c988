"""GR4AD beside a model of single ads: UA-SIDs are generated, and their ads are ranked one by one.

An encoder, which is SASRec's, runs over the history. Its states have three uses. They learn to
score ads, by a softmax over all of them (--lambda_item); this is the item-level head. They enter
the context of the decoder. And the last one scores the ads that the beams have found
(--item_weight).

The signed bias on the history (--history_bias) is the head's, which ranks last. So no UA-SID of the
history need be scored for it.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from gr4ad_jax.config import Config, ConfigError, ItemConfig
from gr4ad_jax.features.batches import RequestBatch
from gr4ad_jax.models import knobs
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.models.layers import Dropout, RMSNorm
from gr4ad_jax.models.outputs import Read
from gr4ad_jax.models.remat import rematerialized
from gr4ad_jax.zoo.items import ItemHead, history_ads, last_of
from gr4ad_jax.zoo.sasrec import PlaceEmbedding, SASRecBlock, causal_mask


class GR4ADItems(ItemHead, GR4AD):
  """GR4AD with an item-level head, for `requests/item_task.py` and `decoding/ranker.py`.

  Attributes:
    items: how the head is trained.
    num_ads: rows of the ad table (N). Ads that came later have no vector.
  """

  items: ItemConfig = ItemConfig()
  num_ads: int = 1

  # log p of a UA-SID has no bias, whatever --history_bias says: the head has it. This overrides
  # the property of GR4AD.
  biased = False
  learns_lists: ClassVar[bool] = False
  reads: ClassVar[frozenset[str]] = (
    knobs.ALL - knobs.LISTS - {"history_bias_ads"}
  )  # the bias is the head's

  @classmethod
  def build(cls, config: Config, num_ads: int) -> "GR4ADItems":
    """The module of a config.

    Raises:
      ConfigError: settings under which a place of the history would see its own target.
    """
    if config.items.inner_targets and not config.model.encoder_causal:
      raise ConfigError(
        "--inner_targets=True is not allowed: --encoder_causal=False shows each place its target"
      )
    return cls(config.model, config.sid.codebooks, config.training.remat, config.items, num_ads)

  def setup(self):
    super().setup()
    c = self.config
    self.make_head(c)
    first = nn.with_logical_partitioning(nn.initializers.normal(c.width**-0.5), ("embed",))
    self.first = self.param("first", first, (c.width,))
    self.places = PlaceEmbedding()
    hidden = c.ffn_multiple * c.width
    # Argument 3 of a block's call is `train`, a Python bool that remat must not trace.
    block = rematerialized(SASRecBlock, self.remat, (3,))
    self.encoder = [
      block(c.heads, hidden, c.encoder_dropout, name=f"encoder_{i}")
      for i in range(c.encoder_layers)
    ]
    self.encoder_norm = RMSNorm()
    self.dropout = Dropout(c.encoder_dropout)

  def states(self, batch: RequestBatch, *, train: bool = False) -> jax.Array:
    """States of all places of the histories, as those of `ItemModel`: [B, S + 1, D] float32."""
    ads_BS = self._known(history_ads(batch))
    seen_BS = ads_BS >= 0
    x = jnp.where(seen_BS[..., None], self.vectors(ads_BS), 0).astype(self.dtype)
    # A start before all ads, so that place i has seen the first i of them.
    start = jnp.broadcast_to(self.first.astype(self.dtype), (len(x), 1, self.config.width))
    x = jnp.concatenate([start, x * jnp.sqrt(self.config.width).astype(self.dtype)], axis=1)
    x = self.dropout(self.places(x), deterministic=not train)
    mask = causal_mask(ads_BS)
    if not self.config.encoder_causal:
      # (B, 1, P): what the last place sees, which is all that is real, is what every place sees.
      mask = mask[:, -1:]
    for block in self.encoder:
      x = block(x, mask, train)
    return self.encoder_norm(x).astype(jnp.float32)

  def read(self, batch: RequestBatch, *, train: bool = False) -> Read:
    """Adds to the slots' codes the vectors of their ads and the encoder's states of the history.

    The encoder's last state also goes to the heads of all levels (`skip_BD`).
    """
    codes_BSD, user_BF, _ = super().read(batch, train=train)
    ads_BS = self._known(batch.slot_ad_BS)
    # The decoder learns to read vectors and states, and they do not learn from it: they would rank
    # single ads worse.
    ids_BSD, states_BPD = map(
      jax.lax.stop_gradient, (self.vectors(ads_BS), self.states(batch, train=train))
    )
    ids_BSD = jnp.where((ads_BS >= 0)[..., None], ids_BSD, 0)
    # Slot j is the ad that place j + 1 has seen last. Slots of other kinds have no state.
    inner_BSD = states_BPD[:, 1:] * (history_ads(batch) >= 0)[..., None]
    slots_BSD = codes_BSD + (ids_BSD * jnp.sqrt(self.config.width) + inner_BSD).astype(self.dtype)
    return Read(slots_BSD, user_BF, last_of(states_BPD, batch).astype(self.dtype))

  def _known(self, ads_BS: jax.Array) -> jax.Array:
    """Ads that have an id embedding; -1 in place of others, which came after the training."""
    return jnp.where(ads_BS < self.num_ads, ads_BS, -1)

  def item_scores(self, batch: RequestBatch, ads_BK: jax.Array) -> jax.Array:
    """The head's scores of given ads for each request, with the bias: [B, K] float32.

    Padding (-1) has 0. An ad that came after the training has a vector of zeros here, as in
    `decoding/guide.py`.
    """
    history_BS = history_ads(batch)
    known_BK = self._known(ads_BK) >= 0
    # (B, K, 1) == (B, 1, S). Padding is -1 on both sides; -2 keeps one from matching the other.
    seen_BK = (ads_BK[..., None] == jnp.where(history_BS >= 0, history_BS, -2)[:, None]).any(-1)
    own_BK = jnp.einsum("bd,bkd->bk", self.last_state(batch), self.vectors(ads_BK))
    return jnp.where(known_BK, own_BK, 0) + self.head_bias() * seen_BK
