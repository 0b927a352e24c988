"""A trained run for whoever signs off its launch: one HTML file that opens without a network."""

import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from gr4ad_jax import files
from gr4ad_jax.answering.contexts import UserHistories
from gr4ad_jax.answering.recommender import Recommender
from gr4ad_jax.config import Config
from gr4ad_jax.evaluation import plots, report_tables
from gr4ad_jax.ranking import (
  basket_study,
  new_ad_study,
  new_user_study,
  renewal_study,
  scoring,
  steering_study,
)
from gr4ad_jax.reasons import deletion
from gr4ad_jax.reporting import customers as customers_lib
from gr4ad_jax.reporting import page
from gr4ad_jax.requests import inputs as inputs_lib

CUSTOMERS = 20
# What `experiments.risks` may have left in eval/: file, heading, and how it is printed.
_STUDIES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
  ("reasons", "Are the reasons faithful?", deletion.format_table),
  ("steering", "What steering costs", steering_study.format_table),
  ("renewal", "When UA-SIDs are renewed", renewal_study.format_table),
  ("baskets", "Baskets completed", basket_study.format_table),
  ("new_users", "Users of whom little is known", new_user_study.format_table),
  ("new_ads", "Ads that nobody had taken before", new_ad_study.format_table),
)


def write(
  config: Config,
  out: str,
  split: str = "test",
  customers: int = CUSTOMERS,
  told: Callable[[str, int, int], None] = lambda *_: None,
) -> None:
  """Writes the report of a run, whole or not at all.

  What `experiments.evaluate` and `experiments.risks` have left in the run is taken from there. The
  evaluation is made where there is none of the split.

  Args:
    config: of a trained run.
    out: path of the HTML file.
    split: whose evaluation.
    customers: how many are told in words.
    told: hears what is done, how much of it, and of how much.

  Raises:
    ImportError: the `plots` extra is missing.
    ConfigError: as `scoring.evaluate_run`, or the event log is another one.
  """
  folder = os.path.join(config.workdir, "eval")
  found = _evaluation(config, split, os.path.join(folder, "metrics.json"))
  sections = [("In short", _short(found)), ("Tables", page.of_markdown(_tables(found)))]
  with tempfile.TemporaryDirectory() as scratch:
    # Behind the summary, before the tables.
    sections.insert(1, ("Charts", _charts(config, found, scratch)))
  for name, heading, formatted in _STUDIES:
    path = os.path.join(folder, f"{name}.json")
    if os.path.exists(path):
      content = page.of_markdown(formatted(files.load_json(path)))
      sections.append((heading, content + _chart_of(os.path.join(folder, f"{name}.png"), heading)))
  recommender = Recommender.load(config.workdir, "best", config.search)
  told_of = lambda *at: told("customers", *at)  # noqa: E731
  some = customers_lib.customers(recommender, UserHistories.load(config), customers, told=told_of)
  sections.append((f"{len(some)} customers", _customers_intro() + customers_lib.as_html(some)))
  sections.append(("Settings", _settings(found)))
  title = f"{found['dataset']}: {next(iter(found['systems']))}, step {found.get('checkpoint')}"
  files.write_text(out, page.page(title, sections), summed=False)


def _evaluation(config: Config, split: str, path: str) -> Mapping[str, Any]:
  if os.path.exists(path):
    found = files.load_json(path)
    # An evaluation of another split, or of before exposure was measured, is made anew.
    if found.get("split") == split and "exposure" in found:
      return found
  inputs = inputs_lib.prepare_inputs(config)
  return scoring.evaluate_run(config, inputs, split)[0]


def _short(found: Mapping[str, Any]) -> str:
  """What the tables come to: the run against the best of the others, metric by metric."""
  systems = {name: row["all"] for name, row in found["systems"].items()}
  # The run itself stands first.
  first, *others = systems
  lines = [
    f"{found['users']:,} users and {found['requests']:,} requests of {found['split']} were "
    "predicted; intervals are of 95 %, by a bootstrap over users."
  ]
  for metric, score in systems[first].items():
    words = f"{metric}: {report_tables.cell(score)}"
    if others:
      best = max(others, key=lambda name, metric=metric: systems[name][metric]["mean"])
      ahead = found["ahead"][best]["all"][metric]
      words += f"; against {best}, the best of the others, {report_tables.cell(ahead, signed=True)}"
    lines.append(words + ".")
  return "".join(map(page.paragraph, lines))


def _tables(found: Mapping[str, Any]) -> str:
  return report_tables.format_table(found)


def _charts(config: Config, found: Mapping[str, Any], scratch: str) -> str:
  """Systems side by side, whom their lists show, and the training."""
  drawn = {
    "comparison": "The systems' metrics, with 95 % intervals; the best one is in colour.",
    "exposure": "Shares of the places by popularity: the most popular tenth of the ads first.",
    "training": "Losses and metrics on valid while the run trained.",
  }
  path = {name: os.path.join(scratch, f"{name}.png") for name in drawn}
  plots.plot_comparison(found, path["comparison"])
  _plot_deciles(found["exposure"]["systems"], path["exposure"])
  curve = os.path.join(config.workdir, "metrics.jsonl")
  if os.path.exists(curve):
    plots.plot_training(curve, path["training"])
  return "".join(_chart_of(path[name], words) for name, words in drawn.items())


def _plot_deciles(systems: Mapping[str, Any], path: str) -> None:
  with plots.panels(1, (8.0, 3.4), path) as (axis,):
    for (name, row), color in zip(systems.items(), plots.COLORS * len(systems), strict=False):
      axis.plot(range(1, 11), row["deciles"], marker="o", ms=3.5, lw=1.6, label=name, color=color)
    axis.set_xlabel("tenth of the ads, the most popular first")
    axis.set_ylabel("share of the places")
    axis.set_xticks(range(1, 11))
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _chart_of(path: str, words: str) -> str:
  if not os.path.exists(path):
    return ""
  with open(path, "rb") as file:
    return page.picture(file.read(), words)


def _customers_intro() -> str:
  return page.paragraph(
    "Drawn at random, not chosen. Each list was made from what was known before the customer's "
    "last visit. The chance is that of the ad's UA-SID, the value what it brings if it is taken."
  )


def _settings(found: Mapping[str, Any]) -> str:
  rows = [["knob", "value"]]
  rows += [[name, str(value)] for name, value in sorted(found.get("settings", {}).items())]
  return page.table(rows)
