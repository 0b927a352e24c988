"""Whether what comes still is what was learned from: features, calibration, prequential recall."""

import logging
from collections.abc import Sequence

import numpy as np

from gr4ad_jax.evaluation.protocols import EvalRequests
from gr4ad_jax.features.batches import PADDING, USER_FEATURES, RequestBatch

SHIFT = 1.0  # standard deviations that the mean of a feature may move
CALIBRATION = 2.0  # how many times too sure, or too unsure, a model may be
FALL = 0.8  # of the mean so far, below which recall is told
_ENOUGH = 5  # rounds before a mean so far means something
_log = logging.getLogger(__name__)


def _moments(batch: RequestBatch) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of each feature of slots and users, [F] float64."""
  slots = batch.slot_features_BSF[batch.slot_kind_BS != PADDING].astype(np.float64)
  # Float64: sums of many squares lose their last digits in float32.
  users = batch.user_features_BF.astype(np.float64)
  # Without a slot there is still a row, so that mean and deviation exist.
  both = [part if len(part) else np.zeros((1, part.shape[1])) for part in (slots, users)]
  return tuple(np.concatenate([f(part, axis=0) for part in both]) for f in (np.mean, np.std))


def predicted_share(logp_RK: np.ndarray, at: int = 10) -> float:
  """The share of what requests take that their first `at` ads should have, by the model: the mean
  of Σ p. `logp_RK` is -inf in padding.
  """
  # exp(-inf) is 0, so padding adds nothing.
  return float(np.exp(logp_RK[:, :at].astype(np.float64)).sum(axis=1).mean())


def found_share(ad_RK: np.ndarray, requests: EvalRequests, at: int = 10) -> float:
  """The share that they do have: the mean over requests of hits over targets."""
  # (P, at) == (P, 1): whether a target stands in its request's list.
  hit_P = (ad_RK[requests.target_row, :at] == requests.target_ad[:, None]).any(axis=1)
  hits_R = np.bincount(requests.target_row, weights=hit_P, minlength=len(requests))
  # A request's targets differ in number; each request counts once.
  return float((hits_R / np.diff(requests.target_start)).mean())


class Drift:
  """Measures each round, and tells in the log what has moved far.

  Args:
    learned: requests of what the run learned from.
    slot_names: of the features of their slots.
  """

  def __init__(self, learned: RequestBatch, slot_names: Sequence[str]):
    self._mean_F, self._std_F = _moments(learned)
    self._names = (*slot_names, *USER_FEATURES)
    self._recalls: list[float] = []

  def measure(
    self, batch: RequestBatch, logp_RK: np.ndarray, ad_RK: np.ndarray, requests: EvalRequests,
    recall: float,
  ) -> dict[str, float]:  # fmt: skip
    """Looks at a round's requests, before they are learned from.

    Args:
      batch: their contexts.
      logp_RK: log p of the lists of those with a target.
      ad_RK: the lists.
      requests: what was taken.
      recall: recall@10 of the lists.

    Returns:
      `features`: how far the mean of a feature has moved at most, in standard deviations;
      `calibration`: found over predicted share of ten ads; `recall`: over its mean so far.
    """
    mean_F, _ = _moments(batch)
    # A feature that never moved has a deviation of 0: its own unit stands in for it.
    shift_F = np.abs(mean_F - self._mean_F) / np.where(self._std_F > 1e-6, self._std_F, 1.0)
    # The one that moved most speaks for all.
    most = int(np.argmax(shift_F))
    found = {"features": float(shift_F[most])}
    if found["features"] > SHIFT:
      name = self._names[most]
      _log.warning(
        "drift: the mean of feature %r has moved by %.2f standard deviations", name, shift_F[most]
      )
    predicted = predicted_share(logp_RK)
    # Above 1 the model is not sure enough, below 1 too sure.
    found["calibration"] = found_share(ad_RK, requests) / max(predicted, 1e-12)
    # Too sure and too unsure are the same distance from 1 on a log scale.
    if not 1 / CALIBRATION <= found["calibration"] <= CALIBRATION:
      _log.warning(
        "drift: ten ads should have %.3f of what is taken, and have %.2f times that", predicted,
        found["calibration"],
      )  # fmt: skip
    # In the first round there is nothing to compare with but itself.
    usual = float(np.mean(self._recalls)) if self._recalls else recall
    found["recall"] = recall / usual if usual else 1.0
    if len(self._recalls) >= _ENOUGH and found["recall"] < FALL:
      _log.warning("drift: recall@10 is %.4f, and was %.4f on the mean so far", recall, usual)
    self._recalls.append(recall)
    return found
