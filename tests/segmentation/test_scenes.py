"""Rendered scenes: the same by number; every sentence means what a loop over the scene finds."""

import collections
import math

import numpy as np
import pytest

from gr4ad_jax.scenes import generate, knobs, language, layout, render
from gr4ad_jax.scenes.layout import CELLS, CLASSES, COLORS, SIZES, Thing

NUMBER = 120


@pytest.fixture(scope="module")
def scenes():
  return [generate.make(0, "train", number) for number in range(NUMBER)]


def _thing(kind, color, size, x, y, length=8.0, width=8.0):
  row = list(CLASSES).index(kind), COLORS.index(color), SIZES.index(size)
  return Thing(*row, x, y, length, width, 0.0)


def _fits(words, thing):
  """Whether a phrase such as 'small red ship' is true of an object."""
  kind, color, size = (list(CLASSES)[thing.kind], COLORS[thing.color], SIZES[thing.size])
  *stated, _ = words.removesuffix(kind).split(" ")
  return words.endswith(kind) and all(word in (color, size) for word in stated if word)


def _referents(text, things):
  """What a sentence means, from its words alone."""
  if text.startswith("all "):
    words = text.removeprefix("all ").removesuffix("s")
    return [i for i, thing in enumerate(things) if _fits(words, thing)]
  text = text.removeprefix("the ").replace(" is on the ", " on the ")
  for word, sign in (("larger", 1), ("smaller", -1)):
    if f" {word} than the " in text:
      target, anchor = text.split(f" {word} than the ")
      (other,) = [t for t in things if _fits(anchor, t)]
      return [
        i for i, t in enumerate(things)
        if _fits(target, t) and sign * (t.length * t.width - other.length * other.width) > 0
      ]  # fmt: skip
  for short, word in (("above", "top"), ("below", "bottom")):
    text = text.replace(f" {short} the ", f" on the {word} of the ")
  if " of the " in text:
    rest, anchor = text.split(" of the ")
    target, way = rest.split(" on the ")
    (other,) = [t for t in things if _fits(anchor, t)]
    return [
      i for i, t in enumerate(things)
      if _fits(target, t) and t is not other and _way(t.x - other.x, t.y - other.y) == way
    ]  # fmt: skip
  for lead in (" on the ", " in the ", " at the "):
    if lead in text:
      target, place = text.split(lead)
      place = place.removesuffix(" side").removesuffix(" corner").replace("center", "middle")
      return [i for i, t in enumerate(things) if _fits(target, t) and _part(t.x, t.y) == place]
  return [i for i, thing in enumerate(things) if _fits(text, thing)]


def _part(x, y):
  third = knobs.SIDE / 3
  rows = ["upper" if y < third else "lower" if y >= 2 * third else ""]
  cols = ["left" if x < third else "right" if x >= 2 * third else ""]
  words = [*filter(None, rows), *filter(None, cols)]
  alone = {"upper": "top", "lower": "bottom"}
  return (
    " ".join(words) if len(words) == 2 else alone.get(words[0], words[0]) if words else "middle"
  )


def _way(dx, dy):
  degrees = math.degrees(math.atan2(-dy, dx)) % 360  # as on paper: 90 is up
  names = ("right", "upper right", "top", "upper left", "left", "lower left", "bottom",
           "lower right")  # fmt: skip
  return names[int((degrees + 22.5) // 45) % 8]


def test_every_sentence_means_what_its_words_say(scenes):
  for scene in scenes:
    for sentence in scene.sentences:
      found = _referents(sentence.text, scene.things)
      assert found == list(sentence.targets), (sentence, scene.things)
      assert len(sentence.text.split()) <= 20
      begin, end = sentence.noun
      noun = list(CLASSES)[scene.things[found[0]].kind]
      assert sentence.text[begin:end] in (noun, f"{noun}s")


def test_position_and_relation_have_a_twin_that_is_not_meant(scenes):
  kinds = collections.Counter()
  for scene in scenes:
    for sentence in scene.sentences:
      kinds[sentence.kind] += 1
      if sentence.kind in ("position", "relation"):
        (target,) = sentence.targets
        looks = [t.looks for i, t in enumerate(scene.things) if i != target]
        assert scene.things[target].looks in looks
        assert len(sentence.alike) > 1 and target in sentence.alike
  share = {kind: count / kinds.total() for kind, count in kinds.items()}
  for kind, wanted in language.KINDS.items():
    assert abs(share[kind] - wanted) < 0.1, share


def test_held_out_pairs_are_in_test_alone(scenes):
  assert not any(s.novel for scene in scenes for s in scene.sentences)
  pairs = {
    (s.word, scene.things[s.targets[0]].kind)
    for scene in scenes for s in scene.sentences if s.word
  }  # fmt: skip
  assert not any(language.held_out(*pair) for pair in pairs)
  tested = [s for n in range(60) for s in generate.make(0, "test", n).sentences]
  assert 0 < sum(s.novel for s in tested) < len(tested) / 3
  words = (*CELLS, "larger", "smaller")
  out = [language.held_out(word, kind) for word in words for kind in range(len(CLASSES))]
  assert 0.1 < np.mean(out) < 0.25


def test_a_scene_depends_on_its_number_alone(scenes):
  again = generate.make(0, "train", 7)
  np.testing.assert_array_equal(again.image, scenes[7].image)
  assert again.sentences == scenes[7].sentences and again.drawn == scenes[7].drawn
  for seed, split, number in ((1, "train", 7), (0, "valid", 7), (0, "train", 8)):
    assert not np.array_equal(generate.make(seed, split, number).image, again.image)


def test_objects_are_inside_and_apart(scenes):
  for scene in scenes:
    for i, thing in enumerate(scene.things):
      assert min(thing.x, thing.y) >= thing.radius
      assert max(thing.x, thing.y) <= knobs.SIDE - thing.radius
      for other in scene.things[:i]:
        far = math.hypot(thing.x - other.x, thing.y - other.y)
        assert far > thing.radius + other.radius


def test_a_mask_is_the_shape_where_nothing_covers_it():
  thing = Thing(list(CLASSES).index("storage tank"), 0, 0, 20.3, 30.7, 9.0, 9.0, 0.4)
  drawn = knobs.Drawn(2, 1, False, 1.0, 1.0, 0.8, 10.0, 0.8, True, 0.0, False)
  image, ids, whole = render.render([thing], drawn, np.random.default_rng(0))
  y, x = np.mgrid[: knobs.SIDE, : knobs.SIDE]
  samples = [
    (x + dx - thing.x) ** 2 + (y + dy - thing.y) ** 2 <= 4.5**2
    for dx in (0.25, 0.75) for dy in (0.25, 0.75)
  ]  # fmt: skip
  np.testing.assert_array_equal(ids == 1, np.sum(samples, 0) >= 2)
  assert whole[0] == pytest.approx(np.pi * 4.5**2, rel=0.05)
  assert image.shape == (knobs.SIDE, knobs.SIDE, 3) and image.dtype == np.uint8


def test_what_is_covered_is_not_of_the_mask():
  things = [_thing("building", "red", "large", 32.0, 32.0, 30.0, 20.0)]
  bare = knobs.Drawn(2, 1, False, 1.0, 1.0, 0.0, 0.0, 1.0, False, 0.0, False)
  for seed in range(6):
    open_ids = render.render(things, bare, np.random.default_rng(seed))[1]
    covered = knobs.Drawn(**{**vars(bare), "occluded": True})
    image, ids, whole = render.render(things, covered, np.random.default_rng(seed))
    assert whole[0] == (open_ids == 1).sum() or abs(whole[0] - (open_ids == 1).sum()) < 40
    if (ids == 1).sum() < (open_ids == 1).sum():
      gone = (open_ids == 1) & (ids == 0)
      assert (image[gone][:, 1] > image[gone][:, 0]).mean() > 0.9  # green, where it was red
      return
  raise AssertionError("nothing was covered in six draws")


@pytest.mark.parametrize(
  ("x", "y", "part"),
  [(5, 5, "upper left"), (32, 60, "bottom"), (32, 32, "middle"), (60, 30, "right")],
)
def test_parts_of_the_image(x, y, part):
  thing = _thing("ship", "red", "small", float(x), float(y))
  assert language.cell(thing) == part == _part(x, y)
  assert language.depth(thing, part) > 0
  assert all(language.depth(thing, other) < 0 for other in CELLS if other != part)


def test_a_centre_near_a_border_is_in_doubt():
  third = knobs.SIDE / 3
  near = _thing("ship", "red", "small", third + 1, 32.0)
  assert language.depth(near, "middle") == pytest.approx(1)
  twins = [near, _thing("ship", "red", "small", 60.0, 60.0)]
  assert not [s for s in language._position(twins, [True, True]) if s.targets == (0,)]
  sure = [_thing("ship", "red", "small", third + 3, 32.0), twins[1]]
  assert [s for s in language._position(sure, [True, True]) if s.targets == (0,)]


def test_directions_are_eight_sectors():
  anchor = _thing("building", "red", "large", 32.0, 32.0)
  for degrees in range(0, 360, 5):
    dx, dy = math.cos(math.radians(degrees)), -math.sin(math.radians(degrees))
    thing = _thing("ship", "red", "small", 32 + 20 * dx, 32 + 20 * dy)
    way = _way(dx, dy)
    if degrees % 45 not in (20, 25):  # not on a border
      assert language.direction(thing, anchor) == way
      assert language.within(thing, anchor, way) > 0
      assert sum(language.within(thing, anchor, w) > 0 for w in language.DIRECTIONS) == 1


def test_what_is_not_seen_is_not_meant():
  things = [_thing("ship", "red", "small", 10.0, 10.0), _thing("ship", "blue", "small", 40.0, 40.0)]
  rng = np.random.default_rng(0)
  found = language.sentences(things, [False, True], 9, rng, train=False)
  assert found and all(0 not in s.targets for s in found)


def test_knobs_stay_in_their_ranges(scenes):
  ranges = knobs.Ranges()
  for scene in scenes:
    for name in ("spacing", "scale", "blur", "noise", "contrast", "shadow", "copies", "others"):
      low, high = getattr(ranges, name)
      assert low <= getattr(scene.drawn, name) <= high
  assert abs(np.mean([scene.drawn.clustered for scene in scenes]) - ranges.clustered) < 0.15


def test_main_group_shares_its_looks():
  rng = np.random.default_rng(3)
  drawn = knobs.draw(knobs.Ranges(), rng)
  things = layout.sample(drawn, rng)
  assert len({thing.looks for thing in things[: min(2, len(things))]}) == 1
