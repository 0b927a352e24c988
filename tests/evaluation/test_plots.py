import json
import sys

import numpy as np
import pytest

from gr4ad_jax.evaluation import plots, report_tables
from tests.evaluation.drawn import drawn_axes, drawn_figure
from tests.whole_files import assert_replaced_whole


@pytest.fixture(autouse=True)
def _needs_matplotlib(tmp_path, monkeypatch):
  monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
  pytest.importorskip("matplotlib")


def _pixels(path):
  import matplotlib.image

  return matplotlib.image.imread(str(path), format="png")


def _write(path, lines):
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return str(path)


def test_training_curves_stand_gaps_and_foreign_keys(tmp_path):
  lines = [
    {"step": 20, "train/loss": 6.0, "train/sid": 5.0, "train/learning_rate": 1e-3, "time": 1.5},
    {"step": 40, "split": "train", "train/loss": 5.0},
    {"step": 40, "valid/recall@10": 0.1},
    {"step": 40, "train/loss": 4.5},
    {"step": 60, "valid/recall@10": 0.2, "valid/ndcg@10": None},
  ]
  png = tmp_path / "plots" / "training.png"
  path = _write(tmp_path / "metrics.jsonl", lines)
  plots.plot_training(path, str(png))
  both = _pixels(png)
  assert both.std() > 0.01
  assert plots._read_curves(path)["train/loss"] == {20: 6.0, 40: 4.5}
  plots.plot_training(_write(tmp_path / "short.jsonl", lines[:2]), str(png))
  assert _pixels(png).shape[1] < both.shape[1]  # one panel in place of two


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('{"step": 1}\n{"step": \n', "line 2: not JSON"),
    ('{"train/loss": 1.0}\n', "line 1: no whole-numbered 'step'"),
    ('{"step": 1, "time": 2.0}\n', "no training loss and no valid metric"),
  ],
)
def test_bad_metrics_file(tmp_path, text, message):
  (tmp_path / "metrics.jsonl").write_text(text)
  with pytest.raises(ValueError, match=message):
    plots.plot_training(str(tmp_path / "metrics.jsonl"), str(tmp_path / "x.png"))
  assert not (tmp_path / "x.png").exists()


def test_comparison_of_systems(shop, tmp_path):
  ranked = np.tile(np.append([3, 0, 2], np.full(47, -1)), (2, 1))
  found = report_tables.results(shop, "test", {"gr4ad": ranked, "popularity": ranked[:, ::-1]})
  png = tmp_path / "comparison.png"
  plots.plot_comparison(json.loads(json.dumps(found)), str(png))
  assert _pixels(png).std() > 0.01
  assert [path.name for path in tmp_path.glob("*png*")] == ["comparison.png"]
  with pytest.raises(ValueError, match="no system"):
    plots.plot_comparison({**found, "systems": {}}, str(png))


def test_training_curves_are_the_file_s_numbers(tmp_path, monkeypatch):
  lines = [
    {
      "step": 40,
      "train/sid": 5,
      "train/other": 8,
      "valid/ndcg@10": 0.5,
      "valid/flag": True,
      "bare": 3.0,
    },
    {
      "step": 20,
      "train/sid": 6.0,
      "train/mtp": 2.0,
      "train/ecpm": 3.0,
      "train/aux_loss": 1.0,
      "eval/loss": 9.0,
    },
    {"step": 20, "train/loss": 9.0, "valid/recall@10": 0.25},
    {"step": 40, "train/loss": 7.0},
    {"step": 20, "train/loss": 8.5},
  ]
  path = _write(tmp_path / "metrics.jsonl", lines)
  (tmp_path / "metrics.jsonl").write_text(
    (tmp_path / "metrics.jsonl").read_text().replace("\n", "\n\n", 1)
  )
  figure = drawn_figure(monkeypatch, lambda: plots.plot_training(path, "x.png"))
  losses, valid = figure.axes
  assert [axis.get_title(loc="left") for axis in figure.axes] == ["Training loss", "Valid"]
  assert [axis.get_xlabel() for axis in figure.axes] == ["step", "step"]
  drawn = {line.get_label(): line.get_xydata().tolist() for line in losses.lines}
  assert next(iter(drawn)) == "loss"  # the total first
  assert drawn == {
    "loss": [[20, 8.5], [40, 7]],
    "sid": [[20, 6], [40, 5]],
    "mtp": [[20, 2]],
    "ecpm": [[20, 3]],
    "aux_loss": [[20, 1]],
  }
  drawn = {line.get_label(): line.get_xydata().tolist() for line in valid.lines}
  assert drawn == {"ndcg@10": [[40, 0.5]], "recall@10": [[20, 0.25]]}
  assert [line.get_color() for line in losses.lines] == list(plots.COLORS[:5])
  assert {line.get_marker() for line in losses.lines} == {"o"}
  assert figure.get_size_inches().tolist() == [11.2, 3.8]
  assert [text.get_text() for text in losses.get_legend().get_texts()] == list(
    line.get_label() for line in losses.lines
  )


def test_many_curves_repeat_their_colours_and_long_ones_have_no_dots(tmp_path, monkeypatch):
  steps = [
    {"step": step, **{f"train/{name}_loss": step + 0.5 for name in "abcdefghij"}}
    for step in range(40)
  ]
  steps += [{"step": step, "train/short_loss": 1.0} for step in range(39)]
  path = _write(tmp_path / "metrics.jsonl", steps)
  figure = drawn_figure(monkeypatch, lambda: plots.plot_training(path, "x.png"))
  (axis,) = figure.axes
  assert figure.get_size_inches().tolist() == [5.6, 3.8]
  assert [line.get_color() for line in axis.lines] == [*plots.COLORS, *plots.COLORS[:3]]
  assert [line.get_marker() for line in axis.lines] == [""] * 10 + ["o"]


RESULTS = {
  "dataset": "shop",
  "split": "test",
  "users": 1234,
  "systems": {
    "first": {
      "all": {
        "a": {"mean": 0.25, "low": 0.125, "high": 0.5},
        "b": {"mean": 2.0, "low": 1.0, "high": 4.0},
        "c": {"mean": 0.0, "low": 0.0, "high": 0.0},
      },
      "again": {"a": {"mean": 0.9, "low": 0.9, "high": 0.9}},
      "new": {"a": {"mean": 0.5, "low": 0.25, "high": 0.75}},
    },
    "second": {
      "all": {
        "a": {"mean": 0.5, "low": 0.25, "high": 1.0},
        "b": {"mean": 1.0, "low": 0.5, "high": 1.5},
        "c": {"mean": 0.0, "low": 0.0, "high": 0.0},
      },
      "again": {"a": {"mean": 0.9, "low": 0.9, "high": 0.9}},
      "new": {"a": {"mean": 0.25, "low": 0.125, "high": 0.5}},
    },
  },
}


def test_comparison_has_a_bar_and_an_interval_for_each_score(monkeypatch):
  figure = drawn_figure(monkeypatch, lambda: plots.plot_comparison(RESULTS, "x.png"))
  assert figure.get_suptitle() == "shop, test: 1,234 users, 95 % intervals"
  assert figure.get_size_inches().tolist() == pytest.approx(
    [1.6 + 3.1 * 3, 0.9 + 2 * (0.7 + 0.3 * 2)]
  )
  assert [axis.get_visible() for axis in figure.axes] == [True] * 4 + [
    False
  ] * 2  # four panels of two rows of three
  names = ["second", "first"]  # from below: the first system stands on top
  shown = [("all", "a"), ("all", "b"), ("all", "c"), ("new", "a")]  # what is taken again is not
  for axis, (part, measure) in zip(figure.axes, shown, strict=False):
    scores = [RESULTS["systems"][name][part][measure] for name in names]
    assert axis.get_title(loc="left") == measure if part == "all" else f"{measure}, new targets"
    assert [label.get_text() for label in axis.get_yticklabels()] == names or measure in "bc"
    assert [bar.get_width() for bar in axis.patches] == [score["mean"] for score in scores]
    assert [bar.get_height() for bar in axis.patches] == [0.62, 0.62]
    best = max(score["mean"] for score in scores)
    colors = [matplotlib_hex(bar) for bar in axis.patches]
    assert colors == [plots.COLORS[0] if score["mean"] == best else "#b9c6d3" for score in scores]
    assert [line.get_xydata().tolist() for line in axis.lines] == [
      [[score["low"], y], [score["high"], y]] for y, score in enumerate(scores)
    ]
    reach = max(score["high"] for score in scores) or 1.0
    assert axis.get_xlim() == pytest.approx((0, 1.22 * reach))
    for y, (text, score) in enumerate(zip(axis.texts, scores, strict=True)):
      assert text.get_text() == f"{score['mean']:.4f}".removeprefix("0")
      assert text.get_position() == (pytest.approx(score["high"] + 0.02 * reach), y)


def matplotlib_hex(bar):
  from matplotlib.colors import to_hex

  return to_hex(bar.get_facecolor())


@pytest.mark.parametrize(
  ("measures", "grid"), [("a", (1, 1)), ("ab", (1, 2)), ("abc", (1, 3)), ("abcd", (2, 3))]
)
def test_panels_stand_three_in_a_row(monkeypatch, measures, grid):
  score = RESULTS["systems"]["first"]["all"]["a"]
  systems = {"one": {"all": dict.fromkeys(measures, score)}}
  figure = drawn_figure(
    monkeypatch, lambda: plots.plot_comparison(RESULTS | {"systems": systems}, "x.png")
  )
  rows, columns = figure.axes[0].get_subplotspec().get_gridspec().get_geometry()
  assert (rows, columns) == grid and len(figure.axes) == rows * columns
  assert figure.get_size_inches().tolist() == pytest.approx(
    [1.6 + 3.1 * columns, 0.9 + rows * (0.7 + 0.3)]
  )


def test_the_house_style(monkeypatch):
  """One look everywhere: sizes, frame and grid."""

  def plot():
    with plots.panels(2, (7, 3), "x.png") as axes:
      axes[0].set_title("t")
      axes[0].set_xlabel("x")

  figure = drawn_figure(monkeypatch, plot)
  assert len(figure.axes) == 2 and figure.get_size_inches().tolist() == [7, 3] and figure.dpi == 130
  axis = figure.axes[0]
  assert axis.get_title(loc="left") == "t" and axis._left_title.get_fontsize() == 11
  assert axis.xaxis.label.get_fontsize() == 9 and axis.xaxis.label.get_color() == plots.MUTED
  assert not axis.spines["top"].get_visible() and not axis.spines["right"].get_visible()
  assert axis.spines["left"].get_visible() and axis.get_axisbelow() is True
  assert (
    axis.xaxis.get_gridlines()[0].get_visible()
    and axis.xaxis.get_gridlines()[0].get_color() == plots.GRID
  )


def test_pictures_are_replaced_whole(tmp_path):
  path = str(tmp_path / "new" / "x.png")

  def draw(width):
    with plots.panels(1, (width, 1), path) as axes:
      axes[0].plot([0, 1])

  assert_replaced_whole(path, lambda: draw(1), lambda: draw(2))
  assert _pixels(path).shape[:2] == (130, 260)


@pytest.mark.parametrize(
  ("text", "message"),
  [('[1]\n', "line 1: no whole-numbered 'step'"),
   ('{"step": 1.5}\n', "line 1: no whole-numbered 'step'"),
   ('\n{"step": 1, "valid/x": 1}\n\n{"a"\n', "line 4: not JSON")],
)  # fmt: skip
def test_a_line_without_a_step_is_named(tmp_path, text, message):
  (tmp_path / "metrics.jsonl").write_text(text)
  with pytest.raises(ValueError, match=message):
    plots.plot_training(str(tmp_path / "metrics.jsonl"), str(tmp_path / "x.png"))


def test_valid_metrics_alone_are_drawn(tmp_path, monkeypatch):
  path = _write(
    tmp_path / "metrics.jsonl", [{"step": 3, "valid/recall@10": 1}, {"step": 5, "train/rate": 1}]
  )
  figure = drawn_figure(monkeypatch, lambda: plots.plot_training(path, "x.png"))
  assert [axis.get_title(loc="left") for axis in figure.axes] == ["Valid"]


def test_curves_and_their_legend_do_not_cover_one_another(tmp_path, monkeypatch):
  path = _write(tmp_path / "metrics.jsonl", [{"step": 1, "train/loss": 2.0}])
  (axis,) = drawn_axes(monkeypatch, lambda: plots.plot_training(path, "x.png"))
  legend = axis.get_legend()
  anchor = legend.get_bbox_to_anchor().transformed(axis.transAxes.inverted())
  assert (anchor.x0, anchor.y0) == pytest.approx(
    (1, 1)
  )  # its upper left corner stands at the panel's right
  assert (legend._loc, legend.borderaxespad, legend.get_frame_on()) == (2, 0.3, False)
  assert (axis.lines[0].get_linewidth(), axis.lines[0].get_markersize()) == (1.6, 3.5)


def test_bars_look_as_elsewhere(monkeypatch):
  figure = drawn_figure(monkeypatch, lambda: plots.plot_comparison(RESULTS, "x.png"))
  axis = figure.axes[0]
  assert {line.get_linewidth() for line in axis.lines} == {1.2}
  assert {line.get_color() for line in axis.lines} == {plots.INK}
  assert {text.get_fontsize() for text in axis.texts} == {8}
  assert {text.get_verticalalignment() for text in axis.texts} == {"center"}
  assert figure._suptitle.get_fontsize() == 12 and figure._suptitle.get_position()[0] == 0.01
  assert axis.yaxis.get_ticklines()[0].get_markersize() == 0
  assert len(axis.get_xticks()) <= 6 + 1  # of five intervals
  assert figure.get_layout_engine().get()["h_pad"] == 0.1
  assert (
    axis.xaxis.get_gridlines()[0].get_visible() and not axis.yaxis.get_gridlines()[0].get_visible()
  )


def test_without_matplotlib_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  with pytest.raises(ImportError, match=r"matplotlib is missing: pip install 'gr4ad_jax\[plots\]'"):
    plots.plot_comparison(RESULTS, "x.png")
