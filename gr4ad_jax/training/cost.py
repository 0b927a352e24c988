"""The compiled train step, and what a step costs: memory, floating-point operations, and
what it works off.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from gr4ad_jax.config import TrainConfig
from gr4ad_jax.models import remat
from gr4ad_jax.training import flops
from gr4ad_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class StepCost:
  """What one step takes. Memory is that of one device, all else that of all of them.

  Attributes:
    parameters: of the model.
    argument_bytes: state and batch; the new state takes the place of the old one.
    temporary_bytes: what the step needs beside them.
    peak_bytes: the most that is taken at once, as the compiler plans it.
    model_flops: of the matrix products, forward and backward, without what rematerialisation
      computes again.
    xla_flops: of the compiled program, as XLA counts all its operations; None where it does not.
    units: what a batch holds, by unit, such as {"requests": 64}.
    peak_flops: of the devices together, in dense bfloat16 products, FLOP/s; None where it is not
      known.
  """

  parameters: int
  argument_bytes: int
  temporary_bytes: int
  peak_bytes: int
  model_flops: float
  xla_flops: float | None
  units: dict[str, int]
  peak_flops: float | None

  def utilization(self, steps_per_second: float) -> float | None:
    """Model FLOPs utilisation, in [0, 1]: the model's operations over what the devices could do;
    None: not known.
    """
    return self.model_flops * steps_per_second / self.peak_flops if self.peak_flops else None


def compile_step(
  step: Callable, state: TrainState, batch: Any, units: dict[str, int], config: TrainConfig
) -> tuple[Callable, StepCost]:
  """Compiles a step of `make_train_step` for a state and a batch, once, and reads off what it
  costs.

  Args:
    step: the step; nothing is run.
    state: arrays, or shapes with their shardings.
    batch: likewise.
    units: what the batch holds (`Task.units`).
    config: its --remat and --peak_tflops.

  Returns:
    The compiled step, called as the step is, for these shapes alone; and its cost.
  """
  # Traced once, for the compiler and for the count of products.
  traced = step.trace(state, batch)
  # The same options as the step's own compilation, so that both are one program.
  compiled = traced.lower().compile(remat.compiler_options(config.remat))
  memory = compiled.memory_analysis()
  analysis = compiled.cost_analysis() or {}
  # Outputs that alias donated arguments are counted once.
  planned = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )
  # The devices of any one array: all of a state lie on the same mesh.
  devices = jax.tree.leaves(state)[0].sharding.device_set
  peak = 1e12 * config.peak_tflops or flops.peak_of(next(iter(devices)).device_kind)
  return compiled, StepCost(
    parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    argument_bytes=memory.argument_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    peak_bytes=max(
      memory.peak_memory_in_bytes, planned
    ),  # on CPU the former leaves the temporaries out
    model_flops=flops.matmul_flops(flops.matmuls_in(traced.jaxpr.jaxpr, recomputed=False)),
    # XLA counts what one device does.
    xla_flops=len(devices) * analysis["flops"] if "flops" in analysis else None,
    units=units,
    peak_flops=len(devices) * peak if peak else None,
  )


def in_words(cost: StepCost) -> list[str]:
  """A line each on parameters, memory and floating-point operations."""
  sizes = {
    "arguments": cost.argument_bytes,
    "temporaries": cost.temporary_bytes,
    "peak": cost.peak_bytes,
  }
  xla = "unknown" if cost.xla_flops is None else _flops(cost.xla_flops)
  peak = "unknown" if cost.peak_flops is None else f"{cost.peak_flops / 1e12:,.4g} TFLOP/s"
  return [
    f"parameters: {cost.parameters:,}",
    f"memory of a device: {', '.join(f'{name} {_bytes(size)}' for name, size in sizes.items())}",
    (
      f"a step: {_flops(cost.model_flops)} of the model, {xla} by XLA's count; peak of the devices "
      f"{peak}"
    ),
  ]


def _bytes(size: int) -> str:
  return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _flops(count: float) -> str:
  return f"{count / 1e12:.2f} TFLOP" if count >= 1e12 else f"{count / 1e9:.3f} GFLOP"
