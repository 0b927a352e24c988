"""Swin against loops: windows with shift and padding, merging, blocks, the stem."""

import jax
import numpy as np
import pytest

from gr4ad_jax.btdnet import swin
from gr4ad_jax.btdnet.layers import Conv, StochasticDepth, coordinates
from tests.btdnet import reference
from tests.btdnet.build import applied, arrays, assert_close, drawn


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
  ("height", "width", "window"),
  [(8, 8, 4), (7, 10, 4), (4, 4, 4), (3, 9, 4), (5, 5, 3)],
)
def test_window_attention_with_shift_and_padding_equals_a_loop(height, width, window, shifted):
  x = arrays(height, (2, height, width, 8))
  module = swin.WindowAttention(2, window, shifted)
  params = drawn(module, x)
  ours = applied(module, params, x)
  for b in range(2):
    assert_close(ours[b], reference.window_attention(params, x[b], 2, window, shifted))


def test_a_shifted_window_mixes_what_an_unshifted_one_keeps_apart():
  x = arrays(0, (1, 8, 8, 8))
  moved = x.copy()
  moved[0, 3, 3] += 1

  def changed(shifted):
    module = swin.WindowAttention(2, 4, shifted)
    params = drawn(module, x)
    out = [applied(module, params, z)[0] for z in (x, moved)]
    return {tuple(place) for place in np.argwhere(np.abs(out[0] - out[1]).max(-1) > 1e-6)}

  assert changed(False) == {(i, j) for i in range(4) for j in range(4)}
  assert changed(True) == {(i, j) for i in range(2, 6) for j in range(2, 6)}


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7)])
def test_patch_merging_equals_a_loop(height, width):
  x = arrays(1, (2, height, width, 4))
  params = drawn(swin.PatchMerging(), x)
  ours = applied(swin.PatchMerging(), params, x)
  for b in range(2):
    assert_close(ours[b], reference.patch_merging(params, x[b]))


def test_a_stage_is_its_blocks_every_other_shifted():
  size = swin.SwinSize(8, (1, 3), (2, 2), 4)
  stage = swin.Stage(size, 1)
  x = arrays(2, (2, 6, 8, 8))
  params = drawn(stage, x, False)
  ours = applied(stage, params, x, train=False)
  for b in range(2):
    theirs = x[b]
    for i in range(3):
      theirs = reference.swin_block(params[f"block_{i}"], theirs, 2, 4, bool(i % 2))
    assert_close(ours[b], theirs)


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_the_stem_equals_a_loop(stem):
  size = swin.SwinSize(8, (1,), (2,), 4, stem=stem, coordinates=True)
  module = swin.Stem(size, np.dtype("float32"))
  x = arrays(3, (1, 10, 12, 3))
  params = drawn(module, x)
  if stem == "patch":
    padded = np.pad(x[0], ((0, 2), (0, 0), (0, 0)))
    theirs = reference.conv(params["projection"], padded, 4, 0)
  else:
    theirs = reference.conv(params["conv_0"], x[0], 2)
    theirs = np.maximum(reference.layer_norm(params["norm_0"], theirs), 0)
    theirs = reference.conv(params["conv_1"], theirs, 2)
  theirs = reference.layer_norm(params["norm"], theirs)
  theirs = theirs + reference.linear(params["place"], coordinates(3, 3))
  assert_close(applied(module, params, x)[0], theirs)


def test_a_convolution_is_alike_on_both_sides():
  x = arrays(4, (1, 8, 8, 3))
  module = Conv(4, 3, 2, bias=True)
  params = drawn(module, x)
  assert_close(applied(module, params, x)[0], reference.conv(params, x[0], 2))
  turned = {**params, "kernel": params["kernel"][::-1, ::-1]}
  flipped = module.apply({"params": turned}, np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))))
  assert flipped.shape == (1, 5, 5, 4)


def test_places_tell_left_from_right_and_top_from_bottom():
  place = coordinates(2, 4)
  assert place.shape == (2, 4, 8)
  np.testing.assert_allclose(place[0, :, 0], [-0.75, -0.25, 0.25, 0.75])
  np.testing.assert_allclose(place[:, 0, 1], [-0.5, 0.5])
  np.testing.assert_allclose(place[0, 3, 2:], [
    np.sin(0.75 * np.pi), np.cos(0.75 * np.pi), np.sin(-0.5 * np.pi), np.cos(-0.5 * np.pi),
    -0.375, 0.75**2 - 0.5**2,
  ], atol=1e-6)  # fmt: skip


def test_stochastic_depth_drops_rows_and_keeps_the_mean():
  x = np.ones((4000, 2), np.float32)
  module = StochasticDepth(0.25)
  out = np.asarray(module.apply({}, x, True, rngs={"dropout": jax.random.key(0)}))
  np.testing.assert_array_equal(out[:, 0], out[:, 1])
  np.testing.assert_allclose(np.unique(out), [0, 4 / 3], rtol=1e-6)
  assert abs((out == 0).mean() - 0.25) < 0.03
  np.testing.assert_array_equal(module.apply({}, x, False), x)


def test_stochastic_depth_grows_over_all_blocks():
  size = swin.SwinSize(8, (2, 2), (1, 1), 4, drop_path=0.3)
  rates = []

  class Seen(StochasticDepth):
    def __call__(self, x, train):
      rates.append(self.rate)
      return x

  original = swin.StochasticDepth
  swin.StochasticDepth = Seen
  try:
    for number in range(2):
      drawn(swin.Stage(size, number), arrays(0, (1, 4, 4, 8)), True)
  finally:
    swin.StochasticDepth = original
  np.testing.assert_allclose(rates, np.repeat([0, 0.1, 0.2, 0.3], 2), atol=1e-9)
