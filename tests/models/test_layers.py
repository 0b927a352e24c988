"""Layers against NumPy, and the sizes of the presets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr4ad_jax.config.presets import PRESETS
from gr4ad_jax.features.batches import zero_batch
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.models.layers import NEG, Dropout, GatedFFN, Linear, attend, product, relu, rms_norm
from tests.models import tiny

attend_in_one = jax.jit(attend)  # by itself it would be compiled an operation at a time


def naive_attention(q_BQHd, k_BSGd, v_BSGd, mask_BQS):
  B, Q, H, d = q_BQHd.shape
  out = np.zeros((B, Q, H, d))
  for b, q, h in np.ndindex(B, Q, H):
    group = h // (H // k_BSGd.shape[2])
    keys = np.flatnonzero(mask_BQS[b, q])
    score = k_BSGd[b, keys, group] @ q_BQHd[b, q, h] / np.sqrt(d)
    weight = np.exp(score - score.max())
    out[b, q, h] = weight / weight.sum() @ v_BSGd[b, keys, group]
  return out.reshape(B, Q, H * d)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("shared", [True, False])
def test_attend_equals_a_loop(heads, groups, shared):
  rng = np.random.default_rng(heads + groups)
  q, k, v = (
    rng.normal(size=s).astype(np.float32)
    for s in ((2, 3, heads, 5), (2, 4, groups, 5), (2, 4, groups, 5))
  )
  mask = rng.random((2, 1 if shared else 3, 4)) < 0.6  # (B, 1, S): a context; (B, Q, S): causal
  mask[..., 0] = True
  full = np.broadcast_to(mask, (2, 3, 4))
  np.testing.assert_allclose(
    attend_in_one(q, k, v, jnp.asarray(mask)), naive_attention(q, k, v, full), atol=1e-5
  )


def test_attend_ignores_what_is_hidden():
  rng = np.random.default_rng(0)
  q, k, v = (
    rng.normal(size=s).astype(np.float32) for s in ((1, 2, 2, 4), (1, 3, 2, 4), (1, 3, 2, 4))
  )
  mask = jnp.asarray([[[True, False, True]]])
  before = attend_in_one(q, k, v, mask)
  k[:, 1], v[:, 1] = 1e4, -1e4
  np.testing.assert_array_equal(attend_in_one(q, k, v, mask), before)


def test_attend_takes_weights_of_keys_as_logarithms():
  rng = np.random.default_rng(0)
  q, k, v = (
    rng.normal(size=s).astype(np.float32) for s in ((1, 2, 2, 4), (1, 3, 2, 4), (1, 3, 2, 4))
  )
  # A key of weight 2 is a key that stands twice, and one of NEG is hidden.
  weighted = attend_in_one(q, k, v, jnp.array([[[0, np.log(2), NEG]]], jnp.float32))
  twice = attend_in_one(q, k[:, [0, 1, 1]], v[:, [0, 1, 1]], jnp.ones((1, 1, 3), bool))
  np.testing.assert_allclose(weighted, twice, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), st.floats(-2, 2, width=32))
def test_rms_norm_is_the_formula(row, scale):
  x = np.asarray(row, np.float64)
  expected = x / np.sqrt(np.mean(x**2) + 1e-6) * scale
  found = rms_norm(jnp.asarray(row, jnp.float32), jnp.full(3, scale))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_rms_norm_keeps_the_dtype_and_squares_in_float32():
  x = jnp.full((1, 256), 3e-3, jnp.bfloat16)
  out = rms_norm(x, jnp.ones(256))
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), 3e-3 / np.sqrt(9e-6 + 1e-6), rtol=1e-2)


def test_linear_and_gated_ffn_are_their_formulas():
  x = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
  linear = Linear(5, bias=True)
  params = tiny.draw_params(linear, x)
  found = linear.apply({"params": params}, x)
  np.testing.assert_allclose(found, x @ params["kernel"] + params["bias"], atol=1e-5)
  ffn = GatedFFN(6)
  params = tiny.draw_params(ffn, x)
  gate, up = np.split(x @ params["in_proj"]["kernel"], 2, axis=-1)
  expected = (gate / (1 + np.exp(-gate)) * up) @ params["out_proj"]["kernel"]
  np.testing.assert_allclose(ffn.apply({"params": params}, x), expected, atol=1e-5)


def test_linear_sums_and_adds_its_bias_in_the_dtype_asked_for():
  x = jnp.asarray(np.random.default_rng(2).normal(size=(3, 64)), jnp.bfloat16)
  params = {"kernel": jnp.full((64, 2), 0.5), "bias": jnp.asarray([1e-3, 100.001])}
  assert Linear(2, bias=True).apply({"params": params}, x).dtype == jnp.bfloat16
  found = Linear(2, bias=True, out_dtype=jnp.float32).apply({"params": params}, x)
  expected = np.asarray(x, np.float64).sum(1, keepdims=True) / 2 + params["bias"]
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
  # The smaller ones are built from flags in `tests/test_flags.py`.
  "name",
  [
    pytest.param(name, marks=[pytest.mark.long] * (name in ("0.03b", "0.08b", "0.16b_832")))
    for name in PRESETS
    if name != "tiny"
  ],
)
def test_preset_has_the_size_of_its_name(name):
  model = GR4AD(PRESETS[name], (16384, 4096, 1024))
  batch = zero_batch(tiny.DATA, 3)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), batch, batch.target_codes_BMT)["params"]
  )
  size = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e9
  assert size == pytest.approx(float(name.partition("b")[0]), rel=0.1)
  assert (model.config.layers, model.config.lazy_layers) == (9, 6)
  assert model.config.width == (128 if name == "0.16b" else 64) * model.config.heads


def test_the_middle_preset_fills_the_units():
  """Every product's rows, columns and contraction, batch and features' width aside."""
  c = PRESETS["0.16b"]
  sizes = (c.width, c.ffn_multiple * c.width, c.kv_groups * (c.width // c.heads))
  assert [size % 256 for size in sizes] == [0, 0, 0]
  assert c.width // c.heads == 128


@pytest.mark.parametrize(("rate", "width"), [(0.5, 64), (0.3, 63), (0.1, 6)])
def test_dropout_drops_its_share_keeps_the_mean_and_draws_anew(rate, width):
  x = jnp.ones((40, 50, width))
  call = lambda key, **kw: np.asarray(Dropout(rate).apply({}, x, rngs={"dropout": key}, **kw))  # noqa: E731
  out = call(jax.random.key(0), deterministic=False)
  share = round(256 * rate) / 256
  np.testing.assert_allclose(sorted(set(out.ravel())), [0, 1 / (1 - share)], rtol=1e-6)
  spread = 4 * (share * (1 - share) / x.size) ** 0.5
  assert abs((out == 0).mean() - share) < spread and abs(out.mean() - 1) < spread / (1 - share)
  by_element = (out == 0).mean(axis=(0, 1))  # the four bytes of a word are alike
  assert np.abs(by_element - share).max() < 5 * (share * (1 - share) / 2000) ** 0.5
  assert (out != call(jax.random.key(1), deterministic=False)).any()
  np.testing.assert_array_equal(call(jax.random.key(0), deterministic=True), x)


def test_dropout_drops_the_bytes_below_its_rate(monkeypatch):
  words = np.arange(256, dtype=np.uint8).view(np.uint32).reshape(2, 32)  # each byte once
  asked = []

  def bits(key, shape, dtype):
    asked.append((shape, dtype))
    return jnp.asarray(words)

  monkeypatch.setattr(jax.random, "bits", bits)
  x = np.arange(1, 255, dtype=np.float32).reshape(2, 127)  # the last byte of a row is not read
  found = Dropout(0.3).apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(0)})
  expected = np.zeros((2, 127))
  for row in range(2):
    for column in range(127):
      if 128 * row + column >= 77:  # 256 * .3 is 76.8
        expected[row, column] = x[row, column] * 256 / (256 - 77)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  assert asked == [((2, 32), jnp.uint32)]


def test_nothing_is_dropped_at_no_rate_or_where_so_built():
  x = jnp.ones((3, 5))
  for layer, call in ((Dropout(0.001), False), (Dropout(0.4, deterministic=True), None)):
    np.testing.assert_array_equal(layer.apply({}, x, deterministic=call), x)  # asks for no bits


@pytest.mark.parametrize("spec", ["bqghd,bsgd->bghqs", "bms,bsd->bmd", "ni,io->no"])
def test_gradients_of_a_product_are_the_formulas(spec):
  """Of sum(c * x y): each operand's is the sum, over all that it meets, of c times the other."""
  rng = np.random.default_rng(5)
  sizes = dict(zip("bqghdsmnio", (2, 3, 2, 2, 3, 4, 3, 3, 4, 2), strict=True))
  names = spec.replace("->", ",").split(",")
  x, y, c = (rng.normal(size=[sizes[axis] for axis in name]) for name in names)
  dx, dy = np.zeros_like(x), np.zeros_like(y)
  axes = sorted(set(names[0] + names[1]))
  for at in np.ndindex(*(sizes[axis] for axis in axes)):
    place = dict(zip(axes, at, strict=True))
    of_x, of_y, of_c = (tuple(place[axis] for axis in name) for name in names)
    dx[of_x] += c[of_c] * y[of_y]
    dy[of_y] += c[of_c] * x[of_x]
  x, y, c = (jnp.asarray(z, jnp.float32) for z in (x, y, c))
  found = jax.grad(lambda x, y: (product(spec, x, y) * c).sum(), argnums=(0, 1))(x, y)
  np.testing.assert_allclose(found[0], dx, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found[1], dy, rtol=1e-4, atol=1e-5)


def test_a_bfloat16_product_is_float32_and_its_gradients_are_products_in_bfloat16():
  x, y = jnp.ones((2, 3), jnp.bfloat16), jnp.full((3, 4), 1 + 2**-7, jnp.bfloat16)
  assert product("ni,io->no", x, y).dtype == jnp.float32
  np.testing.assert_allclose(product("ni,io->no", x, y), 3 + 3 * 2**-7)  # no bfloat16 number
  made = jax.make_jaxpr(jax.grad(lambda x, y: product("ni,io->no", x, y).sum(), (0, 1)))(x, y)
  factors = [eqn.invars for eqn in made.eqns if eqn.primitive.name == "dot_general"]
  assert len(factors) >= 2
  assert {str(x.aval.dtype) for pair in factors for x in pair} == {"bfloat16"}


def test_softmax_of_bfloat16_attention_is_float32():
  """4,096 equal keys: a sum of weights in bfloat16 would stop at 256."""
  ones = jnp.ones((1, 4096, 1, 2), jnp.bfloat16)
  out = attend_in_one(ones[:, :1], ones, 3 * ones, jnp.ones((1, 1, 4096), bool))
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(out, np.float32), 3, rtol=1e-2)


def test_relu_keeps_its_result_alone():
  x = jnp.asarray([-2.0, -0.0, 0.0, 1e-30, 3.0])
  y, back = jax.vjp(relu, x)
  np.testing.assert_array_equal(y, np.maximum(x, 0))
  np.testing.assert_array_equal(back(jnp.full(5, 7.0))[0], [0, 0, 0, 7, 7])
  kept = [leaf for leaf in jax.tree.leaves(back) if getattr(leaf, "shape", None) == (5,)]
  assert len(kept) == 1 and np.array_equal(kept[0], y)
