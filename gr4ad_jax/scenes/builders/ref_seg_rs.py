"""RefSegRS' published layout: a user's own copy.

`images/ID.tif`, `masks/ID.tif` (the foreground has values above 50), and
`output_phrase_{train,val,test}.txt`, whose lines are `ID sentence`. A mask is of one line: the same
picture may be there under several IDs.

Source: Yuan et al., "RRSIS: Referring Remote Sensing Image Segmentation", IEEE TGRS 2024.
"""

import os

import numpy as np

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.scenes import pictures
from gr4ad_jax.scenes.builders.base import ReferringBuilder, Told, nobody
from gr4ad_jax.scenes.referring import FACTS, Referring, packed
from gr4ad_jax.scenes.sections import SegmentationConfig

_NAMES = {"train": "train", "valid": "val", "test": "test"}
_FOREGROUND = 50  # grey values above it are the target


class RefSegRS(ReferringBuilder):
  """Reads `--scenes_path`; several objects may be meant by a sentence."""

  name = "ref_seg_rs"

  @classmethod
  def sources(cls, own: SegmentationConfig) -> list[str]:
    return [_phrases(own, split) for split in _NAMES]

  @classmethod
  def read(cls, own: SegmentationConfig, told: Told = nobody) -> dict[str, Referring]:
    return {split: _read(own, split, told) for split in _NAMES}


def _phrases(own: SegmentationConfig, split: str) -> str:
  if not own.scenes_path:
    raise DataError("--scenes_path= is not allowed: --scenes=ref_seg_rs needs its folder")
  path = os.path.join(own.scenes_path, f"output_phrase_{_NAMES[split]}.txt")
  if not os.path.isfile(path):
    raise DataError(f"{path}: there is no such file; RefSegRS has one a split")
  return path


def _read(own: SegmentationConfig, split: str, told: Told) -> Referring:
  path = _phrases(own, split)
  ids, texts = _lines(path)
  # An ID may stand on several lines. Each is read once, in the order of the file.
  names = list(dict.fromkeys(ids))
  images = {name: os.path.join(own.scenes_path, "images", f"{name}.tif") for name in names}
  masks = {}
  pixels = {}
  for done, name in enumerate(names):
    file = os.path.join(own.scenes_path, "masks", f"{name}.tif")
    mask_HW = pictures.read_grey(file) > _FOREGROUND
    if mask_HW.shape != pictures.size_of(images[name]):
      shapes = [" x ".join(map(str, x)) for x in (mask_HW.shape, pictures.size_of(images[name]))]
      raise DataError(f"{file}: {shapes[0]} pixels, but {images[name]} has {shapes[1]}")
    if not mask_HW.any():
      raise DataError(f"{file}: no value above {_FOREGROUND}, so it marks nothing")
    # Resized and packed at once: masks of full size of a whole split would fill the memory.
    small = pictures.resize_mask(mask_HW, own.image_size)
    masks[name] = packed(small[None])[0]
    pixels[name] = small.sum()
    told(f"{split} masks", done + 1, len(names))
  row_of = {name: row for row, name in enumerate(names)}
  unknown = np.full(len(ids), np.nan, np.float32)
  facts = {fact: unknown for fact in FACTS}
  facts["pixels"] = np.array([pixels[name] for name in ids], np.float32)

  def image(rows: np.ndarray) -> np.ndarray:
    return np.stack([pictures.read_image(images[names[row]], own.image_size) for row in rows])

  return Referring(
    image=image,
    images=len(names),
    row=np.array([row_of[name] for name in ids]),
    text=texts,
    noun=np.zeros((len(ids), 2), int),
    mask=np.stack([masks[name] for name in ids]),
    kind=np.full(len(ids), "", "<U1"),
    word=np.full(len(ids), "", "<U1"),
    novel=np.zeros(len(ids), bool),
    facts=facts,
  )


def _lines(path: str) -> tuple[list[str], list[str]]:
  """IDs and sentences. Raises DataError with the line's number."""
  ids = []
  texts = []
  try:
    with open(path, encoding="utf-8") as file:
      lines = file.read().splitlines()
  except UnicodeDecodeError as error:
    raise DataError(f"{path}: no UTF-8 text ({error.reason})") from error
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    name, _, text = line.strip().partition(" ")
    if not text.strip():
      raise DataError(f"{path}, line {number}: {line.strip()!r} has no sentence after its ID")
    # An ID becomes a part of a path, and must not lead out of the folder.
    if os.path.basename(name) != name or name in (".", ".."):
      raise DataError(f"{path}, line {number}: {name!r} is no ID of a picture")
    ids.append(name)
    texts.append(text.strip())
  if not ids:
    raise DataError(f"{path}: no line with a sentence")
  return ids, texts
