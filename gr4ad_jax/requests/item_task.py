"""Models of single ads as a loss of the training step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.features.batches import RequestBatch
from gr4ad_jax.models.gr4ad import compute_dtype
from gr4ad_jax.models.layers import product
from gr4ad_jax.models.zoo.items import ItemModel, add_to_ads, history_ads
from gr4ad_jax.objectives import item_losses
from gr4ad_jax.parallel import row_tables
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
  """The last place of each request, with its targets; and of the places inside the histories at
  most `inner` a request.

  Args:
    batch: requests with their targets.
    inner: such places a request, in the mean over the batch; where there are more, they are drawn;
      0: none.
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
  row_Q = at_Q // S
  place_Q = at_Q % S
  more = ((0, 0), (0, batch.target_ad_BM.shape[1] - 1))
  within = Places(
    row_Q,
    place_Q,
    jnp.pad(ads_BS[row_Q, place_Q][:, None], more, constant_values=-1),
    jnp.pad(inside_BS[row_Q, place_Q][:, None], more),
  )
  return Places(*(jnp.concatenate(pair) for pair in zip(last, within, strict=True)))


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
    inbatch = self._config.item_loss == "inbatch"
    self._log_share_N = jnp.log(jnp.asarray(share_N, jnp.float32)) if inbatch else None

  def touch(self, batch: RequestBatch, key: jax.Array) -> Touched:
    """What a step reads: it depends on its requests and its key, not on parameters."""
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
    read = (history_ads(batch), jnp.where(places.mask_PM, places.target_PM, -1), drawn)
    ads_X = jnp.concatenate([ads.ravel() for ads in read])
    past = row_tables.rows(num_ads)  # no row
    ads_X = jnp.where(ads_X >= 0, ads_X, past)
    row_U, at_X = jnp.unique(
      ads_X, return_inverse=True, size=row_tables.rows(len(ads_X)), fill_value=past
    )
    at_X = jnp.where(ads_X < past, at_X, -1)
    ends = np.cumsum([ads.size for ads in read])[:-1]
    slots, targets, drawn = (
      at.reshape(ads.shape) for at, ads in zip(jnp.split(at_X, ends), read, strict=True)
    )
    if config.item_loss == "inbatch":
      log_weight = -row_tables.lookup(self._log_share_N, row_U)
    return Touched(
      row_U, batch._replace(slot_ad_BS=slots), places._replace(target_PM=targets), drawn, log_weight
    )

  def of_rows(
    self, params: Any, touched: Touched, key: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of `touch`'s step, by parameters whose table has the rows `row_U` alone."""
    dropout_key = jax.random.split(key, 3)[2]
    model = self._model.clone(num_ads=len(touched.row_U))
    few = _LOSSES[self._config.item_loss](model, {"params": params}, touched, dropout_key)
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
  first_K = np.arange(number + 1) * ads // number  # int64: K · N is past 2^31
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
    place_key, _, dropout_key = jax.random.split(key, 3)
    places = places_of(batch, config.inner_positions if config.inner_targets else 0, place_key)
    variables = {"params": params}
    states_BPD = model.apply(
      variables, batch, train=True, rngs={"dropout": dropout_key}, method="states"
    )
    bias = model.apply(variables, method="head_bias")
    state_PD = states_BPD[places.row_P, places.place_P]
    ads_PS = _seen(batch, places)
    scores_PN = model.apply(variables, state_PD, method="scores")
    own_PM = model.apply(variables, state_PD, places.target_PM, method="scores_of")
    own_seen_PM = (places.target_PM[..., None] == ads_PS[:, None]).any(-1)

    def loss_of(scores, bias):
      scores_PN, own_PM = scores
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
    under = loss_of(jax.lax.stop_gradient(scores), bias)
    loss += under - jax.lax.stop_gradient(under)
  return loss, metrics


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
    self.touched = touched
    self.places = touched.places
    self._num_ads = model.num_ads
    batch = touched.batch
    places = touched.places
    states_BPD = model.apply(
      variables, batch, train=True, rngs={"dropout": dropout_key}, method="states"
    ).astype(dtype)
    self.bias = model.apply(variables, method="head_bias")
    self.state_PD = states_BPD[places.row_P, places.place_P]
    self.ads_PS = _seen(batch, places)
    scores_BPS = product("bpd,bsd->bps", states_BPD, self._vectors(history_ads(batch)))
    history_PS = scores_BPS[places.row_P, places.place_P]
    self.scores = _Scores(self._of(places.target_PM), history_PS, self._others())

  def _of(self, ads_PM: jax.Array) -> jax.Array:
    """Scores of some ads of each place."""
    return product("pd,pmd->pm", self.state_PD, self._vectors(ads_PM))

  def _of_all(self, ads_X: jax.Array) -> jax.Array:
    """Scores of the same ads at all places."""
    return product("pd,xd->px", self.state_PD, self._vectors(ads_X))

  def _seen(self, ads_PM: jax.Array) -> jax.Array:
    return (ads_PM[..., None] == self.ads_PS[:, None]).any(-1)


class _Sampled(_Few):
  """Ads are drawn for the whole step, each at most once."""

  def _others(self):
    return self._of_all(self.touched.drawn)

  def loss(self, scores, bias):
    places = self.places
    ads_PS = self.ads_PS
    drawn_K = self.touched.drawn
    none = self._num_ads
    K = len(drawn_K)
    at_U = (
      jnp.full(none + 1, K).at[drawn_K].set(jnp.arange(K))
    )  # where an ad stands among the drawn ones
    target_PM = jnp.where(places.mask_PM, places.target_PM, none)
    strata_PX = jnp.concatenate([jnp.where(ads_PS >= 0, ads_PS, none), target_PM], axis=1)
    rows = jnp.arange(len(ads_PS))[:, None]
    taken_PK = jnp.zeros((len(ads_PS), K + 1), bool).at[rows, at_U[strata_PX]].set(True)[:, :K]
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
    ads_X = places.target_PM.ravel()
    real_X = places.mask_PM.ravel()
    own_PX = (ads_X == jnp.where(places.mask_PM, places.target_PM, -2)[..., None]).any(1)
    nothing = jnp.zeros((len(self.ads_PS), 1))
    return item_losses.sampled_softmax_loss(
      scores.target_PM + bias * self._seen(places.target_PM),
      places.mask_PM,
      nothing,
      nothing > 0,
      scores.other_PX,
      real_X & ~own_PX,
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


_LOSSES = {"sampled": _Sampled, "bce": _Binary, "inbatch": _InBatch}
