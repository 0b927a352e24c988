"""BTDNet's task: its loss, what it hides, its rules. Whole runs are in `test_run.py`."""

import copy
import dataclasses
import types

import jax
import numpy as np
import pytest

from gr4ad_jax.btdnet import sizes, weights
from gr4ad_jax.btdnet.model import Outputs
from gr4ad_jax.btdnet.word_pieces import WordPieces
from gr4ad_jax.config import Config, ConfigError
from gr4ad_jax.objectives import segmentation as losses
from gr4ad_jax.scenes import dataset
from gr4ad_jax.segmentation import task


def _config(**own):
  return dataclasses.replace(
    Config(family="btdnet"), own=dataclasses.replace(Config(family="btdnet").own, **own)
  )


@pytest.fixture(scope="module")
def opened():
  """Twelve scenes in memory."""
  config = _config(dmols="both", decoder_width=4)
  training = dataclasses.replace(config.training, batch_size=4)
  split = dataset.split(0, "train", 12)
  splits = {"train": split, "valid": split, "test": split}
  config = dataclasses.replace(config, training=training)
  return task.SegmentationTask(config, splits, WordPieces.of_texts(split.text))


@pytest.fixture(scope="module")
def params(opened):
  """Normal draws, of which nothing is compiled."""
  shapes = jax.eval_shape(lambda: opened.init(jax.random.key(0)))
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda box: (0.1 * rng.normal(size=box.unbox().shape)).astype(np.float32), shapes,
    is_leaf=lambda x: hasattr(x, "unbox"),
  )  # fmt: skip


def test_each_part_of_the_loss_is_of_its_own_outputs(opened):
  """With a stand-in for the model, whose outputs carry what was hidden from it."""
  batch, key = opened.source.batch(0, 0, 1), jax.random.key(3)
  rng, (B, H, W), N = np.random.default_rng(1), batch.target_BHW.shape, batch.tokens_BN.shape[1]
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  logits, levels = draw(B, H, W, 2), (draw(B, 4, 4, 2), draw(B, 8, 8, 2))
  cells, words = draw(B, 4, 4, 3), draw(B, N, 3)
  asked = []

  def rebuilt(hidden):
    return 0.1 * hidden.tokens_BN[..., None] - words, hidden.dropped_BHW[..., None] + cells**2

  def apply(variables, image, tokens, mask, *, hidden, train, rngs):
    asked.append((variables, train, set(rngs)))
    np.testing.assert_array_equal(image, batch.image_BHW3)
    np.testing.assert_array_equal(tokens, batch.tokens_BN)
    np.testing.assert_array_equal(mask, batch.mask_BN)
    return Outputs(logits, levels, cells, words, *rebuilt(hidden))

  stand_in = copy.copy(opened)
  stand_in.model = types.SimpleNamespace(apply=apply)
  loss, found = jax.jit(lambda key: stand_in.loss({}, batch, key))(key)
  assert asked == [({"params": {}}, True, {"dropout"})]
  hidden = opened._hidden(batch, jax.random.fold_in(key, 1))
  rebuilt_words, rebuilt_cells = rebuilt(hidden)
  truth = batch.target_BHW.astype(np.float32)
  expected = {
    "mask_loss": losses.segmentation_loss(logits, levels, truth, kind="even", background=True),
    "text_loss": losses.text_rebuilding_loss(words, rebuilt_words, batch.noun_BN),
    "map_loss": losses.map_rebuilding_loss(cells, rebuilt_cells, hidden.dropped_BHW),
  }
  for name, value in expected.items():
    assert float(found[name]) == pytest.approx(float(value), rel=1e-5), name
  total = expected["mask_loss"] + 0.05 * (expected["text_loss"] + expected["map_loss"])
  assert float(loss) == pytest.approx(float(total), rel=1e-5)
  mask = logits[..., 1] > logits[..., 0]
  assert float(found["oIoU"].numerator) == (mask & batch.target_BHW).sum()
  assert float(found["oIoU"].denominator) == (mask | batch.target_BHW).sum()


@pytest.mark.long
def test_the_loss_is_made_of_its_parts_and_the_ratio_of_its_pixels(opened, params):
  batch = opened.source.batch(0, 0, 1)
  key = jax.random.key(3)
  inputs = (batch.image_BHW3, batch.tokens_BN, batch.mask_BN)

  @jax.jit
  def both(params):
    return *opened.loss(params, batch, key), opened.model.apply({"params": params}, *inputs)

  loss, found, out = both(params)  # no dropout: a pass is the same in training
  parts = float(found["mask_loss"]) + 0.05 * float(found["text_loss"] + found["map_loss"])
  assert float(loss) == pytest.approx(parts, rel=1e-5)
  truth = batch.target_BHW.astype(np.float32)
  mask_loss = losses.segmentation_loss(
    out.logits_BHW2, out.levels, truth, kind="even", background=True
  )
  assert float(found["mask_loss"]) == pytest.approx(float(mask_loss), rel=1e-4)
  mask = np.asarray(out.logits_BHW2[..., 1] > out.logits_BHW2[..., 0])
  assert float(found["oIoU"].numerator) == (mask & batch.target_BHW).sum()
  assert float(found["oIoU"].denominator) == (mask | batch.target_BHW).sum()


def test_nouns_are_hidden_and_half_of_the_targets_cells_dropped(opened):
  batch = opened._train.batch(np.arange(36))
  drops = []
  for seed in range(20):
    hidden = opened._hidden(batch, jax.random.key(seed))
    drops.append(np.asarray(hidden.dropped_BHW))
  words = opened.pieces.words
  for b in range(36):
    noun = [words[t] for t in batch.tokens_BN[b][batch.noun_BN[b]]]
    assert " ".join(noun) in opened.splits["train"].text[b] and noun
    tokens = np.asarray(hidden.tokens_BN[b])
    assert (tokens[batch.noun_BN[b]] == opened.pieces.hidden).all()
    np.testing.assert_array_equal(tokens[~batch.noun_BN[b]], batch.tokens_BN[b][~batch.noun_BN[b]])
    shows = batch.target_BHW[b].reshape(4, 16, 4, 16).any((1, 3))
    assert not np.any(np.array(drops)[:, b] & ~shows)
  shows = batch.target_BHW.reshape(36, 4, 16, 4, 16).any((2, 4))
  assert np.mean(np.array(drops)[:, shows]) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
  ("own", "message"),
  [
    ({"image_size": 60}, "--image_size=60 is not allowed: a multiple of 8"),
    ({"image_size": 72}, "--image_size=72 is not allowed: a multiple of 16, as --decoder=twin"),
    ({"max_pieces": 40}, "--max_pieces=40 is not allowed: at most 32, as --bert=tiny"),
    ({"backbone_from": "x"}, "--stem=conv is not allowed: only 'patch', as --backbone_from"),
    ({"text_from": "x"}, "--text_from=x is not allowed: needs --vocab_path"),
    ({"dmols": "all"}, "--dmols=all is not allowed: 'off' or 'text'"),
  ],
)
def test_settings_that_contradict_are_told(own, message):
  with pytest.raises(ConfigError, match=message):
    task.SegmentationTask.validate(_config(**own))
  assert task.SegmentationTask.validate(_config(image_size=72, decoder="single", dmols="text"))


@pytest.mark.long
def test_a_new_run_starts_from_files_of_weights(opened, tmp_path):
  safetensors = pytest.importorskip("safetensors.numpy")
  own = dataclasses.replace(
    opened.own, stem="patch", text_from=str(tmp_path / "t"), backbone_from=str(tmp_path / "s"),
    vocab_path="vocab.txt",
  )  # fmt: skip
  config = dataclasses.replace(opened.config, own=own)
  pieces = opened.pieces
  model = sizes.make(own, len(pieces.words))
  shapes = jax.eval_shape(lambda: task.fresh(config, pieces))
  rng = np.random.default_rng(0)
  for path, parts, tree in (
    (own.text_from, weights.bert_pieces(model.text), shapes["encoder"]),
    (own.backbone_from, weights.swin_pieces(model.vision), shapes),
  ):
    tensors = {}
    for piece in parts:
      leaf = tree
      for name in piece.path:
        leaf = leaf[name]
      shape = leaf.unbox().shape
      if piece.path[-1] == "bias_table":
        rows = 49 if shape[0] % 225 else 225  # the deepest map is smaller than a window
        shape = (rows, shape[0] // rows)
      elif piece.path[-1] == "kernel":  # published ones have what comes out first
        shape = (*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape[::-1]
      each = (shape[0] // len(piece.names), *shape[1:])
      tensors |= {n: rng.normal(size=each).astype(np.float32) for n in piece.names}
    safetensors.save_file(tensors, path)
  fresh = task.SegmentationTask(config, opened.splits, pieces)
  fresh.prepare()
  params = jax.jit(fresh.init)(jax.random.key(1))
  params = jax.tree.map(lambda x: x.unbox(), params, is_leaf=lambda x: hasattr(x, "unbox"))
  text = safetensors.load_file(own.text_from)
  np.testing.assert_array_equal(
    params["encoder"]["words"], text["embeddings.word_embeddings.weight"]
  )
  vision = safetensors.load_file(own.backbone_from)
  np.testing.assert_array_equal(
    params["merges_0"]["reduction"]["kernel"],
    vision["encoder.layers.0.downsample.reduction.weight"].T,
  )
  assert np.abs(params["decoder"]["target_head"]["Linear_0"]["kernel"]).max() < 1  # not of a file
