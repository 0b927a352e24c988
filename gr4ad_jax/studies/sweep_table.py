"""The table of a sweep: settings of the list objectives, by what they came to on valid.

A *sweep* trains the same model with several settings from one start.
"""

import json
from collections.abc import Mapping, Sequence

from gr4ad_jax.evaluation import report_tables

SHOWN = ("recall@10", "ndcg@10", "revenue@10", "recall@50", "revenue@50")
VALUE_POWER = 0.3  # of the second order that is scored
DEPTH = 128  # ads of a list that is put in order by value


def format_markdown(found: Sequence[Mapping]) -> str:
  """A Markdown table of the settings by valid revenue@10, best first.

  Without values in the log, recall@10 takes revenue's place. Knobs that differ between the sweeps
  stand with the settings.
  """
  differing = sorted(
    name for name in {name for one in found for name in one["common"]}
    if len({json.dumps(one["common"].get(name)) for one in found}) > 1
  )  # fmt: skip
  # By money where the log has values.
  by = "revenue@10" if "revenue@10" in found[0]["valid"] else "recall@10"
  shown = [name for name in SHOWN if name in found[0]["valid"]]
  valued = [name for name in ("recall@10", "revenue@10") if name in shown]
  rows = [["setting", *shown, *(f"{name}, by value" for name in valued), "entropy"]]
  # Best first, by the metric that a shop would choose by.
  for one in sorted(found, key=lambda one: -one["valid"][by]):
    common = {name: one["common"].get(name) for name in differing}
    cells = [f"{one['valid'][name]:.4f}" for name in shown] + [
      f"{one['by_value'][name]:.4f}" for name in valued
    ]
    rows.append([in_words(one["setting"], common), *cells, f"{one['entropy']:.2f}"])
  words = f"By value: log p + {VALUE_POWER} log E[value]. Entropy: of the {DEPTH} best ads, nats."
  return "\n".join(
    [f"Valid, {len(found)} settings.", "", *report_tables.aligned(rows), "", words, ""]
  )


def in_words(setting: Mapping | None, common: Mapping | None = None) -> str:
  """A setting in words, with what `common` says of its sweep; None is the start."""
  if setting is None:
    return "the start"
  return (
    ", ".join(f"{name}={value}" for name, value in {**(common or {}), **setting}.items())
    or "as the flags say"
  )
