"""How far probabilities can be trusted: a correction of them, and measures of their errors.

Probabilities are of pairs of a user and an ad. A *decile* is here one of ten groups of pairs, by
rising probability. All is weighted, as the pairs may be a sample in which not all had the same
chance to stand.
"""

import dataclasses

import numpy as np

POINTS = 33  # of the correction
DECILES = 10
_TINY = 1e-7
# Strength of the pull towards the logits as they are, in units of log-likelihood. So few data leave
# them alone.
_RIDGE = 1.0
_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Calibration:
  """A monotone map of logits, and a factor of the values.

  The map is linear between its points, and has slope 1 beyond them.

  Attributes:
    logits: ascending logits of the model.
    corrected: the logits that they become. They never fall, so no order of ads turns round.
    value_factor: what E[value | purchase] is multiplied with.
  """

  logits: list[float]
  corrected: list[float]
  value_factor: float

  @classmethod
  def identity(cls) -> "Calibration":
    """The one that changes nothing."""
    return cls([0.0], [0.0], 1.0)

  @classmethod
  def fit(cls, logit_E, bought_E, weight_E, value_mean_E, value_E) -> "Calibration":
    """Fits on pairs that the model has not learned from.

    The corrected logit is a quadratic of the logit, fitted by maximum likelihood: Platt scaling
    (1999) with a term for curvature. It is smooth, so it does not learn the chance of single
    deciles. Where it would fall it is held level. Where all or none were bought there is nothing to
    fit, and nothing is changed.

    Args:
      logit_E: logits of p(purchase).
      bought_E: bool.
      weight_E: 1 / inclusion probability.
      value_mean_E: predicted E[value | purchase], money.
      value_E: values of the bought ones, money.
    """
    # A pair of weight 0 says nothing.
    real = weight_E > 0
    if not (bought_E & real).any() or (bought_E | ~real).all():
      return cls.identity()
    logit_E, bought_E, weight_E, value_mean_E, value_E = (
      x[real].astype(np.float64) for x in (logit_E, bought_E, weight_E, value_mean_E, value_E)
    )
    # Kept as points, so that a file holds the map, and whoever reads it needs no polynomial.
    points = np.linspace(logit_E.min(), logit_E.max(), POINTS)
    # Never falling, so that no order of ads turns round.
    corrected = np.maximum.accumulate(_quadratic(logit_E, bought_E, weight_E)(points))
    bought = bought_E > 0
    # Of bought pairs alone, since the value is that of a purchase.
    paid, thought = ((x * weight_E)[bought].sum() for x in (value_E, value_mean_E))
    factor = float(paid / thought) if thought > 0 and paid > 0 else 1.0
    return cls(points.tolist(), corrected.tolist(), factor)

  def probability(self, logit: np.ndarray) -> np.ndarray:
    """Corrected probabilities of logits of any shape, float32."""
    x = np.asarray(self.logits)
    y = np.asarray(self.corrected)
    # `interp` is flat beyond the ends. There the distance from the end is added below.
    inside = np.interp(logit, x, y)
    found = np.where(
      logit < x[0], logit - x[0] + y[0], np.where(logit > x[-1], logit - x[-1] + y[-1], inside)
    )
    return _sigmoid(found).astype(np.float32)


def _sigmoid(x):
  """1 / (1 + e^-x) by tanh, which never overflows."""
  return 0.5 * (1 + np.tanh(0.5 * np.asarray(x, np.float64)))


def _quadratic(logit_E, bought_E, weight_E) -> np.polynomial.Polynomial:
  """The quadratic of the logit that maximises the weighted likelihood, by Newton's method.

  It is drawn towards the logit itself by `_RIDGE`.
  """
  # Centred and scaled, so that the three columns are of one size and the pull means the same for
  # all logits.
  middle = np.average(logit_E, weights=weight_E)
  spread = max(float(logit_E.std()), _TINY)
  x_E = (logit_E - middle) / spread
  design_EK = np.stack([np.ones_like(x_E), x_E, x_E**2], axis=1)
  # middle + spread · x + 0 · x² is the logit itself.
  unchanged = np.array([middle, spread, 0.0])
  found = unchanged.copy()

  def loss(found):
    z_E = design_EK @ found
    # The negative log-likelihood: log(1 + e^z) - bought · z, without overflow.
    likely = weight_E @ (np.logaddexp(0, z_E) - bought_E * z_E)
    return likely + _RIDGE / 2 * np.square(found - unchanged).sum()

  for _ in range(_STEPS):
    p_E = _sigmoid(design_EK @ found)
    # Newton's method: gradient and Hessian of the loss, which is convex.
    slope = design_EK.T @ (weight_E * (p_E - bought_E)) + _RIDGE * (found - unchanged)
    curvature = (design_EK * (weight_E * p_E * (1 - p_E))[:, None]).T @ design_EK + _RIDGE * np.eye(
      3
    )
    step = np.linalg.solve(curvature, slope)
    before = loss(found)
    # A full step may overshoot where the curvature is slight: it is halved until the loss falls.
    size = 1.0
    while loss(found - size * step) > before and size > _TINY:
      size /= 2
    found = found - size * step
    if np.abs(size * step).max() < _TINY:
      break
  # The domain makes the polynomial take logits: [middle ± spread] goes to x in [-1, 1].
  return np.polynomial.Polynomial(found, domain=[middle - spread, middle + spread], window=[-1, 1])


def auc(score_E: np.ndarray, bought_E: np.ndarray, weight_E: np.ndarray | None = None) -> float:
  """Weighted area under the ROC curve.

  It is the chance that a bought pair scores above one that was not bought. Ties count half.

  Returns:
    The area, NaN where one of the two kinds is missing.
  """
  weight_E = np.ones(len(score_E)) if weight_E is None else weight_E.astype(np.float64)
  _, level = np.unique(score_E, return_inverse=True)
  # Weight of both kinds at each distinct score.
  yes, no = (np.bincount(level, weight_E * kind) for kind in (bought_E, ~bought_E))
  # Weight of the others at each lower score, by one running sum and without pairing all.
  below = np.cumsum(no) - no
  if not yes.sum() or not no.sum():
    return float("nan")
  return float((yes * (below + no / 2)).sum() / (yes.sum() * no.sum()))


def log_loss(p_E: np.ndarray, bought_E: np.ndarray, weight_E: np.ndarray | None = None) -> float:
  """Weighted mean negative log-likelihood, nats, clipped so that no single pair is infinite."""
  p = np.clip(p_E.astype(np.float64), _TINY, 1 - _TINY)
  return float(np.average(-np.where(bought_E, np.log(p), np.log1p(-p)), weights=weight_E))


def by_decile(
  p_E: np.ndarray, bought_E: np.ndarray, weight_E: np.ndarray | None = None
) -> list[dict[str, float]]:
  """Predicted and observed purchases of ten groups of rising probability.

  Each group has a tenth of the predicted purchases, not of the pairs: most pairs predict next to
  none.

  Returns:
    A dict a group. predicted and observed are sums over its pairs. error is
    observed / predicted - 1. It is 0 where nothing was predicted and nothing observed, and NaN of
    purchases where none were predicted. Where all p are 0 every pair is in the first group.
  """
  weight_E = np.ones(len(p_E)) if weight_E is None else weight_E
  # Stable, so that ties fall into the same groups at every call.
  order = np.argsort(p_E, kind="stable")
  mass_E = (p_E.astype(np.float64) * weight_E)[order]
  cumulated = np.cumsum(mass_E)
  total = mass_E.sum()
  # A pair lies where its own mass has its middle. The divisor is the last running sum and not
  # `total`, which NumPy rounds in another way: so no share passes 1.
  share_E = (cumulated - mass_E / 2) / (cumulated[-1] if total else 1)
  decile = np.minimum((share_E * DECILES).astype(int), DECILES - 1)
  predicted = np.bincount(decile, mass_E, DECILES)
  observed = np.bincount(decile, (bought_E * weight_E)[order], DECILES)
  return [
    {"predicted": float(p), "observed": float(o), "error": _relative(o, p)}
    for p, o in zip(predicted, observed, strict=True)
  ]


def _relative(observed: float, predicted: float) -> float:
  """observed / predicted - 1, as `by_decile` says."""
  if predicted:
    return float(observed / predicted - 1)
  return float("nan") if observed else 0.0


def calibration_error(deciles: list[dict[str, float]]) -> float:
  """Mean of the deciles' absolute errors; NaN where one has purchases that none predicted."""
  return float(np.mean([abs(one["error"]) for one in deciles]))
