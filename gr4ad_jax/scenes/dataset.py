"""Rendered scenes as a data set."""

from collections.abc import Callable

import numpy as np

from gr4ad_jax.scenes import generate, language
from gr4ad_jax.scenes.generate import Scene
from gr4ad_jax.scenes.referring import FACTS, Referring, packed


def split(
  seed: int, name: str, scenes: int, told: Callable[[str, int, int], None] = lambda *_: None
) -> Referring:
  """The sentences of a split, all in memory.

  Args:
    seed: of the data set.
    name: train, valid or test.
    scenes: how many.
    told: hears how many are done.
  """
  images = []
  rows = []
  for number in range(scenes):
    scene = generate.make(seed, name, number)
    images.append(scene.image)
    rows += [_row(scene, number, sentence) for sentence in scene.sentences]
    if number % 500 == 499:
      told(f"{name} scenes", number + 1, scenes)
  return _joined(np.stack(images), rows)


def _row(scene: Scene, number: int, sentence: language.Sentence) -> dict:
  kind = scene.things[sentence.targets[0]].kind
  # All objects of the class, and those that the stated looks fit: for controls without a model.
  same = tuple(i for i, thing in enumerate(scene.things) if thing.kind == kind)
  mask = scene.mask(sentence.targets)
  drawn = scene.drawn
  return {
    "row": number,
    "text": sentence.text,
    "noun": sentence.noun,
    "kind": sentence.kind,
    "word": sentence.word,
    "novel": sentence.novel,
    "mask": packed(mask[None])[0],
    "same_class": packed(scene.mask(same)[None])[0],
    "same_looks": packed(scene.mask(sentence.alike)[None])[0],
    "pixels": mask.sum(),
    "alike": len(sentence.alike),
    "blur": drawn.blur,
    "noise": drawn.noise,
    "contrast": drawn.contrast,
    # It was drawn, but without a cluster it has no effect.
    "spacing": drawn.spacing if drawn.clustered else np.nan,
    "shadow": drawn.shadow,
    "occluded": drawn.occluded,
  }


def _joined(images: np.ndarray, rows: list[dict]) -> Referring:
  columns = {name: [row[name] for row in rows] for name in rows[0]}
  return Referring(
    image=images.__getitem__,
    images=len(images),
    row=np.array(columns["row"]),
    text=columns["text"],
    noun=np.array(columns["noun"]),
    mask=np.stack(columns["mask"]),
    kind=np.array(columns["kind"]),
    word=np.array(columns["word"]),
    novel=np.array(columns["novel"]),
    facts={name: np.array(columns[name], np.float32) for name in FACTS},
    same_class=np.stack(columns["same_class"]),
    same_looks=np.stack(columns["same_looks"]),
  )
