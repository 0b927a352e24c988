"""An ablation's table: each row's metrics, and its step from another row, with intervals.

An *ablation* puts together, or takes away, one part of the method a row. A *step* is the difference
between a row and the row that it was made from.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from gr4ad_jax.data import schema
from gr4ad_jax.evaluation import metrics, plots, protocols, report_tables

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
) -> dict:
  """Scores rows on the same requests and the same resamples of the users.

  Args:
    dataset: a prepared data set.
    split: 'valid' or 'test'.
    rankings: row -> rankings [R, K] of each seed. Seeds are averaged request by request.
    parents: row -> the row that it is a step from, '' for none.
    target_behavior: shallowest behaviour that counts as a hit. Empty: any.

  Returns:
    A dict for JSON. It has
    rows[name]: {metric: {mean, low, high}, coverage@10, top_decile@10};
    steps[name]: {parent, metric: {mean, low, high} of the difference};
    by_seed[name][metric]: each seed's own mean;
    dataset, split, protocol and users.

  Raises:
    ValueError: rankings that do not fit the requests.
  """
  requests = protocols.eval_requests(dataset, split, target_behavior)
  popularity_N = protocols.line_counts(dataset, split)
  ratios, by_seed, rows = {}, {}, {}
  for name, runs in rankings.items():
    for run in runs:
      metrics.check_rankings(run, requests, max(KS), len(dataset.ads))
    found = [
      metrics.per_request(run, requests, KS) | metrics.value_ndcg(run, requests, KS) for run in runs
    ]
    by_seed[name] = {metric: [one[metric].value for one in found] for metric in found[0]}
    # Only numerators differ between seeds: denominators are those of the requests.
    ratios[name] = {
      metric: metrics.Ratio(
        np.mean([one[metric].numerator_R for one in found], axis=0), ratio.denominator_R
      )
      for metric, ratio in found[0].items()
    }
    # Of lists together, so they have no parts by request, and no interval.
    spread = [metrics.catalogue(run, popularity_N, (10,)) for run in runs]
    rows[name] = {measure: float(np.mean([one[measure] for one in spread])) for measure in SPREAD}
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
    value, parent = ratios[name][metric].value, parents.get(name, "")
    rows[name][metric] = dataclasses.asdict(metrics.interval(value, drawn[name, metric]))
    if name in steps:
      # Draw less draw: what a draw of users does to both rows alike falls out.
      gain = value - ratios[parent][metric].value
      steps[name][metric] = dataclasses.asdict(
        metrics.interval(gain, drawn[name, metric] - drawn[parent, metric])
      )
  return {
    "dataset": dataset.name,
    "split": split,
    "protocol": protocols.protocol_of(dataset.name).text,
    "users": len(np.unique(requests.user)),
    "rows": rows,
    "steps": steps,
    "by_seed": by_seed,
  }


def format_markdown(found: Mapping) -> str:
  """Markdown tables: the rows, each row's step from its parent, and the settings that were tried.

  A step is bold where its interval leaves out 0. The last table is there where `found` has "tried".
  """
  shown = [metric for metric in SHOWN if metric in next(iter(found["rows"].values()))]
  head = ["row", *shown, *SPREAD]
  body = [
    [
      name,
      *(report_tables.cell(row[metric]) for metric in shown),
      *(f"{row[measure]:.3f}" for measure in SPREAD),
    ]
    for name, row in found["rows"].items()
  ]
  steps = [["step", "from", *shown]]
  for name, step in found["steps"].items():
    cells = [
      report_tables.cell(step[m], step[m]["low"] > 0 or step[m]["high"] < 0, signed=True)
      for m in shown
    ]
    steps.append([name, step["parent"], *cells])
  seeds = found.get("seeds", [])
  lines = [
    (
      f"{found['dataset']}, {found['split']}: {found['users']:,} users, {len(seeds)} seeds. Means "
      "with 95 % intervals."
    ),
    "",
    *report_tables.aligned([head, *body]),
    "",
    "Paired differences, in bold where the interval leaves out 0.",
    "",
    *report_tables.aligned(steps),
  ]
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


def write_markdown(found: Mapping, path: str) -> None:
  """Writes `format_markdown`, whole or not at all."""
  report_tables.write_text(path, format_markdown(found))


def plot(found: Mapping, path: str) -> None:
  """Draws every row's metrics as bars with intervals."""
  shown = {name: {m: row[m] for m in SHOWN if m in row} for name, row in found["rows"].items()}
  plots.plot_comparison(
    {"systems": shown, **{k: found[k] for k in ("dataset", "split", "users")}}, path
  )
