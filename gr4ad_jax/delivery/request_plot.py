"""A picture of one request: what the user had, the beams that were kept, the ads they led to,
and their value.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gr4ad_jax.answering.recommendation import Recommendation
from gr4ad_jax.evaluation import plots

_LETTERS = 28  # of a text that is drawn
_OTHERS = 14  # prefixes a level that are drawn though none of their ads is shown
_PALE = "#b9c6d3"


@dataclasses.dataclass(frozen=True)
class DrawnRequest:
  """What is drawn.

  Attributes:
    title: one line above the picture.
    history: texts of the ads that the user took last, latest first.
    ads: the ranked list, best first; at least one.
    tree: of the search, as `answers.beam_tree` tells it.
    taken: ids of the ads that the user took in the very visit that is predicted.
  """

  title: str
  history: Sequence[str]
  ads: Sequence[Recommendation]
  tree: Sequence[Sequence[Mapping[str, Any]]]
  taken: frozenset[str]


def plot_request(request: DrawnRequest, png_path: str) -> None:
  """Draws history, prefixes by level, ads and their predicted value.

  Prefixes that lead to a shown ad are blue and named by their last code. The likeliest of the
  others are pale dots.

  Args:
    request: what is drawn.
    png_path: where the picture goes.

  Raises:
    ValueError: no ad to draw.
    ImportError: matplotlib is missing.
  """
  if not request.ads:
    raise ValueError("the list holds no ad to draw")
  levels = len(request.tree)
  with plots.panels(2, (12.5, 5.2), png_path, width_ratios=(4.6, 1)) as (tree, bars):
    at = _draw_tree(tree, request)
    _draw_ads(tree, request, levels)
    _draw_history(tree, request, at[()])
    tree.set(xlim=(-2.05, levels + 1.75), ylim=(len(request.ads) - 0.4, -1.1))
    tree.axis("off")
    beams = sum(node["beams"] for node in request.tree[0])
    tree.set_title(f"{request.title}; {beams} beams")
    _draw_values(bars, request)


def _places(request: DrawnRequest) -> dict[tuple[int, ...], float]:
  """Height of each prefix that leads to a shown ad: ads stand by rank, prefixes among their ads,
  none on another.
  """
  # Rows of the ads below each prefix; the root leads to all of them.
  rows: dict[tuple[int, ...], list[int]] = {(): list(range(len(request.ads)))}
  for row, ad in enumerate(request.ads):
    for depth in range(1, len(ad.codes) + 1):
      rows.setdefault(ad.codes[:depth], []).append(row)
  at: dict[tuple[int, ...], float] = {}
  for depth in range(len(request.ads[0].codes) + 1):
    # By the mean row of their ads, so that few lines cross.
    prefixes = sorted(
      (prefix for prefix in rows if len(prefix) == depth), key=lambda prefix: np.mean(rows[prefix])
    )
    # Every second of 2n + 1 points: n places with equal room around each.
    # Evenly over the height.
    spread = np.linspace(0, len(request.ads) - 1, 2 * len(prefixes) + 1)[1::2]
    at.update(zip(prefixes, spread.tolist(), strict=True))
  return at


def _draw_tree(axis, request: DrawnRequest) -> dict[tuple[int, ...], float]:
  """Dots of prefixes and the lines between them; returns the heights of those that are named."""
  at = _places(request)
  for depth, nodes in enumerate(request.tree, 1):
    named = [node for node in nodes if tuple(node["codes"]) in at]
    others = [node for node in nodes if tuple(node["codes"]) not in at][:_OTHERS]
    heights = np.linspace(-0.3, len(request.ads) - 0.7, len(others))
    axis.scatter(np.full(len(others), depth - 0.22), heights, s=7, color=_PALE)
    told = f"level {depth}\n{len(nodes)} prefixes"
    axis.text(depth, -0.7, told, ha="center", color=plots.MUTED, fontsize=8)
    for node in named:
      prefix = tuple(node["codes"])
      share = float(np.exp(node["log_p"]))
      # The square root makes widths of small probabilities visible.
      _curve(axis, (depth - 1, at[prefix[:-1]]), (depth, at[prefix]), 0.6 + 5 * share**0.5)
      axis.scatter([depth], [at[prefix]], s=60 + 500 * share, color=plots.COLORS[0], zorder=3)
      axis.text(
        depth,
        at[prefix] + 0.36,
        f"{prefix[-1]}  p {_small(share)}",
        ha="center",
        fontsize=7.5,
        zorder=4,
      )
  return at


def _curve(axis, begin: tuple[float, float], end: tuple[float, float], width: float) -> None:
  """A line that leaves and arrives level."""
  x = np.linspace(0, 1, 30)
  # A smooth step from 0 to 1, level at both ends.
  bent = x * x * (3 - 2 * x)
  across = begin[0] + (end[0] - begin[0]) * x
  axis.plot(
    across,
    begin[1] + (end[1] - begin[1]) * bent,
    color=plots.COLORS[0],
    lw=width,
    alpha=0.35,
    zorder=1,
  )


def _draw_history(axis, request: DrawnRequest, root: float) -> None:
  axis.text(-2.0, -0.7, "taken before, latest first", color=plots.MUTED, fontsize=8)
  heights = np.linspace(0, len(request.ads) - 1, max(len(request.history), 2))
  for text, height in zip(request.history, heights, strict=False):
    axis.text(-2.0, height, _cut(text), va="center", fontsize=8)
    _curve(axis, (-0.5, height), (0, root), 0.8)
  axis.scatter([0], [root], s=150, color=plots.INK, zorder=3)
  axis.text(0, root + 0.45, "context", ha="center", fontsize=8)


def _draw_ads(axis, request: DrawnRequest, levels: int) -> None:
  at = _places(request)
  axis.text(levels + 0.35, -0.7, "ads, best first (★ taken)", color=plots.MUTED, fontsize=8)
  for row, ad in enumerate(request.ads):
    _curve(axis, (levels, at[ad.codes]), (levels + 0.3, row), 0.8)
    taken = ad.ad_id in request.taken
    text = f"{'★ ' if taken else ''}{_cut(ad.text or ad.ad_id)}"
    weight = "bold" if taken else "normal"
    axis.text(levels + 0.35, row, text, va="center", fontsize=8.5, fontweight=weight)


def _draw_values(axis, request: DrawnRequest) -> None:
  """Bars of the predicted value beside the ads' probability."""
  values = [ad.ecpm for ad in request.ads]
  colors = [plots.COLORS[1] if ad.ad_id in request.taken else _PALE for ad in request.ads]
  axis.barh(range(len(values)), values, height=0.5, color=colors)
  for row, value in enumerate(values):
    axis.text(value + 0.03 * max(values), row, f"{value:.2f}", va="center", fontsize=8)
  axis.set(ylim=(len(values) - 0.4, -1.1), xlim=(0, 1.3 * max(*values, 1e-9)), yticks=[])
  axis.set_title("predicted value (eCPM)")
  axis.grid(False)


def _cut(text: str) -> str:
  return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"


def _small(share: float) -> str:
  """A probability with two digits that say something: .31, .042, 3e-05."""
  return f"{share:.2g}".removeprefix("0")
