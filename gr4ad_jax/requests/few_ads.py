"""Losses that score some ads only, of those that a step has looked up (`item_task.RowLoss`)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gr4ad_jax.features.batches import RequestBatch
from gr4ad_jax.models.layers import product
from gr4ad_jax.models.outputs import compute_dtype
from gr4ad_jax.objectives import item_losses
from gr4ad_jax.requests.places import Places, seen
from gr4ad_jax.zoo.items import history_ads


class Touched(NamedTuple):
  """The rows of the table of ads that a step reads, and the step with its ads numbered by their
  place among those.

  Attributes:
    row_U: distinct rows, ascending; as many numbers past the table as make up the fixed length.
    batch: the requests; slots that are not of the history have lost their ad.
    places: that are learned from.
    drawn: ads drawn: [K] of --item_loss=sampled, [P, M] of bce, [0] of inbatch.
    log_weight: what is added to the scores of negatives: [K] of sampled, [U] of inbatch.
  """

  row_U: jax.Array
  batch: RequestBatch
  places: Places
  drawn: jax.Array
  log_weight: jax.Array


class _Scores(NamedTuple):
  """Without the bias: of the targets, of the history's ads, and of the others that a loss reads."""

  target_PM: jax.Array
  history_PS: jax.Array
  other_PX: jax.Array


class _Few:
  """A loss that scores some ads only; ads are numbered by their place among those that the step
  reads.

  A subclass has `_others() -> [P, X]`, what it reads of other ads, and `loss(scores, bias)`, by
  given scores and a bias on the ads of the history.
  """

  def __init__(self, model, variables, touched: Touched, dropout_key):
    dtype = compute_dtype(model.config)
    self._vectors = lambda ads: model.apply(variables, ads, method="vectors").astype(dtype)
    # A closure, so that the table is read where scores are made and not kept as a whole.
    self.touched = touched
    self.places = touched.places
    self._num_ads = model.num_ads
    batch = touched.batch
    places = touched.places
    # Over the small table: ads are numbered by their places among those that were read.
    states_BPD = model.apply(
      variables, batch, train=True, rngs={"dropout": dropout_key}, method="states"
    ).astype(dtype)
    self.bias = model.apply(variables, method="head_bias")
    # (B, P, D) -> (P, D): of all states of the histories those at the places that are learned from.
    self.state_PD = states_BPD[places.row_P, places.place_P]
    self.ads_PS = seen(batch, places)
    scores_BPS = product("bpd,bsd->bps", states_BPD, self._vectors(history_ads(batch)))
    history_PS = scores_BPS[places.row_P, places.place_P]
    self.scores = _Scores(self._of(places.target_PM), history_PS, self._others())

  def _of(self, ads_PM: jax.Array) -> jax.Array:
    """Scores of some ads of each place."""
    # (P, D), (P, M, D) -> (P, M).
    return product("pd,pmd->pm", self.state_PD, self._vectors(ads_PM))

  def _of_all(self, ads_X: jax.Array) -> jax.Array:
    """Scores of the same ads at all places."""
    return product("pd,xd->px", self.state_PD, self._vectors(ads_X))

  def _seen(self, ads_PM: jax.Array) -> jax.Array:
    # (P, M, 1) == (P, 1, S) -> (P, M, S): whether a place's history has the ad.
    return (ads_PM[..., None] == self.ads_PS[:, None]).any(-1)


class _Sampled(_Few):
  """Ads are drawn for the whole step, each at most once."""

  def _others(self):
    return self._of_all(self.touched.drawn)

  def loss(self, scores, bias):
    places = self.places
    ads_PS = self.ads_PS
    drawn_K = self.touched.drawn
    # One past the last row is the row of nothing: padding writes and reads there.
    none = self._num_ads
    K = len(drawn_K)
    # Where an ad stands among the drawn ones.
    at_U = jnp.full(none + 1, K).at[drawn_K].set(jnp.arange(K))
    target_PM = jnp.where(places.mask_PM, places.target_PM, none)
    # Ads that are counted apart: the history's, which have the bias, and the targets. A drawn ad
    # among them must not count again as a negative.
    strata_PX = jnp.concatenate([jnp.where(ads_PS >= 0, ads_PS, none), target_PM], axis=1)
    rows = jnp.arange(len(ads_PS))[:, None]
    # K + 1 columns, of which the last takes all ads that were not drawn; it is cut off.
    taken_PK = jnp.zeros((len(ads_PS), K + 1), bool).at[rows, at_U[strata_PX]].set(True)[:, :K]
    # A target of the history counts as a target.
    target_PS = (ads_PS[..., None] == target_PM[:, None]).any(-1)
    return item_losses.sampled_softmax_loss(
      scores.target_PM + bias * self._seen(places.target_PM),
      places.mask_PM,
      scores.history_PS + bias,
      (ads_PS >= 0) & ~target_PS,
      scores.other_PX,
      ~taken_PK,
      self.touched.log_weight,
    )


class _InBatch(_Few):
  """The other requests' targets are the negatives; how often an ad is one is taken off its
  score.
  """

  def _others(self):
    return self._of_all(self.places.target_PM.ravel())

  def loss(self, scores, bias):
    places = self.places
    # The targets of the whole batch, laid in one row: P·M negatives for every place.
    ads_X = places.target_PM.ravel()
    real_X = places.mask_PM.ravel()
    # A place's own targets are no negatives of it. -2 matches no ad and no padding.
    own_PX = (ads_X == jnp.where(places.mask_PM, places.target_PM, -2)[..., None]).any(1)
    # This loss has no stratum of the history: one column that the mask takes away.
    nothing = jnp.zeros((len(self.ads_PS), 1))
    return item_losses.sampled_softmax_loss(
      scores.target_PM + bias * self._seen(places.target_PM),
      places.mask_PM,
      nothing,
      nothing > 0,
      scores.other_PX,
      real_X & ~own_PX,
      # How often an ad comes up as a negative: its share of the targets, times their number.
      self.touched.log_weight[jnp.maximum(ads_X, 0)] - jnp.log(jnp.maximum(real_X.sum(), 1)),
    )


class _Binary(_Few):
  """One ad is drawn for each target."""

  def _others(self):
    return self._of(self.touched.drawn)

  def loss(self, scores, bias):
    target_PM = scores.target_PM + bias * self._seen(self.places.target_PM)
    drawn_PM = scores.other_PX + bias * self._seen(self.touched.drawn)
    return item_losses.binary_loss(target_PM, drawn_PM, self.places.mask_PM)


LOSSES = {"sampled": _Sampled, "bce": _Binary, "inbatch": _InBatch}
