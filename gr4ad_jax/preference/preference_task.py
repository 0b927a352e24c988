"""List objectives as a loss of the training step: candidates are the sequences, VSL is on those
that were taken.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.config import ObjectiveConfig, PreferenceConfig
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.features.batches import RequestBatch, RequestContexts
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.objectives import distillation, dpo, grpo, rspo, unified
from gr4ad_jax.requests.candidates import NO_REFERENCE
from gr4ad_jax.requests.vsl_task import vsl_of
from gr4ad_jax.training.step import LossFn


class PreferenceBatch(NamedTuple):
  """B requests with C candidates, which stand in the place of their targets.

  Attributes:
    requests: contexts; `target_codes_BMT` are the candidates' UA-SIDs and `target_mask_BM` marks
      those that were taken.
    mask_BC: bool, which candidates are real.
    reference_logp_BC: float32, NO_REFERENCE where the reference did not propose the candidate.
    reward_BC: float32.
  """

  requests: RequestBatch
  mask_BC: jax.Array
  reference_logp_BC: jax.Array
  reward_BC: jax.Array


class Listed(NamedTuple):
  """Requests to learn from by VSL, and lists beside them, of other requests.

  Attributes:
    requests: B requests.
    lists: B' requests with candidates.
  """

  requests: RequestBatch
  lists: PreferenceBatch


def listed(
  contexts: RequestContexts,
  requests: np.ndarray,
  ad_BC: np.ndarray,
  codes_BCT: np.ndarray,
  reference_logp_BC: np.ndarray,
  reward_BC: np.ndarray,
) -> PreferenceBatch:
  """The requests' contexts, their candidates as sequences, and which of these were taken, with
  their money.

  Args:
    contexts: of the requests, with what they brought.
    requests: [B] request numbers.
    ad_BC: rows of the candidates, -1 in padding.
    codes_BCT: their UA-SIDs.
    reference_logp_BC, reward_BC: see `PreferenceBatch`.
  """
  outcomes = contexts.lines.outcomes
  context = contexts.batch(requests)
  own_BM = contexts.targets(requests)
  # -2 differs from the -1 of padding among the candidates: padding matches nothing.
  target_BM = np.where(own_BM >= 0, outcomes.ad[np.maximum(own_BM, 0)], -2)
  # M targets stand among the C candidates, once each.
  match_BCM = ad_BC[:, :, None] == target_BM[:, None]
  taken_BC = match_BCM.any(-1)
  # The outcome behind each candidate, for its money and depth; where none matches, 0 is masked
  # below.
  own_BC = np.maximum(np.take_along_axis(own_BM, match_BCM.argmax(-1), axis=1), 0)
  # Candidates stand in the targets' place, so that VSL reads them as its sequences.
  batch: RequestBatch = context._replace(
    target_codes_BMT=codes_BCT,
    target_mask_BM=taken_BC,
    target_value_BM=np.where(taken_BC, outcomes.value[own_BC], 0),
    target_depth_BM=np.where(taken_BC, outcomes.depth[own_BC], 0).astype(np.int32),
  )
  return PreferenceBatch(batch, ad_BC >= 0, reference_logp_BC, reward_BC)


def taken_first(batch: PreferenceBatch, width: int) -> PreferenceBatch:
  """The same lists with what was taken in front, cut to `width` candidates: what else was proposed
  keeps its order, and goes first.
  """
  order_BC = np.argsort(~np.asarray(batch.requests.target_mask_BM), axis=1, kind="stable")
  order_BC = order_BC[:, :width]

  def ordered(column: np.ndarray) -> np.ndarray:
    # (B, C) of places, with axes of 1 behind it where the column has more: codes [B, C, T].
    places = order_BC.reshape(order_BC.shape + (1,) * (column.ndim - 2))
    return np.take_along_axis(column, places, axis=1)

  requests = batch.requests
  columns = ("target_codes_BMT", "target_mask_BM", "target_value_BM", "target_depth_BM")
  requests = requests._replace(**{name: ordered(getattr(requests, name)) for name in columns})
  return PreferenceBatch(requests, *map(ordered, batch[1:]))


ListLoss = Callable[..., tuple[jax.Array, jax.Array]]  # as `list_loss` without its name


def make_preference_loss(
  model: GR4AD, objective: ObjectiveConfig, config: PreferenceConfig, ecpm: EcpmBins, targets: int,
  of_lists: ListLoss | None = None,
) -> LossFn:  # fmt: skip
  """(params, batch, key) -> (loss, metrics): VSL plus a weighted list objective, or the unified sum
  (§3.2, §3.3).

  Args:
    model: the module.
    objective: which one, and VSL's weights.
    config: settings of the lists.
    ecpm: bins and clip of the eCPM token.
    targets: what was taken stands among so many first candidates; the eCPM of the others is not
      learned.
    of_lists: the list loss; None: the objective's.
  """
  of_lists = of_lists or functools.partial(list_loss, objective.objective)

  def loss_fn(params, batch: PreferenceBatch, key: jax.Array):
    requests = batch.requests
    mask_BC = batch.mask_BC
    dropout = config.preference_dropout
    # Without dropout the policy is compared with the reference as it is in use.
    rngs = {"dropout": key} if dropout else None
    out = model.apply(
      {"params": params},
      requests,
      requests.target_codes_BMT,
      train=dropout,
      valued=targets,
      rngs=rngs,
    )
    # Without a reference every candidate counts as one that no policy proposed.
    reference_BC = (
      batch.reference_logp_BC
      if config.reference
      else jnp.full_like(batch.reference_logp_BC, NO_REFERENCE)
    )
    w_vsl_BC, preference = of_lists(config, out.logp_BM, reference_BC, batch.reward_BC, mask_BC)
    loss, metrics = vsl_of(out, requests, objective, ecpm, w_vsl_BC)
    loss = loss + config.preference_weight * preference
    return loss, {**metrics, "preference": preference, "vsl": metrics["loss"], "loss": loss}

  return loss_fn


def with_lists(loss: LossFn, of_lists: LossFn, weight: float) -> LossFn:
  """(params, batch, key) -> (loss, metrics): of a `Listed` batch the loss of its requests plus
  `weight` times that of its lists; of any other batch the loss alone, by the same program.
  """

  def loss_fn(params, batch: RequestBatch | Listed, key: jax.Array):
    # Known when the step is traced: a batch's form is part of its type.
    if not isinstance(batch, Listed):
      return loss(params, batch, key)
    # The lists' dropout, where there is any, is drawn apart from that of the requests.
    lists, found = of_lists(params, batch.lists, jax.random.fold_in(key, 1))
    own, metrics = loss(params, batch.requests, key)
    told = {"lists": lists, "lists_vsl": found["vsl"], "lists_preference": found["preference"]}
    total = own + weight * lists
    return total, {**metrics, **told, "vsl": own, "loss": total}

  return loss_fn


def list_loss(name: str, config: PreferenceConfig, logp_BC, reference_BC, reward_BC, mask_BC):
  """VSL's weights [B, C] and the scalar loss of an objective, a mean over requests (unified:
  over candidates).
  """
  # What all list objectives take, in one order.
  lists = (logp_BC, reference_BC, reward_BC)
  one = jnp.ones_like(logp_BC)
  pairs = {
    "beta": config.beta,
    "delta": config.delta,
    "gain": config.gain,
    "ranks": config.ranks,
    "row_norm": config.normalize_rows,
    "mask_BM": mask_BC,
  }
  if name == "unified":
    term_BC, counted_BC = rspo.rspo_terms(*lists, **pairs)
    w_vsl_BC, w_rl_BC = unified.unified_weights(
      logp_BC, reward_BC, z_max=config.z_max, mask_BM=mask_BC
    )
    # Their mean is over candidates that count, of the whole batch.
    counted = jnp.maximum(counted_BC.sum(), 1)
    return jax.lax.stop_gradient(w_vsl_BC), jnp.where(
      counted_BC, w_rl_BC * term_BC, 0.0
    ).sum() / counted
  # Made when it is asked for: only the objective that was chosen is traced.
  losses = {
    "rspo": lambda: rspo.rspo_loss(*lists, **pairs),
    "dpo": lambda: dpo.dpo_loss(*lists, beta=config.beta, mask_BM=mask_BC),
    "sdpo": lambda: dpo.softmax_dpo_loss(*lists, beta=config.beta, mask_BM=mask_BC),
    "grpo": lambda: grpo.grpo_loss(
      *lists, clip=config.grpo_clip, kl=config.grpo_kl, mask_BM=mask_BC
    ),
    "xent": lambda: distillation.reward_cross_entropy(*lists, mask_BM=mask_BC),
  }
  return one, losses[name]().mean()
