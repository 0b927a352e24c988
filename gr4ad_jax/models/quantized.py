"""Low-precision weights of linear maps, for search (--quantize; docs/design/method.md §4).

A kernel (the matrix of a linear map) is stored as small numbers of 8 bits and one float32 scale a
column: kernel ≈ small · scale. With int8 the activations stay as they are; with fp8 they are fp8
as well, so that an accelerator multiplies in fp8.

Quantised kernels keep their place and shape in the parameters. Their scales lie beside them, in
the collection `scales`, under the same path, and `layers.Linear` looks for them there.
"""

from typing import Any

import jax
import jax.numpy as jnp

FP8 = jnp.float8_e4m3fn
# Kind -> dtype, and the greatest number that is used of it. int8's -128 is not, so that both signs
# have the same range.
KINDS = {"int8": (jnp.int8, 127.0), "fp8": (FP8, 448.0)}


def quantize(params: Any, kind: str) -> dict:
  """The variables of a model whose linear maps have low-precision kernels.

  Everything that is not named `kernel` is left as it is.

  Args:
    params: parameters, a tree of dicts; a `kernel` is [in, out].
    kind: 'none', 'int8' or 'fp8'.

  Returns:
    {"params": …}, and unless the kind is 'none', {"scales": …}: one float32 a column of a kernel.
  """
  if kind == "none":
    return {"params": params}
  dtype, greatest = KINDS[kind]
  whole = {}
  scales = {}
  for name, value in params.items():
    if isinstance(value, dict):
      inner = quantize(value, kind)
      whole[name] = inner["params"]
      if inner["scales"]:
        scales[name] = inner["scales"]
    elif name == "kernel":
      # The greatest weight of a column becomes the greatest number. A column of zeros stays zeros.
      scale_F = jnp.maximum(jnp.abs(value).max(axis=0), 1e-12) / greatest
      scaled = value / scale_F
      # A cast to int8 cuts off what is behind the point; a cast to fp8 rounds by itself.
      whole[name] = (jnp.round(scaled) if dtype == jnp.int8 else scaled).astype(dtype)
      scales[name] = scale_F
    else:
      whole[name] = value
  return {"params": whole, "scales": scales}


def matmul(x: jax.Array, kernel: jax.Array, scale_F: jax.Array, out_dtype) -> jax.Array:
  """x @ (kernel · scale), of a quantised kernel: [R, out].

  fp8 quantises `x` as well, each row with a scale of its own. One scale for all rows would tie a
  request's answer to its neighbours in the batch: one large activation among them would leave the
  others few steps of fp8.

  Args:
    x: [R, in] activations; R are rows here.
    kernel: [in, out] int8 or fp8.
    scale_F: [out] float32.
    out_dtype: of the result; the sum is float32.
  """
  # A column has one scale, so it comes out of the sum: x @ (k · s) = (x @ k) · s.
  if kernel.dtype == jnp.int8:
    # Exact: bfloat16 holds all whole numbers up to 256.
    out = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
  else:
    greatest_R1 = jnp.abs(x).max(axis=-1, keepdims=True).astype(jnp.float32)
    # Rows of zeros stay zeros.
    scale_R1 = jnp.maximum(greatest_R1, 1e-12) / KINDS["fp8"][1]
    out = (
      jnp.matmul((x / scale_R1).astype(FP8), kernel, preferred_element_type=jnp.float32) * scale_R1
    )
  return (out * scale_F).astype(out_dtype)
