"""Sentences about images, each with its mask: what every reader and generator gives."""

import dataclasses
from collections.abc import Callable, Sequence

import flax.struct
import jax
import numpy as np

from gr4ad_jax.btdnet.word_pieces import WordPieces

FACTS = ("pixels", "alike", "blur", "noise", "contrast", "spacing", "shadow", "occluded")
"""Numbers known of a sentence, NaN where they are not: pixels of its target, objects of its class
with the attributes it states, and the knobs of its scene."""


@flax.struct.dataclass
class SegmentationBatch:
  """Sentences of a step.

  Attributes:
    image_BHW3: uint8.
    tokens_BN: word pieces.
    mask_BN: bool, False at padding.
    noun_BN: bool, the object's noun.
    target_BHW: bool, the pixels that are meant.
  """

  image_BHW3: jax.Array
  tokens_BN: jax.Array
  mask_BN: jax.Array
  noun_BN: jax.Array
  target_BHW: jax.Array


@dataclasses.dataclass(frozen=True)
class Referring:
  """A split: L sentences about some images of S by S pixels.

  Attributes:
    image: (rows) -> [n, S, S, 3] uint8, those images.
    images: how many there are.
    row: image of each sentence, [L].
    text: the sentences.
    noun: begin and end of the object's noun, characters, [L, 2]; (0, 0): not known.
    mask: the pixels that are meant, packed bits [L, S S / 8].
    kind: what each sentence goes by, such as 'position'; '': not known.
    word: the part of the image or the direction that it names; '': none.
    novel: whether training has no sentence with this word and this class, [L] bool.
    facts: name of FACTS -> [L] float32.
    same_class: pixels of all objects of the target's class, packed; None: not known.
    same_looks: pixels of those that the sentence's attributes fit; None: not known.
  """

  image: Callable[[np.ndarray], np.ndarray]
  images: int
  row: np.ndarray
  text: Sequence[str]
  noun: np.ndarray
  mask: np.ndarray
  kind: np.ndarray
  word: np.ndarray
  novel: np.ndarray
  facts: dict[str, np.ndarray]
  same_class: np.ndarray | None = None
  same_looks: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.row)

  @property
  def side(self) -> int:
    """Rows and columns of an image (S)."""
    # Masks are packed eight pixels a byte, so the side is the root of the bits.
    return int(round((self.mask.shape[1] * 8) ** 0.5))

  def masks(self, rows: np.ndarray) -> np.ndarray:
    """[n, S, S] bool: what some sentences mean."""
    return unpacked(self.mask[rows], self.side)

  def encoded(self, pieces: WordPieces, length: int) -> "Encoded":
    """The split with its sentences as token numbers."""
    return Encoded(self, *pieces.encode(self.text, length, self.noun))


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Attributes:
  split: the sentences.
  tokens: [L, N] int32.
  mask: [L, N] bool.
  noun: [L, N] bool.
  """

  split: Referring
  tokens: np.ndarray
  mask: np.ndarray
  noun: np.ndarray

  def batch(self, rows: np.ndarray) -> SegmentationBatch:
    """Some sentences with their images and masks."""
    split = self.split
    return SegmentationBatch(
      split.image(split.row[rows]),
      self.tokens[rows],
      self.mask[rows],
      self.noun[rows],
      split.masks(rows),
    )


def packed(masks_LSS: np.ndarray) -> np.ndarray:
  """Bits of masks, [L, S S / 8] uint8. Raises ValueError where S S is no multiple of 8."""
  flat = np.asarray(masks_LSS, bool).reshape(len(masks_LSS), -1)
  if flat.shape[1] % 8:
    raise ValueError(f"masks of {flat.shape[1]} pixels cannot be packed: a multiple of 8 is needed")
  return np.packbits(flat, axis=1)


def unpacked(bits: np.ndarray, side: int) -> np.ndarray:
  """Undoes `packed`: [L, side, side] bool."""
  return np.unpackbits(bits, axis=1).astype(bool).reshape(-1, side, side)
