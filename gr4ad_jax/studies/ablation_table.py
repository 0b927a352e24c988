"""An ablation's table: each row's metrics, and its step from another row, with intervals.

An *ablation* puts together, or takes away, one part of the method a row. A *step* is the difference
between a row and the row that it was made from.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from gr4ad_jax.data import schema
from gr4ad_jax.evaluation import metrics, plots, protocols, report_tables
from gr4ad_jax.evaluation import parts as parts_lib

KS = (10, 50)
# What stands in the tables. The JSON has every metric at both cuts.
SHOWN = ("recall@10", "ndcg@10", "revenue@10", "revenue@50", "value_ndcg@10")
SPREAD = ("coverage@10", "top_decile@10")


def results(
  dataset: schema.Dataset,
  split: str,
  rankings: Mapping[str, Sequence[np.ndarray]],
  parents: Mapping[str, str],
  target_behavior: str = "",
  unseen: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> dict:
  """Scores rows on the same requests and the same resamples of the users.

  Args:
    dataset: a prepared data set.
    split: 'valid' or 'test'.
    rankings: row -> rankings [R, K] of each seed. Seeds are averaged request by request.
    parents: row -> the row that it is a step from, '' for none.
    target_behavior: shallowest behaviour that counts as a hit. Empty: any.
    unseen: the same without ads seen before, for the targets that are new; None: what is left of
      the rankings, whose lists are then shorter, and score rather too low.

  Returns:
    A dict for JSON. It has
    rows[name]: {metric: {mean, low, high}, coverage@10, top_decile@10};
    steps[name]: {parent, metric: {mean, low, high} of the difference};
    by_seed[name][metric]: each seed's own mean;
    parts[part]: the same three of the targets of 'again' and of 'new' alone, see
      `evaluation.parts`; a part without a target is left out;
    dataset, split, protocol and users.

  Raises:
    ValueError: rankings that do not fit the requests.
  """
  requests = protocols.eval_requests(dataset, split, target_behavior)
  popularity_N = protocols.line_counts(dataset, split)
  before = parts_lib.seen_before(dataset, requests)
  if unseen is None:
    unseen = {
      name: [parts_lib.left_of(run, before) for run in runs] for name, runs in rankings.items()
    }
  for runs in (*rankings.values(), *unseen.values()):
    # Before anything is scored, so that an error costs no minutes.
    for run in runs:
      metrics.check_rankings(run, requests, max(KS), len(dataset.ads))
  told = {}
  for part, part_P in parts_lib.split(dataset, requests).items():
    lists = unseen if part == parts_lib.NEW else rankings
    # Lists without seen ads are made for the part of new targets alone.
    told[part] = _scored(requests, part_P, lists, parents)
    for name, runs in lists.items():
      # Of lists together, so they have no parts by request, and no interval.
      spread = [metrics.catalogue(run, popularity_N, (10,)) for run in runs]
      mean = {measure: float(np.mean([one[measure] for one in spread])) for measure in SPREAD}
      told[part]["rows"][name] |= mean
  return {
    "dataset": dataset.name,
    "split": split,
    "protocol": protocols.protocol_of(dataset.name).text,
    "users": len(np.unique(requests.user)),
    **told.pop(parts_lib.ALL),
    "parts": told,
  }


def _scored(
  requests: protocols.EvalRequests,
  part_P: np.ndarray,
  rankings: Mapping[str, Sequence[np.ndarray]],
  parents: Mapping[str, str],
) -> dict:
  """rows, steps and by_seed of a part of the targets."""
  at, some = parts_lib.of_part(requests, part_P)
  ratios = {}
  by_seed = {}
  rows = {}
  for name, runs in rankings.items():
    found = []
    for run in runs:
      own = metrics.per_request(run[at], some, KS) | metrics.value_ndcg(run[at], some, KS)
      found.append(parts_lib.spread(own, at, len(requests)))
    by_seed[name] = {metric: [one[metric].value for one in found] for metric in found[0]}
    ratios[name] = metrics.mean_ratios(found)
    rows[name] = {}
  # One call for all rows, so that all see the same draws and a step is a paired difference.
  flat = [(name, metric) for name, found in ratios.items() for metric in found]
  samples_SF = metrics.resample([ratios[name][metric] for name, metric in flat], requests.user)
  drawn = {key: samples_SF[:, f] for f, key in enumerate(flat)}
  # A row whose parent was not run has no step.
  steps = {
    name: {"parent": parent}
    for name, parent in parents.items()
    if parent in ratios and name in ratios
  }
  for name, metric in flat:
    value = ratios[name][metric].value
    parent = parents.get(name, "")
    # Intervals are of this row's own draws.
    rows[name][metric] = dataclasses.asdict(metrics.interval(value, drawn[name, metric]))
    if name in steps:
      # Draw less draw: what a draw of users does to both rows alike falls out.
      gain = value - ratios[parent][metric].value
      steps[name][metric] = dataclasses.asdict(
        metrics.interval(gain, drawn[name, metric] - drawn[parent, metric])
      )
  return {"rows": rows, "steps": steps, "by_seed": by_seed}


def format_markdown(found: Mapping) -> str:
  """Markdown tables: the rows, each row's step from its parent, again and new targets apart, and
  the settings that were tried.

  A step is bold where its interval leaves out 0. The last table is there where `found` has "tried".
  """
  seeds = found.get("seeds", [])
  lines = [
    (
      f"{found['dataset']}, {found['split']}: {found['users']:,} users, {len(seeds)} seeds. Means "
      "with 95 % intervals."
    ),
    "",
    *_tables(found),
  ]
  for part, told in found.get("parts", {}).items():
    lines += ["", f"**{part}** {parts_lib.SAYS[part]}", "", *_tables(told)]
  if found.get("tried"):
    tried = [["row", "setting", "valid recall@10", "valid revenue@10", ""]]
    for name, settings in found["tried"].items():
      for one in settings:
        words = ", ".join(f"{knob}={value}" for knob, value in one["settings"].items())
        mark = "chosen" if one["settings"] == found["chosen"][name] else ""
        tried.append(
          [name, words, f"{one['recall@10']:.4f}", f"{one.get('revenue@10', 0):.4f}", mark]
        )
    lines += [
      "",
      f"Settings that were tried, by {found['chosen_by']}, seed 0.",
      "",
      *report_tables.aligned(tried),
    ]
  return "\n".join(lines) + f"\n\nProtocol: {found['protocol']}.\n"


def _tables(told: Mapping) -> list[str]:
  """The rows and the steps of one part."""
  shown = [metric for metric in SHOWN if metric in next(iter(told["rows"].values()))]
  # Coverage and the like have one figure, without an interval.
  body = [
    [
      name,
      *(report_tables.cell(row[metric]) for metric in shown),
      *(f"{row[measure]:.3f}" for measure in SPREAD),
    ]
    for name, row in told["rows"].items()
  ]
  steps = [["step", "from", *shown]]
  for name, step in told["steps"].items():
    cells = [
      report_tables.cell(step[m], step[m]["low"] > 0 or step[m]["high"] < 0, signed=True)
      for m in shown
    ]
    steps.append([name, step["parent"], *cells])
  return [
    *report_tables.aligned([["row", *shown, *SPREAD], *body]),
    "",
    "Paired differences, in bold where the interval leaves out 0.",
    "",
    *report_tables.aligned(steps),
  ]


def write_markdown(found: Mapping, path: str) -> None:
  """Writes `format_markdown`, whole or not at all."""
  report_tables.write_text(path, format_markdown(found))


def plot(found: Mapping, path: str) -> None:
  """Draws every row's metrics as bars with intervals, of all targets and of new ones."""
  told = {parts_lib.ALL: found, **found.get("parts", {})}
  shown = {
    name: {
      part: {m: one["rows"][name][m] for m in SHOWN if m in one["rows"][name]}
      for part, one in told.items()
    }
    for name in found["rows"]
  }
  plots.plot_comparison(
    {"systems": shown, **{k: found[k] for k in ("dataset", "split", "users")}}, path
  )
