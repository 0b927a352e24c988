"""Trains and evaluates a list of models under one protocol; writes one table.

  python -m experiments.zoo --dataset=online_retail --models=gr4ad,sasrec --workdir=runs/zoo

A model is a flagfile of experiments/flagfiles/zoo/<dataset>/, or one named by its path. Flags that
are given here win in every row whose model reads them. It goes on where it was stopped. Writes
<workdir>/zoo.json and zoo.md.

  python -m experiments.zoo --dataset=online_retail --models=gr4ad --suite=scaling
  --workdir=runs/scaling

trains one model at several widths and searches the largest at several beam widths: scaling.json,
.md and .png.
"""

import dataclasses
import os
from collections.abc import Iterable

from absl import flags

from gr4ad_jax.config import Config, ConfigError, with_knobs
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.ranking import list_cache
from gr4ad_jax.requests.request_task import RequestTask
from gr4ad_jax.runs import run
from gr4ad_jax.studies import scaling, scaling_table, zoo
from gr4ad_jax.training import trainer
from gr4ad_jax.zoo import registry

from . import flags as flags_lib
from . import shipped
from .progress import RoundProgress, show_progress

FLAGFILES = os.path.join(shipped.FOLDER, "zoo")

_MODELS = flags.DEFINE_list(
  "models", [], "Flagfiles, by name without .flags or by path; the first is compared."
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of every model.")
_SUITE = flags.DEFINE_enum(
  "suite",
  "models",
  ["models", "scaling"],
  "A table of models; or curves of --models' only one by width and by beams.",
)
_WIDTHS = flags.DEFINE_list(
  "widths", [str(width) for width in scaling.WIDTHS], "--suite=scaling: model widths."
)


def _flagfile(name: str, dataset: str) -> str:
  """Path of a model's flagfile. Raises ConfigError where there is none."""
  if name.endswith(".flags"):
    if not os.path.exists(name):
      raise ConfigError(f"--models={name} is not allowed: there is no such file")
    return name
  folder = os.path.join(FLAGFILES, dataset)
  files = os.listdir(folder) if os.path.isdir(folder) else []
  known = sorted(file.removesuffix(".flags") for file in files if file.endswith(".flags"))
  if name not in known:
    raise ConfigError(
      f"--models={name} is not allowed: a path that ends in .flags, or any of {', '.join(known)}"
    )
  return os.path.join(folder, f"{name}.flags")


def configs() -> dict:
  """Name of a row -> config, of the models that are asked for.

  What a flagfile sets its model must read; what is given beside them goes to the rows whose models
  read it.

  Raises:
    ConfigError: a row that is refused, or a flag that no row reads.
  """
  given = [flags.FLAGS[name] for name in flags.FLAGS if name in flags_lib.knob_names()]
  given = {flag.name: flag.serialize() for flag in given if flag.present}
  found = {}
  ignored = set(given)
  for model in _MODELS.value:
    name = os.path.basename(model).removesuffix(".flags")
    if name in found:
      raise ConfigError(f"--models={model} is not allowed: the table has a row {name!r} already")
    path = _flagfile(model, flags.FLAGS.dataset)
    kind = _parsed(path, given.values()).model
    unread = registry.unread(with_knobs(Config(), {"model": kind}))
    read = [flag for knob, flag in given.items() if knob not in unread]
    found[name] = flags_lib.config_from_flags(_parsed(path, read))
    ignored &= unread
    ours, first = (_treatment(config) for config in (found[name], next(iter(found.values()))))
    if ours != first:
      raise ConfigError(
        f"--models={model} is not allowed: it has {ours}, the first row {first}; in one table all "
        "rows treat seen ads alike, and the part 'new' has them without"
      )
  for knob in sorted(ignored if found else ()):
    raise ConfigError(f"{given[knob]} is not allowed: no model of --models reads --{knob}")
  return found


def _treatment(config: Config) -> str:
  return f"--seen_ads={config.search.seen_ads} --seen_days={config.search.seen_days:g}"


def _parsed(path: str, given: Iterable[str]) -> flags.FlagValues:
  """The flags of a row: its flagfile's, then those that are given. Raises ConfigError."""
  values = flags.FlagValues()
  flags_lib.define_flags(values)
  try:
    values(["zoo", *shipped.expanded([f"--flagfile={path}"]), *given])
  except flags.Error as error:
    raise ConfigError(f"{path}: {error}") from error
  return values


def main(argv):
  """Runs the zoo from flags."""
  del argv
  folder = flags.FLAGS.workdir
  flags_lib.check_folder_of_runs(folder)
  if not _MODELS.value:
    raise ConfigError("--models= is not allowed: name one or more")
  seeds = flags_lib.whole_numbers("seeds", _SEEDS.value)
  if _SUITE.value == "scaling" and len(_MODELS.value) != 1:
    raise ConfigError(
      f"--models={','.join(_MODELS.value)} is not allowed: one, with --suite=scaling"
    )
  widths = flags_lib.whole_numbers("widths", _WIDTHS.value, words="ascending")
  rows = configs()
  for config in rows.values() if _SUITE.value == "scaling" else ():
    if "beams" in registry.unread(config):
      raise ConfigError(
        f"--models={_MODELS.value[0]} is not allowed: --suite=scaling varies --beams"
      )
  for config in rows.values():
    trainer.check_mesh(config)
    RequestTask.check(config)
  enable_compilation_cache()

  def train(task, on_progress=lambda _: None):
    print(f"run directory: {task.folder}", flush=True)

    def told(progress):
      on_progress(progress)
      show_progress(progress)

    return run.train(task, told, RoundProgress())

  try:
    if _SUITE.value == "scaling":
      config = dataclasses.replace(next(iter(rows.values())), workdir=folder)
      found = scaling.Scaling(config, seeds, train, widths).run()
      print(scaling_table.format_markdown(found))
    else:
      print(zoo.format_markdown(zoo.Zoo(folder, rows, seeds, train).run()))
  except list_cache.Stopped as stopped:
    print(stopped, flush=True)
    return 0
  print(f"written to {folder}")
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main, local="it holds several runs")
