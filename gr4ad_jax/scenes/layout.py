"""The scene graph: which objects stand where."""

import dataclasses
import math

import numpy as np

from gr4ad_jax.scenes.knobs import SIDE, Drawn

# Length along the object and across it, pixels at a scale of 1.
CLASSES = {
  "vehicle": (7.0, 4.0),
  "ship": (11.0, 4.6),
  "airplane": (11.0, 10.0),
  "storage tank": (8.5, 8.5),
  "tennis court": (11.0, 6.5),
  "baseball field": (11.0, 11.0),
  "windmill": (12.0, 12.0),
  "building": (13.0, 8.0),
}
COLORS = ("red", "blue", "white", "yellow", "black", "orange")
SIZES = ("small", "large")
SIZE_RANGES = ((0.7, 0.82), (1.2, 1.45))  # factors, with a gap between: no object is in doubt

# The nine parts of an image, with how often RRSIS-D's sentences name each (counts of 6,035).
CELLS = {
  "upper left": 175,
  "top": 315,
  "upper right": 349,
  "left": 323,
  "middle": 2265,
  "right": 955,
  "lower left": 273,
  "bottom": 765,
  "lower right": 615,
}
_COUNTS = np.array(list(CELLS.values()), float)
# Half as sentences name the parts, half evenly: where each part's share of [0, 1) ends.
_CELL_ENDS = np.cumsum(0.5 * _COUNTS / _COUNTS.sum() + 0.5 / len(CELLS))[:-1]
_TRIES = 40  # places tried for an object before it is left out


@dataclasses.dataclass(frozen=True)
class Thing:
  """An object.

  Attributes:
    kind: row of CLASSES.
    color: row of COLORS.
    size: row of SIZES.
    x: of its centre, pixels from the left.
    y: of its centre, pixels from the top.
    length: along it, pixels.
    width: across it, pixels.
    angle: that its length is turned by from the x axis, radians, clockwise.
  """

  kind: int
  color: int
  size: int
  x: float
  y: float
  length: float
  width: float
  angle: float

  @property
  def radius(self) -> float:
    """Of a circle around it, pixels; round and cross-shaped ones do not fill their corners."""
    return 0.45 * math.hypot(self.length, self.width)

  @property
  def looks(self) -> tuple[int, int, int]:
    """Class, colour and size."""
    return self.kind, self.color, self.size


def sample(drawn: Drawn, rng: np.random.Generator) -> list[Thing]:
  """Objects of one scene, those of the main group first; two to about ten.

  The main group's copies differ in place alone. One or two relatives share its class, not its
  looks, so a class or a colour alone often does not tell which is meant.
  """
  main = _looks(rng)
  # One or two: the upper end of `integers` is exclusive.
  relatives = [_relative(main, rng) for _ in range(rng.integers(1, 3))]
  others = [_looks(rng) for _ in range(drawn.others)]
  if rng.random() < 0.4:  # a second group of two
    others.append(others[0])
  things: list[Thing] = []
  anchor = _place(rng) if drawn.clustered else None
  for i, looks in enumerate([main] * drawn.copies + relatives + others):
    near = anchor if i < drawn.copies else None
    thing = _put(looks, drawn, near, things, rng)
    if thing is not None:
      things.append(thing)
  return things


def _looks(rng: np.random.Generator) -> tuple[int, int, int]:
  return tuple(int(rng.integers(len(x))) for x in (CLASSES, COLORS, SIZES))


def _relative(looks: tuple[int, int, int], rng: np.random.Generator) -> tuple[int, int, int]:
  """The same class in another colour, or another size, or both."""
  kind, color, size = looks
  if rng.random() < 0.7:
    # At least one further, and less than once round: always another colour.
    color = int((color + rng.integers(1, len(COLORS))) % len(COLORS))
  else:
    size = 1 - size
  return kind, color, size


def _place(rng: np.random.Generator) -> tuple[float, float]:
  """A point, its part of the image drawn as sentences name them, half of the time evenly."""
  # The number of ends at or below the draw is the part that it falls into.
  row, col = divmod(int(np.searchsorted(_CELL_ENDS, rng.random(), side="right")), 3)
  x = (col + rng.random()) * SIDE / 3
  y = (row + rng.random()) * SIDE / 3
  return x, y


def _put(looks, drawn: Drawn, near, things: list[Thing], rng: np.random.Generator) -> Thing | None:
  """An object where it overlaps no other and lies inside; None where no place is found."""
  length, width = list(CLASSES.values())[looks[0]]
  factor = drawn.scale * float(rng.uniform(*SIZE_RANGES[looks[2]]))
  # Without turning, still a little askew, as in real images.
  turn = math.pi if drawn.turned else math.pi / 18
  angle = float(rng.uniform(-turn, turn))
  for attempt in range(_TRIES):
    x, y = _place(rng) if near is None else near
    # Around the cluster's middle, and further out with every attempt.
    if near is not None:
      # The first tries are the densest; a crowded middle drives the rest outwards.
      reach = 4.0 + attempt * 0.6
      x += float(rng.normal(0, reach))
      y += float(rng.normal(0, reach))
    thing = Thing(*looks, x, y, length * factor, width * factor, angle)
    gap = drawn.spacing if near is not None else 2.0
    inside = all(thing.radius <= z <= SIDE - thing.radius for z in (x, y))
    # Circles that do not touch: simple, and safe whatever way the two are turned.
    apart = all(
      math.hypot(x - other.x, y - other.y) > thing.radius + other.radius + gap for other in things
    )
    if inside and apart:
      return thing
  return None
