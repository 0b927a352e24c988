"""The device mesh, and the one table that says how arrays are cut over it.

The mesh has three axes. Along 'data' the batch is cut, and parameters are copied. Along 'fsdp' both
are cut, and a step gathers the kernels. Along 'tensor' parameters are cut, and so is the work with
them. A logical axis is a name that a model gives to an axis of a parameter, such as 'embed', and
LOGICAL_RULES says along which axes of the mesh it lies.

`jax.jit` over arrays that carry a `NamedSharding` is nearly all the parallelism there is. A single
device is a mesh of shape (1, 1, 1).
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gr4ad_jax.parallel import distributed

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")

LOGICAL_RULES = (
  ("batch", (DATA, FSDP)),
  ("vocab", (FSDP, TENSOR)),
  ("mlp", TENSOR),
  ("heads", TENSOR),
  ("embed", FSDP),
)
"""Logical axis name -> mesh axes. Models name the axes, only this table places them.

The order matters: for each array the mesh axes are given out in it, each once. So a table of codes
or ads (vocab, embed) is cut by rows over both 'fsdp' and 'tensor', and nothing is left for its
'embed'. A kernel (embed, mlp) is cut by its input over 'fsdp' and by its output over 'tensor'.
"""


def parse(text: str, devices: int) -> dict[str, int]:
  """Sizes of the three axes by name, from a text such as `data:-1,fsdp:4`.

  One size may be -1, which is what the others leave. An axis that is not named has 1.

  Args:
    text: names and sizes.
    devices: how many devices there are.

  Raises:
    ValueError: a name or number that is not allowed, or a product that is not the number of
      devices. The message says which.
  """
  sizes = dict.fromkeys(AXES, 1)
  named = set()
  for part in text.split(","):
    name, _, number = part.strip().partition(":")
    if name in named:
      # `-1` is the one negative size that means something.
      raise ValueError(f"it names {name} twice")
    if (
      name not in sizes
      or not number.removeprefix("-").isdigit()
      or int(number) < -1
      or int(number) == 0
    ):
      raise ValueError(
        f"{part.strip()!r} is not one of {', '.join(AXES)} with a size, as data:-1,fsdp:4"
      )
    sizes[name] = int(number)
    named.add(name)
  free = [name for name, size in sizes.items() if size == -1]
  fixed = math.prod(size for size in sizes.values() if size != -1)
  # Two free sizes would be ambiguous; fixed ones must divide the devices, or use all of them.
  if len(free) > 1 or devices % fixed or (not free and fixed != devices):
    raise ValueError(
      f"it asks for {'a multiple of ' * bool(free)}{fixed} devices, there are {devices}"
    )
  return sizes | {name: devices // fixed for name in free}


def make_mesh(text: str = "data:-1", devices: list[jax.Device] | None = None) -> Mesh:
  """A mesh of axes ('data', 'fsdp', 'tensor').

  Devices of one process are placed by their wiring. Those of several processes stand in the order
  of the processes, so that the rows of a batch that a process makes lie on its own devices, one run
  of them.

  Args:
    text: sizes, see `parse`.
    devices: those to use; None: all, of every process.

  Raises:
    ValueError: sizes that the devices do not make up, or that their wiring does not allow.
  """
  # All devices of the job, in JAX's order.
  devices = jax.devices() if devices is None else devices
  shape = tuple(parse(text, len(devices)).values())
  if len({device.process_index for device in devices}) > 1:
    # The reshape goes row by row and 'tensor' varies fastest, so devices that share a part of the
    # batch are neighbours, and those of one process hold neighbouring parts.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(ordered).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))
  # Auto: under the default, Explicit, linen's logical metadata is refused.
  try:
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
  except NotImplementedError as error:
    raise ValueError(
      f"the devices' wiring does not allow it: {' '.join(str(error).split())[:200]}"
    ) from error


def local_mesh() -> Mesh:
  """A mesh of one device of this process: where a search or a report runs."""
  return make_mesh(devices=jax.local_devices()[:1])


def batch_shards(mesh: Mesh) -> int:
  """Number of parts that the leading axis of a batch is cut into."""
  return mesh.shape[DATA] * mesh.shape[FSDP]


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of a batch: its leading axis over 'data' and 'fsdp', the others whole."""
  return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """Makes global arrays of a pytree of this process' rows.

  Args:
    batch: arrays [B / processes, ...]; process p holds the p-th run of rows of the global batch.
    mesh: where to put them.

  Returns:
    The same pytree of arrays [B, ...], sharded as `batch_sharding` says.

  Raises:
    ValueError: the rows cannot be shared out evenly.
  """
  sharding = batch_sharding(mesh)
  shards = batch_shards(mesh)

  def put(rows):
    rows = np.asarray(rows)
    # Of the whole batch: every process has as many rows.
    size = rows.shape[0] * jax.process_count()
    if size % shards:
      raise ValueError(
        f"a batch of {size} rows cannot be shared out over {shards} devices: a multiple is needed"
      )
    return jax.make_array_from_process_local_data(sharding, rows, (size, *rows.shape[1:]))

  return jax.tree.map(put, batch)


def local_copy(tree: Any) -> Any:
  """A pytree's arrays, whole, on the first device of this process.

  All processes must call it: it is a collective operation where arrays are cut over devices.
  """
  # Nothing is cut, so nothing has to be gathered.
  leaves = jax.tree.leaves(tree)
  if all(len(leaf.sharding.device_set) == 1 for leaf in leaves):
    return tree
  # Compiled before the barrier and run after it: processes compile at different paces, and one that
  # has begun a collective operation does not wait long for the others.
  gather = _gather(leaves[0].sharding.mesh).lower(tree).compile()
  distributed.barrier("gather")
  return jax.tree.map(lambda leaf: leaf.addressable_data(0), gather(tree))


@functools.lru_cache(maxsize=4)
def _gather(mesh: Mesh):
  """A gather: the identity, with an output that is whole on every device.

  There is one function a mesh, so that JAX finds its compiled program again.
  """
  return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))


def param_shardings(abstract_params: Any, mesh: Mesh) -> Any:
  """Where each parameter goes, by the names of its logical axes and LOGICAL_RULES.

  Args:
    abstract_params: pytree of shapes, in the boxes of `nn.with_logical_partitioning`, which hold
      the names. What has no box is copied to every device.
    mesh: the mesh.

  Returns:
    The same pytree without boxes, of `NamedSharding`. An axis whose length is no multiple of its
    mesh axes' stays whole.
  """
  specs = nn.logical_to_mesh(nn.get_partition_spec(abstract_params), LOGICAL_RULES)

  def divides(size, name):
    names = (name,) if isinstance(name, str) else name
    return size % math.prod(mesh.shape[one] for one in names) == 0

  def place(leaf, spec):
    # A spec may be shorter than the shape: the rest is whole.
    sized = zip(leaf.shape, spec, strict=False)
    axes = [name if name is None or divides(size, name) else None for size, name in sized]
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree.map(place, nn.meta.unbox(abstract_params), specs)


def gathered(params: Any, shardings: Any) -> Any:
  """Parameters as a step computes with them: kernels whole along 'fsdp', tables cut as they lie.

  Left to itself, the compiler may cut activations along their width instead, and move those over
  the devices.

  Args:
    params: traced, inside `jax.jit`.
    shardings: where they lie, of `param_shardings`.
  """

  def gather(x, sharding):
    # An axis that lies along 'fsdp' alone becomes whole. The rows of a table lie along a pair,
    # ('fsdp', 'tensor'), and stay.
    spec = PartitionSpec(*(None if axes == FSDP else axes for axes in sharding.spec))
    return jax.lax.with_sharding_constraint(x, NamedSharding(sharding.mesh, spec))

  return jax.tree.map(gather, params, shardings)
