"""Scenes by number: the same number gives the same scene, whatever was made before."""

import dataclasses

import numpy as np

from gr4ad_jax.data.schema import SPLITS
from gr4ad_jax.scenes import knobs, language, layout, render

SENTENCES = 3  # of a scene, where so many are fit
_LEAST_PIXELS = 4  # of an object that a sentence may mean
_LEAST_SEEN = 0.5  # of its pixels that nothing covers


@dataclasses.dataclass(frozen=True)
class Scene:
  """Attributes:
  image: [SIDE, SIDE, 3] uint8.
  ids: [SIDE, SIDE] uint8, the object at each pixel, from 1; 0: the ground.
  things: the objects.
  sentences: one or more.
  drawn: the knobs.
  """

  image: np.ndarray
  ids: np.ndarray
  things: list[layout.Thing]
  sentences: list[language.Sentence]
  drawn: knobs.Drawn

  def mask(self, rows: tuple[int, ...]) -> np.ndarray:
    """[SIDE, SIDE] bool: the pixels in which objects are seen, of their rows in `things`."""
    return np.isin(self.ids, np.asarray(rows, int) + 1)


def make(seed: int, split: str, number: int, ranges: knobs.Ranges | None = None) -> Scene:
  """A scene with at least one sentence.

  Args:
    seed: of the data set.
    split: train, valid or test; train lacks the pairs of word and class that are held out.
    number: of the scene in its split.
    ranges: of the knobs; None: the default ones.
  """
  # A generator of its own for each scene, so that none depends on those made before.
  rng = np.random.default_rng([seed, SPLITS.index(split), number])
  # Few draws have no sentence that is clear; they are drawn again.
  while True:
    drawn = knobs.draw(ranges or knobs.Ranges(), rng)
    things = layout.sample(drawn, rng)
    image, ids, whole = render.render(things, drawn, rng)
    # Pixels of each object that nothing covers; number 0 is the ground.
    seen = np.bincount(ids.ravel(), minlength=len(things) + 1)[1:]
    # A sentence must not mean what can hardly be seen.
    clear = (seen >= _LEAST_PIXELS) & (seen >= _LEAST_SEEN * whole)
    found = language.sentences(things, clear.tolist(), SENTENCES, rng, split == "train")
    if found:
      return Scene(image, ids, things, found, drawn)
