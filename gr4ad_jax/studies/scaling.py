"""Scaling of GR4AD: quality and training loss by model size, quality by beam width."""

import dataclasses
import json
import os
from collections.abc import Sequence

import jax
import numpy as np

from gr4ad_jax.config import Config, with_knobs
from gr4ad_jax.evaluation import report_tables
from gr4ad_jax.requests import request_task
from gr4ad_jax.runs import run
from gr4ad_jax.studies import scaling_table
from gr4ad_jax.studies.runner import Runner, Train
from gr4ad_jax.zoo import registry

WIDTHS = (32, 64, 128, 256)
BEAMS = (32, 64, 128, 256, 512)
_LATE = 0.2  # share of a run's last metric lines that its training loss is the mean of


class Scaling:
  """Trains one GR4AD of each size a seed, and searches the largest with every beam width.

  Args:
    config: of all runs; its workdir is the folder of the suite, its width and heads are set here.
    seeds: of every size.
    train: how a task is trained.
    widths: model widths, ascending; a head is half as wide, as the tiny preset's.
    beams: beam widths, ascending, the same at every level.
  """

  def __init__(self, config: Config, seeds: Sequence[int], train: Train = run.train,
               widths: Sequence[int] = WIDTHS, beams: Sequence[int] = BEAMS):  # fmt: skip
    self._config = config
    self._seeds = tuple(seeds)
    self._runner = Runner(train)
    self._widths = tuple(widths)
    self._beams = tuple(beams)

  def run(self) -> dict:
    """Trains what is not trained; writes scaling.json, scaling.md and scaling.png.

    Returns:
      sizes: one entry a width: width, parameters, train_loss and metrics on test, means over the
        seeds;
      beams: one a beam width;
      law: the fit of train_loss to the parameters, see `scaling_table.power_law`;
      rising: by list and measure, whether it never falls.

    Raises:
      Stopped: asked to stop; the same call goes on.
    """
    sizes = [self._size(width) for width in self._widths]
    beams = [self._beam(width) for width in self._beams]
    law = scaling_table.power_law(
      [one["parameters"] for one in sizes], [one["train_loss"] for one in sizes]
    )
    found = {"dataset": self._config.data.dataset, "seeds": list(self._seeds)}
    found |= {"sizes": sizes, "beams": beams, "law": law}
    found["rising"] = scaling_table.rising(found)
    folder = self._config.workdir
    report_tables.write_json(os.path.join(folder, "scaling.json"), found)
    report_tables.write_text(
      os.path.join(folder, "scaling.md"), scaling_table.format_markdown(found)
    )
    scaling_table.plot(found, os.path.join(folder, "scaling.png"))
    return found

  def _of(self, width: int, seed: int) -> Config:
    folder = os.path.join(self._config.workdir, f"width{width}", f"seed{seed}")
    config = with_knobs(self._config, {"width": width, "seed": seed})
    return registry.validate(dataclasses.replace(config, workdir=folder))

  def _size(self, width: int) -> dict:
    scores = []
    losses = []
    for seed in self._seeds:
      config = self._of(width, seed)
      scores.append(self._scores(config))
      losses.append(late_loss(os.path.join(config.workdir, "metrics.jsonl")))
    # Of any seed: all have the same shapes.
    model = registry.build(config, len(self._runner.inputs(config).dataset.ads))
    params = request_task.load_params(config, model)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    about = {"width": width, "parameters": parameters, "train_loss": float(np.mean(losses))}
    return about | _mean(scores)

  def _beam(self, beams: int) -> dict:
    scores = []
    for seed in self._seeds:
      # The largest model, as it gains most by wider beams.
      config = self._of(self._widths[-1], seed)
      search = dataclasses.replace(config.search, beams=(beams,) * len(config.sid.codebooks))
      folder = os.path.join(config.workdir, f"beams{beams}")
      scores.append(self._scores(dataclasses.replace(config, search=search), folder))
    return {"beams": beams} | _mean(scores)

  def _scores(self, config: Config, folder: str = "") -> dict:
    """Of a run on test; with a folder, of a search whose ranking is kept there."""
    searched = config.workdir if folder else ""
    ad_RK = self._runner.ranking(config, "test", folder, searched)
    return self._runner.scores(config, "test", ad_RK)


def late_loss(path: str) -> float:
  """Mean of `train/sid` over the last fifth of a run's metric lines."""
  with open(path, encoding="utf-8") as file:
    lines = [json.loads(line) for line in file if line.strip()]
  losses = [line["train/sid"] for line in lines if "train/sid" in line]
  # One line at least, however short the run was.
  return float(np.mean(losses[-max(1, round(_LATE * len(losses))) :]))


def _mean(scores: Sequence[dict]) -> dict:
  return {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}
