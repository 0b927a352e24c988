"""Pictures of a run: its training curves, and systems side by side."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence

from gr4ad_jax.evaluation import parts

INK = "#1f2933"
MUTED = "#6b7785"
GRID = "#e3e7eb"
COLORS = ("#1f6fb4", "#e07b28", "#3a9a5b", "#b4436c", "#7a5cb8", "#8a6d3b", "#2aa5a0", "#9aa5b1")
STYLE = {
  "axes.edgecolor": GRID,
  "axes.grid": True,
  "axes.axisbelow": True,
  "axes.labelcolor": MUTED,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "axes.titlelocation": "left",
  "axes.titlesize": 11,
  "figure.dpi": 130,
  "font.size": 9,
  "grid.color": GRID,
  "text.color": INK,
  "xtick.color": MUTED,
  "ytick.color": MUTED,
}
LOSS_TERMS = ("sid", "ecpm", "mtp")  # parts of the total that go without the word 'loss'


def plot_training(metrics_jsonl_path: str, png_path: str) -> None:
  """Draws losses (left) and valid metrics (right) against the step.

  Args:
    metrics_jsonl_path: a JSON object a line with "step", losses ("train/loss", "train/sid", …) and
      valid metrics ("valid/recall@10", …). Other keys, and keys that some lines lack, are passed
      over. A step that stands twice, as after a resumed run, counts as last written.
    png_path: where the picture goes.

  Raises:
    ValueError: a line that is no JSON object with a step, or a file without a number to draw. The
      message names file and line.
  """
  curves = _read_curves(metrics_jsonl_path)
  losses = sorted(filter(_is_loss, curves), key=lambda name: name != "train/loss")  # total first
  valid = [name for name in curves if name.startswith("valid/")]
  drawn = {"Training loss": losses, "Valid": valid}
  panels = [(title, names) for title, names in drawn.items() if names]
  if not panels:
    raise ValueError(f"{metrics_jsonl_path} holds no training loss and no valid metric to draw")
  matplotlib = _matplotlib()
  with matplotlib.rc_context(STYLE):
    figure = matplotlib.figure.Figure(figsize=(5.6 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, (title, names) in zip(axes[0], panels, strict=True):
      for name, color in zip(names, _cycle(COLORS, len(names)), strict=True):
        steps, values = zip(*sorted(curves[name].items()), strict=True)
        # More marks would run into a thick line.
        marker = "o" if len(steps) < 40 else ""
        axis.plot(
          steps, values, color=color, lw=1.6, marker=marker, ms=3.5, label=name.split("/", 1)[1]
        )
      axis.set_title(title)
      axis.set_xlabel("step")
      axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, borderaxespad=0.3)
    _save(figure, png_path)


def plot_comparison(results: Mapping, png_path: str) -> None:
  """Draws systems side by side: a panel for each metric, a bar with its 95 % interval a system.

  Panels are of all targets, and of those that are new to the user. The best system is in colour.

  Args:
    results: what `report_tables.results` returned (or read back from its JSON).
    png_path: where the picture goes.

  Raises:
    ValueError: results without a system.
  """
  systems = results["systems"]
  if not systems:
    raise ValueError("the results hold no system to draw")
  names = list(reversed(systems))  # barh draws upwards
  told = next(iter(systems.values()))
  measures = [(part, name) for part in (parts.ALL, parts.NEW) for name in told.get(part, ())]
  columns = min(3, len(measures))
  # Rounded up.
  rows = -(-len(measures) // columns)
  matplotlib = _matplotlib()
  with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x"}):
    size = (1.6 + 3.1 * columns, 0.9 + rows * (0.7 + 0.3 * len(names)))
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axis, (part, measure) in zip(axes.flat, measures, strict=False):
      _bars(axis, names, [systems[name][part][measure] for name in names])
      axis.set_title(measure if part == parts.ALL else f"{measure}, {part} targets")
    # The last row may not be full.
    for axis in axes.flat[len(measures) :]:
      axis.set_visible(False)
    title = f"{results['dataset']}, {results['split']}: {results['users']:,} users, 95 % intervals"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    _save(figure, png_path)


@contextlib.contextmanager
def panels(
  count: int,
  size: tuple[float, float],
  png_path: str,
  width_ratios: Sequence[float] | None = None,
  columns: int = 0,
) -> Iterator[Sequence]:
  """Gives `count` axes in the house style, row by row, and saves them at the end of the block.

  Args:
    count: of the axes; a multiple of `columns`.
    size: width and height of the picture, inches.
    png_path: where the picture goes.
    width_ratios: of the columns to each other. None: all alike.
    columns: axes side by side; 0: all.
  """
  matplotlib = _matplotlib()
  columns = columns or count
  with matplotlib.rc_context(STYLE):
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(count // columns, columns, squeeze=False, width_ratios=width_ratios)
    yield axes.ravel()
    _save(figure, png_path)


def _bars(axis, names: Sequence[str], scores: Sequence[Mapping[str, float]]) -> None:
  """Horizontal bars, whiskers for the intervals, and the values to the right of them."""
  means = [score["mean"] for score in scores]
  # An axis from 0 to 0 cannot be drawn.
  reach = max(score["high"] for score in scores) or 1.0
  axis.barh(
    names,
    means,
    height=0.62,
    color=[COLORS[0] if mean == max(means) else "#b9c6d3" for mean in means],
  )
  for y, score in enumerate(scores):
    axis.plot([score["low"], score["high"]], [y, y], color=INK, lw=1.2, solid_capstyle="butt")
    text = f"{score['mean']:.4f}".removeprefix("0")
    axis.text(score["high"] + 0.02 * reach, y, text, va="center", fontsize=8)
  # Room to the right of the longest bar for its value.
  axis.set_xlim(0, 1.22 * reach)
  axis.tick_params(axis="y", length=0, labelcolor=INK)
  # Few numbers on the axis, so that they do not run into each other.
  axis.locator_params(axis="x", nbins=5)


def _read_curves(path: str) -> dict[str, dict[int, float]]:
  """Metric name -> step -> value, numbers only, in order of first appearance."""
  curves: dict[str, dict[int, float]] = {}
  with open(path, encoding="utf-8") as file:
    for number, text in enumerate(file, 1):
      if not text.strip():
        continue
      try:
        line = json.loads(text)
      except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON: {error.msg}") from error
      if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        raise ValueError(f"{path}, line {number}: no whole-numbered 'step'")
      for name, value in line.items():
        # True is an int in Python. A name without "/", as "step" itself, is no metric.
        if isinstance(value, int | float) and not isinstance(value, bool) and "/" in name:
          # A step that stands twice, as after a resumed run, keeps what was written last.
          curves.setdefault(name, {})[line["step"]] = value
  return curves


def _is_loss(name: str) -> bool:
  """Whether a name is a training loss or a part of one; train/learning_rate is neither."""
  return name.startswith("train/") and ("loss" in name or name.split("/", 1)[1] in LOSS_TERMS)


def _cycle(colors: Sequence[str], count: int) -> list[str]:
  """`count` colours, from the first on again where they run out."""
  return [colors[i % len(colors)] for i in range(count)]


def _matplotlib():
  """matplotlib by its figure class: no display, and no touch of the caller's pyplot backend."""
  try:
    import matplotlib.figure
  except ImportError as error:
    raise ImportError("matplotlib is missing: pip install 'gr4ad_jax[plots]'") from error
  return matplotlib


def _save(figure, path: str) -> None:
  """Writes a PNG under a temporary name, whose ending does not tell its format, then renames it."""
  os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
  figure.savefig(path + ".part", format="png")
  os.replace(path + ".part", path)
