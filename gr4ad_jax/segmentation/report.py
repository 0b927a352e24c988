"""What a trained run is worth: its table, the language controls beside it, and pictures.

Scores of rendered scenes say nothing about a published data set, and never stand beside its scores.
"""

import dataclasses
import logging
import os
from collections.abc import Sequence

import jax
import numpy as np

from gr4ad_jax import files
from gr4ad_jax.config import ConfigError
from gr4ad_jax.evaluation.report_tables import aligned
from gr4ad_jax.runs import run
from gr4ad_jax.scenes.referring import Referring
from gr4ad_jax.segmentation import controls, metrics, plots
from gr4ad_jax.segmentation.metrics import Counts
from gr4ad_jax.segmentation.predict import Predictor
from gr4ad_jax.segmentation.task import SegmentationTask

SHOWN = 4  # worst and best sentences in the picture, each
_COLUMNS = ("oIoU", "mIoU", "Pr@0.5", "Pr@0.7", "Pr@0.9", "F")
_SIZES = (0, 20, 50, 100, np.inf)  # pixels of a target
_log = logging.getLogger(__name__)


def groups(split: Referring) -> dict[str, np.ndarray]:
  """Sentences by kind, by what training has seen, and by what makes them hard: name -> [L] bool.

  What is not known of a data set makes no group.
  """
  found = {f"kind {kind}": split.kind == kind for kind in sorted(set(split.kind) - {""})}
  if (split.kind != "").any():
    # Rendered scenes alone know which pairs of word and class were held out.
    found["word and class not in training"] = split.novel
    with_word = (split.word != "") & ~split.novel
    found["word and class in training"] = with_word
  pixels = split.facts["pixels"]
  alike = split.facts["alike"]
  # Neighbouring sizes make the groups; a group holds its lower end and not its upper one.
  for low, high in zip(_SIZES, _SIZES[1:], strict=False):
    words = f"{low} to {high - 1:.0f}" if np.isfinite(high) else f"{low} or more"
    found[f"target of {words} pixels"] = (pixels >= low) & (pixels < high)
  for number in (1, 2, 3):
    found[f"{number} alike"] = alike == number
  found["4 or more alike"] = alike >= 4
  for knob in ("blur", "noise", "contrast"):
    value = split.facts[knob]
    if np.isfinite(value).all():
      # Thirds of this split, since each knob has a range and a unit of its own.
      edges = np.quantile(value, (1 / 3, 2 / 3))
      third = np.searchsorted(edges, value)
      for i, word in enumerate(("little", "middling", "much")):
        found[f"{word} {knob}"] = third == i
  for knob, words in (("spacing", "in a cluster"), ("occluded", "something covers objects")):
    value = split.facts[knob]
    # The spacing is known of clusters alone.
    found[words] = np.isfinite(value) if knob == "spacing" else value == 1
  return {name: rows for name, rows in found.items() if rows.any()}


def report(task: SegmentationTask, split: str, beside: Sequence[str] = (), width: int = 0) -> str:
  """Scores a trained run and its controls; writes eval/metrics.json and eval/examples.png.

  Args:
    task: of the run.
    split: 'valid' or 'test'.
    beside: other runs; there is no table of several here.
    width: columns of a terminal; not read.

  Returns:
    The table.

  Raises:
    ConfigError: other runs were named.
    FileNotFoundError: a run without a checkpoint.
  """
  del width
  if beside:
    raise ConfigError("--beside is not allowed: --family=btdnet has no table of several runs")
  # Restored into the shapes that `init` would make. The best checkpoint on valid is taken.
  params = run.load_params(task.config, lambda: task.init(jax.random.key(task.training.seed)))
  data = task.splits[split]
  predictor = Predictor(task.model)
  rows = np.arange(len(data))

  def counted(sentences: Referring) -> Counts:
    encoded = sentences.encoded(task.pieces, task.own.max_pieces)
    return predictor.counts(params, encoded, rows)

  counts = counted(data)
  found = metrics.intervals(counts, data.row)
  # The same pixels are asked for by other words. What a control scores is found
  # without the sentence.
  beside_it = {name: counted(other) for name, other in controls.named(data).items()}
  beside_it |= controls.baselines(data)
  content = {
    "split": split,
    "checkpoint": run.scored_step(task.config),
    "sentences": len(data),
    "metrics": {name: dataclasses.asdict(one) for name, one in found.items()},
    "groups": metrics.grouped(counts, groups(data)),
    "controls": {name: metrics.values(other) for name, other in beside_it.items()},
    "controls_by_kind": {
      name: metrics.grouped(other, _kinds(data)) for name, other in beside_it.items()
    },
  }
  if jax.process_index() == 0:
    folder = os.path.join(task.folder, "eval")
    files.write_json(os.path.join(folder, "metrics.json"), content, summed=False, indent=2)
    _draw(task, data, counts, params, predictor, folder)
  return format_table(content)


def _kinds(data: Referring) -> dict[str, np.ndarray]:
  return {name: rows for name, rows in groups(data).items() if name.startswith("kind ")}


def _draw(task, data: Referring, counts: Counts, params, predictor: Predictor, folder: str) -> None:
  """The worst and the best sentences, as a PNG and in TensorBoard, where these are installed."""
  order = np.argsort(counts.iou, kind="stable")
  # A split of few sentences has some that are both among the worst and among the best.
  chosen = np.unique(np.concatenate([order[:SHOWN], order[-SHOWN:]]))
  # `unique` sorted them by row; the picture goes from the worst to the best.
  chosen = chosen[np.argsort(counts.iou[chosen], kind="stable")]
  encoded = data.encoded(task.pieces, task.own.max_pieces)
  found = predictor.masks(params, encoded, chosen)
  images = data.image(data.row[chosen])
  texts = [data.text[row] for row in chosen]
  try:
    plots.examples(
      images,
      texts,
      data.masks(chosen),
      found,
      counts.iou[chosen],
      os.path.join(folder, "examples.png"),
    )
  except ImportError as error:
    _log.warning("no picture of examples: %s", error)
  step = run.scored_step(task.config)
  board = os.path.join(task.folder, "tensorboard")
  try:
    plots.to_tensorboard(board, step, images, texts, data.masks(chosen), found)
  except ImportError as error:
    _log.warning("no pictures in TensorBoard: %s", error)


def format_table(content: dict) -> str:
  """The run, its groups and its controls, a row each."""
  rows = [["", "sentences", *_COLUMNS]]
  total = content["metrics"]
  rows.append(
    ["the run", str(content["sentences"]), *(f"{total[c]['mean']:.3f}" for c in _COLUMNS)]
  )
  spans = [f"{total[c]['low']:.3f}-{total[c]['high']:.3f}" for c in _COLUMNS]
  rows.append(["  95 % over images", "", *spans])
  for name, values in content["groups"].items():
    rows.append([f"  {name}", str(values["sentences"]), *(f"{values[c]:.3f}" for c in _COLUMNS)])
  for name, values in content["controls"].items():
    rows.append([name, str(content["sentences"]), *(f"{values[c]:.3f}" for c in _COLUMNS)])
  head = f"{content['split']}, step {content['checkpoint']}; BTDNet rebuilt from the abstract"
  return "\n".join([head, *aligned(rows)])
