"""Tries many settings of the list objectives from one trained run, with one compiled step.

  python -m experiments.sweep --flagfile=experiments/flagfiles/online_retail_rspo.flags
    --fit_splits=train \\ --init_from=runs/start --settings=settings.json --workdir=runs/sweep

The start has learned from train alone and has a reward model. settings.json is a list such as
[{"objective": "rspo", "preference_weight": 10}, {"objective": "xent", "epochs": 3}]; what it leaves
out is as the flags say. It goes on where it was stopped. Writes <workdir>/sweep.json and sweep.md.
"""

import sys
import time

import jax
from absl import flags

from gr4ad_jax.config import ConfigError, load_config, with_knobs
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.ranking import list_cache
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.requests import request_task
from gr4ad_jax.requests.request_task import RequestTask
from gr4ad_jax.studies import sweep, sweep_table
from gr4ad_jax.training import loop

from . import flags as flags_lib
from .progress import RoundProgress, duration, tell

_SETTINGS = flags.DEFINE_string(
  "settings", "", "JSON list of the settings to try, each an object of knobs."
)


def main(argv):
  """Runs a sweep from flags."""
  del argv
  config = flags_lib.config_from_flags()
  if not config.workdir or not config.training.init_from:
    raise ConfigError(
      "--workdir and --init_from are needed: where the results go, and the run that is started from"
    )
  if "valid" in config.training.fitted:
    raise ConfigError(
      f"--fit_splits={config.training.fit_splits} is not allowed: settings are judged by valid"
    )
  if jax.device_count() > 1:
    raise ConfigError(
      f"{jax.device_count()} devices are not allowed: a sweep works on one (CUDA_VISIBLE_DEVICES=0)"
    )
  settings = sweep.read_settings(_SETTINGS.value, config)
  first = with_knobs(config, settings[0])
  RequestTask.check(first)
  if "valid" in load_config(config.training.init_from).training.fitted:
    raise ConfigError(
      f"--init_from={config.training.init_from} is not allowed: its run has learned from valid"
    )
  results = sweep.Results(config.workdir, config)
  left = [one for one in (sweep.START, *settings) if not results.has(one)]
  if left:
    enable_compilation_cache()
    inputs = inputs_lib.prepare_inputs(config)
    request_task.make(first, inputs).check_inputs()
    made = sweep.Sweep(config, inputs, RoundProgress(quiet_seconds=5))
    began = time.monotonic()
    for number, setting in enumerate(left, 1):
      try:
        scores = made.run(setting)
      except loop.DivergedError as error:
        print(f"error: {sweep_table.in_words(setting)}: {error}", file=sys.stderr)
        return 1
      except list_cache.Stopped as stopped:
        print(stopped, flush=True)
        return 0
      results.add(setting, scores)
      eta = (time.monotonic() - began) / number * (len(left) - number)
      words = ", ".join(
        f"{name} {value:.4f}"
        for name, value in scores["valid"].items()
        if name in sweep_table.SHOWN
      )
      tell(f"{number}/{len(left)}  ETA {duration(eta)}  {sweep_table.in_words(setting)}: {words}")
  print(sweep_table.format_markdown(results.found))
  print(f"written to {config.workdir}")
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main, local="it holds several runs")
