"""Files of exactly the published layouts, made here: the same values as a forward in NumPy."""

import flax.linen as nn
import numpy as np
import pytest

from gr4ad_jax.btdnet import swin, weights
from gr4ad_jax.btdnet.bert import Bert, BertSize
from gr4ad_jax.btdnet.swin import SwinSize
from gr4ad_jax.btdnet.word_pieces import SPECIAL, WordPieces
from gr4ad_jax.data.schema import DataError
from tests.btdnet import reference
from tests.btdnet.build import applied, arrays, assert_close, drawn
from tests.btdnet.published import bert_forward, bert_tensors, save

safetensors = pytest.importorskip("safetensors.numpy")

VISION = SwinSize(8, (1, 2), (2, 2), 4)
TEXT = BertSize(vocab=12, width=8, layers=2, heads=2, hidden=12, positions=6)


def _shapes(module, *inputs):
  return drawn(module, *inputs)


@pytest.mark.parametrize("style", ["plain", "prefixed", "old"])
def test_bert_loads_by_its_published_names(style, tmp_path):
  tensors = bert_tensors(TEXT)
  named = dict(tensors)
  if style != "plain":
    named = {f"bert.{name}": x for name, x in named.items()}
    named["cls.predictions.bias"] = np.zeros(12, np.float32)
  if style == "old":
    old = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    for new, name in old:
      named = {n.replace(new, name): x for n, x in named.items()}
  tokens, mask = np.array([[3, 1, 4, 1, 5]]), np.ones((1, 5), bool)
  module = Bert(TEXT)
  path = save(tmp_path / "model.safetensors", named)
  params = weights.load_bert(path, _shapes(module, tokens, mask), TEXT)
  assert_close(applied(module, params, tokens, mask)[0], bert_forward(tensors, tokens[0], 2, 2))


class _Tower(nn.Module):
  """The parts of a model that are a Swin's, by the names that the model gives them."""

  size: SwinSize

  def setup(self):
    self.stem = swin.Stem(self.size, np.dtype("float32"))
    self.stages = [swin.Stage(self.size, i) for i in range(len(self.size.depths))]
    self.merges = [swin.PatchMerging() for _ in self.size.depths[1:]]

  def __call__(self, x):
    x = self.stem(x)
    for i, stage in enumerate(self.stages):
      x = self.merges[i - 1](x) if i else x
      x = stage(x, False)
    return x


def _swin_tensors(size, original, seed=0):
  rng = np.random.default_rng(seed)
  out, C = {}, size.width

  def put(name, *shape):
    out[name] = rng.normal(0, 0.4, shape).astype(np.float32)

  def dense(name, rows, cols):
    put(f"{name}.weight", rows, cols)
    put(f"{name}.bias", rows)

  def norm(name, width):
    put(f"{name}.weight", width)
    put(f"{name}.bias", width)

  top = "patch_embed.proj" if original else "swin.embeddings.patch_embeddings.projection"
  put(f"{top}.weight", C, 3, 4, 4)
  put(f"{top}.bias", C)
  norm("patch_embed.norm" if original else "swin.embeddings.norm", C)
  table = (2 * size.window - 1) ** 2
  for i, depth in enumerate(size.depths):
    width = C * 2**i
    for j in range(depth):
      at = f"layers.{i}.blocks.{j}" if original else f"swin.encoder.layers.{i}.blocks.{j}"
      inner = f"{at}.attn" if original else f"{at}.attention.self"
      norm(f"{at}.norm1" if original else f"{at}.layernorm_before", width)
      norm(f"{at}.norm2" if original else f"{at}.layernorm_after", width)
      if original:
        dense(f"{inner}.qkv", 3 * width, width)
        dense(f"{inner}.proj", width, width)
      else:
        for part in ("query", "key", "value"):
          dense(f"{inner}.{part}", width, width)
        dense(f"{at}.attention.output.dense", width, width)
      put(f"{inner}.relative_position_bias_table", table, size.heads[i])
      out[f"{inner}.relative_position_index"] = np.zeros((4, 4), np.int64)
      dense(f"{at}.mlp.fc1" if original else f"{at}.intermediate.dense", 4 * width, width)
      dense(f"{at}.mlp.fc2" if original else f"{at}.output.dense", width, 4 * width)
    if i + 1 < len(size.depths):
      down = f"layers.{i}.downsample" if original else f"swin.encoder.layers.{i}.downsample"
      norm(f"{down}.norm", 4 * width)
      put(f"{down}.reduction.weight", 2 * width, 4 * width)
  norm("norm" if original else "swin.layernorm", width)
  out["head.weight" if original else "classifier.weight"] = np.zeros((3, width), np.float32)
  return out


def _swin_forward(tensors, size, image_HW3, original):
  """From the tensors, block by block, by the loops of `reference`."""

  def t(name):
    return np.asarray(tensors[name if original else f"swin.{name}"], np.float64)

  def dense(name):
    return {"kernel": t(f"{name}.weight").T, "bias": t(f"{name}.bias")}

  def norm(name):
    return {"scale": t(f"{name}.weight"), "bias": t(f"{name}.bias")}

  top = "patch_embed.proj" if original else "embeddings.patch_embeddings.projection"
  H, W = (n // 4 for n in image_HW3.shape[:2])
  x = np.zeros((H, W, size.width))
  for i, j in np.ndindex(H, W):
    patch = image_HW3[4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
    x[i, j] = np.einsum("yxc,ocyx->o", patch, t(f"{top}.weight")) + t(f"{top}.bias")
  x = reference.layer_norm(norm("patch_embed.norm" if original else "embeddings.norm"), x)
  for i, depth in enumerate(size.depths):
    if i:
      at = f"layers.{i - 1}" if original else f"encoder.layers.{i - 1}"
      merge = {"kernel": t(f"{at}.downsample.reduction.weight").T}
      x = reference.patch_merging({"norm": norm(f"{at}.downsample.norm"), "reduction": merge}, x)
    for j in range(depth):
      at = f"layers.{i}.blocks.{j}" if original else f"encoder.layers.{i}.blocks.{j}"
      if original:
        qkv, out = dense(f"{at}.attn.qkv"), dense(f"{at}.attn.proj")
        table = t(f"{at}.attn.relative_position_bias_table")
        names = ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
      else:
        parts = [dense(f"{at}.attention.self.{p}") for p in ("query", "key", "value")]
        qkv = {k: np.concatenate([p[k] for p in parts], -1) for k in ("kernel", "bias")}
        out = dense(f"{at}.attention.output.dense")
        table = t(f"{at}.attention.self.relative_position_bias_table")
        names = ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense")
      before, after, up, down = names
      block = {
        "norm_before": norm(f"{at}.{before}"), "norm_after": norm(f"{at}.{after}"),
        "windows": {"bias_table": table.ravel(), "attention": {"qkv": qkv, "out": out}},
        "mlp": {"up": dense(f"{at}.{up}"), "down": dense(f"{at}.{down}")},
      }  # fmt: skip
      x = reference.swin_block(block, x, size.heads[i], size.window, bool(j % 2))
  return x


@pytest.mark.parametrize("original", [False, True])
def test_swin_loads_by_both_sets_of_names(original, tmp_path):
  tensors = _swin_tensors(VISION, original)
  path = save(tmp_path / "swin.safetensors", tensors)
  image = arrays(0, (1, 40, 36, 3))  # maps of 10 x 9 and 5 x 5 cells: padded
  module = _Tower(VISION)
  params = weights.load_swin(path, _shapes(module, image), VISION)
  assert_close(
    applied(module, params, image)[0], _swin_forward(tensors, VISION, image[0], original)
  )


def _spoilt(tensors, name, value):
  """With another array under a name, or none."""
  kept = {n: x for n, x in tensors.items() if n != name}
  return kept if value is None else kept | {name: value}


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("encoder.layer.1.output.dense.weight", None,
     "there is no tensor encoder.layer.1.output.dense.weight"),
    ("encoder.layer.1.output.dense.weight", np.zeros((8, 11), np.float32),
     r"encoder.layer.1.output.dense.weight \[8, 11\] gives layer_1.mlp.down.kernel the shape "
     r"\[11, 8\], and the model's is \[12, 8\]"),
    ("embeddings.word_embeddings.weight", np.zeros((13, 8), np.float32),
     r"word_embeddings.weight \[13, 8\] gives words the shape \[13, 8\], and .* \[12, 8\]"),
    ("encoder.layer.2.output.dense.bias", np.zeros(8, np.float32),
     r"no place for encoder.layer.2.output.dense.bias \[8\]"),
  ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_told(name, value, message, tmp_path):
  tensors = bert_tensors(TEXT)
  path = save(tmp_path / "model.safetensors", _spoilt(tensors, name, value))
  shapes = _shapes(Bert(TEXT), np.zeros((1, 3), int), np.ones((1, 3), bool))
  with pytest.raises(DataError, match=message) as raised:
    weights.load_bert(path, shapes, TEXT)
  assert path in str(raised.value) and "\n" not in str(raised.value)


def test_what_is_no_file_of_weights_is_told(tmp_path):
  with pytest.raises(FileNotFoundError, match="there is no such file of weights"):
    weights.load_bert(str(tmp_path / "none"), {}, TEXT)
  (tmp_path / "bad").write_bytes(b"\xff" * 40)
  with pytest.raises(DataError, match="no safetensors file that can be read"):
    weights.load_bert(str(tmp_path / "bad"), {}, TEXT)


def test_word_pieces_are_split_marked_and_cut(tmp_path):
  words = [*SPECIAL, "the", "storage", "tank", "##s", "red", ",", "un", "##known"]
  (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
  pieces = WordPieces.of_file(str(tmp_path / "vocab.txt"))
  found = pieces.encode(["The RED storage tanks, unknown", "red xyz"], 9, [(8, 21), (0, 3)])
  expected = [[2, 5, 9, 6, 7, 8, 10, 11, 3], [2, 9, 1, 3, 0, 0, 0, 0, 0]]
  assert found.tokens.tolist() == expected  # cut before "##known": the end's mark stays
  assert found.noun[0].tolist() == [False] * 3 + [True] * 3 + [False] * 3
  assert found.noun[1].tolist() == [False, True] + [False] * 7
  assert found.mask.sum(1).tolist() == [9, 4]
  assert pieces.unknown("red xyz storage") == ("xyz",)
  (tmp_path / "vocab.txt").write_text("\n".join([*words, "red"]) + "\n")
  with pytest.raises(DataError, match="'red' stands on two lines"):
    WordPieces.of_file(str(tmp_path / "vocab.txt"))
  with pytest.raises(DataError, match=r"lacks \[MASK\]"):
    WordPieces(words[:4])
