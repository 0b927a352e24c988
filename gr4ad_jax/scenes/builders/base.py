"""What the builders share: images and sentences as two TFDS configs, written and read back."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gr4ad_jax.builders.stored import StoredBuilder
from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.scenes.referring import FACTS, Referring
from gr4ad_jax.scenes.sections import SegmentationConfig

tfds = optional("tensorflow_datasets")

PARTS = ("images", "sentences")
IN_MEMORY = 1 << 30  # bytes of images that are kept there; of more, each is read when asked for
_WORDS = ("text", "kind", "word")
_BITS = ("mask", "same_class", "same_looks")

Told = Callable[[str, int, int], None]


def nobody(*_) -> None:
  """Hears nothing."""


class ReferringBuilder(StoredBuilder, skip_registration=True):
  """A data set in two configs, both with the splits train, valid and test: `images` and
  `sentences`.

  The files are ArrayRecord, in order, and TensorFlow is not needed. A subclass reads and checks its
  source.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First version."}
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name="images", description="One example an image."),
    tfds.core.BuilderConfig(name="sentences", description="One example a sentence."),
  ]

  def __init__(
    self, *, own: SegmentationConfig, splits: dict[str, Referring] | None = None, **kwargs
  ):
    """Args: own: the source and its options; splits: what `read` gave, to be written."""
    self._own = own
    self._splits = splits
    super().__init__(**kwargs)

  @classmethod
  def sources(cls, own: SegmentationConfig) -> list[str]:
    """Files whose bytes the data depend on. Raises DataError where one is not set or not there."""
    return []

  @classmethod
  def options(cls, own: SegmentationConfig) -> dict[str, Any]:
    """Options that change what `read` gives, JSON-able."""
    return {"image_size": own.image_size}

  @classmethod
  def read(cls, own: SegmentationConfig, told: Told = nobody) -> dict[str, Referring]:
    """The splits from their source, checked. Raises DataError for the first thing that is wrong."""
    raise DataError(f"{cls.__name__} reads no source")

  @classmethod
  def fingerprint(cls, own: SegmentationConfig) -> str:
    """16 hex digits that change with the sources' bytes and with the options."""
    about = [cls.name, str(cls.VERSION), cls.options(own)]
    made = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for path in cls.sources(own):
      with open(path, "rb") as source:
        content = hashlib.file_digest(source, "sha256").hexdigest()
      # The names alone, not the folders: a data set that is moved is the same.
      made.update(f"{os.path.basename(path)}{content}".encode())
    return made.hexdigest()[:16]

  def _info(self):
    features = tfds.features
    if self.builder_config.name == "images":
      side = self._own.image_size
      columns = {"image": features.Tensor(shape=(side, side, 3), dtype=np.uint8)}
    else:
      columns = {name: features.Text() for name in _WORDS}
      columns |= {name: features.Tensor(shape=(None,), dtype=np.uint8) for name in _BITS}
      columns |= {"row": features.Scalar(np.int64), "novel": features.Scalar(np.int64)}
      columns["noun"] = features.Tensor(shape=(2,), dtype=np.int64)
      columns["facts"] = features.Tensor(shape=(len(FACTS),), dtype=np.float32)
    return self._stored_info(columns)

  def _split_generators(self, dl_manager):
    # The digest is of the sentences and of the masks. It is written with them, and compared when
    # they are read back.
    if self.builder_config.name == "sentences":
      self.info.metadata["digest"] = digest(self._splits)
    return {name: self._generate_examples(split) for name, split in self._splits.items()}

  def _generate_examples(self, split: Referring) -> Iterator[tuple[int, dict[str, Any]]]:
    if self.builder_config.name == "images":
      for row in range(split.images):
        yield row, {"image": split.image(np.array([row]))[0]}
    else:
      for row in range(len(split)):
        yield row, _example(split, row)


def _example(split: Referring, row: int) -> dict[str, Any]:
  none = np.zeros(0, np.uint8)
  bits = {name: getattr(split, name) for name in _BITS}
  # What is not known is stored as a row of length 0, since a column must be there.
  example = {name: none if column is None else column[row] for name, column in bits.items()}
  example |= {name: str(getattr(split, name)[row]) for name in _WORDS}
  example |= {"row": int(split.row[row]), "novel": int(split.novel[row])}
  example["noun"] = np.asarray(split.noun[row], np.int64)
  return example | {"facts": np.array([split.facts[name][row] for name in FACTS], np.float32)}


def stored(images: ReferringBuilder, sentences: ReferringBuilder) -> dict[str, Referring]:
  """The prepared splits, read back.

  Args:
    images: the builder of the images.
    sentences: that of the sentences.

  Raises:
    DataError: the sentences are not those that were written. Damaged files may raise what TFDS and
      ArrayRecord raise.
  """
  splits = {}
  for name in sentences.info.splits:
    source = sentences.as_data_source(name)
    examples = source.__getitems__(list(range(len(source))))
    pictures = images.as_data_source(name)
    # From a list of examples to a list for each column.
    columns = {key: [example[key] for example in examples] for key in examples[0]}
    facts_LF = np.stack(columns["facts"])
    bits = {key: np.stack(columns[key]) for key in _BITS}
    splits[name] = Referring(
      image=_images(pictures),
      images=len(pictures),
      row=np.array(columns["row"]),
      text=[text.decode() for text in columns["text"]],
      noun=np.stack(columns["noun"]),
      kind=np.array([text.decode() for text in columns["kind"]]),
      word=np.array([text.decode() for text in columns["word"]]),
      novel=np.array(columns["novel"], bool),
      facts={fact: facts_LF[:, i] for i, fact in enumerate(FACTS)},
      # Columns of length 0 were not known.
      **{key: column if column.shape[1] else None for key, column in bits.items()},
    )
  if digest(splits) != sentences.info.metadata["digest"]:
    raise DataError(f"{sentences.data_dir}: the contents are not those that were written")
  return splits


def _images(source) -> Callable[[np.ndarray], np.ndarray]:
  """(rows) -> images, from memory where they are few."""

  def read(rows: np.ndarray) -> np.ndarray:
    found = source.__getitems__([int(row) for row in rows])
    return np.stack([example["image"] for example in found])

  size = len(source) * int(np.prod(source[0]["image"].shape))
  # Both forms are called with rows. An array's `__getitem__` gathers them from memory.
  return read(np.arange(len(source))).__getitem__ if size <= IN_MEMORY else read


def digest(splits: dict[str, Referring]) -> str:
  """SHA-256 over all that is said of the sentences."""
  made = hashlib.sha256()
  for name in sorted(splits):
    split = splits[name]
    made.update(json.dumps([name, split.images, list(split.text)]).encode())
    for key in ("kind", "word"):
      made.update(json.dumps(getattr(split, key).tolist()).encode())
    for column in (split.row, split.noun, split.novel):
      made.update(np.ascontiguousarray(column, np.int64).tobytes())
    for key in _BITS:
      column = getattr(split, key)
      made.update(b"-" if column is None else column.tobytes())
    for fact in FACTS:
      made.update(np.ascontiguousarray(split.facts[fact], np.float32).tobytes())
  return made.hexdigest()
