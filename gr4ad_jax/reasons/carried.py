"""What each slot of a context carries of an ad's log probability: leave-one-out, exact.

A slot is taken out as padding is: no query attends to it, and it cannot be copied. What goes with
it is what it carried, log p(y | X) - log p(y | X without the slot). The model is asked again for
it, in one batch for all slots that are asked for.

Asking for every slot costs several searches, and most slots carry next to nothing. So an estimate
says first which slots may carry an ad, and those are asked for. The estimate is exact where a slot
is copied, and of first order (by gradients) where it is attended to. It chooses slots, and gives no
figure of those that were chosen.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.features.batches import PADDING, RequestBatch
from gr4ad_jax.models.gr4ad import GR4AD, Start
from gr4ad_jax.models.history_copy import Copy, mix
from gr4ad_jax.models.layers import NEG
from gr4ad_jax.models.outputs import Outputs

# Slots that are taken out one by one, of those that may carry an ad most: five, as many as are told
# of an ad, for each of the three ads that are explained at once.
ASKED = 15


@flax.struct.dataclass
class Scores:
  """M ads under R versions of one context.

  Attributes:
    prefix_logp_RMT: log p of every prefix of the UA-SIDs, float32; the last is that of the ad.
    copied_RM: share of the ad's probability that the copy path gives, 0 to 1.
    bins_RMV: probabilities of the eCPM bins.
    copy_attention_RS: the copy path's attention on the slots; about 0 where none may be copied.
  """

  prefix_logp_RMT: jax.Array
  copied_RM: jax.Array
  bins_RMV: jax.Array
  copy_attention_RS: jax.Array


class Carried(NamedTuple):
  """What a request's S slots carry of M ads. NumPy; logarithms are natural, values money.

  Attributes:
    logp_M: log p(y | X) of each UA-SID.
    value_M: expected value of the ad, given the context.
    asked_S: bool, the slots that the model was asked about.
    slot_logp_MS: what log p loses without the slot. Below 0: the slot speaks against the ad. 0 in
      padding. Exact where `asked_S`, elsewhere an estimate, by which slots can be put in order.
    slot_value_MS: what the expected value loses without the slot; 0 where it was not asked.
    level_logp_MT: log p of each code, given the context and the codes before it.
    level_lift_MT: of it, what all slots together carry; over the levels it sums to
      `logp_M - bare_logp_M`.
    bare_logp_M: log p(y) where all slots are taken out and the user's profile alone is left.
    copied_M: share of the probability that was copied from slots, 0 to 1; the rest was generated.
    bins_MV: probabilities of the eCPM bins.
    copy_attention_S: the copy path's attention on the slots.
  """

  logp_M: np.ndarray
  value_M: np.ndarray
  asked_S: np.ndarray
  slot_logp_MS: np.ndarray
  slot_value_MS: np.ndarray
  level_logp_MT: np.ndarray
  level_lift_MT: np.ndarray
  bare_logp_M: np.ndarray
  copied_M: np.ndarray
  bins_MV: np.ndarray
  copy_attention_S: np.ndarray


@functools.lru_cache(maxsize=8)
def _programs(model: GR4AD, asked: int | None) -> tuple[Callable, Callable]:
  """What `Scorer.scores` and `Scorer.carried` run, compiled; scorers of equal models share them."""

  def score(variables, batch, codes_MT, kept_RS):
    begun = model.apply(variables, batch, method="start")
    # Only `kept` is mapped over. What does not depend on it, such as the states of the slots, is
    # computed once for all R versions, and keys and values are not repeated.
    return jax.vmap(
      lambda kept_S: model.apply(variables, batch, begun, codes_MT, kept_S, method=_score)
    )(kept_RS)

  def carried(variables, batch, codes_MT):
    real_S = batch.slot_kind_BS[0] != PADDING
    S = len(real_S)
    begun = model.apply(variables, batch, method="start")
    # An encoder runs over the history, and the estimate does not see through it.
    if asked is None or asked >= S or begun.skip_BD is not None:
      chosen_K = jnp.arange(S)
      estimate_MS = jnp.zeros((len(codes_MT), S))
    else:
      estimate_MS = _estimate(functools.partial(model.apply, variables, begun, codes_MT), S)
      chosen_K = _first_slots(jnp.where(real_S, estimate_MS, -jnp.inf), asked)
    # Row 0 keeps all slots, row 1 none, and each of the others all but one.
    one_KS = jax.nn.one_hot(chosen_K, S, dtype=bool)
    kept_RS = jnp.concatenate([jnp.ones((1, S), bool), jnp.zeros((1, S), bool), ~one_KS])
    return score(variables, batch, codes_MT, kept_RS), chosen_K, estimate_MS

  return jax.jit(score), jax.jit(carried)


class Scorer:
  """Scores ads under contexts with some slots taken out. One shape is compiled once.

  Args:
    model: the module.
    ecpm: money of the eCPM bins.
    asked: how many slots `carried` takes out one by one; None: all of them.

  Raises:
    TypeError: a model without slots that can be taken out, such as one of single ads.
  """

  def __init__(self, model: Any, ecpm: EcpmBins, asked: int | None = ASKED):
    if not isinstance(model, GR4AD):
      raise TypeError(f"{type(model).__name__} has no slots to take out: it gives no reasons")
    self._means_V = np.asarray(ecpm.means, np.float32)
    self._scored, self._carried = _programs(model, asked)

  def scores(
    self, variables: Any, batch: RequestBatch, codes_MT: np.ndarray, kept_RS: np.ndarray
  ) -> Scores:
    """Scores M ads under R versions of one context, on the host.

    Args:
      variables: of the model, as `Searcher.variables` gives them.
      batch: one request.
      codes_MT: UA-SIDs.
      kept_RS: bool, the slots that a version keeps.
    """
    return jax.device_get(self._scored(variables, batch, np.asarray(codes_MT, np.int32), kept_RS))

  def carried(self, variables: Any, batch: RequestBatch, codes_MT: np.ndarray) -> Carried:
    """What the slots carry of M ads, by one program.

    Arguments as of `scores`.
    """
    found, chosen_K, estimate_MS = jax.device_get(
      self._carried(variables, batch, np.asarray(codes_MT, np.int32))
    )
    # The last prefix is the whole UA-SID.
    logp_RM = found.prefix_logp_RMT[..., -1]
    value_RM = found.bins_RMV @ self._means_V
    # Padding was taken out already: what rounding leaves there is nobody's.
    real_S = batch.slot_kind_BS[0] != PADDING
    asked_S = np.zeros(len(real_S), bool)
    asked_S[chosen_K] = True
    slot_logp_MS = np.array(estimate_MS)
    slot_value_MS = np.zeros_like(slot_logp_MS)
    # (K, M) -> (M, K), to the places of the slots that were asked about.
    slot_logp_MS[:, chosen_K] = (logp_RM[0] - logp_RM[2:]).T
    slot_value_MS[:, chosen_K] = (value_RM[0] - value_RM[2:]).T
    # Differences of the prefixes' logs: what each level adds. Before the first one it is 0.
    level_RMT = np.diff(found.prefix_logp_RMT, axis=-1, prepend=0)
    return Carried(
      logp_M=logp_RM[0],
      value_M=value_RM[0],
      asked_S=asked_S & real_S,
      slot_logp_MS=np.where(real_S, slot_logp_MS, 0),
      slot_value_MS=np.where(real_S, slot_value_MS, 0),
      level_logp_MT=level_RMT[0],
      level_lift_MT=level_RMT[0] - level_RMT[1],
      bare_logp_M=logp_RM[1],
      copied_M=found.copied_RM[0],
      bins_MV=found.bins_RMV[0],
      copy_attention_S=np.where(real_S, found.copy_attention_RS[0], 0),
    )


def without(batch: RequestBatch, kept_BS: jax.Array) -> RequestBatch:
  """A batch in which the slots that are not kept are padding."""
  return batch._replace(
    slot_kind_BS=jnp.where(kept_BS, batch.slot_kind_BS, PADDING),
    slot_ad_BS=jnp.where(kept_BS, batch.slot_ad_BS, -1),
    slot_features_BSF=jnp.where(kept_BS[..., None], batch.slot_features_BSF, 0),
  )


def _estimate(apply: Callable[..., Any], S: int) -> jax.Array:
  """About what log p of M ads loses without each of S slots, [M, S].

  Args:
    apply: calls one of the methods below with the model, the whole context and the ads.
    S: slots.
  """
  # What the attention would lose: the slope of log p over the logarithm of a slot's weight. At a
  # weight of 1 that is the slope over the weight itself.
  slope = jax.jacrev(lambda log_weight_S: apply(log_weight_S, method=_attended), has_aux=True)
  attended_MS, decoded = slope(jnp.zeros(S))
  # What copy path and history would lose, with the decoder's states held: exact, and cheap.
  logp = lambda kept_S: apply(decoded, kept_S, method=_held)  # noqa: E731
  copied_SM = logp(jnp.ones(S, bool)) - jax.vmap(logp)(~jnp.eye(S, dtype=bool))
  return attended_MS + copied_SM.T


def _first_slots(estimate_MS: jax.Array, asked: int) -> jax.Array:
  """The slots that M ads name in turn, each its own next best one: int32 [asked]."""
  # The inverse of an order: the place of every slot in it.
  place_MS = jnp.argsort(jnp.argsort(-estimate_MS, axis=1), axis=1)
  return jnp.argsort(place_MS.min(axis=0))[:asked]


class _Decoded(NamedTuple):
  """What the decoder says of M ads: of its first level the state, of prefixes log p."""

  out: Outputs
  first_1D: jax.Array
  generated_1MT: jax.Array


def _decoded(model: GR4AD, start: Start, codes_1MT: jax.Array, valued: int) -> _Decoded:
  """Decodes M ads; `valued` as `GR4AD.score` takes it."""
  out = model.score(start, codes_1MT, valued, train=False)
  first_11D, _, _ = model.step(start, jnp.zeros((1, 1), jnp.int32), 0, None)
  # Sums of logs up to each level.
  return _Decoded(out, first_11D[:, 0], jnp.cumsum(out.generated_logp_BMT, axis=-1))


def _mixed(
  model: GR4AD, start: Start, decoded: _Decoded, codes_1MT: jax.Array
) -> tuple[Copy, jax.Array]:
  """The copy path, and log p of every prefix with it, before the history bias: [1, M, T]."""
  copy = model.copy_path(start, decoded.first_1D)
  # A prefix is copied from all slots that begin with it.
  # (1, M, 1, T) == (1, 1, S, T) -> (1, M, S, T).
  same_1MST = codes_1MT[:, :, None] == start.slot_codes_BST[:, None]
  begins_1MST = jnp.cumprod(same_1MST, axis=-1).astype(jnp.float32)
  attention_1S = jnp.exp(copy.log_attention_BS)
  mass_1MT = jnp.einsum("bs,bmst->bmt", attention_1S, begins_1MST, precision="highest")
  return copy, mix(copy, decoded.generated_1MT, mass_1MT)


def _attending(model: GR4AD, start: Start, mask_BS: jax.Array) -> Start:
  """What all sequences share where the decoder attends by another mask, see `Context.mask_BS`.

  No slot reads another, so keys, values and states of the slots are what they were.
  """
  context = start.context.replace(mask_BS=mask_BS)
  return start.replace(context=context, lazy_B1TD=model.decoder.lazy(context, train=False))


def _kept(start: Start, kept_1S: jax.Array) -> Start:
  """What all sequences share where some slots alone can be copied and are of the history."""
  return start.replace(
    history_BS=start.history_BS & kept_1S, copyable_BS=start.copyable_BS & kept_1S
  )


def _attended(
  model: GR4AD, start: Start, codes_MT: jax.Array, log_weight_S: jax.Array
) -> tuple[jax.Array, _Decoded]:
  """log p of M ads, [M], before the history bias, and what the decoder says of them."""
  # The profile stands before the slots: (1, 1 + S).
  weight_1S = jnp.concatenate([jnp.zeros(1), log_weight_S])[None]
  start = _attending(model, start, jnp.where(start.context.mask_BS, weight_1S, NEG))
  # Nobody reads a value here, so the least number is valued.
  decoded = _decoded(model, start, codes_MT[None], 1)
  _, plain_1MT = _mixed(model, start, decoded, codes_MT[None])
  return plain_1MT[0, :, -1], decoded


def _held(
  model: GR4AD, start: Start, codes_MT: jax.Array, decoded: _Decoded, kept_S: jax.Array
) -> jax.Array:
  """log p of M ads, [M], where the decoder saw all slots and copy path and history see some."""
  start = _kept(start, kept_S[None])
  _, plain_1MT = _mixed(model, start, decoded, codes_MT[None])
  return model.prefix_logp(start, plain_1MT, codes_MT[None])[0, :, -1]


def _score(
  model: GR4AD, batch: RequestBatch, start: Start, codes_MT: jax.Array, kept_S: jax.Array
) -> Scores:
  """`Scores` of one version of a context, without their axis R; `start` is of all slots."""
  if start.skip_BD is not None:
    # An encoder runs over the history, so each slot's state depends on the slots before it: all of
    # it is computed anew.
    start = model.start(without(batch, kept_S[None]))
  else:
    # The profile stands before the slots, and always stays: (1, 1 + S).
    mask_1S = jnp.concatenate([jnp.ones(1, bool), kept_S])[None]
    start = _attending(model, _kept(start, kept_S[None]), start.context.mask_BS & mask_1S)
  codes_1MT = codes_MT[None]
  decoded = _decoded(model, start, codes_1MT, len(codes_MT))
  copy, plain_1MT = _mixed(model, start, decoded, codes_1MT)
  # What the decoder alone gives of the mixture; the rest of it is copied.
  generated_1M = jnp.exp(
    copy.log_rest_B[:, None] + decoded.generated_1MT[..., -1] - plain_1MT[..., -1]
  )
  return Scores(
    prefix_logp_RMT=model.prefix_logp(start, plain_1MT, codes_1MT)[0],
    # Rounding may leave a little outside of [0, 1].
    copied_RM=jnp.clip(1 - generated_1M[0], 0, 1),
    bins_RMV=jax.nn.softmax(decoded.out.ecpm_logits_BMV[0]),
    copy_attention_RS=jnp.exp(copy.log_attention_BS[0]),
  )
