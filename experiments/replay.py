"""Replays the later part of a run's log to a learner, then tells how well each way to learn did.

python -m experiments.replay --workdir=runs/november --name=online
python -m experiments.replay --workdir=runs/november --name=daily --learn_from=day --day_steps=2
python -m experiments.replay --workdir=runs/november --name=weekly --learn_from=day \\
  --round_groups=7 --refit_steps=385
python -m experiments.replay --workdir=runs/november --report=online,daily,weekly
python -m experiments.replay --workdir=runs/november --report=daily --beside=runs/seed1,runs/seed2

The run knows the log up to its --until. What is stopped goes on with the same command.
"""

import dataclasses
import os
import sys

from absl import flags

from gr4ad_jax.builders.prepare import load_dataset, moment
from gr4ad_jax.config import Config, ConfigError, check_family, load_config
from gr4ad_jax.evaluation import report_tables
from gr4ad_jax.learning import replay
from gr4ad_jax.learning.learn_task import LearnTask
from gr4ad_jax.learning.learner import Learner
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.runs.workdir import FREE, changes
from gr4ad_jax.streams.opening import open_stream
from gr4ad_jax.studies import replay_table

from . import flags as flags_lib
from .progress import show_learning, tell

_NAME = flags.DEFINE_string("name", "online", "Of this way to learn: its folder in replay/.")
_LAST = flags.DEFINE_string("before", "2011-06-01", "Day at which the replay ends, YYYY-MM-DD.")
_REPORT = flags.DEFINE_list(
  "report", [], "Tell of these names instead, beside the run's own parameters; nothing is learned."
)
_BESIDE = flags.DEFINE_list(
  "beside", [], "With --report: runs of other seeds with replays of the same names; means are told."
)
_SAME = ("data", "sid", "model", "objective", "training")  # sections that seeds have in common


def _day(name: str, text: str) -> int:
  try:
    return moment(text)
  except ValueError as error:
    raise ConfigError(f"--{name}={text} is not allowed: a day as 2010-12-01") from error


def _roots_beside(config: Config) -> list[str]:
  """Folders of the replays of --beside. Raises ConfigError for a run that is no other seed of
  this one.
  """
  seeds = {config.training.seed: config.workdir}
  for workdir in _BESIDE.value:
    refused = f"--beside={workdir} is not allowed"
    other = load_config(workdir)
    if other.training.seed in seeds:
      raise ConfigError(f"{refused}: {seeds[other.training.seed]} has its seed too")
    check_family(other, config.family)
    for knob, ours, theirs in changes(other, config, _SAME, but=("seed", *FREE)):
      raise ConfigError(f"{refused}: it has --{knob}={ours}, the run {theirs}")
    seeds[other.training.seed] = workdir
  return [os.path.join(workdir, replay.FOLDER) for workdir in _BESIDE.value]


def report(roots: list[str], names: list[str]) -> None:
  """Writes and prints the table of some arms, and draws them by month.

  Args:
    roots: folder of replays of each seed; the table lies in the first.
    names: of the arms.
  """
  found = {
    name: [replay_table.Replayed.of(replay.recorded(os.path.join(root, name))) for root in roots]
    for name in names
  }
  arms = {"frozen": [(one, replay.FROZEN) for one in found[names[0]]]}
  arms |= {name: [(one, replay.LEARNING) for one in seeds] for name, seeds in found.items()}
  results = replay_table.results(replay_table.joined(arms))
  text = replay_table.format_markdown(results)
  report_tables.write_json(os.path.join(roots[0], "results.json"), results)
  report_tables.write_text(os.path.join(roots[0], "results.md"), text)
  replay_table.plot(results, os.path.join(roots[0], "by_month.png"))
  print(text, flush=True)


def main(argv):
  """Replays or reports, from flags."""
  del argv
  config = flags_lib.config_from_workdir()
  root = os.path.join(config.workdir, replay.FOLDER)
  if _BESIDE.value and not _REPORT.value:
    raise ConfigError(f"--beside={','.join(_BESIDE.value)} is not allowed: without --report")
  if _REPORT.value:
    report([root, *_roots_beside(config)], _REPORT.value)
    return 0
  end = _day("before", _LAST.value)
  until = config.data.until
  if not until or moment(until) >= end:
    raise ConfigError(
      f"--before={_LAST.value} is not allowed: the run knows the log up to {until or 'its end'}"
    )
  LearnTask.check(config)
  enable_compilation_cache()
  tell("reading the log")
  os.makedirs(root, exist_ok=True)
  stream = open_stream(f"sqlite:{os.path.join(root, 'stream.sqlite')}")
  try:
    whole = load_dataset(dataclasses.replace(config.data, until=""))
    visits = replay.fill(stream, whole, moment(until), end)
    print(f"{visits} visits from {until} to {_LAST.value}", flush=True)
    if not config.learn.refit_steps:
      # As fresh as can be: a round, which is predicted by the parameters before it, is a group.
      learn = dataclasses.replace(config.learn, round_groups=1)
      config = dataclasses.replace(config, learn=learn)
    folder = os.path.join(root, _NAME.value)
    task = LearnTask.over(config, stream, folder=folder)
    recorder = replay.Recorder(folder, len(task.inputs.dataset.ads))
    learner = Learner(
      task, guarded=False, depth=replay.DEPTH, on_predicted=recorder, on_round=show_learning
    )
    ended = learner.run(follow=False)
  finally:
    stream.close()
  if ended.status == "stopped":
    print("stopped; the same command goes on from there", file=sys.stderr, flush=True)
    return 0
  report([root], [_NAME.value])
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main, local="a replay writes runs of its own")
