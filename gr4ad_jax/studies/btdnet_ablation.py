"""BTDNet's ablation: what its three parts bring to the base, alone and together.

Rebuilt from the abstract of arXiv:2502.08486. All rows have the same steps, the same scenes and
about as many parameters: the decoder's width makes up for what a row lacks. What D-MOLS rebuilds
with is not counted, as it is used in training alone.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from gr4ad_jax import files
from gr4ad_jax.config import (
  Config,
  ConfigError,
  fields_of,
  is_trained,
  load_config,
  with_knobs,
)
from gr4ad_jax.evaluation import report_tables
from gr4ad_jax.ranking import list_cache
from gr4ad_jax.runs import run
from gr4ad_jax.runs import workdir as workdir_lib
from gr4ad_jax.segmentation import controls
from gr4ad_jax.segmentation.metrics import Counts
from gr4ad_jax.segmentation.predict import Predictor
from gr4ad_jax.segmentation.task import SegmentationTask, fresh
from gr4ad_jax.studies import btdnet_table
from gr4ad_jax.studies import rows as rows_lib
from gr4ad_jax.training.loop import FitResult

SPLIT = "test"
_COUNTS = "counts.npz"  # in a run's folder eval
# Free for a trained run, as none of them shapes its parameters. Here they must be what they were:
# rows of one table have one length, and are judged by the same sample.
_FIXED = ("epochs", "max_steps", "eval_every", "eval_sentences")
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


BASE = "base"
ALL = "all"
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
  return rows_lib.chosen(ROWS, names, BASE)


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
    self._counted: dict[tuple, int] = {}

  @functools.cached_property
  def _first(self) -> SegmentationTask:
    """Whose data and vocabulary are those of every row."""
    return SegmentationTask.open(self._config)

  def run(self) -> dict:
    """Runs all rows of a seed, then those of the next; writes ablation.json and ablation.md.

    Returns:
      What `btdnet_table.results` found, with the parameters and the decoder's width of each row.

    Raises:
      Stopped: asked to stop; the same call goes on.
      ConfigError, DataError: settings or data that a row would refuse, or a run of other settings
        in its place; before anything is trained.
    """
    first = self._first
    self._told("matching the rows' parameters")
    widths = {row.name: self._width(row) for row in self._rows}
    configs = {
      (row.name, seed): self._row_config(row, seed, widths[row.name])
      for seed in self._seeds
      for row in self._rows
    }
    for config in configs.values():
      self._check(config)
    for (name, seed), config in configs.items():
      counts = self._kept(config)
      if counts is None:
        counts = self._made(config)
      value = counts[btdnet_table.RUN].both.sum() / counts[btdnet_table.RUN].either.sum()
      self._told(f"{name}, seed {seed}: oIoU {value:.3f}")
    counts = {row.name: self._all_seeds(row, widths[row.name]) for row in self._rows}
    found = btdnet_table.results(first.splits[SPLIT], counts)
    found["about"] = {
      row.name: {
        "parameters": self._parameters(row, widths[row.name]),
        "decoder_width": widths[row.name],
      }
      for row in self._rows
    }
    found |= {"split": SPLIT, "trained_steps": first.total_steps}
    folder = self._config.workdir
    report_tables.write_json(os.path.join(folder, "ablation.json"), found)
    text = btdnet_table.format_markdown(found)
    report_tables.write_text(os.path.join(folder, "ablation.md"), text)
    return found

  def _row_config(self, row: Row, seed: int, width: int) -> Config:
    """The config of one run; its workdir is <folder>/seed<seed>/<row>."""
    folder = os.path.join(self._config.workdir, f"seed{seed}", row.name)
    config = with_knobs(self._config, {**row.knobs, "seed": seed, "decoder_width": width})
    return SegmentationTask.validate(dataclasses.replace(config, workdir=folder))

  def _check(self, config: Config) -> None:
    """Raises ConfigError where a run of other settings lies in the place of this one."""
    if not is_trained(config.workdir):
      return
    workdir_lib.check_workdir(config)
    saved = load_config(config.workdir)
    for name, ours, theirs in workdir_lib.changes(config, saved, ("training", "own")):
      if name in _FIXED:
        raise ConfigError(
          f"--{name}={ours} is not allowed: the run in {config.workdir} has {theirs}; other "
          "settings need another --workdir"
        )

  def _width(self, row: Row) -> int:
    """The decoder's width by which a row's parameters come nearest to those of all parts at the
    width that was asked for.
    """
    width = self._config.own.decoder_width
    if row.name == ALL:
      return width
    target = self._parameters(next(one for one in ROWS if one.name == ALL), width)
    # Parameters grow with the width: one is found that has too many, then the first that has.
    low = 1
    high = width
    while self._parameters(row, high) < target:
      high *= 2
    while low < high:
      middle = (low + high) // 2
      if self._parameters(row, middle) < target:
        low = middle + 1
      else:
        high = middle
    near = max(1, low - 1), low
    return min(near, key=lambda one: abs(self._parameters(row, one) - target))

  def _parameters(self, row: Row, width: int) -> int:
    """Parameters that a row's masks need."""
    # What D-MOLS rebuilds with is not counted, nor does a loss have parameters.
    key = row.bsc, row.decoder, width
    if key not in self._counted:
      plain = dataclasses.replace(row, dmols="off")
      config = self._row_config(plain, 0, width)
      shapes = jax.eval_shape(lambda: fresh(config, self._first.pieces))
      self._counted[key] = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    return self._counted[key]

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
    for name, sentences in {btdnet_table.RUN: data, **controls.named(data)}.items():
      encoded = sentences.encoded(task.pieces, task.own.max_pieces)
      found[name] = predictor.counts(params, encoded, np.arange(len(data)))
    arrays = {
      f"{name}/{part}": column
      for name, counts in found.items()
      for part, column in vars(counts).items()
    }
    files.save_arrays(self._path(config), of=self._of(config), **arrays)
    return found

  def _kept(self, config: Config) -> dict[str, Counts] | None:
    """The counts of a run that was scored on these data; None: there are none."""
    path = self._path(config)
    if not os.path.exists(path):
      return None
    saved = files.load_all(path)
    if str(saved.pop("of")) != self._of(config):
      return None
    parts: dict[str, dict] = {}
    for key, column in saved.items():
      # A control's name may hold anything but a slash.
      name, part = key.rsplit("/", 1)
      parts.setdefault(name, {})[part] = column
    return {name: Counts(**columns) for name, columns in parts.items()}

  def _of(self, config: Config) -> str:
    """What a run's counts follow from, as text: its settings, and the sentences with their masks.

    A run of other settings is refused before (`_check`); this is for runs of seeds that were not
    asked for.
    """
    data = self._first.splits[SPLIT]
    digest = hashlib.sha256("\n".join(data.text).encode() + data.mask.tobytes()).hexdigest()
    settings = {
      name: getattr(getattr(config, section), name)
      for name, (section, field) in fields_of(config).items()
      if not field.metadata["free"] or name in _FIXED
    }
    return json.dumps(settings | {"sentences": digest}, sort_keys=True)

  def _path(self, config: Config) -> str:
    return os.path.join(config.workdir, "eval", _COUNTS)
