"""Does the model read the sentence? The same images with other sentences, and answers without any.

If a control loses nothing, the scenes are too easy.
"""

import dataclasses

import numpy as np

from gr4ad_jax.scenes.referring import Referring, unpacked
from gr4ad_jax.segmentation.metrics import Counts, count

WITHOUT_PLACE = "without position and relation"  # of the controls, the one that cuts PLACED
PLACED = ("position", "relation", "comparison")  # kinds that go on after the object's noun


def shuffled(split: Referring, seed: int = 0) -> Referring:
  """Each image gets the sentences of another one, the next in a drawn circle of all images."""
  circle = np.random.default_rng(seed).permutation(np.unique(split.row))
  # The circle turned by one: no image keeps its own sentences.
  after = dict(zip(circle.tolist(), np.roll(circle, -1).tolist(), strict=True))
  # The sentences of each image, as rows of the split.
  of_image = {image: np.flatnonzero(split.row == image) for image in after}
  texts = []
  rank = dict.fromkeys(after, 0)
  for image in split.row.tolist():
    # The other image's sentences in turn, as images may have different numbers of them.
    others = of_image[after[image]]
    texts.append(split.text[others[rank[image] % len(others)]])
    rank[image] += 1
  return _with_texts(split, texts)


def noun_only(split: Referring) -> Referring:
  """The object's noun alone."""
  texts = [text[begin:end] for text, (begin, end) in _nouns(split)]
  return _with_texts(split, [f"the {noun}" for noun in texts])


def without_place(split: Referring) -> Referring:
  """Sentences of PLACED end after the object's noun: no position, relation or comparison."""
  cut = np.isin(split.kind, PLACED)
  # Kinds that name no place end where they ended before, so their scores serve as a check.
  pairs = zip(_nouns(split), cut, strict=True)
  return _with_texts(split, [text[:end] if short else text for (text, (_, end)), short in pairs])


def baselines(split: Referring) -> dict[str, Counts]:
  """Masks that need no model: everything; all objects of the class; those of class and attributes.

  The latter two are told which objects there are, and which the sentence's words fit.
  """
  truth = unpacked(split.mask, split.side)
  found = {"everything": count(np.ones_like(truth), truth)}
  for name, bits in (
    ("class alone", split.same_class),
    ("class and attributes", split.same_looks),
  ):
    # A published data set tells of no other objects than the one that is meant.
    if bits is not None:
      found[name] = count(unpacked(bits, split.side), truth)
  return found


def _nouns(split: Referring):
  return zip(split.text, split.noun.tolist(), strict=True)


def _with_texts(split: Referring, texts: list[str]) -> Referring:
  # The noun's place is of the old text, and says nothing of the new one.
  return dataclasses.replace(split, text=texts, noun=np.zeros_like(split.noun))


def named(split: Referring) -> dict[str, Referring]:
  """The controls by name; those that need a noun are left out where none is known."""
  found = {"shuffled sentences": shuffled(split)}
  # One sentence without a noun leaves the whole control out: its score would be of other sentences.
  if (split.noun[:, 1] > 0).all():
    found["noun alone"] = noun_only(split)
    found[WITHOUT_PLACE] = without_place(split)
  return found
