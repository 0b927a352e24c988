"""BTDNet's ablation: what its three parts bring to the base, alone and together.

Rebuilt from the abstract of arXiv:2502.08486. All rows have the same steps, the same scenes and
about as many parameters: the decoder's width makes up for what a row lacks. What D-MOLS rebuilds
with is not counted, as it is used in training alone.
"""

import dataclasses
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from gr4ad_jax import files
from gr4ad_jax.config import Config, ConfigError, fields_of, with_knobs
from gr4ad_jax.evaluation import report_tables
from gr4ad_jax.ranking import list_cache
from gr4ad_jax.runs import run
from gr4ad_jax.segmentation import controls
from gr4ad_jax.segmentation.metrics import Counts
from gr4ad_jax.segmentation.predict import Predictor
from gr4ad_jax.segmentation.task import SegmentationTask, fresh
from gr4ad_jax.studies import btdnet_table
from gr4ad_jax.training.loop import FitResult

SPLIT = "test"
RUN = "run"  # the sentences as they are, beside the names of the controls
_COUNTS = "counts.npz"  # in a run's folder eval
_IN_TRAINING = ("text_rebuilder", "vision_rebuilder")
_WIDEST = 512  # channels of a decoder that are tried
# A trained run may change these, but they shape what comes out.
_LENGTH = ("epochs", "max_steps", "eval_every")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the table: which of the parts a run has.

  Attributes:
    name: as it is shown.
    bsc, decoder, dmols, background_loss: knobs of `SegmentationConfig`; by default the base's.
  """

  name: str
  bsc: str = "off"
  decoder: str = "single"
  dmols: str = "off"
  background_loss: bool = True

  @property
  def knobs(self) -> dict:
    """What the row fixes."""
    return {name: value for name, value in vars(self).items() if name != "name"}


BASE, ALL = "base", "all"
ROWS = (
  Row(BASE),
  Row("bsc_vision", bsc="vision"),
  Row("bsc_words", bsc="words"),
  Row("bsc", bsc="both"),
  Row("t_btd_shared", decoder="shared"),
  Row("t_btd_no_background", decoder="twin", background_loss=False),
  Row("t_btd", decoder="twin"),
  Row("d_mols_text", dmols="text"),
  Row("d_mols_vision", dmols="vision"),
  Row("d_mols", dmols="both"),
  Row(ALL, bsc="both", decoder="twin", dmols="both"),
)


def choose_rows(names: Iterable[str]) -> tuple[Row, ...]:
  """Rows by name, in the table's order; the base, which all are compared with, is always there.
  Raises ConfigError.
  """
  names = set(names) | {BASE}
  unknown = names - {row.name for row in ROWS}
  if unknown:
    known = ", ".join(row.name for row in ROWS)
    raise ConfigError(f"--rows={sorted(unknown)[0]} is not allowed: any of {known}")
  return tuple(row for row in ROWS if row.name in names)


class Ablation:
  """Trains and scores rows; what is there already is not made again.

  Args:
    config: of the row with all parts; its workdir is the ablation's folder.
    rows: lines of the table.
    seeds: that each of them is run with. Runs of other seeds that lie in the folder count too.
    train: how a task is trained; the binary's own shows progress.
    told: hears what each run came to; a line.
  """

  def __init__(
    self,
    config: Config,
    rows: Sequence[Row] = ROWS,
    seeds: Sequence[int] = (0,),
    train: Callable[[SegmentationTask], FitResult] = run.train,
    told: Callable[[str], None] = _log.info,
  ):
    self._config = config
    self._rows = rows
    self._seeds = seeds
    self._train = train
    self._told = told

  def run(self) -> dict:
    """Runs all rows of a seed, then those of the next; writes ablation.json and ablation.md.

    Returns:
      What `btdnet_table.results` found, with the parameters and the decoder's width of each row.

    Raises:
      Stopped: asked to stop; the same call goes on.
      ConfigError, DataError: settings or data that a row would refuse; before anything is trained.
    """
    folder = self._config.workdir
    # Any row's data and vocabulary are those of all.
    first = SegmentationTask.open(self._config)
    widths = self._widths(first)
    configs = {
      (row.name, seed): self._row_config(row, seed, widths[row.name])
      for seed in self._seeds
      for row in self._rows
    }
    for (name, seed), config in configs.items():
      counts = self._kept(config)
      if counts is None:
        counts = self._made(config)
      value = counts[RUN].both.sum() / counts[RUN].either.sum()
      self._told(f"{name}, seed {seed}: oIoU {value:.3f}")
    counts = {row.name: self._all_seeds(row, widths[row.name]) for row in self._rows}
    found = btdnet_table.results(first.splits[SPLIT], counts)
    found["about"] = {
      row.name: {
        "parameters": self._parameters(first, self._row_config(row, 0, widths[row.name])),
        "decoder_width": widths[row.name],
      }
      for row in self._rows
    }
    found |= {"split": SPLIT, "trained_steps": self._config.training.max_steps}
    report_tables.write_json(os.path.join(folder, "ablation.json"), found)
    report_tables.write_text(
      os.path.join(folder, "ablation.md"), btdnet_table.format_markdown(found)
    )
    return found

  def _row_config(self, row: Row, seed: int, width: int) -> Config:
    """The config of one run; its workdir is <folder>/seed<seed>/<row>."""
    folder = os.path.join(self._config.workdir, f"seed{seed}", row.name)
    config = with_knobs(self._config, {**row.knobs, "seed": seed, "decoder_width": width})
    return SegmentationTask.validate(dataclasses.replace(config, workdir=folder))

  def _widths(self, first: SegmentationTask) -> dict[str, int]:
    """The decoder's width of each row, by which its parameters come nearest to those of all parts
    at the width that was asked for.
    """
    whole = next(row for row in ROWS if row.name == ALL)
    width = self._config.own.decoder_width
    target = self._parameters(first, self._row_config(whole, 0, width))
    found = {}
    for row in self._rows:

      def parameters(width: int, row: Row = row) -> int:
        return self._parameters(first, self._row_config(row, 0, width))

      # Parameters grow with the width, so the first width of too many is found by bisection.
      low = 1
      high = _WIDEST
      while low < high:
        middle = (low + high) // 2
        if parameters(middle) < target:
          low = middle + 1
        else:
          high = middle
      near = (max(1, low - 1), low)
      found[row.name] = min(near, key=lambda one: abs(parameters(one) - target))
    return found

  def _parameters(self, first: SegmentationTask, config: Config) -> int:
    """Parameters that a run's masks need."""
    shapes = jax.eval_shape(lambda: fresh(config, first.pieces))
    kept = {name: part for name, part in shapes.items() if name not in _IN_TRAINING}
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(kept))

  def _all_seeds(self, row: Row, width: int) -> dict[int, dict[str, Counts]]:
    """What there is of a row in the folder, by seed: runs of other calls count too."""
    found = {}
    for entry in sorted(os.listdir(self._config.workdir)):
      seed = entry.removeprefix("seed")
      if entry != f"seed{seed}" or not seed.isdigit():
        continue
      counts = self._kept(self._row_config(row, int(seed), width))
      if counts is not None:
        found[int(seed)] = counts
    return found

  def _made(self, config: Config) -> dict[str, Counts]:
    """Trains and scores a run; its counts are kept."""
    task = run.start(config)
    list_cache.go_on(self._train(task), config.workdir)
    params = run.load_params(config, lambda: task.init(jax.random.key(task.training.seed)))
    predictor = Predictor(task.model)
    data = task.splits[SPLIT]
    found = {}
    for name, sentences in {RUN: data, **controls.named(data)}.items():
      encoded = sentences.encoded(task.pieces, task.own.max_pieces)
      found[name] = predictor.counts(params, encoded, np.arange(len(data)))
    arrays = {
      f"{name}/{part}": column
      for name, counts in found.items()
      for part, column in vars(counts).items()
    }
    files.save_arrays(self._path(config), settings=_settings(config), **arrays)
    return found

  def _kept(self, config: Config) -> dict[str, Counts] | None:
    """The counts of a run that was scored with these settings; None: there are none."""
    path = self._path(config)
    if not os.path.exists(path):
      return None
    saved = files.load_all(path)
    if str(saved.pop("settings")) != _settings(config):
      return None
    parts: dict[str, dict] = {}
    for key, column in saved.items():
      # A control's name may hold anything but a slash.
      name, part = key.rsplit("/", 1)
      parts.setdefault(name, {})[part] = column
    return {name: Counts(**columns) for name, columns in parts.items()}

  def _path(self, config: Config) -> str:
    return os.path.join(config.workdir, "eval", _COUNTS)


def _settings(config: Config) -> str:
  """What a run's counts follow from, as text."""
  found = {
    name: getattr(getattr(config, section), name)
    for name, (section, field) in fields_of(config).items()
    if not field.metadata["free"] or name in _LENGTH
  }
  return json.dumps(found, sort_keys=True)
