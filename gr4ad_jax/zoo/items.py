"""What models of single ads share. They score every ad by itself, and generate no UA-SID.

Such a model has a vector for each ad, states over the history of a user, and a signed bias on the
ads of the history. An ad's score is the inner product of its vector with a state.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from gr4ad_jax.config import Config, ItemConfig, ModelConfig
from gr4ad_jax.features.batches import HISTORY, RequestBatch
from gr4ad_jax.models import knobs
from gr4ad_jax.models.history_bias import signed_bias
from gr4ad_jax.models.layers import product
from gr4ad_jax.models.outputs import compute_dtype
from gr4ad_jax.parallel import row_tables


class ItemHead(nn.Module):
  """Scores ads by states. A subclass has `states`, and calls `make_head` in its `setup`.

  A history of S ads has S + 1 places. Place i has seen the first i ads: place 0 none, the last
  place all.
  """

  def make_head(self, config: ModelConfig) -> None:
    """Makes the vectors of ads, and the signed bias where there is one."""
    self.table = make_table(self, self.num_ads, config.width)
    self.ad_bias = signed_bias(self) if config.history_bias else jnp.float32(0)
    self.dtype = compute_dtype(config)

  def states(self, batch: RequestBatch, *, train: bool = False) -> jax.Array:
    """States of all places of the histories: [B, S + 1, D] float32. A subclass must have it."""
    raise TypeError(f"{type(self).__name__} has no `states`")

  def last_state(self, batch: RequestBatch) -> jax.Array:
    """States of the places that have seen the whole history: [B, D] float32."""
    return last_of(self.states(batch), batch)

  def scores(self, states_PD: jax.Array) -> jax.Array:
    """Scores of all ads by states, without the bias: [P, N] float32.

    Rows of the table that are no ad (`row_tables.rows`) have -inf.
    """
    return score_all(states_PD, self.table, self.num_ads, self.dtype)

  def scores_of(self, states_PD: jax.Array, ads_PM: jax.Array) -> jax.Array:
    """What `scores` has for some ads: [P, M] float32. Padding (-1) has any number."""
    return score_some(states_PD, self.vectors(ads_PM), self.dtype)

  def vectors(self, ad: jax.Array) -> jax.Array:
    """Vectors of ads [...] in float32: [..., D]. Padding (-1) reads ad 0."""
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
    reads: knobs that it reads, of `knobs.ALL`. A subclass adds those of its layers.
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
    """Makes the parts of the subclass, in `setup`. A subclass must have it."""
    raise TypeError(f"{type(self).__name__} has no `make_layers`")

  def embed(self, ad: jax.Array) -> jax.Array:
    """Vectors of ads [...] as layers read them: [..., D] in the compute dtype.

    Padding (-1) has zeros.
    """
    found = row_tables.lookup(self.table, jnp.maximum(ad, 0)).astype(self.dtype)
    return jnp.where((ad >= 0)[..., None], found, 0)

  def __call__(self, batch: RequestBatch) -> jax.Array:
    """Scores of all ads for each request, bias included: [B, N] float32."""
    return add_to_ads(self.scores(self.last_state(batch)), history_ads(batch), self.head_bias())


def last_of(states_BPD: jax.Array, batch: RequestBatch) -> jax.Array:
  """States of the places that have seen the whole history: [B, D]."""
  # The number of ads is the number of the place that has seen them all. (B, 1, 1) picks one place
  # a request, with the axis D broadcast.
  last_B = (history_ads(batch) >= 0).sum(-1)
  return jnp.take_along_axis(states_BPD, last_B[:, None, None], axis=1)[:, 0]


def make_table(module: nn.Module, ads: int, width: int) -> jax.Array:
  """The parameter that holds a vector for each ad: [`row_tables.rows(ads)`, width] float32."""
  init = nn.with_logical_partitioning(row_tables.normal(width**-0.5), ("vocab", "embed"))
  return module.param(row_tables.NAME, init, (row_tables.rows(ads), width))


def score_all(states_PD: jax.Array, table_ND: jax.Array, ads: int, dtype: jnp.dtype) -> jax.Array:
  """Inner products of states and vectors, [P, N] float32, multiplied in `dtype`.

  They are -inf from row `ads` on, where the table has rows that are no ad.
  """
  # Every ad is scored: on a mesh each device does so for its own rows of the table.
  scores_PN = product("pd,nd->pn", states_PD.astype(dtype), table_ND.astype(dtype))
  rows = len(table_ND)
  return scores_PN if rows == ads else jnp.where(jnp.arange(rows) < ads, scores_PN, -jnp.inf)


def score_some(states_PD: jax.Array, vectors_PMD: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Inner products of states with the vectors of some ads each, [P, M] float32.

  They are multiplied in `dtype`, as `score_all` does, so an ad has the same score by both.
  """
  return product("pd,pmd->pm", states_PD.astype(dtype), vectors_PMD.astype(dtype))


def history_ads(batch: RequestBatch) -> jax.Array:
  """Rows of the history's ads, oldest first: [B, S].

  Padding, which stands behind the history, and slots of other kinds have -1.
  """
  return jnp.where(batch.slot_kind_BS == HISTORY, batch.slot_ad_BS, -1)


def add_to_ads(scores_PN: jax.Array, ads_PS: jax.Array, bias: jax.Array) -> jax.Array:
  """Adds a scalar to the scores of some ads of each row.

  Args:
    scores_PN: scores of all ads.
    ads_PS: for each row the ads, none of them twice; -1 is padding.
    bias: the scalar.
  """
  # Padding is sent to the column past the end, which "drop" does not write. As it is, -1 would be
  # the last column.
  num_ads = scores_PN.shape[1]
  column_PS = jnp.where(ads_PS >= 0, ads_PS, num_ads)
  return scores_PN.at[jnp.arange(len(ads_PS))[:, None], column_PS].add(bias, mode="drop")
