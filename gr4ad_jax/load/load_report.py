"""What a load on a server came to: figures of its phases, which promises held, and the chart.

TABS, traffic-aware beam search, makes beams narrower under load (docs/design/method.md §4).
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gr4ad_jax.evaluation.plots import COLORS, MUTED, STYLE
from gr4ad_jax.load.http_load import Outcome, Phase, spread

NAMES = {"tabs": "TABS on", "fixed": "TABS off"}
_POINTS = 120  # of a curve, about
_MEBI = 2**20


class Load(NamedTuple):
  """What was measured."""

  phases: Sequence[Phase]
  outcomes: Sequence[Outcome]  # in order of due times
  memory: Sequence[tuple[float, int]]  # every second: seconds from the beginning, bytes held
  target: float  # the server's, seconds


def report(measured: Load) -> dict[str, Any]:
  """Figures of a load: `phases`, by `summary`, with memory; what `holds`; a point a second."""
  phases = measured.phases
  target = measured.target
  # One more than there are phases: the last is the end of the load.
  begins = np.cumsum([0.0, *(phase.seconds for phase in phases)])
  due_R = np.array([outcome.due for outcome in measured.outcomes])
  # (n, 2) also where nothing was measured.
  taken, resident = np.array(measured.memory, np.float64).reshape(-1, 2).T
  points = _points(measured.outcomes, begins[-1])
  figures = {}
  for phase, begin, end in zip(phases, begins, begins[1:], strict=False):
    # Outcomes are in order of due times, so those of a phase are a run.
    mine = measured.outcomes[slice(*np.searchsorted(due_R, [begin, end]))]
    figures[phase.name] = summary(mine, phase.seconds)
    figures[phase.name]["memory_mib"] = _ends(resident[(begin <= taken) & (taken < end)] / _MEBI)
    if phase.name == "recovery":
      figures[phase.name]["seconds_until_steady"] = _settled(points, begin, end, target)
  return {
    "target_ms": 1e3 * target,
    "phases": figures,
    "holds": holds(figures, target),
    "seconds": points,
  }


def summary(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
  """A stretch of time: counts, rates, latencies. Errors are all but answers and refusals (503)."""
  # The fallback list is an answer, but none of the model's.
  accepted = [o for o in outcomes if o.status == 200 and o.source != "fallback"]
  refused = [o for o in outcomes if o.status == 503]
  fallback = sum(o.status == 200 and o.source == "fallback" for o in outcomes)
  return {
    "seconds": seconds,
    "offered_per_s": len(outcomes) / seconds,
    "accepted_per_s": len(accepted) / seconds,
    "requests": len(outcomes),
    "accepted": len(accepted),
    "fallback": fallback,
    "refused": len(refused),
    "refused_without_retry_after": sum(not o.retry_after for o in refused),
    "errors": len(outcomes) - len(accepted) - len(refused) - fallback,
    "accepted_ms": spread([o.seconds for o in accepted]),
    "refused_ms": spread([o.seconds for o in refused]),
    "mean_width": float(np.mean([o.width for o in accepted])) if accepted else None,
    "generator_late_ms": float(1e3 * np.quantile([o.late for o in outcomes], 0.99))
    if outcomes
    else None,
  }


def holds(figures: Mapping[str, Mapping[str, Any]], target: float) -> dict[str, bool]:
  """The promises of the server, each kept or not, as far as phases tell; target in seconds."""
  kept = {"no_errors": not any(phase["errors"] for phase in figures.values())}
  if over := figures.get("overload"):
    accepted = over["accepted_ms"]
    refused = over["refused_ms"]
    kept["overload_p99_within_twice_the_target"] = (
      accepted is not None and accepted["p99"] <= 2e3 * target
    )
    kept["refused_within_the_target"] = refused is None or refused["p99"] <= 1e3 * target
    kept["refused_with_retry_after"] = over["refused_without_retry_after"] == 0
  if again := figures.get("recovery"):
    kept["recovers"] = again["seconds_until_steady"] is not None
  if (long := figures.get("long")) and long["memory_mib"]:
    # Five per cent are what an allocator may keep without a leak.
    kept["memory_flat"] = long["memory_mib"]["last"] <= 1.05 * long["memory_mib"]["first"]
  return kept


def _ends(resident: np.ndarray) -> dict[str, float] | None:
  """Medians of the first and of the last tenth of the samples, and the greatest, MiB."""
  if not len(resident):
    return None
  tenth = max(1, len(resident) // 10)
  # Medians: a moment's peak is no growth.
  first = np.median(resident[:tenth])
  last = np.median(resident[-tenth:])
  return {"first": float(first), "last": float(last), "most": float(resident.max())}


def _points(outcomes: Sequence[Outcome], seconds: float) -> list[dict[str, Any]]:
  """A point for every second, of the requests that were due in it."""
  by_second: list[list[Outcome]] = [[] for _ in range(int(np.ceil(seconds)))]
  for outcome in outcomes:
    by_second[int(outcome.due)].append(outcome)
  keys = ("requests", "accepted", "refused", "errors", "accepted_ms", "mean_width")
  return [{key: summary(mine, 1.0)[key] for key in keys} for mine in by_second]


def _settled(
  points: Sequence[Mapping[str, Any]], begin: float, end: float, target: float
) -> float | None:
  """Seconds from `begin` to where all is well until the end (`_good`); None where it never is."""
  span = range(int(np.ceil(begin)), int(end))
  bad = [second for second in span if not _good(points[second], target)]
  if not bad:
    return 0.0
  # Settled in the second after the last bad one; never, if that is the last of all.
  return bad[-1] + 1 - begin if bad[-1] != span[-1] else None


def _good(point: Mapping[str, Any], target: float) -> bool:
  """Whether nothing was refused, failed, or took longer than twice the target."""
  within = point["accepted_ms"] is None or point["accepted_ms"]["p99"] <= 2e3 * target
  return within and not point["refused"] and not point["errors"]


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
