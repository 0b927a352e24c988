"""RRSIS-D's published layout: a user's own copy.

`rrsisd/refs(unc).p` (sentences), `rrsisd/instances.json` (COCO: pictures, masks, categories) and
`images/rrsisd/JPEGImages`.

Source: Liu et al., "Rotated Multi-Scale Interaction Network for Referring Remote Sensing Image
Segmentation", CVPR 2024.
"""

import dataclasses
import json
import logging
import os
import pickle
from typing import Any

import numpy as np

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.scenes import pictures, run_lengths
from gr4ad_jax.scenes.builders.base import ReferringBuilder, Told, nobody
from gr4ad_jax.scenes.referring import FACTS, Referring, packed
from gr4ad_jax.scenes.sections import SegmentationConfig

REFS = os.path.join("rrsisd", "refs(unc).p")
INSTANCES = os.path.join("rrsisd", "instances.json")
PICTURES = os.path.join("images", "rrsisd", "JPEGImages")
_SPLITS = {"train": "train", "val": "valid", "test": "test"}
_STRAY = 0.5  # a mask with a larger share outside its box is not that object's
_log = logging.getLogger(__name__)


class RRSISD(ReferringBuilder):
  """Reads `--scenes_path`; a sentence means one object."""

  name = "rrsis_d"

  @classmethod
  def sources(cls, own: SegmentationConfig) -> list[str]:
    if not own.scenes_path:
      raise DataError("--scenes_path= is not allowed: --scenes=rrsis_d needs its folder")
    paths = [os.path.join(own.scenes_path, name) for name in (REFS, INSTANCES)]
    for path in paths:
      if not os.path.isfile(path):
        raise DataError(f"{path}: there is no such file; RRSIS-D has it")
    return paths

  @classmethod
  def read(cls, own: SegmentationConfig, told: Told = nobody) -> dict[str, Referring]:
    refs_path, instances_path = cls.sources(own)
    refs = read_refs(refs_path)
    instances = _Instances.read(instances_path)
    found = {}
    for split in dict.fromkeys(_SPLITS.values()):
      chosen = [ref for ref in refs if _SPLITS[ref["split"]] == split]
      if not chosen:
        raise DataError(f"{refs_path}: no ref of split {split}")
      found[split] = _read(own, chosen, instances, split, told)
    return found


class _PlainUnpickler(pickle.Unpickler):
  """Reads lists, dicts, texts and numbers; whatever names a class or function is refused."""

  def find_class(self, module: str, name: str) -> Any:
    raise DataError(f"it asks for {module}.{name}; lists, dicts, texts and numbers are allowed")


def read_refs(path: str) -> list[dict]:
  """The refs of a pickle, each checked.

  Raises:
    DataError: no such list, a pickle that names a class or a function, a key that is missing, or a
      split that is not known.
  """
  with open(path, "rb") as file:
    try:
      # Where Python 2 wrote the file, its texts are bytes. latin-1 reads any of them.
      refs = _PlainUnpickler(file, encoding="latin-1").load()
    except DataError as error:
      raise DataError(f"{path} is refused: {error}") from error
    except Exception as error:
      # A damaged pickle raises almost anything.
      reason = " ".join(str(error).split())[:150]
      raise DataError(f"{path}: no pickle that can be read ({reason})") from error
  if not isinstance(refs, list) or not refs:
    raise DataError(f"{path}: a list of refs is needed, and it holds a {type(refs).__name__}")
  for row, ref in enumerate(refs, 1):
    where = f"{path}, ref {row}"
    for key in ("image_id", "ann_id", "split", "sentences"):
      if not isinstance(ref, dict) or key not in ref:
        raise DataError(f"{where}: it has no {key!r}")
    if ref["split"] not in _SPLITS:
      raise DataError(f"{where}: split {ref['split']!r}; any of {', '.join(_SPLITS)} is known")
    if not _texts(ref):
      raise DataError(f"{where}: it has no sentence")
  return refs


def _texts(ref: dict) -> list[str]:
  """A ref's sentences, as they were tidied up ('sent'), else as they were written ('raw')."""
  sentences = ref["sentences"] if isinstance(ref["sentences"], list) else []
  found = [str(s.get("sent") or s.get("raw") or "") for s in sentences if isinstance(s, dict)]
  return [text.strip() for text in found if text.strip()]


@dataclasses.dataclass(frozen=True)
class _Instances:
  """Attributes:
  path: of the file.
  images: id -> picture's record.
  annotations: id -> object's record.
  categories: id -> name.
  """

  path: str
  images: dict
  annotations: dict
  categories: dict

  @classmethod
  def read(cls, path: str) -> "_Instances":
    try:
      with open(path, encoding="utf-8") as file:
        saved = json.load(file)
    except (ValueError, RecursionError) as error:
      raise DataError(f"{path}: not JSON ({' '.join(str(error).split())[:150]})") from error
    tables = {}
    for key in ("images", "annotations", "categories"):
      rows = saved.get(key) if isinstance(saved, dict) else None
      if not isinstance(rows, list) or not all(isinstance(r, dict) and "id" in r for r in rows):
        raise DataError(f"{path}: {key!r} must be a list of records with an 'id'")
      # Looked up by id below. Of two records with one id the later counts.
      tables[key] = {row["id"]: row for row in rows}
    names = {key: str(row.get("name", "")) for key, row in tables.pop("categories").items()}
    return cls(path, categories=names, **tables)

  def mask(self, ann_id: Any) -> tuple[np.ndarray, dict, bool]:
    """An object's mask, its record, and whether its runs were flipped.

    Runs that were made of a grey mask begin with the target instead of the ground. The box tells.
    """
    where = f"{self.path}, annotation {ann_id}"
    if ann_id not in self.annotations:
      raise DataError(f"{where}: there is no such annotation, but a ref names it")
    found = self.annotations[ann_id]
    picture = self.images.get(found.get("image_id"))
    if picture is None:
      raise DataError(f"{where}: image_id {found.get('image_id')!r} is not among the images")
    sizes = [picture.get(key) for key in ("height", "width")]
    if not all(isinstance(size, int) and 0 < size <= 1 << 15 for size in sizes):
      raise DataError(f"{where}: its picture's height and width are {sizes}")
    box = found.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
      raise DataError(f"{where}: bbox {box!r} is no list of x, y, width, height")
    mask = run_lengths.decode(found.get("segmentation"), *sizes, where)
    # As written first: of an object that fills most of its picture, both could pass.
    if run_lengths.outside(mask, box) <= _STRAY:
      return mask, found, False
    if run_lengths.outside(~mask, box) <= _STRAY:
      return ~mask, found, True
    raise DataError(f"{where}: most of its mask lies outside its bbox {box}")


def _read(
  own: SegmentationConfig, refs: list[dict], instances: _Instances, split: str, told: Told
) -> Referring:
  paths: list[str] = []
  row_of: dict[Any, int] = {}
  columns: dict[str, list] = {key: [] for key in ("row", "text", "noun", "mask", "pixels")}
  flipped = 0
  for done, ref in enumerate(refs):
    mask, found, turned = instances.mask(ref["ann_id"])
    flipped += turned
    small = pictures.resize_mask(mask, own.image_size)
    # A picture is listed once, however many of its objects are named.
    if found["image_id"] not in row_of:
      row_of[found["image_id"]] = len(paths)
      paths.append(_picture(own, instances, found["image_id"], mask.shape))
    name = instances.categories.get(found.get("category_id"), "")
    for text in _texts(ref):
      columns["row"].append(row_of[found["image_id"]])
      columns["text"].append(text)
      columns["noun"].append(_noun(text, name))
      columns["mask"].append(packed(small[None])[0])
      columns["pixels"].append(small.sum())
    told(f"{split} refs", done + 1, len(refs))
  if flipped:
    _log.warning("%s: %d masks of %s were flipped, as their boxes tell", split, flipped, own.scenes)
  count = len(columns["row"])
  facts = {fact: np.full(count, np.nan, np.float32) for fact in FACTS}
  facts["pixels"] = np.array(columns["pixels"], np.float32)

  def image(rows: np.ndarray) -> np.ndarray:
    return np.stack([pictures.read_image(paths[row], own.image_size) for row in rows])

  return Referring(
    image=image,
    images=len(paths),
    row=np.array(columns["row"]),
    text=columns["text"],
    noun=np.array(columns["noun"]),
    mask=np.stack(columns["mask"]),
    kind=np.full(count, "", "<U1"),
    word=np.full(count, "", "<U1"),
    novel=np.zeros(count, bool),
    facts=facts,
  )


def _picture(own: SegmentationConfig, instances: _Instances, image_id, shape) -> str:
  """Where a picture lies; it must be as large as its masks."""
  name = instances.images[image_id].get("file_name")
  if not isinstance(name, str) or os.path.basename(name) != name or name in ("", ".", ".."):
    raise DataError(f"{instances.path}, image {image_id}: file_name {name!r} is no file's name")
  path = os.path.join(own.scenes_path, PICTURES, name)
  found = pictures.size_of(path)
  if found != shape:
    raise DataError(
      f"{path}: {found[0]} x {found[1]} pixels, its masks have {shape[0]} x {shape[1]}"
    )
  return path


def _noun(text: str, category: str) -> tuple[int, int]:
  """Where a sentence names the object's category; (0, 0): it does not, in these words."""
  # Categories are written with hyphens, sentences with blanks. Both have one character there, so
  # that the length stays.
  begin = text.lower().find(category.lower().replace("-", " ")) if category else -1
  return (0, 0) if begin < 0 else (begin, begin + len(category))
