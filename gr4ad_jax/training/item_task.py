"""Models of single ads as a loss of the training step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.data.batches import RequestBatch
from gr4ad_jax.models.gr4ad import compute_dtype
from gr4ad_jax.models.layers import product
from gr4ad_jax.models.zoo.items import ItemModel, add_to_ads, history_ads
from gr4ad_jax.objectives import item_losses
from gr4ad_jax.training.step import LossFn


class Places(NamedTuple):
  """P places of a batch that are learned from.

  Attributes:
    row_P: request of each.
    place_P: ads of its history that it has seen.
    target_PM: rows of the ads that come next.
    mask_PM: bool, which of them are real.
  """

  row_P: jax.Array
  place_P: jax.Array
  target_PM: jax.Array
  mask_PM: jax.Array


def places_of(batch: RequestBatch, inner: int, key: jax.Array) -> Places:
  """The last place of each request, with its targets; and of the places inside the histories at most `inner` a request.

  Args:
    batch: requests with their targets.
    inner: such places a request, in the mean over the batch; where there are more, they are drawn; 0: none.
    key: of the draw.
  """
  ads_BS = history_ads(batch)
  B, S = ads_BS.shape
  last = Places(jnp.arange(B), (ads_BS >= 0).sum(-1), batch.target_ad_BM, batch.target_mask_BM)
  if not inner:
    return last
  inside_BS = (ads_BS >= 0) & (jnp.arange(S) > 0)  # the first ad comes after nothing
  draw_BS = jnp.where(inside_BS, jax.random.uniform(key, (B, S)), -1.0)
  _, at_Q = jax.lax.top_k(draw_BS.ravel(), min(inner * B, B * S))
  row_Q, place_Q = at_Q // S, at_Q % S
  more = ((0, 0), (0, batch.target_ad_BM.shape[1] - 1))
  within = Places(
    row_Q,
    place_Q,
    jnp.pad(ads_BS[row_Q, place_Q][:, None], more, constant_values=-1),
    jnp.pad(inside_BS[row_Q, place_Q][:, None], more),
  )
  return Places(*(jnp.concatenate(pair) for pair in zip(last, within, strict=True)))


def make_item_loss(model: ItemModel, share_N: np.ndarray) -> LossFn:
  """(params, batch, key) -> (loss, metrics), by --item_loss.

  Args:
    model: the module.
    share_N: each ad's share of the training targets, above 0; read by --item_loss=inbatch.
  """
  config, log_share_N = model.items, jnp.log(jnp.asarray(share_N, jnp.float32))

  def loss_fn(params, batch: RequestBatch, key: jax.Array):
    place_key, draw_key, dropout_key = jax.random.split(key, 3)
    places = places_of(batch, config.inner_positions if config.inner_targets else 0, place_key)
    variables = {"params": params}
    states_BPD = model.apply(variables, batch, train=True, rngs={"dropout": dropout_key}, method="states")
    bias = model.apply(variables, method="head_bias")
    if config.item_loss == "softmax":
      scores_PN = model.apply(variables, states_BPD[places.row_P, places.place_P], method="scores")
      scores_PN = add_to_ads(scores_PN, _seen(batch, places), bias)
      loss = item_losses.softmax_loss(scores_PN, places.target_PM, places.mask_PM, config.item_smoothing)
    else:
      few = _Few(model, variables, batch, states_BPD, places, bias)
      losses = {"sampled": few.sampled, "bce": few.binary, "inbatch": lambda _: few.inbatch(log_share_N)}
      loss = losses[config.item_loss](draw_key)
    return loss, {"loss": loss, "item_bias": bias}

  return loss_fn


def with_item_loss(loss_fn: LossFn, item_loss_fn: LossFn, weight: float) -> LossFn:
  """A loss, plus `weight` times that of the item-level head."""

  def both(params, batch, key: jax.Array):
    key, item_key = jax.random.split(key)
    loss, metrics = loss_fn(params, batch, key)
    item, more = item_loss_fn(params, batch, item_key)
    loss += weight * item
    return loss, {**metrics, "item": item, "item_bias": more["item_bias"], "loss": loss}

  return both


def _seen(batch: RequestBatch, places: Places) -> jax.Array:
  """[P, S] rows of the ads that each place has seen, -1 elsewhere."""
  ads_PS = history_ads(batch)[places.row_P]
  return jnp.where(jnp.arange(ads_PS.shape[1]) < places.place_P[:, None], ads_PS, -1)


class _Few:
  """Losses that score some ads only."""

  def __init__(self, model, variables, batch, states_BPD, places, bias):
    self.places, self.bias, self._num_ads, self._draws = places, bias, model.num_ads, model.items.item_negatives
    dtype = compute_dtype(model.config)
    self._vectors = lambda ads: model.apply(variables, ads, method="vectors").astype(dtype)
    states_BPD = states_BPD.astype(dtype)
    self.state_PD, self.ads_PS = states_BPD[places.row_P, places.place_P], _seen(batch, places)
    scores_BPS = product("bpd,bsd->bps", states_BPD, self._vectors(history_ads(batch)))
    self.history_score_PS = scores_BPS[places.row_P, places.place_P] + bias
    self.target_score_PM = self._biased(places.target_PM)

  def _biased(self, ads_PM: jax.Array) -> jax.Array:
    seen_PM = (ads_PM[..., None] == self.ads_PS[:, None]).any(-1)
    return product("pd,pmd->pm", self.state_PD, self._vectors(ads_PM)) + self.bias * seen_PM

  def sampled(self, key: jax.Array) -> jax.Array:
    """Ads are drawn for the whole step, each at most once."""
    places, ads_PS, num_ads = self.places, self.ads_PS, self._num_ads
    K = min(self._draws, num_ads)
    drawn_K = jax.lax.top_k(jax.random.bits(key, (num_ads,)), K)[1]
    at_N = jnp.full(num_ads + 1, K).at[drawn_K].set(jnp.arange(K))  # where an ad stands among the drawn ones
    target_PM = jnp.where(places.mask_PM, places.target_PM, num_ads)
    strata_PX = jnp.concatenate([jnp.where(ads_PS >= 0, ads_PS, num_ads), target_PM], axis=1)
    rows = jnp.arange(len(ads_PS))[:, None]
    taken_PK = jnp.zeros((len(ads_PS), K + 1), bool).at[rows, at_N[strata_PX]].set(True)[:, :K]
    target_PS = (ads_PS[..., None] == target_PM[:, None]).any(-1)
    return item_losses.sampled_softmax_loss(
      self.target_score_PM,
      places.mask_PM,
      self.history_score_PS,
      (ads_PS >= 0) & ~target_PS,
      product("pd,kd->pk", self.state_PD, self._vectors(drawn_K)),
      ~taken_PK,
      jnp.log(num_ads / K),
    )

  def inbatch(self, log_share_N: jax.Array) -> jax.Array:
    """The other requests' targets are the negatives; how often an ad is one is taken off its score."""
    places = self.places
    ads_X, real_X = places.target_PM.ravel(), places.mask_PM.ravel()
    own_PX = (ads_X == jnp.where(places.mask_PM, places.target_PM, -2)[..., None]).any(1)
    nothing = jnp.zeros((len(self.ads_PS), 1))
    return item_losses.sampled_softmax_loss(
      self.target_score_PM,
      places.mask_PM,
      nothing,
      nothing > 0,
      product("pd,xd->px", self.state_PD, self._vectors(ads_X)),
      real_X & ~own_PX,
      -jnp.log(jnp.maximum(real_X.sum(), 1)) - log_share_N[jnp.maximum(ads_X, 0)],
    )

  def binary(self, key: jax.Array) -> jax.Array:
    """One ad is drawn for each target."""
    drawn_PM = jax.random.randint(key, self.places.target_PM.shape, 0, self._num_ads)
    return item_losses.binary_loss(self.target_score_PM, self._biased(drawn_PM), self.places.mask_PM)
