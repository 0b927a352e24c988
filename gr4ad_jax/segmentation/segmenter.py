"""A trained BTDNet in Python: `Segmenter.load(workdir).segment(image, text)`."""

import dataclasses
from typing import Any

import jax
import numpy as np

from gr4ad_jax.btdnet import sizes
from gr4ad_jax.btdnet.word_pieces import WordPieces
from gr4ad_jax.config import Config, ConfigError, load_config
from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.runs import published, run
from gr4ad_jax.scenes import pictures
from gr4ad_jax.segmentation import task as task_lib
from gr4ad_jax.segmentation.predict import Predictor

FAMILY = "btdnet"


@dataclasses.dataclass(frozen=True)
class Segment:
  """What a sentence names in an image.

  Attributes:
    image: [H, W, 3] uint8, as it was given.
    probability: of each of its pixels, [H, W] float32.
    unknown: words of the sentence that the run's vocabulary lacks.
  """

  image: np.ndarray
  probability: np.ndarray
  unknown: tuple[str, ...]

  @property
  def mask(self) -> np.ndarray:
    """[H, W] bool: the pixels that are rather the target's."""
    return self.probability > 0.5


class Segmenter:
  """A model with its parameters and its vocabulary.

  Args:
    config: of the run.
    params: trained.
    pieces: its vocabulary.
  """

  def __init__(self, config: Config, params: Any, pieces: WordPieces):
    self.config = config
    self._params = params
    self._pieces = pieces
    self._predictor = Predictor(sizes.make(config.own, len(pieces.words)))

  @classmethod
  def load(cls, workdir: str, checkpoint: int | str = "best") -> "Segmenter":
    """A trained run.

    Args:
      workdir: of the run: a directory, or an address in a bucket.
      checkpoint: 'best' on valid, 'last', or a step.

    Raises:
      FileNotFoundError: there is no run, or no such checkpoint.
      ConfigError: a run of another family.
      ImportError: the `segmentation` extra is missing.
    """
    config = load_config(published.locate(workdir))
    if config.family != FAMILY:
      raise ConfigError(f"--family={config.family} is not allowed: this is for {FAMILY} alone")
    pieces = task_lib.read_vocabulary(config)
    params = run.load_params(config, lambda: task_lib.fresh(config, pieces), checkpoint)
    return cls(config, params, pieces)

  def segment(self, image: str | np.ndarray, text: str) -> Segment:
    """Finds what a sentence names.

    Args:
      image: a file, or [H, W, 3] uint8.
      text: the sentence.

    Raises:
      DataError: what is no image, or a sentence without a word.
    """
    pixels = _pixels(image)
    if not text.strip():
      raise DataError("--text= is not allowed: name what is to be found")
    own = self.config.own
    # The model knows images of one size. The mask is stretched back to the size that was given.
    small = _resized(pixels, own.image_size, own.image_size)
    encoded = self._pieces.encode([text], own.max_pieces)
    found = self._predictor.probability(self._params, small[None], encoded.tokens, encoded.mask)[0]
    height, width = pixels.shape[:2]
    # Probabilities are stretched, not the mask: its edge stays smooth at any size.
    if found.shape != (height, width):
      found = np.asarray(jax.image.resize(found, (height, width), "bilinear"))
    return Segment(pixels, found, self._pieces.unknown(text))


def _pixels(image: str | np.ndarray) -> np.ndarray:
  if isinstance(image, str):
    return pictures.read_whole(image)
  pixels = np.asarray(image)
  if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
    raise DataError(
      f"the image is {pixels.dtype}{list(pixels.shape)}; uint8 [H, W, 3] is needed, an RGB one"
    )
  return pixels


def _resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
  if pixels.shape[:2] == (height, width):
    return pixels
  image = optional("PIL.Image", "segmentation")
  small = image.fromarray(pixels).resize((width, height), image.Resampling.BILINEAR)
  return np.asarray(small, np.uint8)
