"""The chart of a server under load: requests, latency and beam width, with TABS on and off.

TABS, traffic-aware beam search, makes beams narrower under load (docs/design/method.md §4).
"""

import os
from collections.abc import Mapping
from typing import Any

from gr4ad_jax.evaluation.plots import COLORS, MUTED, STYLE

NAMES = {"tabs": "TABS on", "fixed": "TABS off"}
_POINTS = 120  # of a curve, about


def plot_load(found: Mapping[str, Any], png_path: str) -> None:
  """Draws the phases that both servers went through.

  Args:
    found: what `serve_load.run_suite` returned, or its JSON read back.
    png_path: where the picture goes.

  Raises:
    ImportError: matplotlib is missing.
  """
  try:
    import matplotlib.figure
  except ImportError as error:
    raise ImportError("matplotlib is missing: pip install 'gr4ad_jax[plots]'") from error
  systems = {name: found[name] for name in NAMES if name in found}
  common = set.intersection(*(set(system["phases"]) for system in systems.values()))
  phases = next(iter(systems.values()))["phases"]
  shared = {name: phase["seconds"] for name, phase in phases.items() if name in common}
  with matplotlib.rc_context(STYLE):
    figure = matplotlib.figure.Figure(figsize=(9, 7.2), layout="constrained")
    rates, latency, width = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1.2, 0.8))
    _draw_phases((rates, latency, width), shared)
    for (name, system), color in zip(systems.items(), COLORS, strict=False):
      # The long phase, which only one server had, comes last and is cut off.
      points = system["seconds"][: int(sum(shared.values()))]
      _draw_system((rates, latency, width), points, NAMES[name], color)
    target = next(iter(systems.values()))["target_ms"]
    for level, text in ((target, "target"), (2 * target, "twice the target")):
      latency.axhline(level, color=MUTED, lw=0.9, ls="--")
      latency.annotate(
        text, (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7
      )
    rates.set_title("Requests a second: offered (dotted), accepted")
    latency.set_title("Latency of accepted requests, ms: p99, p50 (thin)")
    latency.set_yscale("log")  # under overload it is many times what it is at rest
    width.set_title("Beam width of the last level, mean")
    width.set_ylim(bottom=0)
    width.set_xlabel("seconds")
    width.set_xlim(0, sum(shared.values()))
    rates.set_ylim(0, 1.15 * rates.get_ylim()[1])  # room for the names of the phases
    rates.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0)
    _save(figure, png_path)


def _draw_phases(axes, seconds_of: Mapping[str, float]) -> None:
  """A line where each phase begins, and its name at the top."""
  begin = 0.0
  for name, seconds in seconds_of.items():
    for axis in axes:
      axis.axvline(begin, color=MUTED, lw=0.6)
    place = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "top"}
    axes[0].annotate(name, (begin + seconds / 2, 0.97), **place, fontsize=8, color=MUTED)
    begin += seconds


def _draw_system(axes, points, label: str, color: str) -> None:
  """One server's curves in all three charts, in its colour."""
  rates, latency, width = axes
  rates.plot(*_curve([point["requests"] for point in points]), color=color, lw=1, ls=":")
  rates.plot(*_curve([point["accepted"] for point in points]), color=color, lw=1.6, label=label)
  for share, thickness in (("p99", 1.6), ("p50", 0.8)):
    latency.plot(
      *_curve([(point["accepted_ms"] or {}).get(share) for point in points]),
      color=color,
      lw=thickness,
    )
  width.plot(*_curve([point["mean_width"] for point in points]), color=color, lw=1.6)


def _curve(values) -> tuple[list[float], list[float]]:
  """Middle (seconds) and mean of even stretches of a series of one value a second.

  None, a second without an answer, is left out.
  """
  stretch = max(1, len(values) // _POINTS)
  at = []
  means = []
  for begin in range(0, len(values), stretch):
    known = [value for value in values[begin : begin + stretch] if value is not None]
    if known:
      at.append(begin + stretch / 2)
      means.append(sum(known) / len(known))
  return at, means


def _save(figure, path: str) -> None:
  os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
  figure.savefig(path + ".part", format="png")
  os.replace(path + ".part", path)
