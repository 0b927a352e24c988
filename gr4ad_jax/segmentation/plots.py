"""Image, sentence, truth and mask, side by side."""

import textwrap
from collections.abc import Sequence

import numpy as np

from gr4ad_jax.data.extras import optional
from gr4ad_jax.evaluation import plots as house

_TINT = np.array([255, 40, 140], np.float32)  # of a mask: no ground and no object has it


def overlay(image_HW3: np.ndarray, mask_HW: np.ndarray, strength: float = 0.55) -> np.ndarray:
  """The image with a mask in colour and a light edge around it: [H, W, 3] uint8."""
  out = image_HW3.astype(np.float32)
  out[mask_HW] += strength * (_TINT - out[mask_HW])
  # Whether the pixel below, above, to the right or to the left is of the mask. The border of zeros
  # gives every pixel four neighbours.
  padded = np.pad(mask_HW, 1)
  near = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
  # The edge lies outside the mask, and hides nothing of the target.
  out[near & ~mask_HW] = 255
  return out.astype(np.uint8)


def examples(
  images: np.ndarray,
  texts: Sequence[str],
  truth: np.ndarray,
  found: np.ndarray,
  iou: Sequence[float],
  png_path: str,
) -> None:
  """A row a sentence: the image, the image with the truth, and with the mask that was found.

  Args:
    images: [n, S, S, 3] uint8.
    texts: the sentences.
    truth: [n, S, S] bool.
    found: [n, S, S] bool.
    iou: of each mask.
    png_path: where the picture is written.

  Raises:
    ImportError: matplotlib is missing.
  """
  with house.panels(3 * len(texts), (6.6, 2.3 * len(texts)), png_path, columns=3) as axes:
    for row, text in enumerate(texts):
      shown = (images[row], overlay(images[row], truth[row]), overlay(images[row], found[row]))
      titles = (textwrap.fill(text, 30), "truth", f"found, IoU {iou[row]:.2f}")
      for axis, picture, title in zip(axes[3 * row : 3 * row + 3], shown, titles, strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(title, fontsize=7)
        axis.set_axis_off()


def to_tensorboard(
  directory: str,
  step: int,
  images: np.ndarray,
  texts: Sequence[str],
  truth: np.ndarray,
  found: np.ndarray,
) -> None:
  """The same in TensorBoard, an image a sentence, whose name holds the sentence.

  Args:
    directory: of the event files.
    step: of the checkpoint.
    images, texts, truth, found: as of `examples`.

  Raises:
    ImportError: tensorboardX is missing.
  """
  writer = optional("tensorboardX", "log").SummaryWriter(directory)
  for row, text in enumerate(texts):
    parts = (images[row], overlay(images[row], truth[row]), overlay(images[row], found[row]))
    side = np.concatenate(parts, axis=1)  # image, truth, found
    writer.add_image(f"examples/{row}: {text}", side, step, dataformats="HWC")
  writer.close()
