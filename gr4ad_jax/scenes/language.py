"""Sentences about a scene, each with the objects that it names; a checker finds them.

What the words mean here, since no data set's paper says:

- A part of the image ("right", "lower left") is a cell of a 3 × 3 grid, by an object's centre.
- A direction ("to the upper left of") is a sector of 45 degrees, from centre to centre, at any
  distance; "above" and "below" are those of top and bottom.
- "Large" and "small" are of an object's class: each class has large ones and small ones, and none
  between. "Larger than" and "smaller than" compare pixels, by a factor of 1.3 or more.

An object so near to a border of a cell or sector that it is in doubt makes a sentence unfit.
"""

import dataclasses
import itertools
import math

import numpy as np

from gr4ad_jax.scenes.knobs import SIDE
from gr4ad_jax.scenes.layout import CELLS, CLASSES, COLORS, SIZES, Thing

KINDS = {"position": 0.53, "attribute": 0.22, "set": 0.08, "relation": 0.14, "comparison": 0.03}
"""Share of each kind; of RRSIS-D's sentences 53 % have a position, 30 % attributes alone, 17 % two
objects. Sets are in RefSegRS' manner, where several objects may be meant."""

WANTED = {"position": 0.53, "attribute": 0.20, "set": 0.07, "relation": 0.12, "comparison": 0.30}
"""Share at which each kind is asked for, so that KINDS comes out: not every scene has all kinds."""

DIRECTIONS = (
  "right", "lower right", "bottom", "lower left", "left", "upper left", "top", "upper right",
)  # clockwise from the x axis, as angles grow in an image  # fmt: skip
_CELL_DOUBT = 2.0  # pixels from a border of a cell
_SECTOR_DOUBT = math.radians(7)
_RATIO = 1.3  # of areas that are compared
_HELD_OUT = 6  # one in so many pairs of word and class is kept from training


@dataclasses.dataclass(frozen=True)
class Sentence:
  """Attributes:
  text: at most 20 words.
  kind: a name of KINDS.
  word: the part or direction that it names, "larger" or "smaller"; empty: none.
  targets: rows of the objects that are meant.
  alike: rows of the objects of their class with the attributes that it states.
  noun: begin and end of the object's noun in the text, characters.
  novel: no sentence of training joins this word and this class.
  """

  text: str
  kind: str
  word: str
  targets: tuple[int, ...]
  alike: tuple[int, ...]
  noun: tuple[int, int]
  novel: bool


def held_out(word: str, kind: int) -> bool:
  """Whether training has no sentence that joins a part or direction with a class."""
  words = (*CELLS, "larger", "smaller")
  # Fixed by word and class, so that all runs hold out the same pairs; 5 spreads them over the
  # classes.
  return (words.index(word) + 5 * kind) % _HELD_OUT == 0


@dataclasses.dataclass(frozen=True)
class Phrase:
  """An object's class with the attributes that are stated; None: not stated."""

  kind: int
  color: int | None
  size: int | None

  def fits(self, thing: Thing) -> bool:
    """Whether it is true of an object."""
    return (
      thing.kind == self.kind
      and self.color in (None, thing.color)
      and self.size in (None, thing.size)
    )

  def words(self, many: bool = False) -> str:
    """As in a sentence, without an article."""
    size = [] if self.size is None else [SIZES[self.size]]
    color = [] if self.color is None else [COLORS[self.color]]
    return " ".join([*size, *color, self.noun(many)])

  def noun(self, many: bool = False) -> str:
    """The class' noun."""
    return list(CLASSES)[self.kind] + "s" * many


def phrases(thing: Thing) -> list[Phrase]:
  """What may be said of an object, least first."""
  # Not stated comes first, so the phrases go from the shortest on.
  colors = (None, thing.color)
  sizes = (None, thing.size)
  return [Phrase(thing.kind, *pair) for pair in itertools.product(colors, sizes)]


def sentences(
  things: list[Thing], clear: list[bool], count: int, rng: np.random.Generator, train: bool
) -> list[Sentence]:
  """Up to `count` different sentences, in kinds about as KINDS asks.

  Args:
    things: the scene's objects.
    clear: which of them are seen well enough to be meant.
    count: sentences wanted.
    rng: draws.
    train: leave out the pairs of word and class that are held out.
  """
  found: dict[str, list[Sentence]] = {}
  left = dict(WANTED)
  chosen: list[Sentence] = []
  while left and len(chosen) < count:
    # Shares of the kinds that are left, brought to a sum of 1 where they are drawn.
    share = np.array(list(left.values()))
    kind = list(left)[rng.choice(len(share), p=share / share.sum())]
    if kind not in found:
      # Made once for a scene; sentences of held-out pairs are no training.
      found[kind] = [s for s in _MAKERS[kind](things, clear) if not (train and s.novel)]
    # A scene may have no sentence of a kind: the other kinds share its part.
    if not found[kind]:
      del left[kind]
      continue
    weight = np.array([float(CELLS[s.word]) if kind == "position" else 1.0 for s in found[kind]])
    # Parts of the image are named as often as in RRSIS-D.
    pick = rng.choice(len(weight), p=weight / weight.sum())
    # Taken out, so that a scene has no sentence twice.
    chosen.append(found[kind].pop(pick))
  return chosen


def cell(thing: Thing) -> str:
  """The part of the image in which an object's centre lies."""
  # A centre right at the border of the image belongs to the last third.
  col, row = (min(2, int(3 * z // SIDE)) for z in (thing.x, thing.y))
  return list(CELLS)[3 * row + col]


def depth(thing: Thing, word: str) -> float:
  """How far inside a part of the image an object's centre lies, pixels; negative: outside.

  The image's own border does not count: beyond it there is no other part.
  """
  row, col = divmod(list(CELLS).index(word), 3)
  third = SIDE / 3
  # Borders with other parts alone: `part > 0` has one before it, `part < 2` one behind.
  # Pixels from each of the cell's borders, inwards. The least one tells.
  sides = [z - part * third for z, part in ((thing.x, col), (thing.y, row)) if part > 0]
  sides += [(part + 1) * third - z for z, part in ((thing.x, col), (thing.y, row)) if part < 2]
  return min(sides)


def direction(thing: Thing, anchor: Thing) -> str:
  """Where an object lies as seen from another."""
  turn = math.atan2(thing.y - anchor.y, thing.x - anchor.x)
  # Each direction is the middle of its sector, so the nearest one is found by rounding. The
  # remainder brings what lies behind -pi to the list's other half.
  return DIRECTIONS[round(turn / (math.pi / 4)) % 8]


def within(thing: Thing, anchor: Thing, word: str) -> float:
  """How far inside a direction's sector an object lies, radians; negative: outside."""
  turn = math.atan2(thing.y - anchor.y, thing.x - anchor.x)
  # The difference of two angles, brought to [-pi, pi).
  off = (turn - DIRECTIONS.index(word) * math.pi / 4 + math.pi) % (2 * math.pi) - math.pi
  return math.pi / 8 - abs(off)


def _only(row: int, inside: dict[int, float], doubt: float) -> bool:
  """Whether one object alone is inside, and no object is in doubt."""
  # Nearly inside counts as doubt too: another reader may call it so.
  sure = all(abs(far) > doubt for far in inside.values())
  return sure and [other for other, far in inside.items() if far > 0] == [row]


def _sentence(text, kind, word, targets, alike, phrase, many=False) -> Sentence:
  # The first place is the object's own: phrases of another object come after it.
  begin = text.index(phrase.noun(many))
  novel = bool(word) and held_out(word, phrase.kind)
  noun = (begin, begin + len(phrase.noun(many)))
  return Sentence(text, kind, word, tuple(targets), tuple(alike), noun, novel)


def _alike(phrase: Phrase, things: list[Thing]) -> list[int]:
  return [row for row, thing in enumerate(things) if phrase.fits(thing)]


def _all_clear(rows: list[int], clear: list[bool]) -> bool:
  return all(clear[row] for row in rows)


def _attribute(things: list[Thing], clear: list[bool]) -> list[Sentence]:
  """One object, told by its looks alone; there is another of its class."""
  found = []
  for row, thing in enumerate(things):
    for phrase in phrases(thing):
      alike = _alike(phrase, things)
      # Of a class with one object, the noun alone would do.
      rivals = sum(other.kind == thing.kind for other in things)
      if alike == [row] and clear[row] and rivals > 1:
        text = f"the {phrase.words()}"
        found.append(_sentence(text, "attribute", "", [row], [row], phrase))
  # Two phrases of one object may read the same.
  return list(dict.fromkeys(found))


def _set(things: list[Thing], clear: list[bool]) -> list[Sentence]:
  """All objects of some looks, two or more."""
  found = []
  # Objects that look alike have the same phrases, and each is said once.
  for phrase in dict.fromkeys(p for thing in things for p in phrases(thing)):
    alike = _alike(phrase, things)
    if len(alike) > 1 and _all_clear(alike, clear):
      text = f"all {phrase.words(many=True)}"
      found.append(_sentence(text, "set", "", alike, alike, phrase, many=True))
  return found


def _has_twin(row: int, things: list[Thing]) -> bool:
  """Whether another object has the same class, colour and size."""
  return sum(other.looks == things[row].looks for other in things) > 1


_PLACES = {
  "middle": ("in the middle", "in the center"),
  "left": ("on the left", "on the left side"),
  "right": ("on the right", "on the right side"),
  "top": ("at the top", "on the top"),
  "bottom": ("at the bottom", "on the bottom"),
}


def _position(things: list[Thing], clear: list[bool]) -> list[Sentence]:
  """One object, told by its part of the image; a twin of it stands in another part."""
  found = []
  for row, thing in enumerate(things):
    if not clear[row] or not _has_twin(row, things):
      continue
    word = cell(thing)
    for phrase in phrases(thing):
      alike = _alike(phrase, things)
      if _only(row, {other: depth(things[other], word) for other in alike}, _CELL_DOUBT):
        for place in _PLACES.get(word, (f"on the {word}", f"in the {word} corner")):
          text = f"the {phrase.words()} {place}"
          found.append(_sentence(text, "position", word, [row], alike, phrase))
  return found


def _anchors(things: list[Thing], clear: list[bool]) -> list[tuple[int, Phrase]]:
  """Objects that their looks alone tell, with the shortest phrase that does."""
  found = []
  for row, thing in enumerate(things):
    # The first one is the shortest.
    unique = [phrase for phrase in phrases(thing) if _alike(phrase, things) == [row]]
    if unique and clear[row]:
      found.append((row, unique[0]))
  return found


def _relation(things: list[Thing], clear: list[bool]) -> list[Sentence]:
  """One object, told by where it lies from another; a twin of it lies elsewhere."""
  found = []
  for anchor, named in _anchors(things, clear):
    for row, thing in enumerate(things):
      if row == anchor or not clear[row] or not _has_twin(row, things):
        continue
      word = direction(thing, things[anchor])
      for phrase in phrases(thing):
        alike = _alike(phrase, things)
        # An anchor that the phrase fits too would be meant as well.
        if anchor in alike:
          continue
        inside = {other: within(things[other], things[anchor], word) for other in alike}
        if _only(row, inside, _SECTOR_DOUBT):
          for text in _directed(phrase.words(), word, named.words()):
            found.append(_sentence(text, "relation", word, [row], alike, phrase))
  return found


def _directed(target: str, word: str, anchor: str) -> list[str]:
  texts = [
    f"the {target} is on the {word} of the {anchor}",
    f"the {target} on the {word} of the {anchor}",
  ]
  other = {"top": "above", "bottom": "below"}.get(word)
  return [*texts, f"the {target} {other} the {anchor}"] if other else texts


def _comparison(things: list[Thing], clear: list[bool]) -> list[Sentence]:
  """One object, told by its size beside another; of its class and colour, one is not so."""
  found = []
  area = [thing.length * thing.width for thing in things]
  for anchor, named in _anchors(things, clear):
    for row, thing in enumerate(things):
      # The size is what the sentence tells by comparison, so the phrase has none.
      phrase = Phrase(thing.kind, thing.color, None)
      alike = _alike(phrase, things)
      if row == anchor or not clear[row] or anchor in alike or len(alike) < 2:
        continue
      ratio = {other: area[other] / area[anchor] for other in alike}
      # Areas that are nearly the same are in doubt, and so is the sentence.
      sure = all(r > _RATIO or r < 1 / _RATIO for r in ratio.values())
      larger = ratio[row] > 1
      # The anchor says which of those alike are meant. It must be this one alone.
      same = [other for other, r in ratio.items() if (r > 1) == larger]
      if same == [row] and sure:
        word = "larger" if larger else "smaller"
        text = f"the {phrase.words()} {word} than the {named.words()}"
        found.append(_sentence(text, "comparison", word, [row], alike, phrase))
  return found


_MAKERS = {
  "position": _position,
  "attribute": _attribute,
  "set": _set,
  "relation": _relation,
  "comparison": _comparison,
}
