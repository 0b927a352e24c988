"""Words into pixels and back, against loops; gates."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.btdnet import fusion
from tests.btdnet import reference
from tests.btdnet.build import applied, arrays, assert_close, drawn

MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)


@pytest.mark.parametrize(("correlated", "norm"), [(False, False), (False, True), (True, False)])
def test_fusion_equals_a_loop(correlated, norm):
  x, words = arrays(0, (2, 6, 8), (2, 4, 5))
  module = fusion.GatedFusion(correlated, norm)
  params = drawn(module, x, words, MASK)
  ours = applied(module, params, x, words, MASK)
  for b in range(2):
    theirs = reference.gated_fusion(params, x[b], words[b], MASK[b], correlated, norm)
    for one, other in zip(ours, theirs, strict=True):
      assert_close(one[b], other)


def test_the_outer_norm_takes_away_what_the_sentence_says_to_all_pixels():
  x, words = arrays(1, (1, 6, 8), (1, 1, 5))  # one word: it says the same to every pixel
  mask = np.ones((1, 1), bool)
  for norm, silent in ((True, True), (False, False)):
    module = fusion.WordReader(False, norm)
    read = applied(module, drawn(module, x, words, mask), x, words, mask)
    assert (np.abs(read).max() < 1e-2) == silent


@pytest.mark.parametrize(("height", "width"), [(8, 8), (15, 15), (4, 5), (3, 16)])
def test_pooling_equals_a_loop(height, width):
  x = arrays(2, (2, height, width, 3))
  ours = fusion.pooled(jnp.asarray(x))
  assert ours.shape == (2, 85, 3)
  for b in range(2):
    assert_close(ours[b], reference.pooled(x[b]))


def test_pixels_into_words_equals_a_loop():
  words, x = arrays(3, (2, 4, 6), (2, 5, 7, 8))
  module = fusion.VisionToWords()
  params = drawn(module, words, x)
  ours = applied(module, params, words, x)
  for b in range(2):
    assert_close(ours[b], reference.vision_to_words(params, words[b], x[b]))


def test_the_gate_starts_shut_and_learns():
  words, x = arrays(4, (1, 4, 6), (1, 4, 4, 8))
  module = fusion.VisionToWords()
  params = drawn(module, words, x)
  assert not nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), words, x))["params"]["gate"]
  params["gate"] = np.float32(0)

  def total(params):
    return jnp.sum(jnp.sin(module.apply({"params": params}, words, x)))

  np.testing.assert_array_equal(applied(module, params, words, x), words)
  gradient = jax.jit(jax.grad(total))(params)
  assert gradient.pop("gate") != 0
  # behind a shut gate nothing else has a gradient yet
  assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(gradient))
