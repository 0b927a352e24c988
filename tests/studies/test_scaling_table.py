"""The power law, what counts as rising, and the table."""

import math

import pytest

from gr4ad_jax.evaluation import plots
from gr4ad_jax.studies import scaling_table
from tests.evaluation.drawn import drawn_axes


def found():
  sizes = [
    {"width": w, "parameters": n, "train_loss": 5 * n**-0.1, "recall@10": r, "revenue@10": r / 2}
    for w, n, r in ((8, 1000, 0.1), (16, 4000, 0.2), (32, 9000, 0.25))
  ]
  beams = [{"beams": b, "recall@10": r, "revenue@10": 0.1} for b, r in ((32, 0.2), (64, 0.19))]
  law = scaling_table.power_law(
    [one["parameters"] for one in sizes], [one["train_loss"] for one in sizes]
  )
  return {"dataset": "shop", "seeds": [0], "sizes": sizes, "beams": beams, "law": law}


def test_power_law_is_recovered():
  law = found()["law"]
  assert (
    law["exponent"] == pytest.approx(0.1)
    and law["scale"] == pytest.approx(5)
    and law["r2"] == pytest.approx(1)
  )
  noisy = scaling_table.power_law([10, 100, 1000], [3.0, 2.5, 2.6])
  assert 0 < noisy["r2"] < 1


def test_rising_is_told_by_measure():
  rising = scaling_table.rising(found())
  assert rising["sizes"] == {"recall@10": True, "revenue@10": True, "train_loss": True}
  assert rising["beams"] == {"recall@10": False, "revenue@10": True}


def test_a_law_of_a_noisy_line_equals_the_closed_form():
  parameters, loss = [10, 300, 2000, 90_000], [3.0, 2.5, 2.6, 1.1]
  x, y = ([math.log(value) for value in values] for values in (parameters, loss))
  middle_x, middle_y = sum(x) / 4, sum(y) / 4
  slope = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / sum(
    (a - middle_x) ** 2 for a in x
  )
  offset = middle_y - slope * middle_x
  left = sum((b - slope * a - offset) ** 2 for a, b in zip(x, y, strict=True))
  r2 = 1 - left / sum((b - middle_y) ** 2 for b in y)
  law = scaling_table.power_law(parameters, loss)
  assert law == pytest.approx({"scale": math.exp(offset), "exponent": -slope, "r2": r2})
  assert scaling_table.power_law([1, 2], [3.0, 3.0])["r2"] == 1


def test_what_stays_level_does_not_fall():
  level = found()
  for one in level["sizes"]:
    one["recall@10"], one["train_loss"] = 0.5, 2.0
  assert scaling_table.rising(level)["sizes"] == {
    "recall@10": True,
    "revenue@10": True,
    "train_loss": True,
  }
  level["sizes"][1]["train_loss"] = 2.5
  assert not scaling_table.rising(level)["sizes"]["train_loss"]


def test_one_size_and_one_width_of_search_are_enough():
  alone = found()
  alone |= {kind: alone[kind][:1] for kind in ("sizes", "beams")}
  assert scaling_table.measures(alone) == ["recall@10", "revenue@10"]
  assert all(scaling_table.rising(alone)["beams"].values())


TEXT = """\
shop, test, 1 seeds: means. The beams are the largest model's.

| width | parameters | train loss | recall@10 | revenue@10 |
|---|---|---|---|---|
| 8 | 1,000 | 2.5059 | 0.1000 | 0.0500 |
| 16 | 4,000 | 2.1815 | 0.2000 | 0.1000 |
| 32 | 9,000 | 2.0116 | 0.2500 | 0.1250 |

Train loss = 5 x parameters^-0.1, r2 1.000 of the logarithms.

| beams | recall@10 | revenue@10 |
|---|---|---|
| 32 | 0.2000 | 0.1000 |
| 64 | 0.1900 | 0.1000 |
"""


def test_the_table_s_words():
  def words(text):
    return [[cell.strip(" -") for cell in line.split("|")] for line in text.splitlines()]

  assert words(scaling_table.format_markdown(found())) == words(TEXT)


def test_the_chart_s_lines(tmp_path, monkeypatch):
  axes = drawn_axes(monkeypatch, lambda: scaling_table.plot(found(), str(tmp_path / "scaling.png")))
  made = found()
  parameters, measures = [1000, 4000, 9000], ("recall@10", "revenue@10")
  loss, sizes, beams = axes
  assert loss.get_title(loc="left") == "train loss, exponent 0.100"
  assert (loss.get_xscale(), loss.get_yscale(), loss.get_xlabel()) == ("log", "log", "parameters")
  points, law = loss.lines
  assert points.get_xydata().tolist() == [[n, pytest.approx(5 * n**-0.1)] for n in parameters]
  assert law.get_xydata().tolist() == [[n, pytest.approx(5 * n**-0.1)] for n in parameters]
  assert (points.get_marker(), points.get_linestyle(), law.get_linestyle()) == ("o", "None", "-")
  for axis, kind, x in ((sizes, "sizes", "parameters"), (beams, "beams", "beams")):
    assert (axis.get_title(loc="left"), axis.get_xlabel(), axis.get_xscale()) == (
      f"test, by {x}",
      x,
      "log",
    )
    assert [line.get_label() for line in axis.lines] == list(measures)
    assert [line.get_color() for line in axis.lines] == list(plots.COLORS[:2])
    for line, name in zip(axis.lines, measures, strict=True):
      assert line.get_xydata().tolist() == [[one[x], one[name]] for one in made[kind]]
  assert sizes.get_legend() is None and law.get_linewidth() == 1
  assert loss.figure.get_size_inches().tolist() == [9.5, 3.2]
  assert beams.get_legend().get_texts()[0].get_fontsize() == 8
  assert [text.get_text() for text in beams.get_legend().get_texts()] == list(measures)
