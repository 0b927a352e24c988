"""Models of single ads as a loss of the training step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.features.batches import RequestBatch
from gr4ad_jax.objectives import item_losses
from gr4ad_jax.parallel import row_tables
from gr4ad_jax.requests.few_ads import LOSSES, Touched
from gr4ad_jax.requests.places import places_of, seen
from gr4ad_jax.training.step import LossFn
from gr4ad_jax.zoo.items import ItemModel, add_to_ads, history_ads


class RowLoss:
  """A loss that scores some ads only: a `LossFn`, and the two halves that it consists of.

  What it reads of the table is looked up once, so the table's gradient is one scatter. `row_step`
  takes the halves one by one, and then there is no array of the table's size at all.

  Args:
    model: the module.
    share_N: each ad's share of the training targets, above 0; read by --item_loss=inbatch alone, of
      which every device holds it whole (4 bytes an ad).
  """

  def __init__(self, model: ItemModel, share_N: np.ndarray):
    self._model = model
    self._config = model.items
    # Where the batch's targets are the negatives, popular ads are negatives more often; their
    # shares correct that.
    inbatch = self._config.item_loss == "inbatch"
    self._log_share_N = jnp.log(jnp.asarray(share_N, jnp.float32)) if inbatch else None

  def touch(self, batch: RequestBatch, key: jax.Array) -> Touched:
    """What a step reads: it depends on its requests and its key, not on parameters."""
    # Three keys in a fixed order: `of_rows` takes the third of the same split.
    place_key, draw_key, _ = jax.random.split(key, 3)
    config = self._config
    num_ads = self._model.num_ads
    places = places_of(batch, config.inner_positions if config.inner_targets else 0, place_key)
    drawn = jnp.zeros(0, jnp.int32)
    log_weight = jnp.zeros(0)
    if config.item_loss == "sampled":
      drawn, log_weight = draw_of_strata(draw_key, num_ads, min(config.item_negatives, num_ads))
    elif config.item_loss == "bce":
      drawn = jax.random.randint(draw_key, places.target_PM.shape, 0, num_ads)
    # -1 of padding and masked targets becomes the row past the table, which no gather keeps.
    read = (history_ads(batch), jnp.where(places.mask_PM, places.target_PM, -1), drawn)
    ads_X = jnp.concatenate([ads.ravel() for ads in read])
    past = row_tables.rows(num_ads)  # no row
    ads_X = jnp.where(ads_X >= 0, ads_X, past)
    # The number of distinct ads varies, so it is padded to a fixed one: shapes must not change.
    row_U, at_X = jnp.unique(
      ads_X, return_inverse=True, size=row_tables.rows(len(ads_X)), fill_value=past
    )
    at_X = jnp.where(ads_X < past, at_X, -1)
    # Where the parts lie that were joined, to take them apart again.
    ends = np.cumsum([ads.size for ads in read])[:-1]
    slots, targets, drawn = (
      at.reshape(ads.shape) for at, ads in zip(jnp.split(at_X, ends), read, strict=True)
    )
    if config.item_loss == "inbatch":
      # The log of 1 / share is the weight of a negative drawn by share.
      log_weight = -row_tables.lookup(self._log_share_N, row_U)
    return Touched(
      row_U, batch._replace(slot_ad_BS=slots), places._replace(target_PM=targets), drawn, log_weight
    )

  def of_rows(
    self, params: Any, touched: Touched, key: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of `touch`'s step, by parameters whose table has the rows `row_U` alone."""
    # The third of the same split as in `touch`, which took the first two.
    dropout_key = jax.random.split(key, 3)[2]
    # The same model over a table of U rows: ads are their places among the rows that were read.
    model = self._model.clone(num_ads=len(touched.row_U))
    few = LOSSES[self._config.item_loss](model, {"params": params}, touched, dropout_key)
    return bias_apart(few.loss, few.scores, few.bias, model.config.history_bias)

  def __call__(
    self, params: Any, batch: RequestBatch, key: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(params, batch, key) -> (loss, metrics)."""
    touched = self.touch(batch, key)
    return self.of_rows(row_tables.take_rows(params, touched.row_U), touched, key)


def draw_of_strata(key: jax.Array, ads: int, number: int) -> tuple[jax.Array, jax.Array]:
  """Draws one ad evenly from each of `number` runs of neighbouring rows, of equal size or one more.

  So an ad is drawn at most once, with probability 1 / (size of its run), about number / ads;
  weighed by that size, the drawn ads' total is without bias that of all. Time and memory are those
  of `number`, not of `ads`.

  Args:
    key: of the draw.
    ads: N, below 2^31.
    number: K, at most N.

  Returns:
    Rows [K], ascending, and the logarithms of their runs' sizes [K].
  """
  # Bounds of the runs: they are of equal size, or differ by one. In int64, since K · N passes 2^31.
  first_K = np.arange(number + 1) * ads // number
  size_K = np.diff(first_K)
  drawn_K = first_K[:-1].astype(np.int32) + jax.random.randint(
    key, (number,), 0, size_K.astype(np.int32)
  )
  return drawn_K, jnp.log(jnp.asarray(size_K, jnp.float32))


def make_item_loss(model: ItemModel, share_N: np.ndarray) -> LossFn:
  """(params, batch, key) -> (loss, metrics), by --item_loss: a softmax over all ads, or a
  `RowLoss`.

  Args:
    model: the module.
    share_N: each ad's share of the training targets, above 0; read by --item_loss=inbatch.
  """
  config = model.items
  if config.item_loss != "softmax":
    return RowLoss(model, share_N)

  def loss_fn(params, batch: RequestBatch, key: jax.Array):
    # The same split as of `RowLoss`, so that both losses see the same places.
    place_key, _, dropout_key = jax.random.split(key, 3)
    places = places_of(batch, config.inner_positions if config.inner_targets else 0, place_key)
    variables = {"params": params}
    states_BPD = model.apply(
      variables, batch, train=True, rngs={"dropout": dropout_key}, method="states"
    )
    bias = model.apply(variables, method="head_bias")
    # Places of requests and of histories become one axis: (B, P, D) -> (P, D).
    state_PD = states_BPD[places.row_P, places.place_P]
    ads_PS = seen(batch, places)
    scores_PN = model.apply(variables, state_PD, method="scores")
    own_PM = model.apply(variables, state_PD, places.target_PM, method="scores_of")
    # (P, M, 1) == (P, 1, S): which targets a place has in its own history.
    own_seen_PM = (places.target_PM[..., None] == ads_PS[:, None]).any(-1)

    def loss_of(scores, bias):
      scores_PN, own_PM = scores
      # The bias is added to the total and to the targets alike, each in its own array.
      biased_PN = add_to_ads(scores_PN, ads_PS, bias)
      own_PM = own_PM + bias * own_seen_PM
      return item_losses.softmax_loss(biased_PN, own_PM, places.mask_PM, config.item_smoothing)

    return bias_apart(loss_of, (scores_PN, own_PM), bias, model.config.history_bias)

  return loss_fn


def bias_apart(
  loss_of: Callable[[Any, jax.Array], jax.Array], scores: Any, bias: jax.Array, learned: bool
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """A loss whose model learns without the signed bias on the history, and the bias by what that
  model has learned.

  Were the model to learn under the bias, nothing would teach it to score down what was just taken,
  and its like; it would rank as well alone, and worse with a memory beside it (docs/log/zoo.md).

  Args:
    loss_of: (scores without the bias, bias) -> loss.
    scores: what the model says; any tree of arrays.
    bias: the scalar.
    learned: whether there is a bias (--history_bias).

  Returns:
    The loss without the bias, whose gradient for the bias is that of the loss under it; and the
    metrics.
  """
  loss = loss_of(scores, jnp.zeros_like(bias))
  metrics = {"loss": loss, "item_bias": bias}
  if learned:
    # By a constant score the bias learns alone. The difference adds its gradient, and 0 to the
    # loss.
    under = loss_of(jax.lax.stop_gradient(scores), bias)
    loss += under - jax.lax.stop_gradient(under)
  return loss, metrics


def with_item_loss(loss_fn: LossFn, item_loss_fn: LossFn, weight: float) -> LossFn:
  """A loss, plus `weight` times that of the item-level head."""

  def both(params, batch, key: jax.Array):
    # Keys of their own, so that the losses do not share their dropout.
    key, item_key = jax.random.split(key)
    loss, metrics = loss_fn(params, batch, key)
    item, more = item_loss_fn(params, batch, item_key)
    loss += weight * item
    return loss, {**metrics, "item": item, "item_bias": more["item_bias"], "loss": loss}

  return both
