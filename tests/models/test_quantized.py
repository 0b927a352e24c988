"""Low-precision weights: how far they may be off, and that the model uses them."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gr4ad_jax.models.layers import Linear
from gr4ad_jax.models.quantized import matmul, quantize
from tests.models import tiny


@pytest.mark.parametrize(("kind", "step"), [("int8", 1 / 254), ("fp8", 1 / 16)])
def test_a_kernel_is_off_by_half_a_step_of_its_column(kind, step):
  kernel = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32) * 10.0 ** np.arange(
    -3, 4
  )
  variables = quantize({"a": {"kernel": kernel, "bias": kernel[0]}}, kind)
  low, scale_F = variables["params"]["a"]["kernel"], variables["scales"]["a"]["kernel"]
  assert low.dtype.itemsize == 1 and scale_F.shape == (7,)
  error = np.abs(np.asarray(low, np.float32) * scale_F - kernel)
  reach = (
    np.abs(kernel).max(axis=0)
    if kind == "int8"
    else np.maximum(np.abs(kernel), np.abs(kernel).max(axis=0) / 64)
  )
  assert (error <= 1.001 * step * reach).all()
  assert variables["params"]["a"]["bias"] is not None and "bias" not in variables["scales"]["a"]


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.01), ("fp8", 0.06)])
def test_the_product_is_near_the_plain_one(kind, bound):
  rng = np.random.default_rng(1)
  x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((30, 64), (64, 20)))
  variables = quantize({"kernel": kernel}, kind)
  out = matmul(
    jnp.asarray(x), variables["params"]["kernel"], variables["scales"]["kernel"], jnp.float32
  )
  assert np.abs(out - x @ kernel).max() < bound * np.abs(x @ kernel).max()
  assert np.abs(out - x @ kernel).max() > 0


def test_scales_bring_the_greatest_of_a_column_to_the_greatest_of_the_kind():
  kernel = np.float32([[1e-3, -2.0, 0, 0.1], [-2e-3, 0.3, 0, 7.0]])
  for kind, greatest in (("int8", 127), ("fp8", 448)):
    variables = quantize({"kernel": kernel}, kind)
    scale_F = variables["scales"]["kernel"]
    np.testing.assert_allclose(scale_F, np.array([2e-3, 2, 1e-12, 7]) / greatest, rtol=1e-6)
    low = np.asarray(variables["params"]["kernel"], np.float64)
    assert np.abs(low).max(axis=0).tolist() == [greatest, greatest, 0, greatest]


def test_fp8_scales_each_row_of_activations_and_each_column_of_the_kernel():
  """A number keeps 3 bits after its first, once the greatest of its row is brought to 448."""
  rng = np.random.default_rng(2)
  x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 4), (4, 5)))
  x *= np.float32([[1e-6], [1e3], [0]])
  variables = quantize({"kernel": kernel}, "fp8")
  low, scale_F = variables["params"]["kernel"], variables["scales"]["kernel"]
  expected = np.zeros((3, 5))
  for row in range(2):
    step = np.abs(x[row]).max() / 448
    rounded = [float(ml_dtypes.float8_e4m3fn(value / step)) * step for value in x[row]]
    for column in range(5):
      expected[row, column] = rounded @ np.asarray(low[:, column], np.float64) * scale_F[column]
  found = matmul(jnp.asarray(x), low, scale_F, jnp.float32)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  wide = Linear(5, out_dtype=jnp.float32).apply(
    {"params": {"kernel": low}, "scales": {"kernel": scale_F}}, jnp.asarray(x, jnp.bfloat16)
  )
  assert wide.dtype == jnp.float32 and (wide != wide.astype(jnp.bfloat16)).any()


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_an_answer_does_not_depend_on_what_else_is_in_the_batch(kind):
  model, batch = tiny.make_model(layers=1, lazy_layers=0), tiny.make_batch()
  outliers = batch._replace(
    slot_features_BSF=batch.slot_features_BSF * np.float32([1, 1e3, 1e2, 1e4])[:, None, None],
    user_features_BF=batch.user_features_BF * np.float32([1, 1e4, 1e3, 1e2])[:, None],
  )
  variables, codes = quantize(tiny.make_params(model), kind), batch.slot_codes_BST[:, :4]
  forward = tiny.jit(lambda v, b, c: model.apply(v, b, c).logp_BM)
  together = forward(variables, outliers, codes)[0]
  batch = jax.tree.map(lambda x: x[:1].repeat(4, axis=0), batch)  # itself alone, in the same shapes
  alone = forward(variables, batch, codes[:1].repeat(4, axis=0))[0]
  np.testing.assert_allclose(together, alone, rtol=1e-6, atol=1e-6)


def test_as_trained_nothing_changes():
  params = {"a": {"kernel": np.ones((2, 2))}}
  assert quantize(params, tiny.fresh("none")) == {"params": params}


@pytest.mark.parametrize(
  ("kind", "bound"), [("int8", 0.1), pytest.param("fp8", 1.0, marks=pytest.mark.long)]
)
def test_the_whole_model_runs_on_them(kind, bound):
  model, batch = tiny.make_model(layers=2, lazy_layers=1), tiny.make_batch()
  params = tiny.make_params(model)
  codes = tiny.every_code(batch)
  forward = tiny.jit(lambda v: model.apply(v, batch, codes).logp_BM)
  plain, low = forward({"params": params}), forward(quantize(params, kind))
  gap = np.abs(np.asarray(plain) - np.asarray(low))
  assert 0 < gap.mean() < bound
  dtypes = {str(x.dtype) for x in jax.tree.leaves(quantize(params, kind))}
  assert len(dtypes) == 2 and "float32" in dtypes
