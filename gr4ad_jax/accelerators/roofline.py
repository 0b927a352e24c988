"""The roof of a training step and of a search on an accelerator that is not at hand.

A program is traced for shapes alone, and nothing of it is run. Each of its matrix products takes at
least the larger of two times: that of its arithmetic at the device's peak, and that of its operands
and its result at the bandwidth of the device's memory (the roofline of Williams, Waterman and
Patterson, CACM 52(4), 2009). What the program does beside them shows as the bytes that it would
write if no two operations were fused; and, for a TPU, as the bytes that the program moves which XLA
compiles ahead of time (`hbm_bytes`).
"""

import collections
import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gr4ad_jax.accelerators import hbm_bytes
from gr4ad_jax.benchmarks import synthetic
from gr4ad_jax.benchmarks.step import abstract_step
from gr4ad_jax.config import Config, ConfigError
from gr4ad_jax.data.extras import optional
from gr4ad_jax.decoding.beam import beam_search
from gr4ad_jax.decoding.trie import Trie
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.models import level_heads
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.training import flops
from gr4ad_jax.zoo import registry

_SHOWN = 8  # rows of a table


@dataclasses.dataclass(frozen=True)
class Device:
  """An accelerator.

  Attributes:
    kind: its name in `flops.PEAK_TFLOPS`, which has the peak of dense bfloat16 products.
    bandwidth: of its memory, GB/s.
    topology: what libtpu calls its smallest slice; empty: no TPU.
  """

  kind: str
  bandwidth: float
  topology: str = ""

  @property
  def peak(self) -> float:
    """FLOP/s of bfloat16 products."""
    return 1e12 * flops.PEAK_TFLOPS[self.kind]


DEVICES = {
  "h100": Device("H100", 3350.0),  # SXM
  "h200": Device("H200", 4800.0),  # SXM
  "l20": Device("L20", 864.0),
  "v5e": Device("TPU v5 lite", 819.0, "v5e:2x2"),
  "v6e": Device("TPU v6 lite", 1638.0, "v6e:2x2"),
}
"""Name (--device) -> device.

Bandwidths are the vendors': NVIDIA's data sheets of H100, H200 and L20; docs.cloud.google.com/tpu,
pages v5e and v6e.
"""


def measure(
  config: Config, device: str, batches: Sequence[int], ads: int, compiled: bool = False
) -> dict:
  """The roofs of a training step and of searches.

  Args:
    config: model, codebooks, slots, targets, requests of a step, search.
    device: a name of `DEVICES`.
    batches: requests searched at once; a search each.
    ads: of the made-up catalogue.
    compiled: compile for it ahead of time, too. It takes minutes at the large presets.

  Returns:
    A dict for JSON: "device", "shapes", and "programs", a dict for each.

  Raises:
    ConfigError: a model of single ads, or `compiled` for a device that is no TPU.
    ImportError: `compiled` without the extra `roofline`.
  """
  chosen = DEVICES[device]
  if compiled and not chosen.topology:
    tpus = " and ".join(name for name, one in DEVICES.items() if one.topology)
    raise ConfigError(f"--compile is not allowed: --device={device}; {tpus} compile without one")
  place = _ahead_of_time(chosen) if compiled else None
  config = as_on_accelerator(config)
  programs = {"step": _roof(*abstract_step(config, place), chosen, place)}
  for rows in batches:
    programs[f"search of {rows}"] = _roof(*_search(config, rows, ads), chosen, place)
  data = config.data
  slots = data.history_slots + data.neighbor_slots + data.rising_slots
  return {
    "device": device, "peak_tflops": chosen.peak / 1e12, "bandwidth_gbs": chosen.bandwidth,
    "shapes": {
      "B": config.training.batch_size, "M": data.targets, "S": slots, "D": config.model.width,
      "H": config.model.heads, "L": config.model.layers, "K": config.model.lazy_layers,
      "codebooks": config.sid.codebooks, "beams": config.search.beams, "ads": ads,
    },
    "model": {
      "compute_dtype": config.model.compute_dtype,
      "cross_attention": config.model.cross_attention,
      # As the knob says it: what stands in the config is no value of the knob.
      "head_piece": max(config.model.head_piece, 0),
    },
    "programs": programs,
  }  # fmt: skip


def as_on_accelerator(config: Config) -> Config:
  """The config with what its `auto` knobs are on one accelerator, whatever they are here."""
  model = config.model
  read = registry.find(config).reads
  changes = {}
  if "compute_dtype" in read and model.compute_dtype == "auto":
    changes["compute_dtype"] = "bfloat16"
  if "cross_attention" in read and model.cross_attention == "auto":
    changes["cross_attention"] = "fused" if model.kv_split == 1 else "plain"
  if "head_piece" in read and not model.head_piece:
    changes["head_piece"] = level_heads.BY_ROWS
  return dataclasses.replace(config, model=dataclasses.replace(model, **changes))


def _search(config: Config, rows: int, ads: int) -> tuple[Callable, tuple]:
  """A search, jitted, and shapes of its arguments."""
  data = config.data
  codes_NT = synthetic.catalogue(ads, config.sid.codebooks)
  trie = Trie.of(SidIndex.build(codes_NT, config.sid.codebooks))
  model = registry.build(config, ads)
  slots = data.history_slots + data.neighbor_slots + data.rising_slots
  batch = synthetic.requests(codes_NT, slots, rows)
  params = jax.eval_shape(
    lambda: nn.meta.unbox(model.init(jax.random.key(0), batch, batch.target_codes_BMT)["params"])
  )
  means = np.arange(config.model.ecpm_bins, dtype=np.float32)

  def run(variables, batch, trie):
    return beam_search(
      model, variables, batch, trie, means, widths=config.search.beams, search=config.search
    )

  return jax.jit(run), ({"params": params}, _shapes(batch), _shapes(trie))


def _shapes(tree: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), tree)


def _ahead_of_time(device: Device) -> NamedSharding:
  """A place on a TPU that is not there, for arguments of programs that are compiled for it."""
  # Else libtpu asks the cloud's metadata server, which there is on a TPU's host alone.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  optional("libtpu", "roofline")
  from jax.experimental import topologies

  topology = topologies.get_topology_desc(platform="tpu", topology_name=device.topology)
  mesh = mesh_lib.make_mesh("data:1", topology.devices[:1])
  return NamedSharding(mesh, PartitionSpec())


def _roof(run: Callable, arguments: tuple, device: Device, place: NamedSharding | None) -> dict:
  """The figures of a jitted program."""
  traced = run.trace(*arguments)
  found = roof_of(traced.jaxpr.jaxpr, device)
  if place is None:
    return found | {"compiled": None}
  placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments)
  program = run.trace(*placed).lower().compile()
  analysis = program.cost_analysis() or {}
  memory = program.memory_analysis()
  moved = sum(hbm_bytes.by_scope(program.as_text()).values())
  return found | {
    "compiled": {
      "bytes": moved,
      "seconds": moved / (1e9 * device.bandwidth),
      "xla_bytes": analysis.get("bytes accessed", math.nan),
      "flops": analysis.get("flops"),
      "temporary_bytes": memory.temp_size_in_bytes,
    }
  }


def roof_of(jaxpr: Any, device: Device) -> dict:
  """The least time of a program's products on a device, and what it writes beside them.

  A Pallas kernel counts as one product, with the work and the bytes that it says of itself: what it
  holds between its products moves nowhere.

  Returns:
    "flops", "bytes" and "seconds" of the products, their "arithmetic_seconds" and
    "memory_seconds" each by itself, the "largest" of them, and "written": bytes by operation, as if
    nothing were fused.
  """
  times_of: collections.Counter = collections.Counter()
  written: collections.Counter = collections.Counter()
  for eqn, times in flops.equations(jaxpr, into_kernels=False):
    name = eqn.primitive.name
    if name == "dot_general":
      times_of["product", flops.matmul_shape(eqn)] += times
    elif name == "pallas_call":
      cost = eqn.params["cost_estimate"]
      times_of["kernel", (_name(eqn), cost.flops, cost.bytes_accessed)] += times
    # What holds an inner program writes what that writes.
    if name == "pallas_call" or not list(flops.programs_in(eqn)):
      written[name] += times * sum(_bytes(out.aval) for out in eqn.outvars)
  products = [_least(kind, about, times, device) for (kind, about), times in times_of.items()]
  products.sort(key=lambda one: -one["seconds"])
  total = {
    name: sum(one[name] for one in products)
    for name in ("flops", "bytes", "arithmetic_seconds", "memory_seconds", "seconds")
  }
  return total | {
    "largest": products[:_SHOWN],
    "written": dict(written.most_common(_SHOWN)),
    "written_bytes": sum(written.values()),
  }


def _least(kind: str, about: tuple, times: int, device: Device) -> dict:
  """A product, or a kernel, as often as it runs: what it takes at least."""
  if kind == "product":
    b, m, k, n, dtype = about
    size = jnp.dtype(dtype).itemsize
    what = f"{b} x [{m}, {k}] @ [{k}, {n}] {dtype}"
    work = 2 * b * m * k * n
    # In the operands' dtype: a result that is wider only moves more.
    moved = size * b * (m * k + k * n + m * n)
    # A product of float32 runs at half the rate of bfloat16 at best (TF32, on GPUs).
    rate = device.peak * min(1.0, 2 / size)
  else:
    what, work, moved = about
    rate = device.peak
  arithmetic = times * work / rate
  memory = times * moved / (1e9 * device.bandwidth)
  return {
    "what": what, "times": times, "flops": times * work, "bytes": times * moved,
    "arithmetic_seconds": arithmetic, "memory_seconds": memory, "seconds": max(arithmetic, memory),
    "bound": "arithmetic" if arithmetic >= memory else "memory",
  }  # fmt: skip


def _name(eqn: Any) -> str:
  """Of a kernel, with the shapes that it reads."""
  shapes = ", ".join(str(list(v.aval.shape)) for v in eqn.invars)
  return f"kernel {eqn.params['name']} of {shapes}"


def _bytes(aval: Any) -> int:
  # Keys of random numbers have a dtype of their own.
  size = getattr(aval.dtype, "itemsize", 0)
  return aval.size * size


def summary(figures: dict) -> str:
  """The figures of `measure` in words. None of them was measured on the device."""
  lines = [
    f"device  {figures['device']}, {figures['peak_tflops']:.0f} TFLOP/s in bfloat16, "
    f"{figures['bandwidth_gbs']:.0f} GB/s, by its maker's word; nothing was run on it",
    f"{figures['shapes']}, {figures['model']}",
  ]
  for name, one in figures["programs"].items():
    ms = {key: 1e3 * one[key] for key in ("seconds", "arithmetic_seconds", "memory_seconds")}
    lines += [
      f"{name}: its products take {ms['seconds']:.1f} ms or more; arithmetic alone "
      f"{ms['arithmetic_seconds']:.1f} ms ({one['flops'] / 1e12:.2f} TFLOP), their operands alone "
      f"{ms['memory_seconds']:.1f} ms ({one['bytes'] / 1e9:.1f} GB)",
      *(
        f"  {1e3 * product['seconds']:7.2f} ms, {product['bound']:10}  {product['times']:>4} times "
        f"{product['what']}"
        for product in one["largest"]
      ),
      f"  written if nothing were fused, {one['written_bytes'] / 1e9:.1f} GB: "
      + ", ".join(f"{key} {value / 1e9:.1f}" for key, value in one["written"].items()),
    ]
    compiled = one["compiled"]
    if compiled is None:
      lines.append("  what XLA moves beside them: not compiled")
    else:
      lines.append(
        f"  compiled for it, {compiled['bytes'] / 1e9:.1f} GB go to its memory or come from there, "
        f"{1e3 * compiled['seconds']:.1f} ms at that bandwidth; XLA counts "
        f"{compiled['xla_bytes'] / 1e9:.1f} GB, with what stays on the chip; temporaries "
        f"{compiled['temporary_bytes'] / 2**30:.2f} GiB"
      )
    lines.append(f"  {_verdict(one)}")
  return "\n".join(lines)


def _verdict(one: dict) -> str:
  """Where the time must go, in a sentence."""
  bound = one["memory_seconds"] > one["arithmetic_seconds"]
  what = "reading and writing its operands" if bound else "its arithmetic"
  words = f"its products are bound by {what}"
  if one["compiled"]:
    ratio = one["compiled"]["bytes"] / max(one["bytes"], 1)
    words += f"; compiled, it moves {ratio:.2f} times the bytes of their operands"
  return words
