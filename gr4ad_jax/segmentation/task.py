"""BTDNet as a task: what the trainer knows of it. Rebuilt from the abstract of arXiv:2502.08486."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax import checksums, files
from gr4ad_jax.btdnet import sizes, weights
from gr4ad_jax.btdnet.model import target_logit
from gr4ad_jax.btdnet.object_learning import Hidden
from gr4ad_jax.btdnet.word_pieces import WordPieces
from gr4ad_jax.config import Config, ConfigError
from gr4ad_jax.examples.order import OrderedSource, TrainingOrder
from gr4ad_jax.objectives import segmentation as losses
from gr4ad_jax.parallel import distributed
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.scenes import prepare
from gr4ad_jax.scenes.referring import Referring, SegmentationBatch
from gr4ad_jax.scenes.sections import SegmentationConfig
from gr4ad_jax.segmentation import metrics
from gr4ad_jax.segmentation.predict import Predictor
from gr4ad_jax.training import sums
from gr4ad_jax.training.task import Evaluate, Source, Task, Told

VOCAB = "vocab.txt"


class SegmentationTask(Task):
  """Learns to find what sentences name.

  Args:
    config: of the run.
    splits: train, valid and test.
    pieces: the vocabulary.
  """

  files = (VOCAB,)

  def __init__(self, config: Config, splits: dict[str, Referring], pieces: WordPieces):
    super().__init__(config)
    self.own: SegmentationConfig = config.own
    self.pieces = pieces
    self.splits = splits
    self.model = sizes.make(self.own, len(pieces.words), self.training.remat)
    self._loaded: dict[str, Any] = {}
    self._train = splits["train"].encoded(pieces, self.own.max_pieces)
    rows = np.arange(len(splits["train"]))
    # The order is of sentences: an image comes as often as it has sentences.
    order = TrainingOrder(rows, self.training.batch_size, self.training.seed)
    self._source = OrderedSource(order, lambda rows, epochs: self._train.batch(rows))

  @classmethod
  def validate(cls, config: Config, base: Config | None = None) -> Config:
    config = super().validate(config, base)
    for holds, name, words in _rules(config.own):
      if not holds:
        value = getattr(config.own, name)
        raise ConfigError(f"--{name}={value} is not allowed: {words}")
    return config

  @classmethod
  def divided(cls, config: Config):
    vision = sizes.SWINS[config.own.swin]
    text = sizes.BERTS[config.own.bert]
    return (
      # Width and heads of the first stage are the smallest, and later ones are their multiples.
      # What divides these divides all.
      (mesh_lib.FSDP, "swin", vision.width),
      (mesh_lib.TENSOR, "swin", vision.heads[0]),
      (mesh_lib.FSDP, "bert", text.width),
      (mesh_lib.TENSOR, "bert", text.heads),
    )

  @classmethod
  def best_metric(cls, config: Config) -> str:
    return "oIoU"

  @classmethod
  def open(
    cls, config: Config, told: Told | None = None, started: bool = False
  ) -> "SegmentationTask":
    splits = prepare.load(config.own, told or (lambda *_: None))
    # A run that has begun keeps its vocabulary: token numbers are rows of its table.
    if started:
      pieces = read_vocabulary(config)
    elif config.own.vocab_path:
      pieces = WordPieces.of_file(config.own.vocab_path)
    else:
      pieces = WordPieces.of_texts(splits["train"].text)
    return cls(config, splits, pieces)

  def prepare(self) -> None:
    shapes = jax.eval_shape(lambda: fresh(self.config, self.pieces))
    # Shapes without the boxes that name their logical axes. Nothing is computed for them.
    plain = jax.tree.map(lambda x: x.unbox(), shapes, is_leaf=lambda x: hasattr(x, "unbox"))
    if self.own.backbone_from:
      loaded = weights.load_swin(self.own.backbone_from, plain, self.model.vision)
      # The file may hold more stages or another head. Taken are the stem, the stages and the merges
      # between them.
      self._loaded |= {k: v for k, v in loaded.items() if k.startswith(("st", "merges"))}
    if self.own.text_from:
      loaded = weights.load_bert(self.own.text_from, plain["encoder"], self.model.text)
      self._loaded["encoder"] = loaded

  @property
  def source(self) -> Source:
    return self._source

  def init(self, key: jax.Array) -> Any:
    params = fresh(self.config, self.pieces, key)
    for name, loaded in self._loaded.items():
      # Where a file has no array, the tree holds the shape alone, and the random parameter stays.
      params[name] = jax.tree.map(_put_in, params[name], loaded, is_leaf=_is_box)
    return params

  def _hidden(self, batch: SegmentationBatch, key: jax.Array) -> Hidden | None:
    """The noun as [MASK], and half of the deepest map's cells in which the target shows."""
    if self.own.dmols == "off":
      return None
    side = sizes.deepest(self.own)
    # Share of each of the deepest map's cells that the target covers, [B, side, side].
    shows = losses.shares(batch.target_BHW, side, side) > 0
    dropped = shows & jax.random.bernoulli(key, 0.5, shows.shape)
    return Hidden(jnp.where(batch.noun_BN, self.pieces.hidden, batch.tokens_BN), dropped)

  def loss(self, params: Any, batch: SegmentationBatch, key: jax.Array):
    # A key of its own, so that what is hidden does not depend on how dropout draws.
    hidden = self._hidden(batch, jax.random.fold_in(key, 1))
    out = self.model.apply(
      {"params": params},
      batch.image_BHW3,
      batch.tokens_BN,
      batch.mask_BN,
      hidden=hidden,
      train=True,
      rngs={"dropout": key},
    )
    own = self.own
    truth = batch.target_BHW.astype(jnp.float32)
    loss = losses.segmentation_loss(
      out.logits_BHW2, out.levels, truth, kind=own.mask_loss, background=own.background_loss
    )
    found = {"mask_loss": loss}
    if out.rebuilt_text_BNE is not None:
      found["text_loss"] = losses.text_rebuilding_loss(
        out.text_BNE, out.rebuilt_text_BNE, batch.noun_BN
      )
    if out.rebuilt_map_BHWC is not None:
      found["map_loss"] = losses.map_rebuilding_loss(
        out.deepest_BHWC, out.rebuilt_map_BHWC, hidden.dropped_BHW
      )
    for name in ("text_loss", "map_loss"):
      loss += own.dmols_weight * found.get(name, 0.0)
    # Logit 0 is probability one half.
    mask = target_logit(out.logits_BHW2) > 0
    # Sums over the batch's pixels, not a mean of ratios: oIoU adds both up over all steps.
    overlap = (mask & batch.target_BHW).sum(), (mask | batch.target_BHW).sum()
    return loss, {**found, "oIoU": sums.Ratio(*overlap)}

  def units(self, batch: SegmentationBatch) -> dict[str, int]:
    return {"sentences": len(batch.tokens_BN), "pixels": batch.target_BHW.size}

  def save(self) -> None:
    files.write_text(os.path.join(self.folder, VOCAB), "\n".join(self.pieces.words) + "\n")

  def about(self) -> list[str]:
    shown = [
      f"{name} {len(split):,} sentences of {split.images:,} images"
      for name, split in self.splits.items()
    ]
    return [f"{self.own.scenes}: {'; '.join(shown)}", f"{len(self.pieces.words):,} word pieces"]

  def evaluation(self, split: str) -> Evaluate | None:
    """oIoU, mIoU, Pr@X and F; of valid on a fixed sample. Each process has its share."""
    encoded = self.splits[split].encoded(self.pieces, self.own.max_pieces)
    predictor = Predictor(self.model)
    rows = np.arange(len(encoded.split))
    if split == "valid":
      # The seed is fixed, so that all checkpoints of all runs are judged by the same sentences.
      drawn = np.random.default_rng(0).permutation(len(rows))[: self.own.eval_sentences]
      rows = np.sort(drawn)
    rows = rows[distributed.share(len(rows))]

    def evaluate(params) -> dict[str, float]:
      counts = predictor.counts(mesh_lib.local_copy(params), encoded, rows)
      parts = metrics.ratios(counts)
      # Sums of this process' sentences. The sums of all processes are added before
      # anything is divided.
      pairs = {n: sums.Ratio(r.numerator_R.sum(), r.denominator_R.sum()) for n, r in parts.items()}
      return sums.over_processes(pairs)

    return evaluate


def fresh(config: Config, pieces: WordPieces, key: jax.Array | None = None) -> Any:
  """Parameters of a run at random, boxed with their logical axes; key: None: any, for shapes."""
  own = config.own
  model = sizes.make(own, len(pieces.words), config.training.remat)
  image = jnp.zeros((1, own.image_size, own.image_size, 3), jnp.uint8)
  tokens = jnp.zeros((1, own.max_pieces), jnp.int32)
  hidden = None
  if own.dmols != "off":
    deep = sizes.deepest(own)
    hidden = Hidden(tokens, jnp.zeros((1, deep, deep), bool))
  key = jax.random.key(0) if key is None else key
  return dict(model.init(key, image, tokens, tokens == 0, hidden=hidden)["params"])


def _is_box(leaf: Any) -> bool:
  return hasattr(leaf, "unbox")


def _put_in(box: Any, loaded: Any) -> Any:
  """A fresh parameter with a loaded array in its place; shapes alone were not loaded."""
  return box.replace_boxed(jnp.asarray(loaded)) if isinstance(loaded, np.ndarray) else box


def read_vocabulary(config: Config) -> WordPieces:
  """The vocabulary of a run. Raises FileNotFoundError, DamagedError, DataError."""
  path = os.path.join(config.workdir, VOCAB)
  if os.path.exists(path):
    checksums.check(path)
  return WordPieces.of_file(path)


def _rules(own: SegmentationConfig):
  """(holds, knob, what is allowed) of settings that can contradict each other."""
  published = own.stem == "patch" or not own.backbone_from
  longest = sizes.BERTS[own.bert].positions
  # The stem makes one cell of 4 × 4 pixels, and each later stage halves both sides.
  deep = 4 * 2 ** (len(sizes.SWINS[own.swin].depths) - 1)
  return (
    (own.image_size % 8 == 0, "image_size", "a multiple of 8: masks are kept as bits"),
    (
      own.image_size % deep == 0 or (own.decoder == "single" and own.dmols in ("off", "text")),
      "image_size",
      f"a multiple of {deep}, as --decoder={own.decoder} --dmols={own.dmols} --swin={own.swin}",
    ),
    (own.max_pieces <= longest, "max_pieces", f"at most {longest}, as --bert={own.bert}"),
    (published, "stem", "only 'patch', as --backbone_from: published weights have it"),
    (
      not own.text_from or bool(own.vocab_path),
      "text_from",
      "needs --vocab_path, whose word pieces its table is of",
    ),
  )
