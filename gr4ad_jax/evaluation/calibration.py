"""How far probabilities can be trusted: a monotone correction, errors by decile, AUC and
log-loss, all weighted.
"""

import dataclasses

import numpy as np

POINTS = 33  # of the correction
DECILES = 10
_TINY = 1e-7
_RIDGE = 1.0  # purchases that the correction must be worth: few data leave the logits as they are
_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Calibration:
  """A monotone map of logits, linear between points and of slope 1 beyond them; and a factor of the
  values.

  Attributes:
    logits: ascending logits of the model.
    corrected: the logits that they become, not descending.
    value_factor: what E[value | purchase] is multiplied with.
  """

  logits: list[float]
  corrected: list[float]
  value_factor: float

  @classmethod
  def identity(cls) -> "Calibration":
    """Changes nothing."""
    return cls([0.0], [0.0], 1.0)

  @classmethod
  def fit(cls, logit_E, bought_E, weight_E, value_mean_E, value_E) -> "Calibration":
    """Fits on pairs that the model has not learned from.

    The corrected logit is a quadratic of the logit, fitted by maximum likelihood: Platt scaling
    (1999) with a term for curvature. It is smooth, so it does not learn the chance of single
    deciles; where it would fall it is held level.

    Args:
      logit_E: logits of p(purchase).
      bought_E: bool.
      weight_E: 1 / inclusion probability.
      value_mean_E: predicted E[value | purchase], money.
      value_E: values of the bought ones, money.
    """
    real = weight_E > 0
    if not (bought_E & real).any() or (bought_E | ~real).all():
      return cls.identity()
    logit_E, bought_E, weight_E, value_mean_E, value_E = (
      x[real].astype(np.float64) for x in (logit_E, bought_E, weight_E, value_mean_E, value_E)
    )
    points = np.linspace(logit_E.min(), logit_E.max(), POINTS)
    corrected = np.maximum.accumulate(_quadratic(logit_E, bought_E, weight_E)(points))
    bought = bought_E > 0
    paid, thought = ((x * weight_E)[bought].sum() for x in (value_E, value_mean_E))
    factor = float(paid / thought) if thought > 0 and paid > 0 else 1.0
    return cls(points.tolist(), corrected.tolist(), factor)

  def probability(self, logit: np.ndarray) -> np.ndarray:
    """Corrected probabilities of logits of any shape, float32."""
    x, y = np.asarray(self.logits), np.asarray(self.corrected)
    inside = np.interp(logit, x, y)
    found = np.where(
      logit < x[0], logit - x[0] + y[0], np.where(logit > x[-1], logit - x[-1] + y[-1], inside)
    )
    return _sigmoid(found).astype(np.float32)


def _sigmoid(x):
  return 0.5 * (1 + np.tanh(0.5 * np.asarray(x, np.float64)))


def _quadratic(logit_E, bought_E, weight_E) -> np.polynomial.Polynomial:
  """The quadratic of the logit that maximises the weighted likelihood, drawn towards the logit
  itself; by Newton.
  """
  middle, spread = np.average(logit_E, weights=weight_E), max(float(logit_E.std()), _TINY)
  x_E = (logit_E - middle) / spread
  design_EK = np.stack([np.ones_like(x_E), x_E, x_E**2], axis=1)
  unchanged = np.array([middle, spread, 0.0])
  found = unchanged.copy()

  def loss(found):
    z_E = design_EK @ found
    likely = weight_E @ (np.logaddexp(0, z_E) - bought_E * z_E)
    return likely + _RIDGE / 2 * np.square(found - unchanged).sum()

  for _ in range(_STEPS):
    p_E = _sigmoid(design_EK @ found)
    slope = design_EK.T @ (weight_E * (p_E - bought_E)) + _RIDGE * (found - unchanged)
    curvature = (design_EK * (weight_E * p_E * (1 - p_E))[:, None]).T @ design_EK + _RIDGE * np.eye(
      3
    )
    step, before = np.linalg.solve(curvature, slope), loss(found)
    size = 1.0
    while loss(found - size * step) > before and size > _TINY:
      size /= 2
    found = found - size * step
    if np.abs(size * step).max() < _TINY:
      break
  return np.polynomial.Polynomial(found, domain=[middle - spread, middle + spread], window=[-1, 1])


def auc(score_E: np.ndarray, bought_E: np.ndarray, weight_E: np.ndarray | None = None) -> float:
  """Weighted area under the ROC curve: the chance that a bought pair scores above another, ties
  counted half.

  Returns:
    NaN where one of the two kinds is missing.
  """
  weight_E = np.ones(len(score_E)) if weight_E is None else weight_E.astype(np.float64)
  _, level = np.unique(score_E, return_inverse=True)
  yes, no = (np.bincount(level, weight_E * kind) for kind in (bought_E, ~bought_E))
  below = np.cumsum(no) - no
  if not yes.sum() or not no.sum():
    return float("nan")
  return float((yes * (below + no / 2)).sum() / (yes.sum() * no.sum()))


def log_loss(p_E: np.ndarray, bought_E: np.ndarray, weight_E: np.ndarray | None = None) -> float:
  """Weighted mean negative log-likelihood, nats."""
  p = np.clip(p_E.astype(np.float64), _TINY, 1 - _TINY)
  return float(np.average(-np.where(bought_E, np.log(p), np.log1p(-p)), weights=weight_E))


def by_decile(
  p_E: np.ndarray, bought_E: np.ndarray, weight_E: np.ndarray | None = None
) -> list[dict[str, float]]:
  """Predicted and observed purchases of ten groups of rising probability, each of a tenth of the
  predicted purchases.

  Returns:
    A dict a decile: predicted, observed (sums over the pairs), error: observed / predicted - 1; 0
      of nothing predicted
    and nothing observed, NaN of purchases where none were predicted. Where all p are 0 every pair
    is in the first.
  """
  weight_E = np.ones(len(p_E)) if weight_E is None else weight_E
  order = np.argsort(p_E, kind="stable")
  mass_E = (p_E.astype(np.float64) * weight_E)[order]
  cumulated, total = np.cumsum(mass_E), mass_E.sum()
  share_E = (cumulated - mass_E / 2) / (cumulated[-1] if total else 1)
  decile = np.minimum((share_E * DECILES).astype(int), DECILES - 1)
  predicted = np.bincount(decile, mass_E, DECILES)
  observed = np.bincount(decile, (bought_E * weight_E)[order], DECILES)
  return [
    {"predicted": float(p), "observed": float(o), "error": _relative(o, p)}
    for p, o in zip(predicted, observed, strict=True)
  ]


def _relative(observed: float, predicted: float) -> float:
  if predicted:
    return float(observed / predicted - 1)
  return float("nan") if observed else 0.0


def calibration_error(deciles: list[dict[str, float]]) -> float:
  """Mean of the deciles' absolute relative errors; NaN where one has purchases and none were
  predicted.
  """
  return float(np.mean([abs(one["error"]) for one in deciles]))
