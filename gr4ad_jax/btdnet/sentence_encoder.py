"""Sentence vectors by a BERT on disk, without torch: the mean of its words."""

import functools
import json
import os
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.btdnet import weights
from gr4ad_jax.btdnet.bert import Bert, BertSize
from gr4ad_jax.btdnet.word_pieces import WordPieces
from gr4ad_jax.data.schema import DataError

WEIGHTS, VOCAB, CONFIG = FILES = ("model.safetensors", "vocab.txt", "config.json")
_POOLING = os.path.join("1_Pooling", "config.json")  # of sentence-transformers
_BATCH = 64  # texts in one pass
_LENGTHS = (16, 32, 64, 128, 256)  # tokens that a pass may be padded to, each compiled once


def is_model(folder: str) -> bool:
  """Whether a folder holds what `SentenceEncoder` reads: a lower-casing BERT whose words' mean is
  the sentence's vector.
  """
  if not all(os.path.isfile(os.path.join(folder, name)) for name in FILES):
    return False
  # A model that keeps case, or reads its first word alone, is run by its own package.
  told = _told(folder, "tokenizer_config.json").get("do_lower_case", True)
  return bool(told and _told(folder, _POOLING).get("pooling_mode_mean_tokens", True))


def _told(folder: str, name: str) -> dict:
  """A JSON object of a model's folder; empty where there is none."""
  try:
    with open(os.path.join(folder, name), encoding="utf-8") as file:
      found = json.load(file)
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


class SentenceEncoder:
  """A BERT with its vocabulary.

  Args:
    folder: with FILES, as Hugging Face's transformers save them.

  Attributes:
    size: of the BERT.

  Raises:
    FileNotFoundError, DataError: what is missing there, or does not fit together.
    ImportError: the `segmentation` extra is missing.
  """

  def __init__(self, folder: str):
    for name in FILES:
      if not os.path.isfile(os.path.join(folder, name)):
        raise FileNotFoundError(f"{folder}: it holds no {name}")
    self.pieces = WordPieces.of_file(os.path.join(folder, VOCAB))
    self.size = bert_size(os.path.join(folder, CONFIG))
    if len(self.pieces.words) != self.size.vocab:
      raise DataError(
        f"{folder}: {VOCAB} has {len(self.pieces.words)} word pieces, {CONFIG} says "
        f"{self.size.vocab}"
      )
    model = Bert(self.size)
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 2), bool)
    # Shapes alone: the parameters are read from the file, and none is drawn.
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, mask)
    shapes = nn.meta.unbox(shapes["params"])
    loaded = weights.load_bert(os.path.join(folder, WEIGHTS), shapes, self.size)
    self._params = jax.device_put(loaded)
    self._mean = jax.jit(functools.partial(_mean_of_words, model))

  def __call__(self, texts: list[str]) -> np.ndarray:
    """Unit vectors, [texts, width] float32; a text without a word has the marks' mean.

    A text of more than 256 tokens is cut.
    """
    out = np.zeros((len(texts), self.size.width), np.float32)
    # Some models know fewer places than the longest pass.
    longest = min(_LENGTHS[-1], self.size.positions)
    # Texts of like length are padded together.
    order = np.argsort([len(text) for text in texts], kind="stable")
    for begin in range(0, len(texts), _BATCH):
      rows = order[begin : begin + _BATCH]
      found = self.pieces.encode([texts[row] for row in rows], longest)
      need = int(found.mask.sum(1).max())
      # The shortest of the lengths that are compiled, and that holds the batch.
      length = min([n for n in _LENGTHS if n >= need] + [longest])
      # The last batch is filled up to the same size, so that few shapes are compiled.
      pad = ((0, _BATCH - len(rows)), (0, 0))
      tokens = np.pad(found.tokens[:, :length], pad)
      # Rows that only fill up count as words, so that no mean is 0 / 0.
      mask = np.pad(found.mask[:, :length], pad, constant_values=True)
      made = self._mean(self._params, tokens, mask)
      out[rows] = np.asarray(made)[: len(rows)]
    return out


def _mean_of_words(model: Bert, params: Any, tokens_BN: jax.Array, mask_BN: jax.Array) -> jax.Array:
  """Mean of the words' vectors, marks among them, of length 1: [B, width]."""
  words_BNE = model.apply({"params": params}, tokens_BN, mask_BN).astype(jnp.float32)
  # (B, N) -> (B, N, 1): padding weighs nothing in the mean.
  weight_BN1 = mask_BN[..., None].astype(jnp.float32)
  mean_BE = (words_BNE * weight_BN1).sum(1) / weight_BN1.sum(1)
  # A mean of length 0 stays 0, in place of 0 / 0.
  return mean_BE / jnp.maximum(jnp.linalg.norm(mean_BE, axis=1, keepdims=True), 1e-12)


def bert_size(path: str) -> BertSize:
  """A BERT's shape by its config.json. Raises DataError for one that is no BERT's."""
  try:
    with open(path, encoding="utf-8") as file:
      saved = json.load(file)
    names = {
      "vocab": "vocab_size",
      "width": "hidden_size",
      "layers": "num_hidden_layers",
      "heads": "num_attention_heads",
      "hidden": "intermediate_size",
      "positions": "max_position_embeddings",
      "kinds": "type_vocab_size",
    }
    size = BertSize(**{own: int(saved[name]) for own, name in names.items()})
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise DataError(f"{path}: no config of a BERT ({type(error).__name__}: {error})") from error
  if saved.get("hidden_act", "gelu") != "gelu":
    raise DataError(f"{path}: hidden_act {saved['hidden_act']!r}; 'gelu' is known")
  return size
