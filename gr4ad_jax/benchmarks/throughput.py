"""Requests a second of one search, by batch size, and the most within a latency target.

The target is what the 99th percentile of a search's time may be. Weights are random and the
catalogue is made up. So it needs neither data nor a trained run, and any size can be tried on any
device.
"""

import logging
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from gr4ad_jax.benchmarks import synthetic, timing
from gr4ad_jax.config import Config
from gr4ad_jax.decoding.beam import beam_search
from gr4ad_jax.decoding.trie import Trie
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.models.outputs import compute_dtype
from gr4ad_jax.models.quantized import quantize
from gr4ad_jax.training import flops

_log = logging.getLogger(__name__)


def measure(config: Config, batches: Sequence[int], repetitions: int, ads: int) -> dict:
  """Times whole searches, eCPM and the fetch of the result included.

  Args:
    config: model, codebooks, context slots and search. `serving.target_ms` is what the 99th
      percentile may take.
    batches: requests searched at once.
    repetitions: searches of each batch size, one after the other. 100 or more are needed for a
      99th percentile.
    ads: of the catalogue.

  Returns:
    A dict for JSON. "batches" has a dict for each size, "requests_per_second_within_target" the
    best rate. The rest says what was measured on what.
  """
  data = config.data
  codebooks = config.sid.codebooks
  slots = data.history_slots + data.neighbor_slots + data.rising_slots
  codes_NT = synthetic.catalogue(ads, codebooks)
  trie = Trie.of(SidIndex.build(codes_NT, codebooks))
  module, params = synthetic.model(config.model, codebooks, slots)
  variables = jax.device_put(quantize(params, config.search.quantize))
  means = np.arange(config.model.ecpm_bins, dtype=np.float32)  # of the value bins: any will do
  run = jax.jit(
    lambda v, b, t: beam_search(
      module, v, b, t, means, widths=config.search.beams, search=config.search
    )
  )
  # The roof in the dtype of the products, whatever the weights are kept in.
  dtype = str(compute_dtype(config.model))
  peak = timing.matmul_peak(dtype=dtype)
  found = []
  for rows in batches:
    batch = jax.device_put(synthetic.requests(codes_NT, slots, rows))
    found.append(_timed(run, (variables, batch, trie), rows, repetitions, peak))
    _log.info("batch %d: %.1f requests/s", rows, found[-1]["requests_per_second"])
  target = config.serving.target_ms / 1e3
  # Larger batches answer more a second, and each later: the best one that is still in time.
  inside = [one["requests_per_second"] for one in found if one["seconds"]["p99"] < target]
  return {
    "machine": timing.machine(),
    "parameters": sum(x.size for x in jax.tree.leaves(params)),
    "shapes": {
      "L": config.model.layers,
      "K": config.model.lazy_layers,
      "D": config.model.width,
      "S": slots + 1,
      "codebooks": codebooks,
      "beams": config.search.beams,
      "ads": ads,
    },
    "dtype": dtype,
    "quantize": config.search.quantize,
    "repetitions": repetitions,
    "batches": found,
    "target_seconds": target,
    "requests_per_second_within_target": max(inside, default=0.0),
  }


def _timed(
  run: Callable, arguments: tuple, rows: int, repetitions: int, peak: Callable[[], float]
) -> dict:
  """The figures of one batch size; `run` takes (variables, batch, trie)."""
  work = flops.matmul_flops(flops.matmuls_of(run, *arguments))
  # The compiled program itself is called below: `run` would compile it once more.
  program = run.lower(*arguments).compile()
  jax.device_get(program(*arguments))  # warms up
  seconds = []
  roof = []
  for number in range(repetitions):
    begin = time.perf_counter()
    jax.device_get(program(*arguments))
    seconds.append(time.perf_counter() - begin)
    # About five times, among the searches: the roof is then that of the same minutes.
    if number % max(1, repetitions // 5) == 0:
      roof.append(peak())
  return {
    "batch": rows,
    "seconds": timing.spread(seconds) | {"p99": float(np.quantile(seconds, 0.99))},
    "requests_per_second": rows / statistics.mean(seconds),
    "matmul_gflop": work / 1e9,
    "share_of_peak": work / statistics.median(seconds) * statistics.median(roof),
    "peak_tflops": 1e-12 / statistics.median(roof),
  }


def summary(figures: dict) -> str:
  """The figures of `measure` in words."""
  size = (
    f"{figures['parameters'] / 1e6:.1f} M parameters, {figures['dtype']}, quantize "
    f"{figures['quantize']}"
  )
  lines = [f"machine  {figures['machine']}", f"{size}, {figures['shapes']}"]
  for one in figures["batches"]:
    median, p99 = (1e3 * one["seconds"][name] for name in ("median", "p99"))
    lines.append(
      f"batch {one['batch']:>4}  median {median:8.1f} ms, p99 {p99:8.1f} ms, "
      f"{one['requests_per_second']:8.1f} requests/s, {one['matmul_gflop'] / one['batch']:.1f} "
      f"GFLOP a request, {one['share_of_peak']:.2f} of {one['peak_tflops']:.2f} TFLOP/s"
    )
  within = figures["requests_per_second_within_target"]
  return "\n".join(
    [*lines, f"{within:.1f} requests/s with p99 under {1e3 * figures['target_seconds']:.0f} ms"]
  )
