"""What models of single ads share: a vector an ad, states over the history, a signed bias on the
history's ads.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from gr4ad_jax.config import Config, ItemConfig, ModelConfig
from gr4ad_jax.data.batches import HISTORY, RequestBatch
from gr4ad_jax.models import knobs
from gr4ad_jax.models.gr4ad import compute_dtype
from gr4ad_jax.models.history_bias import signed_bias
from gr4ad_jax.models.layers import product
from gr4ad_jax.parallel import row_tables


class ItemHead(nn.Module):
  """Scores of ads by states. `make_head` is called in the `setup` of a subclass, which has
  `states`.

  Place i of a history has seen its first i ads: place 0 none, the last place all.
  """

  def make_head(self, config: ModelConfig) -> None:
    """Makes the vectors of ads, and the signed bias where there is one."""
    self.table = make_table(self, self.num_ads, config.width)
    self.ad_bias = signed_bias(self) if config.history_bias else jnp.float32(0)
    self.dtype = compute_dtype(config)

  def states(self, batch: RequestBatch, *, train: bool = False) -> jax.Array:
    """States of all places of the histories: [B, S + 1, D] float32."""
    raise NotImplementedError

  def last_state(self, batch: RequestBatch) -> jax.Array:
    """States of the places that have seen the whole history: [B, D] float32."""
    return last_of(self.states(batch), batch)

  def scores(self, states_PD: jax.Array) -> jax.Array:
    """Scores of all ads by states, without the bias: [P, N] float32; -inf in rows of the table
    that are no ad.
    """
    return score_all(states_PD, self.table, self.num_ads, self.dtype)

  def scores_of(self, states_PD: jax.Array, ads_PM: jax.Array) -> jax.Array:
    """What `scores` has for some ads: [P, M] float32; anything for padding (-1)."""
    return score_some(states_PD, self.vectors(ads_PM), self.dtype)

  def vectors(self, ad: jax.Array) -> jax.Array:
    """Vectors of ads in float32."""
    return row_tables.lookup(self.table, jnp.maximum(ad, 0))

  def head_bias(self) -> jax.Array:
    """The scalar that is added to the scores of the history's ads; 0 without --history_bias."""
    return self.ad_bias


class ItemModel(ItemHead):
  """A model that scores all ads from a state. A subclass has `make_layers` and `states`.

  Attributes:
    config: sizes.
    items: how it is trained.
    num_ads: rows of the ad table (N).
    remat: what is kept of a block for the backward pass, a name of `remat.POLICIES`.
    reads: knobs that it reads, of `knobs.ALL`; a subclass adds those of its layers.
  """

  config: ModelConfig
  items: ItemConfig
  num_ads: int
  remat: str = "none"
  reads: ClassVar[frozenset[str]] = knobs.HEAD | {"width", "history_bias", "compute_dtype"}

  @classmethod
  def build(cls, config: Config, num_ads: int) -> "ItemModel":
    """The module of a config."""
    return cls(config.model, config.items, num_ads, config.training.remat)

  def setup(self):
    self.make_head(self.config)
    self.make_layers()

  def make_layers(self) -> None:
    """Makes the subclass' own parts."""
    raise NotImplementedError

  def embed(self, ad: jax.Array) -> jax.Array:
    """Vectors of ads [...]; zeros for padding (-1): [..., D] in the compute dtype."""
    found = row_tables.lookup(self.table, jnp.maximum(ad, 0)).astype(self.dtype)
    return jnp.where((ad >= 0)[..., None], found, 0)

  def __call__(self, batch: RequestBatch) -> jax.Array:
    """Scores of all ads for each request, bias included: [B, N] float32."""
    return add_to_ads(self.scores(self.last_state(batch)), history_ads(batch), self.head_bias())


def last_of(states_BPD: jax.Array, batch: RequestBatch) -> jax.Array:
  """States of the places that have seen the whole history: [B, D]."""
  last_B = (history_ads(batch) >= 0).sum(-1)
  return jnp.take_along_axis(states_BPD, last_B[:, None, None], axis=1)[:, 0]


def make_table(module: nn.Module, ads: int, width: int) -> jax.Array:
  """The parameter with a vector an ad: [`row_tables.rows(ads)`, width] float32."""
  init = nn.with_logical_partitioning(row_tables.normal(width**-0.5), ("vocab", "embed"))
  return module.param(row_tables.NAME, init, (row_tables.rows(ads), width))


def score_all(states_PD: jax.Array, table_ND: jax.Array, ads: int, dtype: jnp.dtype) -> jax.Array:
  """States times vectors, [P, N] float32, multiplied in `dtype`; -inf from row `ads` on."""
  scores_PN = product("pd,nd->pn", states_PD.astype(dtype), table_ND.astype(dtype))
  rows = len(table_ND)
  return scores_PN if rows == ads else jnp.where(jnp.arange(rows) < ads, scores_PN, -jnp.inf)


def score_some(states_PD: jax.Array, vectors_PMD: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """States times the vectors of some ads each, [P, M] float32, multiplied in `dtype` as
  `score_all` does.
  """
  return product("pd,pmd->pm", states_PD.astype(dtype), vectors_PMD.astype(dtype))


def history_ads(batch: RequestBatch) -> jax.Array:
  """[B, S] rows of the history's ads, oldest first; -1 in padding, which stands at the end, and
  in other slots.
  """
  return jnp.where(batch.slot_kind_BS == HISTORY, batch.slot_ad_BS, -1)


def add_to_ads(scores_PN: jax.Array, ads_PS: jax.Array, bias: jax.Array) -> jax.Array:
  """Adds a scalar to the scores of some ads of each row; -1 is padding, and no ad stands twice."""
  num_ads = scores_PN.shape[1]
  column_PS = jnp.where(ads_PS >= 0, ads_PS, num_ads)
  return scores_PN.at[jnp.arange(len(ads_PS))[:, None], column_PS].add(bias, mode="drop")
