"""How well masks fit: sums over sentences that merge, by group, with intervals over images.

oIoU = Σ I / Σ U; mIoU = mean of I / U, 0 where nothing overlaps; Pr@X: share of the sentences with
I / U >= X; F: mean boundary F-measure.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from gr4ad_jax.evaluation.metrics import Interval, Ratio, interval, resample

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)
TOLERANCE = 0.008  # of an image's diagonal, how far two boundaries may lie apart


@dataclasses.dataclass(frozen=True)
class Counts:
  """Of each sentence, [L] float64.

  Attributes:
    both: pixels that are of mask and truth.
    either: pixels that are of one of them.
    boundary: F-measure of the boundaries, 0 to 1.
  """

  both: np.ndarray
  either: np.ndarray
  boundary: np.ndarray

  @property
  def iou(self) -> np.ndarray:
    """[L]; 1 where mask and truth are both empty, which is a right answer."""
    # The maximum is for the places that `where` does not take: 0 / 0 would warn there.
    return np.where(self.either > 0, self.both / np.maximum(self.either, 1), 1.0)

  def take(self, rows: np.ndarray) -> "Counts":
    """Those of some sentences."""
    return Counts(self.both[rows], self.either[rows], self.boundary[rows])

  def merge(self, other: "Counts") -> "Counts":
    """Those of both sets of sentences, in order."""
    pairs = zip(vars(self).values(), vars(other).values(), strict=True)
    return Counts(*(np.concatenate(pair) for pair in pairs))


def count(found_LHW: np.ndarray, truth_LHW: np.ndarray) -> Counts:
  """Compares masks with the truth.

  Args:
    found_LHW: bool.
    truth_LHW: bool.

  Raises:
    ValueError: shapes that differ, or arrays that are not bool.
  """
  # Booleans: sums below count pixels.
  for x in (found_LHW, truth_LHW):
    if x.dtype != bool or x.shape != found_LHW.shape or x.ndim != 3:
      raise ValueError(f"masks are {x.dtype}{list(x.shape)}; bool [L, H, W] are needed, both alike")
  both = (found_LHW & truth_LHW).sum((1, 2)).astype(np.float64)
  either = (found_LHW | truth_LHW).sum((1, 2)).astype(np.float64)
  pairs = zip(found_LHW, truth_LHW, strict=True)
  return Counts(both, either, np.array([boundary_f(*pair) for pair in pairs], np.float64))


def boundary_f(found_HW: np.ndarray, truth_HW: np.ndarray) -> float:
  """F-measure of two masks' boundaries.

  A boundary pixel is of the mask and has a neighbour, of four, that is not; pixels beyond the image
  count as not. It is found where the other boundary comes within TOLERANCE of the diagonal, and one
  pixel at least.

  Source: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object
  Segmentation", CVPR 2016, without their matching one to one.
  """
  edges = [_edge(x) for x in (found_HW, truth_HW)]
  # Neither has an edge: both are empty, which is a right answer.
  if not edges[0].any() and not edges[1].any():
    return 1.0
  # One alone is empty: its distances would be of no edge at all.
  if not edges[0].any() or not edges[1].any():
    return 0.0
  # One pixel at least, however small the image is.
  reach = max(1.0, TOLERANCE * float(np.hypot(*found_HW.shape)))
  # The distance of every pixel to the nearest edge of a mask.
  far = [ndimage.distance_transform_edt(~edge) for edge in edges]
  # The two indices are crossed: how far each edge pixel of one mask is from the other mask's edge.
  precision = (far[1][edges[0]] <= reach).mean()
  recall = (far[0][edges[1]] <= reach).mean()
  # Both may be 0, and the harmonic mean is then 0 over 0.
  total = precision + recall
  return float(2 * precision * recall / total) if total else 0.0


def _edge(mask_HW: np.ndarray) -> np.ndarray:
  # What erosion takes away is the edge; pixels beyond the image count as outside.
  return mask_HW & ~ndimage.binary_erosion(mask_HW)


def ratios(counts: Counts) -> dict[str, Ratio]:
  """Each metric's sums, by sentence."""
  one = np.ones(len(counts.both))
  iou = counts.iou
  found = {"oIoU": Ratio(counts.both, counts.either), "mIoU": Ratio(iou, one)}
  found |= {f"Pr@{level}": Ratio((iou >= level).astype(float), one) for level in LEVELS}
  return found | {"F": Ratio(counts.boundary, one)}


def values(counts: Counts) -> dict[str, float]:
  """Each metric over all sentences; of none: empty."""
  if not len(counts.both):
    return {}
  # Nothing was named and nothing was found: right, though no pixel says so.
  found = {}
  for name, ratio in ratios(counts).items():
    found[name] = ratio.value if ratio.denominator_R.sum() else 1.0
  return found


def intervals(counts: Counts, image_L: np.ndarray, seed: int = 0) -> dict[str, Interval]:
  """Each metric with its 95 % interval; the sentences of an image are drawn together.

  Args:
    counts: of L sentences.
    image_L: image of each.
    seed: of the draws.
  """
  parts = ratios(counts)
  # S draws of F metrics. Sentences of an image share its difficulty, so images are
  # drawn and not sentences.
  samples_SF = resample(list(parts.values()), image_L, seed=seed)
  found = values(counts)
  return {
    name: interval(found[name], column) for name, column in zip(parts, samples_SF.T, strict=True)
  }


def grouped(counts: Counts, groups: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
  """Metrics of each group of sentences, with the number of them as 'sentences'.

  Args:
    counts: of L sentences.
    groups: name -> [L] bool; groups without a sentence are left out.
  """
  found = {}
  for name, rows in groups.items():
    if rows.any():
      found[name] = values(counts.take(rows)) | {"sentences": int(rows.sum())}
  return found
