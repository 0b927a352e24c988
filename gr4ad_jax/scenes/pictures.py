"""Pictures and masks of a user's own files, read by Pillow, checked and resized."""

import os

import numpy as np

from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.schema import DataError

MOST_PIXELS = 64_000_000  # of one picture; a small file may unfold to any size


def read_image(path: str, side: int) -> np.ndarray:
  """A picture as red, green and blue, resized: [side, side, 3] uint8.

  Raises:
    DataError: no such file, or no picture; names it.
  """
  image = optional("PIL.Image", "segmentation")
  with _opened(path) as picture:
    resized = picture.convert("RGB").resize((side, side), image.Resampling.BILINEAR)
    return np.asarray(resized, np.uint8)


def read_whole(path: str) -> np.ndarray:
  """A picture as red, green and blue, at its own size: [H, W, 3] uint8. Raises as `read_image`."""
  with _opened(path) as picture:
    return np.asarray(picture.convert("RGB"), np.uint8)


def read_grey(path: str) -> np.ndarray:
  """A mask's values, [rows, columns]; of a file with several channels the first.

  Raises:
    DataError: as `read_image`.
  """
  with _opened(path) as picture:
    values = np.asarray(picture)
  # Masks that were saved as colours have the same value in each channel.
  return values[..., 0] if values.ndim == 3 else values


def size_of(path: str) -> tuple[int, int]:
  """Rows and columns of a picture. Raises DataError as `read_image`."""
  with _opened(path) as picture:
    return picture.height, picture.width


def resize_mask(mask_HW: np.ndarray, side: int) -> np.ndarray:
  """[side, side] bool: the nearest pixel's, at the centres of the cells."""
  # Centres of the new cells, as places in the old picture.
  rows, cols = (((np.arange(side) + 0.5) * size / side).astype(int) for size in mask_HW.shape)
  # (side, 1) with (side,) -> (side, side).
  return mask_HW[rows[:, None], cols]


def _opened(path: str):
  image = optional("PIL.Image", "segmentation")
  if not os.path.exists(path):
    raise DataError(f"{path}: there is no such picture")
  try:
    picture = image.open(path)
    # The header tells the size, before anything is unfolded.
    if picture.width * picture.height > MOST_PIXELS:
      raise DataError(
        f"{path}: {picture.width} x {picture.height} pixels; {MOST_PIXELS} are allowed"
      )
    # Pillow reads a file's pixels only when they are asked for.
    picture.load()
  except DataError:
    raise
  except Exception as error:
    # Pillow raises much of what Python has for a damaged picture.
    reason = " ".join(str(error).split())[:150]
    raise DataError(f"{path}: no picture that can be read ({reason})") from error
  return picture
