"""From a scene graph to an image, and to the pixels in which each object is seen."""

import numpy as np
from scipy import ndimage

from gr4ad_jax.scenes.knobs import SIDE, Drawn
from gr4ad_jax.scenes.layout import CLASSES, COLORS, Thing

_FINE = 2  # samples a pixel, each way
_PALETTE = {
  "red": (200, 40, 40),
  "blue": (45, 75, 195),
  "white": (240, 240, 240),
  "yellow": (230, 210, 50),
  "black": (28, 28, 32),
  "orange": (235, 130, 30),
}
_GROUNDS = ((96, 122, 82), (150, 138, 112), (112, 114, 118), (84, 112, 130), (128, 140, 100))
_RGB = np.array([_PALETTE[name] for name in COLORS], np.float32)


def inside(kind: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
  """Where a shape is, bool.

  Args:
    kind: a name of CLASSES.
    u: place along the object, -1 to 1 within its length.
    v: place across it, likewise.
  """
  box = (np.abs(u) <= 1) & (np.abs(v) <= 1)
  if kind == "storage tank":
    return u**2 + v**2 <= 1
  if kind == "ship":  # pointed ahead, blunt behind
    # 1.6 (1 - u) is 1 or more but for the last part of the length: there the bow narrows.
    return box & (np.abs(v) <= np.clip(1.6 * (1 - u), 0, 1))
  if kind == "airplane":
    # The wings are swept: further back the further out they are.
    wings = (np.abs(u - 0.1 + 0.35 * np.abs(v)) <= 0.2) & (np.abs(v) <= 1)
    tail = (np.abs(u + 0.8) <= 0.17) & (np.abs(v) <= 0.45)
    return ((np.abs(v) <= 0.17) | wings | tail) & box
  if kind == "windmill":  # three blades
    radius = np.hypot(u, v)
    turn = np.arctan2(v, u)
    # The turn within one of three equal sectors: the same blade three times.
    away = np.abs((turn + np.pi / 3) % (2 * np.pi / 3) - np.pi / 3)
    return (radius <= 1) & (radius * np.sin(away) <= 0.17)
  if kind == "baseball field":  # a quarter of a disk
    corner = (u + 1) / 2, (v + 1) / 2
    return (corner[0] >= 0) & (corner[1] >= 0) & (corner[0] ** 2 + corner[1] ** 2 <= 1)
  return box


def shade(kind: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
  """Brightness of a shape's parts, a factor about 1: roofs, decks and lines tell classes apart."""
  if kind == "building":  # a ridge along it: one side in the light
    return np.where(v > 0, 0.72, 1.0)
  if kind == "tennis court":
    line = (np.abs(u) < 0.12) | (np.abs(np.abs(u) - 0.78) < 0.1) | (np.abs(np.abs(v) - 0.7) < 0.13)
    return np.where(line, 1.45, 0.85)
  if kind == "storage tank":
    return np.where(u**2 + v**2 > 0.6, 0.7, 1.05)
  if kind == "baseball field":
    return np.where((u + 1) ** 2 + (v + 1) ** 2 < 1.1, 0.55, 1.0)
  if kind == "vehicle":  # the windscreen
    return np.where(np.abs(u - 0.35) < 0.2, 0.45, 1.0)
  if kind == "ship":
    return np.where((np.abs(u + 0.45) < 0.25) & (np.abs(v) < 0.55), 0.6, 1.0)
  return np.ones_like(u)


def render(
  things: list[Thing], drawn: Drawn, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws a scene.

  A pixel is an object's where half of its samples or more are, and nothing covers it. This is
  settled before blur and noise, which do not move the mask.

  Returns:
    The image [SIDE, SIDE, 3] uint8, the number of the object at each pixel, from 1, 0 on the ground
    [SIDE, SIDE] uint8, and the pixels of each object were nothing in front, [objects] int.
  """
  # Drawn at _FINE times as many rows and columns as the image has.
  canvas = _ground(rng)
  ids = np.zeros(canvas.shape[:2], np.uint8)
  light = rng.uniform(-np.pi, np.pi)
  # A faint shadow is none; all shadows lie below all objects.
  for thing in things if drawn.shadow > 0.3 else ():
    patch, u, v = _local(thing, drawn.shadow * np.cos(light), drawn.shadow * np.sin(light))
    dark = inside(list(CLASSES)[thing.kind], u, v)
    canvas[patch][dark] *= 0.55
  for number, thing in enumerate(things, 1):
    kind = list(CLASSES)[thing.kind]
    patch, u, v = _local(thing, 0.0, 0.0)
    where = inside(kind, u, v)
    color = np.clip(_RGB[thing.color] * shade(kind, u, v)[..., None], 0, 255)
    under = canvas[patch]
    # Contrast mixes the object with the ground below it.
    canvas[patch] = np.where(where[..., None], under + drawn.contrast * (color - under), under)
    # Later objects cover earlier ones.
    ids[patch] = np.where(where, number, ids[patch])
  # Counted before anything covers the objects, so that the caller knows which share is seen.
  whole = _areas(ids, len(things))
  if drawn.occluded:
    _cover(canvas, ids, things, rng)
  # The mean of the fine samples: edges of objects are soft.
  image = canvas.reshape(SIDE, _FINE, SIDE, _FINE, 3).mean((1, 3))
  if drawn.blur > 0.2:
    image = ndimage.gaussian_filter(image, (drawn.blur, drawn.blur, 0), mode="nearest")
  image += rng.normal(0, 1, image.shape).astype(np.float32) * drawn.noise
  return np.clip(image, 0, 255).astype(np.uint8), _pixels(ids), whole


def _local(thing: Thing, right: float, down: float):
  """The samples around an object, moved: a pair of slices, and u and v of each."""
  # A circle around the object holds it however it is turned. One pixel more is for rounding.
  reach = 0.5 * np.hypot(thing.length, thing.width) + 1
  x, y = thing.x + right, thing.y + down
  ends = [(max(0, int((z - reach) * _FINE)), int((z + reach) * _FINE) + 1) for z in (x, y)]
  cols, rows = (np.arange(first, min(end, SIDE * _FINE)) for first, end in ends)
  # From the object's centre to the centre of each sample, in pixels of the image.
  dx, dy = np.meshgrid((cols + 0.5) / _FINE - x, (rows + 0.5) / _FINE - y)
  # Turned back by the object's angle, so that shapes need to be known upright only.
  along = dx * np.cos(thing.angle) + dy * np.sin(thing.angle)
  across = dy * np.cos(thing.angle) - dx * np.sin(thing.angle)
  patch = (slice(*ends[1]), slice(*ends[0]))
  return patch, along / (thing.length / 2), across / (thing.width / 2)


def _ground(rng: np.random.Generator) -> np.ndarray:
  """Fields of one colour, uneven, and often a road: [samples, samples, 3] float32."""
  size = SIDE * _FINE
  color = np.array(_GROUNDS[rng.integers(len(_GROUNDS))], np.float32)
  coarse = rng.normal(0, 1, (9, 9)).astype(np.float32)
  place = np.linspace(0, 8, size, dtype=np.float32)
  # The last sample lies on the last place, which has no right neighbour.
  left = np.minimum(place.astype(int), 7)
  rise = place - left
  # Bilinear weights, from 9 places to all samples.
  mix = np.zeros((size, 9), np.float32)
  mix[np.arange(size), left] = 1 - rise
  mix[np.arange(size), left + 1] += rise
  # (size, 9) (9, 9) (9, size): interpolated by rows and by columns at once.
  ground = color + 9 * (mix @ coarse @ mix.T)[..., None]
  if rng.random() < 0.4:
    turn = rng.uniform(0, np.pi)
    far = rng.uniform(0.2, 0.8) * size
    y, x = np.mgrid[:size, :size]
    # Distance from a straight line through a point at the given turn.
    away = np.abs((x - far) * np.sin(turn) - (y - far) * np.cos(turn))
    ground[away < rng.uniform(2, 5)] = 105 + rng.normal(0, 8)
  return ground.astype(np.float32)


def _cover(canvas: np.ndarray, ids: np.ndarray, things: list[Thing], rng) -> None:
  """Trees, round and dark green, over a part of some objects."""
  y, x = np.mgrid[: SIDE * _FINE, : SIDE * _FINE]
  for thing in things:
    if rng.random() < 0.5:
      turn = rng.uniform(-np.pi, np.pi)
      cx = (thing.x + 0.45 * thing.length * np.cos(turn)) * _FINE
      cy = (thing.y + 0.45 * thing.length * np.sin(turn)) * _FINE
      # At the object's rim and not in its middle: a part of it stays to be seen.
      tree = (x - cx) ** 2 + (y - cy) ** 2 < (0.3 * thing.length * _FINE) ** 2
      canvas[tree] = np.array([44, 72, 40]) + rng.normal(0, 6, (tree.sum(), 1))
      # To the masks, what a tree covers is ground.
      ids[tree] = 0


def _areas(ids: np.ndarray, count: int) -> np.ndarray:
  return np.bincount(ids.ravel(), minlength=count + 1)[1:] / _FINE**2


def _pixels(ids: np.ndarray) -> np.ndarray:
  """The object that holds two of a pixel's four samples or more, the later of two; else 0."""
  # (SIDE, fine, SIDE, fine) -> (SIDE, SIDE, fine·fine): a pixel's samples side by side.
  cut = ids.reshape(SIDE, _FINE, SIDE, _FINE).transpose(0, 2, 1, 3).reshape(SIDE, SIDE, -1)
  cut = np.sort(cut, axis=-1)
  # Sorted, equal samples are neighbours. A number that comes twice or more stands next to itself.
  twice = np.where(cut[..., 1:] == cut[..., :-1], cut[..., 1:], 0)
  return twice.max(-1).astype(np.uint8)
