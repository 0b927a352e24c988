"""What each slot of a context carries of an ad's log probability: leave-one-out, exact.

A slot is taken out as padding is: no query attends to it, and it cannot be copied. What goes with
it is what it carried, log p(y | X) - log p(y | X without the slot). Nothing is approximated, as by
gradients or attention: the model is asked again, for all slots in one batch.
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.features.batches import PADDING, RequestBatch
from gr4ad_jax.models.gr4ad import GR4AD, Start
from gr4ad_jax.models.history_copy import mix


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
    slot_logp_MS: what log p loses without the slot. Below 0: the slot speaks against the ad. 0 in
      padding.
    slot_value_MS: what the expected value loses without the slot.
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
  slot_logp_MS: np.ndarray
  slot_value_MS: np.ndarray
  level_logp_MT: np.ndarray
  level_lift_MT: np.ndarray
  bare_logp_M: np.ndarray
  copied_M: np.ndarray
  bins_MV: np.ndarray
  copy_attention_S: np.ndarray


class Scorer:
  """Scores ads under contexts with some slots taken out. One shape is compiled once.

  Args:
    model: the module.
    ecpm: money of the eCPM bins.

  Raises:
    TypeError: a model without slots that can be taken out, such as one of single ads.
  """

  def __init__(self, model: Any, ecpm: EcpmBins):
    if not isinstance(model, GR4AD):
      raise TypeError(f"{type(model).__name__} has no slots to take out: it gives no reasons")
    self._means_V = np.asarray(ecpm.means, np.float32)

    def score(variables, batch, codes_MT, kept_RS):
      # Only `kept` is mapped over. What does not depend on it, such as the states of the slots, is
      # computed once for all R versions, and keys and values are not repeated.
      return jax.vmap(
        lambda kept_S: model.apply(variables, batch, codes_MT, kept_S, method=_score)
      )(kept_RS)

    self._scored = jax.jit(score)

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
    """What each slot carries of M ads, by one forward over S + 2 contexts.

    Arguments as of `scores`.
    """
    S = batch.slot_kind_BS.shape[1]
    # Row 0 keeps all slots, row 1 none, and row 2 + j all but slot j.
    kept_RS = np.concatenate(
      [np.ones((1, S), bool), np.zeros((1, S), bool), ~np.eye(S, dtype=bool)]
    )
    found = self.scores(variables, batch, codes_MT, kept_RS)
    # The last prefix is the whole UA-SID.
    logp_RM = found.prefix_logp_RMT[..., -1]
    value_RM = found.bins_RMV @ self._means_V
    # Padding was taken out already: what rounding leaves there is nobody's.
    real_S = batch.slot_kind_BS[0] != PADDING
    # Differences of the prefixes' logs: what each level adds. Before the first one it is 0.
    level_RMT = np.diff(found.prefix_logp_RMT, axis=-1, prepend=0)
    return Carried(
      logp_M=logp_RM[0],
      value_M=value_RM[0],
      # (S, M) -> (M, S).
      slot_logp_MS=np.where(real_S, (logp_RM[0] - logp_RM[2:]).T, 0),
      slot_value_MS=np.where(real_S, (value_RM[0] - value_RM[2:]).T, 0),
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


def _start(model: GR4AD, batch: RequestBatch, kept_1S: jax.Array) -> Start:
  """What all sequences share, in a context of some of its slots."""
  start = model.start(batch)
  if start.skip_BD is not None:
    # An encoder runs over the history, so each slot's state depends on the slots before it: all of
    # it is computed anew.
    return model.start(without(batch, kept_1S))
  # No slot reads another, so keys, values and states of those that stay are what they were. The
  # profile stands before the slots, and always stays: (1, 1 + S).
  mask_1S = jnp.concatenate([jnp.ones((1, 1), bool), kept_1S], axis=1)
  context = start.context.replace(mask_BS=start.context.mask_BS & mask_1S)
  return start.replace(
    context=context,
    lazy_B1TD=model.decoder.lazy(context, train=False),
    history_BS=start.history_BS & kept_1S,
    copyable_BS=start.copyable_BS & kept_1S,
  )


def _score(model: GR4AD, batch: RequestBatch, codes_MT: jax.Array, kept_S: jax.Array) -> Scores:
  """`Scores` of one version of a context, without their axis R."""
  start = _start(model, batch, kept_S[None])
  codes_1MT = codes_MT[None]
  out = model.score(start, codes_1MT, len(codes_MT), train=False)
  first_11D, _, _ = model.step(start, jnp.zeros((1, 1), jnp.int32), 0, None)
  copy = model.copy_path(start, first_11D[:, 0])
  attention_1S = jnp.exp(copy.log_attention_BS)
  # Sums of logs up to each level.
  generated_1MT = jnp.cumsum(out.generated_logp_BMT, axis=-1)
  # A prefix is copied from all slots that begin with it.
  # (1, M, 1, T) == (1, 1, S, T) -> (1, M, S, T).
  same_1MST = codes_1MT[:, :, None] == start.slot_codes_BST[:, None]
  begins_1MST = jnp.cumprod(same_1MST, axis=-1).astype(jnp.float32)
  mass_1MT = jnp.einsum("bs,bmst->bmt", attention_1S, begins_1MST, precision="highest")
  plain_1MT = mix(copy, generated_1MT, mass_1MT)
  # What the decoder alone gives of the mixture; the rest of it is copied.
  generated_1M = jnp.exp(copy.log_rest_B[:, None] + generated_1MT[..., -1] - plain_1MT[..., -1])
  return Scores(
    prefix_logp_RMT=model.prefix_logp(start, plain_1MT, codes_1MT)[0],
    # Rounding may leave a little outside of [0, 1].
    copied_RM=jnp.clip(1 - generated_1M[0], 0, 1),
    bins_RMV=jax.nn.softmax(out.ecpm_logits_BMV[0]),
    copy_attention_RS=attention_1S[0],
  )
