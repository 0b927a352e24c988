"""COCO's run-length masks, checked before they are decoded."""

from typing import Any

import numpy as np

from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.schema import DataError


def decode(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
  """A mask, [height, width] bool.

  Args:
    segmentation: {"size": [rows, columns], "counts": list of runs or COCO's text}, or a list with
      one such.
    height: rows that it must have.
    width: columns.
    where: file and annotation, for messages.

  Raises:
    DataError: another shape, runs that do not add up to it, or what is no run-length mask.
  """
  coco = optional("pycocotools.mask", "segmentation")
  if isinstance(segmentation, list) and len(segmentation) == 1:
    segmentation = segmentation[0]
  if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
    raise DataError(f"{where}: segmentation is no run-length mask with size and counts")
  size = segmentation["size"]
  counts = segmentation["counts"]
  # COCO's sizes are rows, then columns.
  if list(size) != [height, width]:
    raise DataError(f"{where}: size {size}, but the picture has [{height}, {width}]")
  # The text is unfolded here and not by the decoder, so that its runs can be checked first.
  runs = counts if isinstance(counts, list) else _runs(counts, where)
  if not all(isinstance(run, int) and run >= 0 for run in runs):
    raise DataError(f"{where}: counts hold what is no length of a run")
  # The decoder trusts its runs, and would write beyond the mask.
  if sum(runs) != height * width:
    raise DataError(f"{where}: runs add up to {sum(runs)} pixels, not {height * width}")
  plain = {"size": [height, width], "counts": list(runs)}
  return coco.decode(coco.frPyObjects(plain, height, width)).astype(bool)


def _runs(counts: Any, where: str) -> list[int]:
  """Lengths of COCO's text: groups of five bits, low first, as differences from the run before
  last.
  """
  text = counts.encode("latin-1", "replace") if isinstance(counts, str) else counts
  if not isinstance(text, bytes):
    raise DataError(f"{where}: counts are {type(counts).__name__}, not text or a list")
  runs: list[int] = []
  place = 0
  while place < len(text):
    value = 0
    shift = 0
    while True:
      if place == len(text) or not 48 <= text[place] < 112 or shift > 35:
        raise DataError(f"{where}: counts are no run lengths, at character {place + 1}")
      bits = text[place] - 48
      value |= (bits & 31) << shift
      place += 1
      shift += 5
      if not bits & 32:
        break
    # The last group's high bit is the sign.
    if bits & 16:
      value -= 1 << shift
    # From the fourth run on, the text holds the difference from the run two before.
    runs.append(value + (runs[-2] if len(runs) > 2 else 0))
  return runs


def outside(mask_HW: np.ndarray, box: list[float], slack: int = 2) -> float:
  """Share of a mask's pixels that lie outside a box of x, y, width, height; 1 of an empty mask."""
  x, y, width, height = box
  # A share of the mask, not of the box: a thin target fills little of its box.
  rows, cols = np.nonzero(mask_HW)
  if not len(rows):
    return 1.0
  # Boxes were drawn by hand or rounded: some pixels of slack are allowed.
  inside = (rows >= y - slack) & (rows < y + height + slack)
  inside &= (cols >= x - slack) & (cols < x + width + slack)
  return 1.0 - float(inside.mean())
