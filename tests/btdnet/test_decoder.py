"""Decoders against loops, and what passes through T-BTD's gates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.btdnet import decoder
from gr4ad_jax.btdnet.layers import depth_to_space, resize
from tests.btdnet import reference
from tests.btdnet.build import applied, arrays, assert_close, drawn

SHAPES = ((2, 8, 8, 4), (2, 4, 4, 6), (2, 2, 2, 8))


@pytest.mark.parametrize("subpixel", [False, True])
@pytest.mark.parametrize("kind", ["twin", "shared"])
def test_two_streams_equal_a_loop(kind, subpixel):
  maps = arrays(0, *SHAPES)
  module = decoder.Decoder(kind, 5, subpixel)
  params = drawn(module, maps, 30, 32)
  logits, levels = applied(module, params, maps, 30, 32)
  for b in range(2):
    theirs, inner = reference.twin_decoder(
      params, [x[b] for x in maps], 30, 32, subpixel, kind == "shared"
    )
    assert_close(logits[b], theirs)
    for ours, other in zip(levels, inner, strict=True):
      assert_close(ours[b], other)


def test_the_single_stream_equals_a_loop():
  maps = arrays(1, *SHAPES)
  module = decoder.Decoder("single", 5, False)
  params = drawn(module, maps, 32, 32)
  logits, levels = applied(module, params, maps, 32, 32)
  assert levels == ()
  for b in range(2):
    x = maps[2][b]
    for i, shallow in enumerate((maps[1], maps[0])):
      x = reference.level(params[f"level_{i}"], x, shallow[b])
    assert_close(logits[b], reference.head(params["head"], x, 32, 32, False))


def test_a_gate_holds_back_and_passes_no_gradient():
  x, other = arrays(2, (2, 2, 2, 3), (2, 2, 2, 1))
  other += np.array([3, -1])[:, None, None, None]  # each image has a largest gate of its own
  held = decoder.hold_back(x, other)
  to_x, to_other = jax.grad(lambda *a: decoder.hold_back(*a).sum(), argnums=(0, 1))(x, other)
  for b in range(2):
    assert_close(held[b], reference.held_back(x[b], other[b]))
    assert_close(to_x[b], reference.held_back(np.ones_like(x[b]), other[b]))
  assert not np.asarray(to_other).any()


@pytest.mark.parametrize(("kind", "joint"), [("single", -4), ("twin", -6)])
def test_a_fresh_decoder_expects_small_targets(kind, joint):
  # Maps of zeros have biases alone.
  maps = [jnp.zeros(shape) for shape in SHAPES]
  module = decoder.Decoder(kind, 5, True)
  fresh = jax.jit(lambda key: module.init_with_output(key, maps, 32, 32)[0])
  logits, levels = fresh(jax.random.key(0))
  for x in (logits, *levels):
    np.testing.assert_allclose(x[..., 1] - x[..., 0], joint, rtol=1e-5)
    np.testing.assert_allclose(x.sum(-1), 0, atol=1e-5)  # of twins, each stream is as sure
  assert len(levels) == (2 if kind == "twin" else 0)


def test_the_end_gives_gate_heads_no_gradient_and_their_level_does():
  maps = arrays(3, *SHAPES)
  module = decoder.Decoder("twin", 5, True)
  params = drawn(module, maps, 32, 32)

  def at(params, end):
    logits, levels = applied(module, params, maps, 32, 32)
    return jnp.sum(jnp.sin(logits)) if end else sum(jnp.sum(jnp.sin(x)) for x in levels)

  for end in (True, False):
    gradient = jax.jit(jax.grad(at), static_argnums=1)(params, end)
    for name in ("background_gate_0", "target_gate_1"):
      assert (float(jnp.abs(gradient[name]["kernel"]).max()) > 0) == (not end)
    head = float(jnp.abs(gradient["target_head"]["Linear_0"]["kernel"]).max())
    assert (head > 0) == end


def test_streams_without_shared_weights_have_twice_the_levels():
  maps = arrays(4, *SHAPES)
  sizes = {}
  for kind in ("single", "shared", "twin"):
    params = drawn(decoder.Decoder(kind, 5, False), maps, 32, 32)
    levels = [p for name, p in params.items() if "level" in name]
    sizes[kind] = sum(x.size for x in jax.tree.leaves(levels))
  assert sizes["twin"] == 2 * sizes["shared"] == 2 * sizes["single"]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 9), (4, 3)])
def test_resizing_equals_a_loop(height, width):
  x = arrays(5, (1, 4, 3, 2))
  assert_close(resize(jnp.asarray(x), height, width)[0], reference.resize(x[0], height, width))


def test_depth_to_space_lays_out_a_cell_row_by_row():
  x = np.arange(2 * 18, dtype=np.float32).reshape(1, 1, 2, 18)
  out = np.asarray(depth_to_space(jnp.asarray(x), 3))
  assert out.shape == (1, 3, 6, 2)
  np.testing.assert_array_equal(out[0, :, :3], np.arange(18).reshape(3, 3, 2))
