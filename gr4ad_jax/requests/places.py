"""The places of histories that models of single ads learn from: what came after so many ads."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gr4ad_jax.features.batches import RequestBatch
from gr4ad_jax.zoo.items import history_ads


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
  # The place after all ads: the state there has seen the whole history.
  last = Places(jnp.arange(B), (ads_BS >= 0).sum(-1), batch.target_ad_BM, batch.target_mask_BM)
  if not inner:
    return last
  # The first ad comes after nothing, so it is no target.
  inside_BS = (ads_BS >= 0) & (jnp.arange(S) > 0)
  # Random keys for ads inside, -1 for all else: the greatest are an even draw without replacement.
  draw_BS = jnp.where(inside_BS, jax.random.uniform(key, (B, S)), -1.0)
  _, at_Q = jax.lax.top_k(draw_BS.ravel(), min(inner * B, B * S))
  # Flat numbers over [B, S] become request and place.
  row_Q = at_Q // S
  place_Q = at_Q % S
  # One target, and M - 1 that are padding, as the batch's targets have M columns.
  more = ((0, 0), (0, batch.target_ad_BM.shape[1] - 1))
  within = Places(
    row_Q,
    place_Q,
    jnp.pad(ads_BS[row_Q, place_Q][:, None], more, constant_values=-1),
    # A place that was only filled up has -1 above and is masked here.
    jnp.pad(inside_BS[row_Q, place_Q][:, None], more),
  )
  # (B + Q,): the last places first, then those inside.
  return Places(*(jnp.concatenate(pair) for pair in zip(last, within, strict=True)))


def seen(batch: RequestBatch, places: Places) -> jax.Array:
  """[P, S] rows of the ads that each place has seen, -1 elsewhere."""
  ads_PS = history_ads(batch)[places.row_P]
  # A place knows what came before it, not the ad that stands there.
  return jnp.where(jnp.arange(ads_PS.shape[1]) < places.place_P[:, None], ads_PS, -1)
