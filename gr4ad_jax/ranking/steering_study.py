"""What steering costs and brings: value against diversity, and against a group's places.

One search serves all settings: they differ in what they make of its candidates.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from gr4ad_jax.config import Config
from gr4ad_jax.evaluation import exposure, metrics, plots, protocols, report_tables
from gr4ad_jax.ranking import scoring, steering
from gr4ad_jax.ranking.steering import Steering
from gr4ad_jax.requests.inputs import Inputs

DIVERSITIES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
CUT = 10
_SHOWN = ("similarity", "coverage", "overlap", "calibration", "small_accounts", "tail_ads")


def measure(config: Config, inputs: Inputs, split: str = "test") -> dict[str, Any]:
  """A run's lists under each setting of diversity, and under each quota for small accounts.

  Args:
    config: of a trained run; its own --diversity and --quota_share are not read.
    inputs: its data, tokenizer and features.
    split: 'valid' or 'test'.

  Returns:
    For JSON: `diversity` and `small_accounts`, each a list of settings: `setting`; `recall@10` and
    `revenue@10` (where lines have a value) with 95 % intervals, `lost` (the same metrics' shares
    that are lost against no steering, by paired resamples), and what `exposure` tells.
  """
  # Steering itself is taken off: one search is steered in all ways below.
  plain = dataclasses.replace(config.search, diversity=0.0, quota_share=0.0)
  config = dataclasses.replace(config, search=plain)
  requests = protocols.eval_requests(inputs.dataset, split, config.data.target_behavior)
  deep = max(CUT, config.search.rerank_candidates)
  found = scoring.rank_run(config, inputs, requests, deep)
  vector_ND = steering.unit(inputs.tokenizer.embed(inputs.dataset.ads))
  facts = exposure.Facts.of(inputs.dataset, requests, vector_ND)
  small_N = exposure.small_accounts(facts.account_N, facts.lines_N)
  settings = {
    "diversity": [(one, Steering(diversity=one, vector_ND=vector_ND)) for one in DIVERSITIES],
    "small_accounts": [(one, Steering(share=one, group_N=small_N)) for one in SHARES],
  }
  return {"split": split, "requests": len(requests), "candidates": deep} | {
    name: curve(
      [(one, steering.steer(found, how, CUT).ad_RK) for one, how in those], requests, facts
    )
    for name, those in settings.items()
  }


def curve(
  lists: Sequence[tuple[float | str, np.ndarray]],
  requests: protocols.EvalRequests,
  facts: exposure.Facts,
) -> list[dict[str, Any]]:
  """What becomes of each setting's lists.

  Args:
    lists: settings, each with ad rows [R, CUT]; the first one is what the others are compared with.
    requests: R requests.
    facts: what exposure is told by.

  Returns:
    A row for each setting, as in `measure`.
  """
  ratios = [metrics.per_request(ad_RK, requests, (CUT,)) for _, ad_RK in lists]
  names = [name for name in ratios[0] if not name.startswith("ndcg")]
  # All settings are resampled together: sample s draws the same users for each, so that their
  # ratios are paired.
  samples_SF = metrics.resample([row[name] for row in ratios for name in names], requests.user)
  rows = []
  for at, ((setting, ad_RK), row) in enumerate(zip(lists, ratios, strict=True)):
    told: dict[str, Any] = {"setting": setting, "lost": {}}
    for n, name in enumerate(names):
      first_S = samples_SF[:, n]
      # Columns stand in the order of settings, and within a setting in that of names.
      own_S = samples_SF[:, at * len(names) + n]
      told[name] = vars(metrics.interval(row[name].value, own_S))
      # Of the first setting, which steers nothing.
      lost = 1 - row[name].value / ratios[0][name].value
      told["lost"][name] = vars(metrics.interval(lost, 1 - own_S / first_S))
    rows.append(told | exposure.exposure(ad_RK, facts, CUT))
  return rows


def format_table(found: dict[str, Any]) -> str:
  """Markdown of what `measure` returned."""
  lines = [
    f"{found['requests']:,} requests of {found['split']}, {found['candidates']} candidates each; "
    "`lost` is the share of the metric that steering costs, by paired resamples."
  ]
  for name, rows in found.items():
    if not isinstance(rows, list):
      continue
    metric_names = [key for key in rows[0]["lost"]]
    shown = [key for key in _SHOWN if key in rows[0]]
    table = [[name.replace("_", " "), *metric_names, *(f"lost {m}" for m in metric_names), *shown]]
    for row in rows:
      cells = [report_tables.cell(row[m]) for m in metric_names]
      cells += [_percent(row["lost"][m]) for m in metric_names]
      setting = row["setting"]
      shown_as = setting if isinstance(setting, str) else f"{setting:g}"
      table.append([shown_as, *cells, *(f"{row[key]:.3f}" for key in shown)])
    lines += ["", *report_tables.aligned(table)]
  return "\n".join(lines) + "\n"


def _percent(score: dict[str, float]) -> str:
  return f"{score['mean']:+.2%} [{score['low']:+.2%}, {score['high']:+.2%}]"


def plot(found: dict[str, Any], path: str) -> None:
  """The two curves as a picture: what is lost against what is gained.

  Raises:
    ImportError: the `plots` extra is missing.
  """
  metric = "revenue@10" if "revenue@10" in found["diversity"][0] else "recall@10"
  drawn = [
    ("diversity", "similarity", "mean cosine of two ads of a list"),
    ("small_accounts", "small_accounts", "share of places of small accounts"),
  ]
  with plots.panels(len(drawn), (9.0, 3.4), path) as axes:
    for axis, (name, gained, label) in zip(axes, drawn, strict=True):
      rows = found[name]
      x = [row[gained] for row in rows]
      mean = [row[metric]["mean"] for row in rows]
      axis.fill_between(
        x, [row[metric]["low"] for row in rows], [row[metric]["high"] for row in rows],
        color=plots.COLORS[0], alpha=0.15, lw=0,
      )  # fmt: skip
      axis.plot(x, mean, marker="o", color=plots.COLORS[0], lw=1.6, ms=4)
      for at, row in enumerate(rows):
        axis.annotate(
          f"{row['setting']:g}", (x[at], mean[at]), textcoords="offset points", xytext=(4, 5)
        )
      axis.set_xlabel(label)
      axis.set_ylabel(metric)
      axis.set_title(f"{'--diversity' if name == 'diversity' else '--quota_share'}, by its value")
