"""Low-precision weights of linear maps, for search: int8 a column, or fp8 with fp8 activations.

Source: docs/design/method.md §4.

The quantised kernels keep their place and shape in the parameters; their scales lie beside them, in
the collection `scales`, under the same path. `layers.Linear` looks for them there.
"""

from typing import Any

import jax
import jax.numpy as jnp

FP8 = jnp.float8_e4m3fn
KINDS = {"int8": (jnp.int8, 127.0), "fp8": (FP8, 448.0)}  # dtype and its greatest number


def quantize(params: Any, kind: str) -> dict:
  """The variables of a model whose linear maps have low-precision kernels; everything else is left
  as it is.

  Args:
    params: parameters; a `kernel` is [in, out].
    kind: 'none', 'int8' or 'fp8'.

  Returns:
    {"params": …} and, unless kind is 'none', {"scales": …}: one float32 a column of each kernel.
  """
  if kind == "none":
    return {"params": params}
  dtype, greatest = KINDS[kind]
  whole, scales = {}, {}
  for name, value in params.items():
    if isinstance(value, dict):
      inner = quantize(value, kind)
      whole[name] = inner["params"]
      if inner["scales"]:
        scales[name] = inner["scales"]
    elif name == "kernel":
      scale_F = jnp.maximum(jnp.abs(value).max(axis=0), 1e-12) / greatest
      scaled = value / scale_F
      whole[name], scales[name] = (
        (jnp.round(scaled) if dtype == jnp.int8 else scaled).astype(dtype),
        scale_F,
      )
    else:
      whole[name] = value
  return {"params": whole, "scales": scales}


def matmul(x: jax.Array, kernel: jax.Array, scale_F: jax.Array, out_dtype) -> jax.Array:
  """x @ (kernel · scale), of a quantised kernel; fp8 quantises `x` as well, each row with a scale
  of its own.

  One scale for all rows would tie a request's answer to its neighbours in the batch: one large
  activation among them would leave the others few steps of fp8.

  Args:
    x: [R, in] activations.
    kernel: [in, out] int8 or fp8.
    scale_F: [out] float32.
    out_dtype: of the result; the sum is float32.
  """
  if kernel.dtype == jnp.int8:
    out = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
  else:
    greatest_R1 = jnp.abs(x).max(axis=-1, keepdims=True).astype(jnp.float32)
    scale_R1 = jnp.maximum(greatest_R1, 1e-12) / KINDS["fp8"][1]  # rows of zeros stay zeros
    out = (
      jnp.matmul((x / scale_R1).astype(FP8), kernel, preferred_element_type=jnp.float32) * scale_R1
    )
  return (out * scale_F).astype(out_dtype)
