"""BERT's encoder against loops."""

import numpy as np

from gr4ad_jax.btdnet.bert import Bert, BertLayer, BertSize
from tests.btdnet import reference
from tests.btdnet.build import applied, arrays, assert_close, drawn

SIZE = BertSize(vocab=30, width=12, layers=2, heads=3, hidden=20, positions=8)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)


def test_a_layer_equals_a_loop():
  x = arrays(0, (2, 5, 12))
  layer = BertLayer(SIZE)
  params = drawn(layer, x, MASK, False)
  ours = applied(layer, params, x, MASK, train=False)
  for b in range(2):
    real = MASK[b].sum()
    assert_close(ours[b][:real], reference.bert_layer(params, x[b], MASK[b], 3)[:real])


def test_the_encoder_equals_a_loop_and_reads_no_padding():
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 30, (2, 5))
  module = Bert(SIZE)
  params = drawn(module, tokens, MASK)
  ours = applied(module, params, tokens, MASK)
  for b in range(2):
    real = MASK[b].sum()
    assert_close(ours[b][:real], reference.bert(params, tokens[b], MASK[b], 2, 3)[:real])
  other = tokens.copy()
  other[1, 3:] = 29
  np.testing.assert_array_equal(applied(module, params, other, MASK)[1, :3], ours[1, :3])
