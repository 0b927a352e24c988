"""A table of ads of any size, cut by rows over all devices: its training steps and their memory.

The model is SASRec with a *sampled softmax*, which compares a target with some ads, not with all.
Ads and requests are made up, so it needs no data.
"""

import dataclasses
import logging
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gr4ad_jax.benchmarks import synthetic, timing
from gr4ad_jax.config import Config, ConfigError
from gr4ad_jax.features.batches import RequestBatch
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.parallel import row_tables
from gr4ad_jax.requests import row_step
from gr4ad_jax.requests.item_task import make_item_loss
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training.state import TrainState
from gr4ad_jax.training.step import make_train_step
from gr4ad_jax.zoo import registry

_log = logging.getLogger(__name__)

STEPS = 5
_WIDTH = 32


class Run(NamedTuple):
  """A training of a made-up catalogue.

  Attributes:
    model: the module.
    abstract: shapes and shardings of the state.
    init: () -> the state.
    step: (state, batch) -> (state, metrics), jitted, the state donated.
    make_batch: step number -> a batch on the mesh.
  """

  model: nn.Module
  abstract: TrainState
  init: Callable[[], TrainState]
  step: Any
  make_batch: Callable[[int], RequestBatch]


def make_run(config: Config, ads: int, mesh: Mesh, *, few: bool = True) -> Run:
  """A run with requests of `config.data`, all of whose slots are history.

  Args:
    config: model, loss, optimiser and shapes of a batch.
    ads: of the catalogue (N).
    mesh: the mesh.
    few: take the step on the touched rows alone where that is allowed.
  """
  model = registry.build(config, ads)
  t = config.training
  first = synthetic.item_requests(ads, config.data.history_slots, 1)

  def init_params():
    return model.init(jax.random.key(t.seed), first)["params"]

  optimizer = state_lib.make_optimizer(t, 1000)
  abstract = state_lib.abstract_state(init_params, optimizer, mesh)
  # All ads are equally popular: one number, seen N times without N places in memory.
  loss_fn = make_item_loss(model, np.broadcast_to(1 / ads, ads))
  shardings = state_lib.shardings_of(abstract)
  if few and row_step.allowed(t, loss_fn):
    step = row_step.make_row_step(loss_fn, optimizer, t.seed, shardings)
  else:
    step = make_train_step(loss_fn, optimizer, t.seed, t.accumulate, shardings)

  def make_batch(number: int) -> RequestBatch:
    data = config.data
    return mesh_lib.put_batch(
      synthetic.item_requests(ads, data.history_slots, config.training.batch_size, number), mesh
    )

  return Run(
    model, abstract, lambda: state_lib.init_state(init_params, optimizer, mesh), step, make_batch
  )


def whole_arrays(program: Any, numbers: tuple[int, ...]) -> list[str]:
  """Types in a compiled program that have an axis of one of some lengths.

  A program is that of one device. Where it names the length of the whole table, some step of it
  holds whole what should stay cut.

  Args:
    program: compiled.
    numbers: lengths, such as the rows of the whole table.
  """
  # A line of the text reads "name = type operation(…)".
  results = (line.split(" = ", 1)[1] for line in program.as_text().splitlines() if " = " in line)
  types = (re.match(r"\([^)]*\)|\S+", result)[0] for result in results)  # an array's or a tuple's
  return [kind for kind in types if re.search(rf"[\[,]({'|'.join(map(str, numbers))})[,\]]", kind)]


def held(program: Any) -> dict[str, int]:
  """Bytes of one device in a compiled program: of its arguments, and at most in all."""
  memory = program.memory_analysis()
  # Results that take the place of donated arguments need no room of their own.
  fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
  return {"arguments": memory.argument_size_in_bytes, "most": memory.argument_size_in_bytes + fresh}


def settings(config: Config, table_optimizer: str) -> Config:
  """The suite's model, loss and mesh, with the batches of `config`."""
  return dataclasses.replace(
    config,
    model=dataclasses.replace(
      config.model, model="sasrec", width=_WIDTH, layers=1, heads=2, dropout=0.0
    ),
    items=dataclasses.replace(config.items, item_loss="sampled"),
    training=dataclasses.replace(
      config.training, mesh="fsdp:-1", table_optimizer=table_optimizer, accumulate=1
    ),
  )


def measure(config: Config, ads: int) -> dict:
  """Compiles three ways to train, and makes steps by the one that needs least.

  Args:
    config: batch size, history slots, negatives.
    ads: of the catalogue.

  Raises:
    ConfigError: fewer ads than a request holds, or one device only.
  """
  if ads <= config.data.history_slots:
    raise ConfigError(
      f"--ads={ads} is not allowed: more than --history_slots={config.data.history_slots} are "
      "needed"
    )
  # On one device nothing would be cut, and there would be nothing to see.
  if jax.device_count() == 1:
    flag = "--xla_force_host_platform_device_count=8"
    raise ConfigError(
      f"--suite=table is not allowed: there is 1 device; XLA_FLAGS={flag} makes 8 of a CPU"
    )
  mesh = mesh_lib.make_mesh("fsdp:-1")
  ways, run, program = _compiled(config, ads, mesh)
  peaks = {"before": timing.peak_memory()}
  begin = time.perf_counter()
  state = jax.block_until_ready(run.init())
  init_seconds = time.perf_counter() - begin
  peaks["init"] = timing.peak_memory()
  _log.info("table made in %.0f s", init_seconds)
  state, seconds, losses, read = _stepped(run, program, state)
  peaks["steps"] = timing.peak_memory()
  # Adagrad's sum of squares, one number a row: above 0 where a row has moved.
  (square_sum,) = (
    x for x in jax.tree.leaves(state.opt_state) if x.shape == (row_tables.rows(ads),)
  )
  table = state.params[row_tables.NAME]  # with the rows that pad it to a length that meshes divide
  return {
    "machine": timing.machine(),
    "mesh": dict(mesh.shape),
    "ads": ads,
    "shapes": {
      "B": config.training.batch_size,
      "S": config.data.history_slots,
      "K": config.items.item_negatives,
      "D": _WIDTH,
    },
    "table": _placed(table),
    "accumulator": _placed(square_sum),
    "ways": ways,
    "init_seconds": init_seconds,
    "step_seconds": timing.spread(seconds[1:]),  # the first warms up
    "losses": losses,
    "rows_moved": int(jnp.count_nonzero(square_sum)),
    "rows_read_at_most": read + STEPS * config.items.item_negatives,
    "peak_resident_bytes": peaks,
  }


def _stepped(run: Any, program: Any, state: Any) -> tuple[Any, list[float], list[float], int]:
  """The state after `STEPS` steps; their seconds, their losses; rows that they read, at most."""
  # Step by step, waiting for each: what a step takes is asked for, not what steps in a row do.
  seconds = []
  losses = []
  read = 0
  for number in range(STEPS):
    batch = run.make_batch(number)
    begin = time.perf_counter()
    state, metrics = jax.block_until_ready(program(state, batch))
    seconds.append(time.perf_counter() - begin)
    losses.append(float(metrics["loss"]))
    # At most so many rows: an ad that stands twice is one row.
    read += np.asarray(batch.slot_ad_BS).size + np.asarray(batch.target_ad_BM).size
  return state, seconds, losses, read


def _compiled(config: Config, ads: int, mesh: Any) -> tuple[dict[str, dict], Any, Any]:
  """What a step of each way holds; and the run and the program of the last, which needs least."""
  ways = {}
  for way, rule, few in (
    ("adamw", "adamw", False),
    ("adagrad", "adagrad", False),
    ("adagrad, rows", "adagrad", True),
  ):
    # From shapes alone: no table is made for the ways that are not run.
    run = make_run(settings(config, rule), ads, mesh, few=few)
    program = run.step.lower(run.abstract, run.make_batch(0)).compile()
    ways[way] = held(program) | {"whole_arrays": whole_arrays(program, (ads, row_tables.rows(ads)))}
    _log.info("%s: compiled, at most %.2f GB a device", way, ways[way]["most"] / 1e9)
  return ways, run, program


def _placed(array: jax.Array) -> dict[str, Any]:
  """Shape of an array, of its part on a device, and bytes of all parts together."""
  parts = [shard.data for shard in array.addressable_shards]
  return {
    "shape": array.shape,
    "part": parts[0].shape,
    "parts": len(parts),
    "bytes": sum(x.nbytes for x in parts),
  }


def summary(figures: dict) -> str:
  """The figures of `measure` in words."""
  lines = [
    f"machine  {figures['machine']}",
    f"mesh     {figures['mesh']}, shapes {figures['shapes']}",
  ]
  for name in ("table", "accumulator"):
    one = figures[name]
    shape = tuple(one["shape"])
    part = tuple(one["part"])
    lines.append(
      f"{name:<12} {shape}, {one['parts']} parts of {part}, {one['bytes'] / 1e9:.2f} GB together"
    )
  for way, one in figures["ways"].items():
    between = one["arguments"] / 1e9
    most = one["most"] / 1e9
    whole = len(one["whole_arrays"])
    lines.append(
      f"{way:<14} a device holds {between:.2f} GB between steps and at most {most:.2f} GB in one; "
      f"{whole} arrays of the table's length"
    )
  step = figures["step_seconds"]
  peaks = figures["peak_resident_bytes"]
  lines.append(f"table made in {figures['init_seconds']:.0f} s; a step {step['median']:.3f} s")
  lines.append(
    f"loss {', '.join(f'{loss:.3f}' for loss in figures['losses'])}; {figures['rows_moved']} "
    "rows moved"
  )
  lines.append(
    "peak of the process "
    + ", ".join(f"{name} {peak / 1e9:.2f} GB" for name, peak in peaks.items())
  )
  return "\n".join(lines)
