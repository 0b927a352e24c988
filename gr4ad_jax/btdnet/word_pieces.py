"""Sentences to token numbers, by a BERT vocabulary."""

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.schema import DataError

PAD, UNKNOWN, BEGIN, END, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Encoded(NamedTuple):
  """Attributes:
  tokens: [L, N] int32, 0 where a sentence has ended.
  mask: [L, N] bool, True at tokens.
  noun: [L, N] bool, True at the tokens of the object's noun.
  """

  tokens: np.ndarray
  mask: np.ndarray
  noun: np.ndarray


class WordPieces:
  """A vocabulary, with its lower-casing WordPiece tokenizer.

  Args:
    words: word pieces by number, those of SPECIAL among them.

  Raises:
    ImportError: the package tokenizers is missing.
    DataError: a piece of SPECIAL is missing.
  """

  def __init__(self, words: Sequence[str]):
    tokenizers = optional("tokenizers", "segmentation")
    processors = optional("tokenizers.processors", "segmentation")
    self.words = tuple(words)
    self.ids = {word: number for number, word in enumerate(self.words)}
    for word in SPECIAL:
      if word not in self.ids:
        raise DataError(f"a vocabulary of {len(words)} word pieces lacks {word}")
    pieces = tokenizers.models.WordPiece(self.ids, unk_token=UNKNOWN)
    self._tokenizer = tokenizers.Tokenizer(pieces)
    self._tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    ends = [(word, self.ids[word]) for word in (BEGIN, END)]
    self._tokenizer.post_processor = processors.TemplateProcessing(
      single=f"{BEGIN} $A {END}", special_tokens=ends
    )

  @classmethod
  def of_file(cls, path: str) -> "WordPieces":
    """A vocab.txt, one piece a line. Raises FileNotFoundError, DataError."""
    if not os.path.exists(path):
      raise FileNotFoundError(f"{path}: there is no such vocabulary")
    with open(path, encoding="utf-8") as file:
      words = file.read().split("\n")
    # A file ends with a line break, after which there is no piece.
    words = words[:-1] if words and not words[-1] else words
    if len(set(words)) != len(words):
      twice = next(word for row, word in enumerate(words) if word in words[:row])
      raise DataError(f"{path}: {twice!r} stands on two lines")
    return cls(words)

  @classmethod
  def of_texts(cls, texts: Iterable[str]) -> "WordPieces":
    """The whole words of some texts, in alphabetical order, after SPECIAL."""
    tokenizers = optional("tokenizers", "segmentation")
    normal = tokenizers.normalizers.BertNormalizer(lowercase=True)
    split = tokenizers.pre_tokenizers.BertPreTokenizer()
    words = {
      word for text in set(texts) for word, _ in split.pre_tokenize_str(normal.normalize_str(text))
    }
    return cls([*SPECIAL, *sorted(words)])

  @property
  def hidden(self) -> int:
    """The number of [MASK]."""
    return self.ids[MASK]

  def encode(
    self, texts: Sequence[str], length: int, nouns: Sequence[tuple[int, int]] | None = None
  ) -> Encoded:
    """Token numbers of texts; of a longer one the begin, and the end's mark.

    Args:
      texts: one or more.
      length: most tokens (N) of a text, both marks counted.
      nouns: begin and end of each text's noun, characters; None: no text has one.
    """
    # Padding everywhere, and texts written over it from the left.
    shape = (len(texts), length)
    tokens = np.full(shape, self.ids[PAD], np.int32)
    mask = np.zeros(shape, bool)
    noun = np.zeros(shape, bool)
    # The tokenizer keeps this setting. `unknown` takes it off again.
    self._tokenizer.enable_truncation(length)
    for row, found in enumerate(self._tokenizer.encode_batch(list(texts))):
      size = len(found.ids)
      tokens[row, :size] = found.ids
      mask[row, :size] = True
      if nouns is not None:
        begin, end = nouns[row]
        # A mark has the offsets (0, 0): it overlaps no noun.
        spans = np.array(found.offsets)
        # Two spans overlap where the earlier end is behind the later begin.
        noun[row, :size] = np.minimum(spans[:, 1], end) > np.maximum(spans[:, 0], begin)
    return Encoded(tokens, mask, noun)

  def unknown(self, text: str) -> tuple[str, ...]:
    """Words of a text that the vocabulary cannot spell."""
    self._tokenizer.no_truncation()
    found = self._tokenizer.encode(text)
    spans = [
      span for span, number in zip(found.offsets, found.ids, strict=True)
      if number == self.ids[UNKNOWN]
    ]  # fmt: skip
    return tuple(text[begin:end] for begin, end in spans)
