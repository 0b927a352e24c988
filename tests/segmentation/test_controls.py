"""Controls say what they say they do."""

import dataclasses

import numpy as np
import pytest

from gr4ad_jax.scenes import dataset
from gr4ad_jax.segmentation import controls, metrics, report


@pytest.fixture(scope="module")
def split():
  return dataset.split(0, "test", 40)


def test_shuffled_sentences_are_those_of_other_images(split):
  other = controls.shuffled(split)
  of_image = {row: set() for row in split.row.tolist()}
  for row, text in zip(split.row.tolist(), split.text, strict=True):
    of_image[row].add(text)
  came_from = {}
  for row, text in zip(split.row.tolist(), other.text, strict=True):
    came_from.setdefault(row, []).append(text)
  for row, texts in came_from.items():
    assert any(set(texts) <= theirs for image, theirs in of_image.items() if image != row)
  assert np.mean([a == b for a, b in zip(split.text, other.text, strict=True)]) < 0.05
  assert controls.shuffled(split, seed=1).text != other.text
  np.testing.assert_array_equal(other.mask, split.mask)


def test_words_are_taken_away(split):
  nouns = controls.noun_only(split).text
  placeless = controls.without_place(split).text
  for row, text in enumerate(split.text):
    assert nouns[row].removeprefix("the ") in text and " " not in nouns[row][4:].replace(
      "storage tank", ""
    ).replace("tennis court", "").replace("baseball field", "")
    if split.kind[row] in controls.PLACED:
      assert text.startswith(placeless[row]) and len(placeless[row]) < len(text)
      assert not {"on", "in", "at", "than", "above", "below"} & set(placeless[row].split())
    else:
      assert placeless[row] == text


def test_baselines_are_those_of_the_scene(split):
  found = controls.baselines(split)
  truth = split.masks(np.arange(len(split)))
  everything = truth.sum() / truth.size
  assert metrics.values(found["everything"])["oIoU"] == pytest.approx(everything)
  alone = metrics.values(found["class alone"])["oIoU"]
  looks = metrics.values(found["class and attributes"])["oIoU"]
  assert everything < alone < looks < 1
  rows = split.kind == "attribute"
  assert metrics.values(found["class and attributes"].take(rows))["oIoU"] == 1
  rows = split.kind == "position"
  assert metrics.values(found["class and attributes"].take(rows))["oIoU"] < 0.5


def test_without_nouns_their_controls_are_left_out(split):
  bare = dataclasses.replace(split, noun=np.zeros_like(split.noun))
  assert list(controls.named(bare)) == ["shuffled sentences"]
  assert len(controls.named(split)) == 3


def test_groups_cover_the_sentences(split):
  groups = report.groups(split)
  for prefix in ("kind ", "target of "):
    parts = [rows for name, rows in groups.items() if name.startswith(prefix)]
    np.testing.assert_array_equal(np.sum(parts, 0), 1)
  for knob in ("blur", "noise", "contrast"):
    parts = [rows for name, rows in groups.items() if name.split()[-1] == knob]
    assert len(parts) == 3 and (np.sum(parts, 0) == 1).all()
    little, _, much = (split.facts[knob][rows] for rows in parts)
    assert little.max() < much.min()
  assert groups["word and class not in training"].sum() == split.novel.sum()
