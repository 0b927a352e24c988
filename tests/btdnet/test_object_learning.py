"""What D-MOLS rebuilds, against loops."""

import numpy as np

from gr4ad_jax.btdnet.layers import coordinates
from gr4ad_jax.btdnet.object_learning import TextRebuilder, VisionRebuilder
from tests.btdnet import reference
from tests.btdnet.build import applied, arrays, assert_close, drawn


def test_rebuilt_words_equal_a_loop():
  words, map_ = arrays(0, (2, 4, 6), (2, 3, 2, 8))
  module = TextRebuilder()
  params = drawn(module, words, map_)
  ours = applied(module, params, words, map_)
  for b in range(2):
    read = reference.cross_attention(params["read"], words[b], map_[b].reshape(6, 8))
    theirs = reference.layer_norm(params["norm"], words[b] + read)
    assert_close(ours[b], reference.linear(params["out"], theirs))


def test_rebuilt_cells_equal_a_loop_and_a_dropped_cell_is_not_seen():
  map_, words = arrays(1, (2, 3, 2, 8), (2, 4, 6))
  mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
  dropped = np.random.default_rng(0).random((2, 3, 2)) < 0.5
  module = VisionRebuilder()
  params = drawn(module, map_, dropped, words, mask)
  ours = applied(module, params, map_, dropped, words, mask)
  for b in range(2):
    x = np.where(dropped[b][..., None], params["gap"], map_[b])
    x = (x + reference.linear(params["place"], coordinates(3, 2))).reshape(6, 8)
    x = x + reference.cross_attention(params["read"], x, words[b], mask[b])
    theirs = reference.linear(params["out"], reference.layer_norm(params["norm"], x))
    assert_close(ours[b], theirs.reshape(3, 2, 8))
  other = np.where(dropped[..., None], 9.0, map_).astype(np.float32)
  np.testing.assert_array_equal(applied(module, params, other, dropped, words, mask), ours)
