"""Floating-point operations of a function's matrix products, and the peak rates of devices."""

import collections
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from gr4ad_jax.models.remat import RECOMPUTED

Matmul = tuple[int, int, int, int, str]  # batch, rows, contraction, columns, dtype

PEAK_TFLOPS = {
  "TPU v4": 275.0,
  "TPU v5 lite": 197.0,  # v5e
  "TPU v5": 459.0,  # v5p
  "TPU v6 lite": 918.0,  # v6e
  "A10": 125.0,
  "A30": 165.0,
  "A100": 312.0,
  "H100 PCIe": 756.0,
  "H100 NVL": 835.0,
  "H100": 989.0,  # SXM
  "H200 NVL": 835.0,
  "H200": 989.0,  # SXM
  "GH200": 989.0,
  "B200": 2250.0,
  "L4": 121.0,
  "L20": 119.5,
  "L40S": 362.0,
}
"""Part of a `device_kind` -> peak of dense bfloat16 products in TFLOP/s.

The longest part that fits counts.

From the vendors: NVIDIA's data sheets, halved where they count 2:4 sparsity; Google Cloud's page
of each TPU, for one chip.
"""


def peak_of(device_kind: str) -> float | None:
  """Peak of a device in dense bfloat16 products, FLOP/s; None where it is not known, as of a
  CPU.
  """
  fitting = [
    name for name in PEAK_TFLOPS if re.search(rf"\b{re.escape(name)}\b", device_kind, re.IGNORECASE)
  ]
  # "H100 NVL" fits "H100" as well; the longer name is the right one.
  return 1e12 * PEAK_TFLOPS[max(fitting, key=len)] if fitting else None


def equations(
  jaxpr: Any,
  *,
  times: int = 1,
  skipped: Callable[[Any], bool] = lambda eqn: False,
  into_kernels: bool = True,
) -> Iterator[tuple[Any, int]]:
  """Every equation of a program and of those inside of it, with how often it runs: loops unrolled.

  Args:
    jaxpr: of a traced function.
    times: how often the program itself runs.
    skipped: which equations to leave out, with the programs inside of them.
    into_kernels: whether to go into Pallas kernels. What stands there is of one program of a grid,
      and runs once for each.
  """
  for eqn in jaxpr.eqns:
    if skipped(eqn):
      continue
    yield eqn, times
    kernel = eqn.primitive.name == "pallas_call"
    if kernel and not into_kernels:
      continue
    # A scan's body is written once, and runs `length` times.
    inner = times * eqn.params["length"] if eqn.primitive.name == "scan" else times
    if kernel:
      inner *= math.prod(eqn.params["grid_mapping"].grid)
    for sub in programs_in(eqn):
      yield from equations(sub, times=inner, skipped=skipped, into_kernels=into_kernels)


def programs_in(eqn: Any) -> Iterator[Any]:
  """The programs that an equation runs, such as the body of a loop.

  Of what is chosen by platform it is the first form, which is that of TPUs in this package.
  """
  for value in eqn.params.values():
    # They stand among the parameters, alone or in lists.
    subs = value if isinstance(value, (tuple, list)) else (value,)
    if eqn.params.get("branches_platforms") and value is eqn.params["branches"]:
      subs = subs[:1]
    for sub in subs:
      # A closed program holds the open one, whose equations are wanted.
      sub = getattr(sub, "jaxpr", sub)
      if hasattr(sub, "eqns"):
        yield sub


def matmuls_in(jaxpr: Any, recomputed: bool = True) -> collections.Counter:
  """Every matrix product of a jaxpr, with how often it runs.

  Args:
    jaxpr: of a traced function.
    recomputed: count what rematerialisation computes again too.

  Returns:
    Counter of (batch, rows, contraction, columns, dtype); the dtype is the wider of the two
    operands'.
  """

  def again(eqn):
    return not recomputed and RECOMPUTED in str(eqn.source_info.name_stack)

  found: collections.Counter = collections.Counter()
  for eqn, times in equations(jaxpr, skipped=again):
    if eqn.primitive.name == "dot_general":
      found[matmul_shape(eqn)] += times
  return found


def matmuls_of(fn: Callable, *args: Any) -> collections.Counter:
  """`matmuls_in` of a function, traced with arrays or shapes."""
  return matmuls_in(jax.make_jaxpr(fn)(*args).jaxpr)


def matmul_flops(matmuls: collections.Counter) -> float:
  """Multiplications and additions of a list of matrix products."""
  # Each cell of a product takes k multiplications and k additions.
  return float(sum(2 * b * m * k * n * times for (b, m, k, n, _), times in matmuls.items()))


def matmul_shape(eqn: Any) -> Matmul:
  """Sizes of a `dot_general`, as `matmuls_in` counts them."""
  # Axes that are contracted, then those that both sides share; of each, the left and the right.
  (contract, _), (batch, _) = eqn.params["dimension_numbers"]
  left, right = (v.aval for v in eqn.invars)
  b = math.prod(left.shape[i] for i in batch)
  k = math.prod(left.shape[i] for i in contract)
  dtype = str(jnp.promote_types(left.dtype, right.dtype))
  # What is left of each side, after the batch and the contraction: its rows, or its columns.
  return b, left.size // (b * k), k, right.size // (b * k), dtype
