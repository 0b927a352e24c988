"""What makes a scene hard: every knob with its range, and what was drawn for one scene."""

import dataclasses

import numpy as np

SIDE = 64  # pixels of a scene, both ways


@dataclasses.dataclass(frozen=True)
class Ranges:
  """From where to where each knob is drawn, evenly.

  Attributes:
    copies: objects alike in class, colour and size in the scene's main group.
    others: objects beside the main group and its near relatives.
    clustered: share of the scenes whose main group stands in one cluster.
    spacing: least gap between objects of a cluster, pixels.
    scale: size of all objects, as a factor.
    blur: deviation of the Gaussian that blurs the image, pixels.
    noise: deviation of the pixels' noise, of 255.
    contrast: 1 shows objects in their own colour, 0 in that of the ground.
    turned: share of the scenes whose objects stand at any angle; else within 10 degrees of upright.
    shadow: length of the shadows, pixels.
    occlusion: share of the scenes in which something covers a part of some objects.
  """

  copies: tuple[int, int] = (2, 4)
  others: tuple[int, int] = (1, 3)
  clustered: float = 0.3
  spacing: tuple[float, float] = (1.0, 4.0)
  scale: tuple[float, float] = (0.85, 1.15)
  blur: tuple[float, float] = (0.0, 0.8)
  noise: tuple[float, float] = (0.0, 12.0)
  contrast: tuple[float, float] = (0.6, 1.0)
  turned: float = 0.5
  shadow: tuple[float, float] = (0.0, 2.0)
  occlusion: float = 0.15


@dataclasses.dataclass(frozen=True)
class Drawn:
  """The knobs of one scene; units as of `Ranges`.

  Attributes:
    copies: objects of the main group.
    others: objects beside it and its relatives.
    clustered: the main group stands in one cluster.
    spacing: least gap in it, pixels.
    scale: factor of all sizes.
    blur: pixels.
    noise: of 255.
    contrast: 0 to 1.
    turned: objects stand at any angle.
    shadow: pixels.
    occluded: something covers parts of objects.
  """

  copies: int
  others: int
  clustered: bool
  spacing: float
  scale: float
  blur: float
  noise: float
  contrast: float
  turned: bool
  shadow: float
  occluded: bool


def draw(ranges: Ranges, rng: np.random.Generator) -> Drawn:
  """One scene's knobs."""
  return Drawn(
    copies=int(rng.integers(ranges.copies[0], ranges.copies[1] + 1)),
    others=int(rng.integers(ranges.others[0], ranges.others[1] + 1)),
    clustered=bool(rng.random() < ranges.clustered),
    spacing=float(rng.uniform(*ranges.spacing)),
    scale=float(rng.uniform(*ranges.scale)),
    blur=float(rng.uniform(*ranges.blur)),
    noise=float(rng.uniform(*ranges.noise)),
    contrast=float(rng.uniform(*ranges.contrast)),
    turned=bool(rng.random() < ranges.turned),
    shadow=float(rng.uniform(*ranges.shadow)),
    occluded=bool(rng.random() < ranges.occlusion),
  )
