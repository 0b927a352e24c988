"""The paper's ablation on real data: base, VSL, list objectives on top of it, value at decode time.

The paper's own figures are in docs/design/method.md §5.

Each objective starts from the VSL run of its seed, and is tuned on valid with as many settings as
every other one. All runs and rankings lie under one folder; what is there already is not made
again.
"""

import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gr4ad_jax.config import Config, PreferenceConfig, with_knobs
from gr4ad_jax.evaluation import report_tables
from gr4ad_jax.ranking import list_cache, seen_ads
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.requests.request_task import RequestTask
from gr4ad_jax.runs import run
from gr4ad_jax.studies import ablation_table
from gr4ad_jax.studies import rows as rows_lib
from gr4ad_jax.studies.runner import Runner, Train
from gr4ad_jax.training.loop import FitResult
from gr4ad_jax.value import reward_run, rewards
from gr4ad_jax.zoo import registry

# Settings are tuned with one seed alone, and then run with all of them.
TUNED_SEED = 0
CHOSEN_BY = "revenue@10"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the table.

  Attributes:
    name: as it is shown.
    parent: the row that it is a step from; empty: none.
    fixed: knobs that make the row what it is.
    grid: knobs and values that are tuned; rows of one table have grids of one size, but for those
      without a knob.
    start: whether it begins from the seed's VSL run.
    trains: off: it searches the start's parameters in another way.
  """

  name: str
  parent: str = ""
  fixed: dict = dataclasses.field(default_factory=dict)
  grid: dict = dataclasses.field(default_factory=dict)
  start: bool = True
  trains: bool = True

  def settings(self) -> list[dict]:
    """Every combination of the grid; one empty one where there is none."""
    return [
      dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())
    ]


def _weights(*values: float) -> dict:
  return {"preference_weight": values}


VSL = "vsl"
ROWS = (
  Row("base", fixed={"value_weight": "none", "lambda_ecpm": 0.0}, start=False),
  Row(VSL, "base", start=False),
  Row("vsl_decode_value", VSL, {"order": "blend"}, {"value_power": (0.15, 0.3, 0.6)}, trains=False),
  Row("vsl_continued", VSL, {}, {"learning_rate": (1e-4, 3e-4, 1e-3)}),
  Row("xent", VSL, {"objective": "xent"}, _weights(1.0, 3.0, 10.0)),
  Row("dpo", VSL, {"objective": "dpo"}, _weights(1.0, 3.0, 10.0)),
  Row("sdpo", VSL, {"objective": "sdpo"}, _weights(1.0, 0.3, 0.1)),
  Row("grpo", VSL, {"objective": "grpo"}, _weights(1.0, 3.0, 10.0)),
  Row("rspo", VSL, {"objective": "rspo"}, _weights(3.0, 10.0, 30.0)),
  Row("unified", "rspo", {"objective": "unified"}, _weights(3.0, 10.0, 30.0)),
)


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is run.

  Attributes:
    config: of the VSL run: its workdir is the ablation's folder; its `training` is that of base and
      VSL.
    rows: lines of the table, parents before children.
    seeds: of the final runs.
    epochs: passes of what starts from VSL.
    learning_rate: of what starts from VSL, where it is not tuned.
  """

  config: Config
  rows: Sequence[Row] = ROWS
  seeds: Sequence[int] = (0, 1, 2)
  epochs: float = 1.0
  learning_rate: float = 1e-3


def choose_rows(names: Iterable[str]) -> tuple[Row, ...]:
  """Rows by name, in the table's order; VSL, from which the others start, is always there.
  Raises ConfigError.
  """
  return rows_lib.chosen(ROWS, names, VSL)


class Ablation:
  """Runs a plan.

  Args:
    plan: what is run.
    train: how a task is trained; the binary's own shows progress.
    train_reward: how a run's reward model is trained, where it has none: (config, inputs).
    told: hears of each run that is trained, and what each setting came to; a line.
  """

  def __init__(
    self,
    plan: Plan,
    train: Train = run.train,
    train_reward: Callable = reward_run.train,
    told: Callable[[str], None] = _log.info,
  ):
    self._plan = plan
    self._train = train
    self._train_reward = train_reward
    self._told = told
    self._runner = Runner(self._trained, self._check_rewards)

  def run(self) -> dict:
    """Tunes on valid, runs all seeds, scores them on test; writes ablation.json, .md and .png.

    Returns:
      What `ablation_table.results` found, with the chosen settings and all that was tried.

    Raises:
      Stopped: asked to stop; the same call goes on.
      ConfigError, DataError: settings or data that a row would refuse; before anything is trained.
    """
    plan = self._plan
    # All rows are checked before the first is trained: what one of them would refuse at its turn
    # would come hours later.
    for row in plan.rows:
      RequestTask.check(registry.validate(with_knobs(plan.config, row.fixed), plan.config))
    # A row without a choice has nothing to tune.
    tried = {row.name: self._tune(row) for row in plan.rows if len(row.settings()) > 1}
    # The first of equal ones, in the order of the grid.
    chosen = {
      name: max(found, key=lambda one: one[CHOSEN_BY])["settings"] for name, found in tried.items()
    }
    rankings = {}
    unseen = {}
    dataset = None
    for seed in plan.seeds:
      for row in plan.rows:
        config = self._config(
          row, chosen.get(row.name, {}), seed, plan.config.training.fit_splits, f"seed{seed}"
        )
        rankings.setdefault(row.name, []).append(self._rank(row, config, "test"))
        # Where the config leaves out seen ads anyway, both rankings are one.
        fresh = seen_ads.unseen(config)
        name = "" if fresh == config else "test_unseen"
        unseen.setdefault(row.name, []).append(self._rank(row, fresh, "test", name))
        dataset = self._runner.inputs(config).dataset
    found = ablation_table.results(
      dataset,
      "test",
      rankings,
      {row.name: row.parent for row in plan.rows},
      plan.config.data.target_behavior,
      unseen,
    )
    found |= {
      "seeds": list(plan.seeds),
      "chosen": chosen,
      "tried": tried,
      "chosen_by": f"valid {CHOSEN_BY}",
    }
    folder = plan.config.workdir
    report_tables.write_json(os.path.join(folder, "ablation.json"), found)
    ablation_table.write_markdown(found, os.path.join(folder, "ablation.md"))
    ablation_table.plot(found, os.path.join(folder, "ablation.png"))
    return found

  def _tune(self, row: Row) -> list[dict]:
    """Valid metrics of each setting of a row, learned from train alone."""
    found = []
    for number, settings in enumerate(row.settings()):
      config = self._config(row, settings, TUNED_SEED, "train", "tune", f"{row.name}_{number}")
      scores = self._runner.scores(config, "valid", self._rank(row, config, "valid"), (10, 50))
      told = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
      self._told(f"valid, {row.name} {settings}: {told}")
      found.append({"settings": settings, **scores})
    return found

  def _config(
    self, row: Row, settings: dict, seed: int, fit_splits: str, group: str, name: str = ""
  ) -> Config:
    """The config of one run; its workdir is <folder>/<group>/<name>."""
    # The same seed and splits in every knob that a row does not fix itself.
    base = self._plan.config
    knobs = {"seed": seed, "fit_splits": fit_splits}
    if row.start:
      # Every row of a seed starts from the same VSL run.
      knobs |= {"init_from": os.path.join(base.workdir, group, VSL), "epochs": self._plan.epochs}
      knobs |= {"learning_rate": self._plan.learning_rate, "eval_every": 0}
      # Runs of one start propose the same lists, which are then made once.
      knobs |= {"candidates_cache": os.path.join(base.workdir, "candidates")}
    else:
      # Without settings of lists, so that other ones can be tried from the same start.
      base = dataclasses.replace(base, preference=PreferenceConfig())
    folder = os.path.join(base.workdir, group, name or row.name)
    return registry.validate(
      dataclasses.replace(with_knobs(base, knobs | row.fixed | settings), workdir=folder)
    )

  def _check_rewards(self, inputs: Inputs) -> None:
    """Raises ConfigError or DataError where the rewards cannot be had; asked before a group's first
    run is trained.
    """
    if any(row.start for row in self._plan.rows):
      rewards.resolve(self._plan.config.preference, inputs.dataset.ads)

  def _trained(self, task: RequestTask) -> FitResult:
    self._told(f"training {task.folder}")
    return self._train(task)

  def _rank(self, row: Row, config: Config, split: str, name: str = "") -> np.ndarray:
    """Top ads of each request of a split by a run, trained first where need be: [R, K].

    `name` is what the ranking is kept under; empty: the split's.
    """
    # A row that is only searched has no run of its own: it searches its start.
    before = (lambda: self._make_start(config)) if row.start else lambda: None
    searched = "" if row.trains else config.training.init_from
    return self._runner.ranking(config, split, searched=searched, before=before, name=name)

  def _make_start(self, config: Config) -> None:
    """The VSL run that a row starts from, and its reward model."""
    start = config.training.init_from
    vsl = next(row for row in self._plan.rows if row.name == VSL)
    # <folder>/<group>/vsl: the group says whether it is a tuning or a seed's final run.
    group = os.path.basename(os.path.dirname(start))
    started = self._config(vsl, {}, config.training.seed, config.training.fit_splits, group)
    self._rank(vsl, started, "valid" if config.training.fit_splits == "train" else "test")
    if not reward_run.is_finished(started):
      self._told(f"training the reward model of {start}")
      result = self._train_reward(started, self._runner.inputs(started))
      list_cache.go_on(result, f"the reward model of {start}")
