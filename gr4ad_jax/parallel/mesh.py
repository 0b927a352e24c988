"""The device mesh, and the one table that says which logical axis of an array lies along which of its axes.

`jax.jit` over arrays that carry a `NamedSharding` is all the parallelism there is.
One device is a mesh of shape (1, 1).
"""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA, MODEL = "data", "model"

LOGICAL_RULES = (
  ("batch", DATA),
  ("embed", None),
  ("mlp", MODEL),
  ("heads", MODEL),
  ("vocab", MODEL),
)
"""Logical axis name -> mesh axis; None: a copy on every device. Models name the axes, only this table places them."""


def make_mesh(devices: list[jax.Device] | None = None, model_parallel: int = 1) -> Mesh:
  """A mesh of axes ('data', 'model').

  Args:
    devices: those to use; None: all, of every process.
    model_parallel: devices that share one copy of the parameters.

  Raises:
    ValueError: `model_parallel` does not divide the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  if model_parallel < 1 or len(devices) % model_parallel:
    raise ValueError(f"model_parallel={model_parallel} is not allowed: a divisor of the {len(devices)} devices")
  shape = (len(devices) // model_parallel, model_parallel)
  # Auto: under the default, Explicit, linen's logical metadata is refused.
  return jax.make_mesh(shape, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Leading axis over 'data', the others whole."""
  return NamedSharding(mesh, PartitionSpec(DATA))


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """Makes global arrays of a pytree of this process' rows.

  Args:
    batch: arrays [B / processes, ...]; process p holds the p-th run of rows of the global batch.
    mesh: where to put them.

  Returns:
    The same pytree of arrays [B, ...], sharded over 'data'.

  Raises:
    ValueError: the rows cannot be shared out evenly.
  """
  sharding = batch_sharding(mesh)
  shards = mesh.shape[DATA]

  def put(rows):
    rows = np.asarray(rows)
    size = rows.shape[0] * jax.process_count()
    if size % shards:
      raise ValueError(f"a batch of {size} rows cannot be shared out over {shards} devices: a multiple is needed")
    return jax.make_array_from_process_local_data(sharding, rows, (size, *rows.shape[1:]))

  return jax.tree.map(put, batch)


def param_shardings(abstract_params: Any, mesh: Mesh) -> Any:
  """Where each parameter goes, by its logical axis names and LOGICAL_RULES.

  Args:
    abstract_params: pytree of shapes, in the boxes of `nn.with_logical_partitioning`; what has no box is copied.
    mesh: the mesh.

  Returns:
    The same pytree without boxes, of `NamedSharding`. An axis that its mesh axis does not divide stays whole.
  """
  specs = nn.logical_to_mesh(nn.get_partition_spec(abstract_params), LOGICAL_RULES)

  def place(leaf, spec):
    sized = zip(leaf.shape, spec, strict=False)  # a spec may be shorter than the shape: the rest is whole
    axes = [name if name is None or size % mesh.shape[name] == 0 else None for size, name in sized]
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree.map(place, nn.meta.unbox(abstract_params), specs)
