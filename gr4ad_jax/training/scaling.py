"""Scaling of GR4AD: quality and training loss by model size, quality by beam width."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence

import jax
import numpy as np

from gr4ad_jax.config import Config, with_knobs
from gr4ad_jax.evaluation import metrics, protocols, report_tables, scaling_table
from gr4ad_jax.models.zoo import registry
from gr4ad_jax.training import inputs as inputs_lib
from gr4ad_jax.training import ranked, run, scoring, workdir
from gr4ad_jax.training.inputs import Inputs

WIDTHS = (32, 64, 128, 256)
BEAMS = (32, 64, 128, 256, 512)
_LATE = 0.2  # share of a run's last metric lines that its training loss is the mean of


class Scaling:
  """Trains one GR4AD of each size a seed, and searches the largest with every beam width.

  Args:
    config: of all runs; its workdir is the folder of the suite, its width and heads are set here.
    seeds: of every size.
    train: how a run is trained: (config, inputs) -> fit result.
    widths: model widths, ascending; a head is half as wide, as the tiny preset's.
    beams: beam widths, ascending, the same at every level.
  """

  def __init__(self, config: Config, seeds: Sequence[int], train: Callable = run.train,
               widths: Sequence[int] = WIDTHS, beams: Sequence[int] = BEAMS):  # fmt: skip
    self._config, self._seeds, self._train = config, tuple(seeds), train
    self._widths, self._beams = tuple(widths), tuple(beams)

  def run(self) -> dict:
    """Trains what is not trained; writes scaling.json, scaling.md and scaling.png.

    Returns:
      sizes: one entry a width: width, parameters, train_loss and metrics on test, means over the
        seeds; beams: one a
      beam width; law: the fit of train_loss to the parameters, see `scaling_table.power_law`;
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
    scores, losses = [], []
    for seed in self._seeds:
      config = self._of(width, seed)
      inputs = inputs_lib.prepare_inputs(config)
      scores.append(
        self._scores(
          config, inputs, lambda config=config, inputs=inputs: self._made(config, inputs)
        )
      )
      losses.append(late_loss(os.path.join(config.workdir, "metrics.jsonl")))
    params = run.load_params(config, registry.build(config, len(inputs.dataset.ads)))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {"width": width, "parameters": parameters, "train_loss": float(np.mean(losses))} | _mean(
      scores
    )

  def _beam(self, beams: int) -> dict:
    scores = []
    for seed in self._seeds:
      config = self._of(self._widths[-1], seed)
      search = dataclasses.replace(config.search, beams=(beams,) * len(config.sid.codebooks))
      config, inputs = dataclasses.replace(config, search=search), inputs_lib.prepare_inputs(config)
      make = lambda config=config, inputs=inputs: self._ranked(config, inputs)  # noqa: E731
      scores.append(
        self._scores(config, inputs, make, os.path.join(config.workdir, f"beams{beams}"))
      )
    return {"beams": beams} | _mean(scores)

  def _scores(
    self, config: Config, inputs: Inputs, make: Callable[[], np.ndarray], folder: str = ""
  ) -> dict:
    requests = protocols.eval_requests(inputs.dataset, "test", config.data.target_behavior)
    ad_RK = ranked.kept(folder or config.workdir, "test", scoring.shaping(config), make)
    ks = protocols.protocol_of(inputs.dataset.name).ks
    return {name: ratio.value for name, ratio in metrics.per_request(ad_RK, requests, ks).items()}

  def _made(self, config: Config, inputs: Inputs) -> np.ndarray:
    workdir.save_config(config)
    inputs_lib.save_inputs(config, inputs)
    ranked.go_on(self._train(config, inputs), config.workdir)
    return self._ranked(config, inputs)

  def _ranked(self, config: Config, inputs: Inputs) -> np.ndarray:
    requests = protocols.eval_requests(inputs.dataset, "test", config.data.target_behavior)
    return scoring.rank_run(
      config, inputs, requests, max(protocols.protocol_of(inputs.dataset.name).ks)
    ).ad_RK


def late_loss(path: str) -> float:
  """Mean of `train/sid` over the last fifth of a run's metric lines."""
  with open(path, encoding="utf-8") as file:
    lines = [json.loads(line) for line in file if line.strip()]
  losses = [line["train/sid"] for line in lines if "train/sid" in line]
  return float(np.mean(losses[-max(1, round(_LATE * len(losses))) :]))


def _mean(scores: Sequence[dict]) -> dict:
  return {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}
