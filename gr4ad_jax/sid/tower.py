"""The unified ad embedding: a small network, the *tower*, trained on what is taken together.

It reads the content vector of an ad and its structured fields (docs/design/method.md §1.1).
"""

import dataclasses
import functools
import logging
import zlib

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gr4ad_jax.data import schema
from gr4ad_jax.sid.nearest import Sliceable
from gr4ad_jax.sid.params import flat, nested
from gr4ad_jax.swing import swing

BUCKETS = 256  # hash buckets of categories, and of accounts; 0 is "unknown"
FIELD_WIDTH = 16
HIDDEN = 512
# A step's anchors. It also brings as many of their positives, and half as many ads at random.
ANCHORS = 256
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
CHUNK = 8192  # ads embedded at once


class TowerNet(nn.Module):
  """Unit vector of an ad: a linear map of its content, plus an MLP over all that is known of it."""

  width: int

  @nn.compact
  def __call__(self, text_ND: jax.Array, fields: dict[str, jax.Array]) -> jax.Array:
    """[N, D] content vectors and the columns of `_fields` -> [N, width] of length 1."""
    category = nn.Embed(BUCKETS, FIELD_WIDTH, name="category")(fields["category"])
    account = nn.Embed(BUCKETS, FIELD_WIDTH, name="account")(fields["account"])
    known = jnp.concatenate([text_ND, fields["price"], category, account], axis=-1)
    hidden = nn.gelu(nn.Dense(HIDDEN, name="hidden")(nn.LayerNorm(name="norm")(known)))
    skip = nn.Dense(self.width, use_bias=False, name="skip")(text_ND)
    # Near 0 at the start: the first vectors are those of the linear map, which are good already.
    z_ND = skip + nn.Dense(self.width, kernel_init=nn.initializers.normal(1e-3), name="out")(hidden)
    # With 1e-12 a vector of zeros stays one, and its gradient is finite.
    return z_ND * jax.lax.rsqrt(jnp.sum(z_ND * z_ND, axis=-1, keepdims=True) + 1e-12)


@dataclasses.dataclass(frozen=True)
class Tower:
  """A trained tower.

  Attributes:
    params: parameters of `TowerNet`, by slash-joined name, float32.
    price: mean and standard deviation of log(1 + price) over the ads it was fitted on.
  """

  params: dict[str, np.ndarray]
  price: tuple[float, float]

  @property
  def width(self) -> int:
    """Width of the vectors it makes."""
    return self.params["out/kernel"].shape[1]

  def embed(self, text_ND: Sliceable, ads: schema.AdTable) -> np.ndarray:
    """Vectors of ads, which need not have been seen in training. Content is read by chunks.

    Args:
      text_ND: content vectors, as wide as those that the tower was trained on.
      ads: the N ads.

    Returns:
      [N, width] float32, of length 1.

    Raises:
      schema.DataError: content vectors of another shape.
    """
    expected = self.params["skip/kernel"].shape[0]
    if text_ND.shape != (len(ads), expected):
      raise schema.DataError(
        f"content vectors have shape {text_ND.shape}; the tower takes [{len(ads)}, {expected}]"
      )
    fields = _fields(ads, self.price)
    params = nested(self.params)
    parts = [
      _apply(
        self.width,
        params,
        text_ND[at : at + CHUNK],
        {k: v[at : at + CHUNK] for k, v in fields.items()},
      )
      for at in range(0, len(ads), CHUNK)
    ]
    return np.concatenate([np.asarray(part) for part in parts])


def expected_shapes(width: int, content_width: int) -> dict[str, tuple[int, ...]]:
  """Name and shape of each parameter of a tower, so that a saved one can be checked."""
  blank = {
    "price": jnp.zeros((1, 2)),
    "category": jnp.zeros(1, jnp.int32),
    "account": jnp.zeros(1, jnp.int32),
  }
  # `eval_shape` only traces: no parameter is made.
  params = jax.eval_shape(
    TowerNet(width).init, jax.random.key(0), jnp.zeros((1, content_width)), blank
  )["params"]
  return {name: leaf.shape for name, leaf in flat(params).items()}


def multi_positive_info_nce(
  z_BD: jax.Array, positive_BB: jax.Array, candidate_BB: jax.Array, temperature: float
) -> jax.Array:
  """InfoNCE with several positives (GR4AD, arXiv:2602.22732; docs/design/method.md §1.1).

  It is the mean over anchors i of −log( Σ_{j∈P_i} exp(z_i·z_j/τ) / Σ_{k≠i} exp(z_i·z_k/τ) ).

  Args:
    z_BD: unit vectors.
    positive_BB: bool, j is a positive of i.
    candidate_BB: bool, k may stand in the denominator. It holds the positives, and never i itself.
    temperature: τ.

  Returns:
    Scalar, nats. Anchors without positives do not count. It is 0 where none has any.
  """
  chex.assert_rank([z_BD, positive_BB, candidate_BB], 2)
  logits_BB = z_BD @ z_BD.T / temperature
  # −1e9 and not −∞: an anchor without positives would be −∞ everywhere, and the gradient of its
  # logsumexp NaN. The last `where` drops its value, but 0 · NaN would still be NaN.
  above_B = jax.nn.logsumexp(jnp.where(positive_BB, logits_BB, -1e9), axis=1)
  below_B = jax.nn.logsumexp(jnp.where(candidate_BB, logits_BB, -1e9), axis=1)
  counts_B = positive_BB.any(axis=1)
  return jnp.where(counts_B, below_B - above_B, 0).sum() / jnp.maximum(counts_B.sum(), 1)


def fit_tower(
  text_ND: np.ndarray,
  ads: schema.AdTable,
  neighbors: swing.Neighbors,
  *,
  width: int,
  steps: int,
  temperature: float,
  seed: int,
  log: logging.Logger | None = None,
) -> Tower:
  """Trains the tower with AdamW, the learning rate falling by a cosine.

  The loss is taken within a batch of anchors, their positives and random ads.

  Args:
    text_ND: content vectors of the N ads.
    ads: their structured fields.
    neighbors: positives, by Swing.
    width: width of the vectors.
    steps: optimiser steps.
    temperature: of the loss.
    seed: of initialisation and batches. The same seed gives the same tower.
    log: is told the loss now and then.

  Raises:
    schema.DataError: no ad has a positive, so there is nothing to learn from.
  """
  anchors = np.flatnonzero((neighbors.ads_NK >= 0).any(axis=1))
  if not len(anchors):
    raise schema.DataError(
      "events: no two ads are ever taken together in training; set tower_steps to 0"
    )
  log_price = np.log1p(np.maximum(ads.price[np.isfinite(ads.price)], 0))
  # A deviation of 0, where all prices are equal, is no divisor: 1 stands for it.
  price = (float(log_price.mean()), float(log_price.std()) or 1.0) if len(log_price) else (0.0, 1.0)
  data = {
    "text": jnp.asarray(text_ND),
    "fields": jax.tree.map(jnp.asarray, _fields(ads, price)),
    "anchors": jnp.asarray(anchors),
    "positives": jnp.asarray(neighbors.ads_NK),
    # −∞ where there is no neighbour: such a slot is never drawn.
    "log_weight": jnp.log(jnp.asarray(neighbors.similarity_NK)),
  }
  key = jax.random.key(seed)
  params = TowerNet(width).init(
    key, data["text"][:1], jax.tree.map(lambda x: x[:1], data["fields"])
  )["params"]
  # In place of a random start: the first vectors are then as near to each other as the content is.
  params["skip"]["kernel"] = jnp.asarray(_principal_directions(text_ND, width))
  state = (params, _optimiser(steps).init(params))
  for number in range(steps):
    state, loss = _train_step(width, steps, state, data, key, number, temperature)
    if log and (number % 100 == 0 or number == steps - 1):
      log.info("tower step %d of %d: InfoNCE %.4f", number + 1, steps, float(loss))
  return Tower({name: np.asarray(leaf) for name, leaf in flat(state[0]).items()}, price)


def _optimiser(steps: int) -> optax.GradientTransformation:
  """AdamW, its learning rate falling by a cosine to 0 at the last step."""
  return optax.adamw(
    optax.cosine_decay_schedule(LEARNING_RATE, max(steps, 1)), weight_decay=WEIGHT_DECAY
  )


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _train_step(width, steps, state, data, key, number, temperature):
  """One step. A batch is A anchors, a positive of each drawn by similarity, A/2 ads at random."""
  params, opt_state = state
  # All draws follow from seed and step number alone.
  key_anchor, key_positive, key_other = jax.random.split(jax.random.fold_in(key, number), 3)
  num_anchors = min(ANCHORS, data["text"].shape[0])
  anchor = jax.random.choice(key_anchor, data["anchors"], (num_anchors,))
  slot = jax.random.categorical(key_positive, data["log_weight"][anchor])
  other = jax.random.randint(key_other, (num_anchors // 2,), 0, data["text"].shape[0])
  ad_B = jnp.concatenate([anchor, data["positives"][anchor, slot], other])
  same_BB = ad_B[:, None] == ad_B  # (B, 1) == (B,) -> (B, B)
  # `argmax` finds the first True of a row. An ad drawn twice is a candidate at its first place
  # only, else it would count twice in the sums.
  first_B = jnp.argmax(same_BB, axis=1) == jnp.arange(len(ad_B))
  candidate_BB = ~same_BB & first_B[None, :]
  # (B, K, 1) == (B,) -> (B, K, B): is ad b one of the K positives of a row? The -1 that pads them
  # is no ad. So a positive that another anchor brought counts too.
  positive_BB = (data["positives"][ad_B][:, :, None] == ad_B).any(axis=1) & candidate_BB

  def loss_of(params):
    fields = jax.tree.map(lambda x: x[ad_B], data["fields"])
    z_BD = TowerNet(width).apply({"params": params}, data["text"][ad_B], fields)
    return multi_positive_info_nce(z_BD, positive_BB, candidate_BB, temperature)

  loss, grads = jax.value_and_grad(loss_of)(params)
  updates, opt_state = _optimiser(steps).update(grads, opt_state, params)
  return (optax.apply_updates(params, updates), opt_state), loss


@functools.partial(jax.jit, static_argnums=0)
def _apply(width, params, text_ND, fields):
  return TowerNet(width).apply({"params": params}, text_ND, fields)


def _fields(ads: schema.AdTable, price: tuple[float, float]) -> dict[str, np.ndarray]:
  """Price [N, 2] (standardised logarithm, whether known), category and account [N] buckets.

  Args:
    ads: N ads.
    price: mean and standard deviation of log(1 + price).
  """
  known = np.isfinite(ads.price)
  scaled = (np.log1p(np.maximum(np.where(known, ads.price, 0), 0)) - price[0]) / price[1]
  # An unknown price stands as the mean, 0, and the second column says so. The clip holds a price
  # that is out of all proportion near those that the MLP has seen.
  columns = np.stack([np.where(known, np.clip(scaled, -5, 5), 0), known], axis=1).astype(np.float32)
  return {"price": columns, "category": _buckets(ads.category), "account": _buckets(ads.account_id)}


def _buckets(values: np.ndarray) -> np.ndarray:
  """[N] strings -> [N] int32 in [0, BUCKETS): 0 for "", else a CRC."""
  # Not Python's `hash`, which is another one in every process.
  names, row = np.unique(values, return_inverse=True)
  of_name = [1 + zlib.crc32(str(name).encode()) % (BUCKETS - 1) if name else 0 for name in names]
  return np.asarray(of_name, np.int32)[row]


def _principal_directions(text_ND: np.ndarray, width: int) -> np.ndarray:
  """[D, width] float32 start of the skip map: the directions in which content varies most.

  Projected on them, vectors keep their dot products as well as `width` allows.
  """
  # `eigh` sorts from the least eigenvalue on, so the last columns are the strongest. Where `width`
  # is more than D, the rest stays 0.
  _, vectors = np.linalg.eigh((text_ND.T @ text_ND).astype(np.float64))
  start = np.zeros((text_ND.shape[1], width), np.float32)
  kept = min(width, text_ND.shape[1])
  start[:, :kept] = vectors[:, ::-1][:, :kept]
  return start
