"""The table of BTDNet's ablation, against sums over loops."""

import numpy as np
import pytest

from gr4ad_jax.scenes import dataset
from gr4ad_jax.segmentation.metrics import Counts
from gr4ad_jax.studies import btdnet_table
from gr4ad_jax.studies.btdnet_table import PLACED_KINDS, RUN, WHOLE, WITHOUT_PLACE

CONTROLS = (RUN, "shuffled sentences", WITHOUT_PLACE)


def draw(rng, number):
  either = rng.integers(10, 60, number).astype(float)
  return Counts(np.floor(either * rng.random(number)), either, rng.random(number))


@pytest.fixture(scope="module")
def data():
  return dataset.split(0, "test", 12)


@pytest.fixture(scope="module")
def rows(data):
  rng = np.random.default_rng(0)
  seeds = {"base": (0, 1), "bsc": (1, 2), "all": (0,)}
  return {
    name: {seed: {control: draw(rng, len(data)) for control in CONTROLS} for seed in some}
    for name, some in seeds.items()
  }


@pytest.fixture(scope="module")
def found(data, rows):
  return btdnet_table.results(data, rows)


def overlap(runs, keep):
  """oIoU of several runs together, and the share of sentences whose own is .7 or more."""
  both = either = good = number = 0
  for counts in runs:
    for row in np.flatnonzero(keep):
      both += counts.both[row]
      either += counts.either[row]
      good += counts.both[row] / counts.either[row] >= 0.7
      number += 1
  return both / either, good / number


def test_rows_add_up_their_seeds_and_steps_are_of_common_ones(data, rows, found):
  relation = data.kind == "relation"
  small = data.facts["pixels"] >= 100
  groups = {
    WHOLE: relation | True,
    "kind relation": relation,
    "target of 100 or more pixels": small,
  }
  for group, keep in groups.items():
    for name, seeds in rows.items():
      expected = overlap([one[RUN] for one in seeds.values()], keep)
      told = found["rows"][name][group]
      assert (told["oIoU"]["mean"], told["Pr@0.7"]["mean"]) == pytest.approx(expected), (
        name,
        group,
      )
      assert told["oIoU"]["low"] < told["oIoU"]["mean"] < told["oIoU"]["high"]
    for name, seed in (("bsc", 1), ("all", 0)):
      ours, theirs = (overlap([rows[row][seed][RUN]], keep) for row in (name, "base"))
      step = found["steps"][name][group]
      assert step["oIoU"]["mean"] == pytest.approx(ours[0] - theirs[0])
      assert step["Pr@0.7"]["mean"] == pytest.approx(ours[1] - theirs[1])
  assert "base" not in found["steps"]
  assert found["sentences"]["kind relation"] == relation.sum()


def test_a_step_is_paired_by_images(data, rows):
  """Of a row that is the base but for one pixel a sentence, the step is known far better than the
  row is.
  """
  base = {0: rows["base"][0]}
  counts = base[0][RUN]
  better = Counts(counts.both + 1, counts.either + 1, counts.boundary)
  found = btdnet_table.results(data, {"base": base, "next": {0: base[0] | {RUN: better}}})
  step = found["steps"]["next"][WHOLE]["oIoU"]
  row = found["rows"]["next"][WHOLE]["oIoU"]
  assert 0 < step["low"] < step["high"]
  assert step["high"] - step["low"] < (row["high"] - row["low"]) / 5


def test_controls_are_told_by_all_and_by_kinds_with_a_place(data, rows, found):
  placed = np.isin(data.kind, ("position", "relation", "comparison"))
  for name, seeds in rows.items():
    for control in CONTROLS:
      runs = [one[control] for one in seeds.values()]
      told = found["controls"][name][control]
      assert told[WHOLE] == pytest.approx(overlap(runs, placed | True)[0])
      assert told[PLACED_KINDS] == pytest.approx(overlap(runs, placed)[0])
  assert found["by_seed"]["bsc"].keys() == {"1", "2"}
  one = overlap([rows["bsc"][2][RUN]], placed | True)[0]
  assert found["by_seed"]["bsc"]["2"] == pytest.approx(one)


def test_the_page_has_every_row_group_and_control(data, found):
  about = {name: {"parameters": 1_234_567, "decoder_width": 40} for name in found["rows"]}
  text = btdnet_table.format_markdown(
    found | {"about": about, "split": "test", "trained_steps": 450}
  )
  assert f"test, {len(data)} sentences" in text and "450 steps a run" in text
  lines = {line.split(" | ")[0].removeprefix("| ").strip() for line in text.splitlines()}
  assert {"base", "bsc", "all", "kind relation", WHOLE, PLACED_KINDS} <= lines
  assert "| 1,234,567  |" in text and f"{PLACED_KINDS}: {WITHOUT_PLACE}" in text
