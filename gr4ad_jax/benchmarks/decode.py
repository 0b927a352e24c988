"""Decoding: lazy layers with progressive widths against their counterparts, interleaved in one run.

  speed     LazyAR at 128-256-512 against the same model with K = 0 at 512-512-512, and against the
            T5 peer at 512 beams
  ablation  the full setting with one thing switched off at a time
  roof      the share of the matmul peak, which is measured in the same run

LazyAR and its K lazy layers are in docs/design/method.md §2.3, beams and their widths in §4. FLOPs
are those of the matrix products in the program; nothing else is counted.
"""

import dataclasses
import logging
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.benchmarks import peer, synthetic, timing
from gr4ad_jax.config import ModelConfig, SearchConfig
from gr4ad_jax.decoding.beam import beam_search
from gr4ad_jax.decoding.exclusion import ROOM, Excluded, Excluder
from gr4ad_jax.decoding.trie import Trie
from gr4ad_jax.engine.result_cache import ResultCache, digest
from gr4ad_jax.index.holdings import Holdings
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.index.left_out import LeftOut
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.models.quantized import quantize
from gr4ad_jax.training import flops

_log = logging.getLogger(__name__)

CODEBOOKS = (1024, 1024, 1024)
SLOTS = 255  # with the profile, a context of 256
PROGRESSIVE = (128, 256, 512)
FIXED = (512, 512, 512)


class UnsharedContext(GR4AD):
  """GR4AD whose beams each read their own copy of the context's keys and values."""

  def step(self, start, previous_BM, level, caches):
    """As `GR4AD.step`, which takes M sequences of a request and one context for them."""
    B, M = previous_BM.shape

    # (B, ...) -> (B·M, ...), a real copy: the barrier keeps the compiler from reading one for all.
    def own(x):
      return jax.lax.optimization_barrier(jnp.repeat(x, M, axis=0))

    # Then every beam is a request of its own with one sequence: (B, M, ...) -> (B·M, 1, ...).
    start = start.replace(
      context=jax.tree.map(own, start.context), lazy_B1TD=jnp.repeat(start.lazy_B1TD, M, axis=0)
    )
    caches = jax.tree.map(lambda x: x.reshape(B * M, 1, *x.shape[2:]), caches)
    h_BWD, logits_BWV, caches = super().step(start, previous_BM.reshape(B * M, 1), level, caches)
    return jax.tree.map(lambda x: x.reshape(B, M, *x.shape[2:]), (h_BWD, logits_BWV, caches))


@dataclasses.dataclass(frozen=True)
class Setting:
  """One search to be timed: a model, its widths and how they are searched."""

  batch: int = 1
  width: int = 256
  layers: int = 9
  lazy_layers: int = 6
  widths: tuple[int, ...] = PROGRESSIVE
  copy: str = "off"  # the paper's model; the copy path is a row of its own
  dtype: str = "float32"
  quantize: str = "none"
  precut: str = "auto"
  ecpm: bool = False
  shared: bool = True
  left_out: int | None = None  # ads of each request that the search does without

  def model_config(self) -> ModelConfig:
    """The model, with heads of width 64 and no sharing of keys among them."""
    heads = self.width // 64
    return ModelConfig(
      layers=self.layers,
      lazy_layers=self.lazy_layers,
      width=self.width,
      heads=heads,
      kv_groups=heads,
      copy=self.copy,
      compute_dtype=self.dtype,
    )


class Decode:
  """A compiled search as a timer: each call gives the seconds of one search of the batch.

  Args:
    setting: what is searched how.
    codes_NT: the catalogue.
    trie: its trie on the device.
  """

  def __init__(self, setting: Setting, codes_NT: np.ndarray, trie: Trie):
    self.setting = setting
    kind = GR4AD if setting.shared else UnsharedContext
    module, params = synthetic.model(setting.model_config(), CODEBOOKS, SLOTS, kind)
    batch = jax.device_put(synthetic.requests(codes_NT, SLOTS, setting.batch))
    # Mean values of the bins of the eCPM token: any numbers cost the same. None leaves it out.
    means = (
      jnp.arange(setting.model_config().ecpm_bins, dtype=jnp.float32) if setting.ecpm else None
    )
    search = SearchConfig(precut=setting.precut)
    self._excluded = _excluding(setting, codes_NT)
    # What is left out is an argument, as a server passes it: other ads need no other program.
    self._args = (quantize(params, setting.quantize), batch, trie, self._excluded())
    self._run = jax.jit(
      lambda v, b, t, e: beam_search(
        module, v, b, t, means, widths=setting.widths, search=search, excluded=e
      )
    )
    self.gflop = flops.matmul_flops(flops.matmuls_of(self._run, *self._args)) / 1e9
    self.parameters = sum(x.size for x in jax.tree.leaves(params))
    self._program = self._run.lower(*self._args).compile()
    self()  # the first call is slower

  def __call__(self) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(self._program(*self._args[:3], self._excluded()))
    return time.perf_counter() - begin

  def over(self, trie: Trie):
    """The beams found over another trie. It must have the shapes that the program is made for."""
    return jax.block_until_ready(self._program(*self._args[:2], trie, self._args[3]))


def _excluding(setting: Setting, codes_NT: np.ndarray) -> Callable[[], Excluded | None]:
  """Makes what a search must not enter, as a server does for each batch: its time counts."""
  if setting.left_out is None:
    return lambda: None
  rng = np.random.default_rng(0)
  excluder = Excluder(ROOM)
  lists = [rng.integers(0, len(codes_NT), setting.left_out) for _ in range(setting.batch)]
  holdings = Holdings.of(SidIndex.build(codes_NT, CODEBOOKS))
  left_out = LeftOut.lists(lists)
  return lambda: excluder.of(holdings, left_out)


def _figures(setting: Setting, timer: Decode, seconds: list[float], peak: list[float]) -> dict:
  """A setting's time, rate and share of the roof."""
  # FLOP times seconds a FLOP at the roof, over seconds: repetition by repetition, so that a machine
  # that slows down does so for both.
  shares = [timer.gflop * 1e9 * best / second for best, second in zip(peak, seconds, strict=True)]
  return {
    "setting": dataclasses.asdict(setting),
    "seconds": timing.spread(seconds),
    "matmul_gflop": timer.gflop,
    "gflops": timer.gflop / statistics.median(seconds),
    "share_of_peak": timing.spread(shares),
  }


def _timed(
  settings: dict[str, Setting],
  codes_NT,
  trie,
  repetitions: int,
  more: dict[str, Callable] | None = None,
):
  """Times settings, the matmul peak and `more`, interleaved.

  Returns:
    Figures, seconds and timers, each by name.
  """
  timers = {name: Decode(setting, codes_NT, trie) for name, setting in settings.items()}
  _log.info("compiled %s", ", ".join(timers))
  everything = {**timers, **(more or {}), "peak": timing.matmul_peak()}
  timing.interleaved(everything, 1)  # warms up
  seconds = timing.interleaved(everything, repetitions)
  figures = {
    name: _figures(settings[name], timers[name], seconds[name], seconds["peak"]) for name in timers
  }
  return figures, seconds, timers


def speed(codes_NT: np.ndarray, trie: Trie, batch: int, repetitions: int, with_peer: bool) -> dict:
  """LazyAR with progressive widths against K = 0 with fixed ones, and the peer."""
  lazy = Setting(batch)
  settings = {
    "lazy": lazy,
    "autoregressive": dataclasses.replace(lazy, lazy_layers=0, widths=FIXED),
    "lazy_ecpm": dataclasses.replace(lazy, ecpm=True),
    "autoregressive_ecpm": dataclasses.replace(lazy, lazy_layers=0, widths=FIXED, ecpm=True),
    "lazy_copy": dataclasses.replace(lazy, copy="context", ecpm=True),
  }
  figures, seconds, timers = _timed(settings, codes_NT, trie, repetitions)
  found = {
    "figures": figures,
    "parameters": timers["lazy"].parameters,
    "autoregressive_over_lazy": timing.ratio(seconds["autoregressive"], seconds["lazy"]),
    "autoregressive_over_lazy_with_ecpm": timing.ratio(
      seconds["autoregressive_ecpm"], seconds["lazy_ecpm"]
    ),
  }
  if with_peer:
    found["peer"] = against_peer(timers["lazy"], codes_NT, batch, max(2, repetitions // 4))
  return found


def against_peer(lazy: Decode, codes_NT: np.ndarray, batch: int, repetitions: int) -> dict:
  """The T5 of `transformers` at 512 beams, against the lazy setting.

  It runs in float32, in bfloat16, and with one context for all beams. `generate` takes requests one
  after the other here: several at once took it longer.
  """
  # The peer is to have its best times: memory kept, first calls left out, one request at a time.
  kept = peer.keep_memory()

  def one_by_one(**settings):
    timer = peer.t5_decode(codes_NT, CODEBOOKS, lazy.parameters, **settings)
    sizes[len(sizes)] = timer.parameters
    return lambda: sum(timer() for _ in range(batch))

  sizes: dict[int, int] = {}
  peers = {
    "t5": one_by_one(),
    "t5_bfloat16": one_by_one(dtype="bfloat16"),
    "t5_shared_context": one_by_one(share_context=True),
  }
  everything = {**peers, "lazy": lazy}
  timing.interleaved(everything, 2)
  seconds = timing.interleaved(everything, repetitions)
  return {
    "parameters": sizes[0],
    "keeps_memory": kept,
    "seconds": {name: timing.spread(values) for name, values in seconds.items()},
    "over_lazy": {name: timing.ratio(seconds[name], seconds["lazy"]) for name in peers},
  }


def ablation(codes_NT: np.ndarray, trie: Trie, batch: int, repetitions: int) -> dict:
  """The full setting, then each part alone switched off or replaced; ratios to the full one."""
  full = Setting(batch, ecpm=True)
  settings = {
    "full": full,
    "lazy layers off": dataclasses.replace(full, lazy_layers=0),
    "progressive widths off": dataclasses.replace(full, widths=FIXED),
    "shared context off": dataclasses.replace(full, shared=False),
    "pre-cut off": dataclasses.replace(full, precut="off"),
    "pre-cut per beam": dataclasses.replace(full, precut="beams"),
    "bfloat16": dataclasses.replace(full, dtype="bfloat16"),
    "int8 weights": dataclasses.replace(full, quantize="int8"),
    "copy path on": dataclasses.replace(full, copy="context"),
    "no ad left out": dataclasses.replace(full, left_out=0),
    "300 ads left out": dataclasses.replace(full, left_out=300),
  }
  figures, seconds, timers = _timed(settings, codes_NT, trie, repetitions)
  return {
    "figures": figures,
    "over_full": {name: timing.ratio(seconds[name], seconds["full"]) for name in settings},
    "result_cache": with_cache(timers["full"], max(2, repetitions // 4)),
  }


def with_cache(full: Decode, repetitions: int, requests: int = 40) -> dict:
  """A stream of requests with the result cache, against one without.

  About the paper's share of them, 27.8 %, can be answered by the cache.
  """
  rng = np.random.default_rng(0)
  users: list[int] = []
  for number in range(requests):
    again = users and rng.random() < 0.278
    # Who asks for the first time has the number of the request, which no earlier one had.
    users.append(int(rng.choice(users)) if again else number)

  def stream(seconds: float) -> float:
    cache = ResultCache(seconds, requests)  # of 0 seconds nothing is kept
    begin = time.perf_counter()
    for user in users:
      key = digest(user)
      if cache.get(key) is None:
        full()
        cache.put(key, user, (), cache.moment)
    return time.perf_counter() - begin

  seconds = timing.interleaved(
    {"on": lambda: stream(3600.0), "off": lambda: stream(0.0)}, repetitions
  )
  return {
    "hits": 1 - len(set(users)) / requests,
    "off_over_on": timing.ratio(seconds["off"], seconds["on"]),
  }


def measure(repetitions: int, with_peer: bool, ads: int = 100_000) -> dict:
  """All of the suite, on a made-up catalogue."""
  codes_NT = synthetic.catalogue(ads, CODEBOOKS)
  trie = Trie.of(SidIndex.build(codes_NT, CODEBOOKS))
  wide = Setting(8, width=512)
  found = {
    "machine": timing.machine(),
    "shapes": {"L": 9, "K": 6, "T": 3, "codebooks": CODEBOOKS, "context": SLOTS + 1, "ads": ads},
    "repetitions": repetitions,
  }
  for batch in (1, 8):
    found[f"speed_batch_{batch}"] = speed(codes_NT, trie, batch, repetitions, with_peer)
    _log.info("measured batch %d", batch)
  found["ablation"] = ablation(codes_NT, trie, 1, repetitions)
  roof = {
    "width 512": wide,
    "width 512, eCPM, copy": dataclasses.replace(wide, ecpm=True, copy="context"),
  }
  found["roof_batch_8"] = _timed(roof, codes_NT, trie, repetitions)[0]
  return found


def summary(figures: dict) -> str:
  """The figures of `measure` in words."""
  lines = [f"machine  {figures['machine']}"]
  for batch in (1, 8):
    part = figures[f"speed_batch_{batch}"]
    lines.append(f"batch {batch}, {part['parameters'] / 1e6:.1f} M parameters")
    lines += _rows(part["figures"])
    plain, valued = (_times(part[f"autoregressive_over_lazy{what}"]) for what in ("", "_with_ecpm"))
    lines.append(f"  K = 0 at 512-512-512 over lazy at 128-256-512: {plain}; with eCPM {valued}")
    if "peer" in part:
      ratios = part["peer"]["over_lazy"].items()
      lines += [f"  {name} at 512 beams over lazy: {_times(ratio)}" for name, ratio in ratios]
  lines += ["ablation, batch 1", *_rows(figures["ablation"]["figures"])]
  for name, ratio in figures["ablation"]["over_full"].items():
    lines.append(f"  {name:<24} {_times(ratio)} the full setting's time")
  cache = figures["ablation"]["result_cache"]
  lines.append(
    f"  {'result cache off':<24} {_times(cache['off_over_on'])} the time with "
    f"{cache['hits']:.0%} of hits"
  )
  return "\n".join([*lines, "roof, batch 8", *_rows(figures["roof_batch_8"])])


def _times(ratio: dict) -> str:
  return f"{ratio['median']:.2f} x [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def _rows(figures: dict) -> list[str]:
  """A line for each setting: time, work, share of the roof."""
  return [
    f"  {name:<24} {1e3 * row['seconds']['median']:8.1f} ms  {row['matmul_gflop']:7.2f} GFLOP  "
    f"{row['share_of_peak']['median']:.2f} of the matmul peak"
    for name, row in figures.items()
  ]  # fmt: skip
