"""The live index, up to 10 million ads: its size, changes, merges, and what it costs a search.

A search may only follow prefixes that exist (docs/design/method.md §4). The *unconstrained* search
is the same program over all codes, without any trie: what exists is not looked up.
"""

import dataclasses
import logging
import time

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.benchmarks import synthetic, timing
from gr4ad_jax.benchmarks.decode import CODEBOOKS, Decode, Setting
from gr4ad_jax.decoding.searcher import TrieFeed
from gr4ad_jax.decoding.trie import Children, Trie
from gr4ad_jax.index.live_index import LiveIndex

_log = logging.getLogger(__name__)

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
CHANGES = 200


@flax.struct.dataclass
class AllCodes(Trie):
  """Stands in for a trie: every code may follow every prefix."""

  @classmethod
  def make(cls) -> "AllCodes":
    """Over the codebooks of the benchmark."""
    return cls((), (), None, CODEBOOKS)

  def children(self, level: int, node_BW: jax.Array, excluded=None) -> Children:
    """All codes, for each beam; nothing can be left out of them."""
    del excluded
    code_BWC = jnp.broadcast_to(
      jnp.arange(self.fanout[level]), (*node_BW.shape, self.fanout[level])
    )
    # A node's number is its packed prefix: (B, W, 1) + (B, W, C).
    return Children(
      node_BW[..., None] * self.fanout[level] + code_BWC, code_BWC, jnp.ones_like(code_BWC, bool)
    )


@dataclasses.dataclass
class _Changing:
  """A live index of `ads` ads, its trie on the device, and the figures so far."""

  ads: int

  def __post_init__(self):
    codes_NT = synthetic.catalogue(self.ads, CODEBOOKS)
    # The codes are made before: only the sort and the trie are timed.
    begin = time.perf_counter()
    self.index = LiveIndex(codes_NT, CODEBOOKS)
    built = time.perf_counter() - begin
    # A copy of what requests are made of: a view would keep all codes in memory.
    self.sample_NT = codes_NT[:100_000].copy()
    self.feed = TrieFeed(self.index)
    self.feed.trie()
    self.figures = {
      "ads": self.ads,
      "leaves": self.index.num_leaves,
      "fanout": self.index.arrays().fanout,
      "build_seconds": built,
      "bytes_per_ad": self.index.nbytes / self.ads,
    }

  def change(self) -> None:
    """Adds and removes `CHANGES` ads each, with a look at the newest trie after each that is added.

    The look is what a server does before a batch: it brings the changes to the device.
    """
    rng = np.random.default_rng(1)
    adds = []
    removes = []
    uploads = []
    for number in range(CHANGES):
      code = np.array([rng.integers(0, size) for size in CODEBOOKS])
      begin = time.perf_counter()
      self.index.set(self.ads + number, code)
      adds.append(time.perf_counter() - begin)
      begin = time.perf_counter()
      # The transfer runs in the background: without the wait its start alone would be timed.
      jax.block_until_ready(self.feed.trie().overlay_TQP)
      uploads.append(time.perf_counter() - begin)
      begin = time.perf_counter()
      self.index.set(int(rng.integers(0, self.ads)), None)
      removes.append(time.perf_counter() - begin)
    self.last = code
    self.figures |= {
      "add_seconds": timing.spread(adds),
      "remove_seconds": timing.spread(removes),
      "upload_seconds": timing.spread(uploads),
    }

  def add_to_generable(self, program) -> None:
    """Seconds from a change to the end of the first search that can generate the new ad."""
    # Another UA-SID than the last one's, at every level. The program is compiled already, as a
    # server's is.
    code = (self.last + 1) % np.asarray(CODEBOOKS)
    begin = time.perf_counter()
    self.index.set(self.ads + CHANGES, code)
    program(self.feed.trie())
    self.figures["add_to_generable_seconds"] = time.perf_counter() - begin
    assert reachable(self.feed.trie(), code), "the new ad is not in the trie"

  def merge(self) -> None:
    """Folds the overlay in."""
    begin = time.perf_counter()
    self.index.merge()
    self.figures["merge_seconds"] = time.perf_counter() - begin


def reachable(trie: Trie, code_T: np.ndarray) -> bool:
  """Whether a search over the trie is offered this UA-SID."""
  # The way of a search, for one request with one beam. A child is in the main part or, where the
  # overlay has an entry under this beam (0), among its nodes.
  node = 0
  for level, code in enumerate(code_T):
    found = jax.device_get(trie.children(level, jnp.array([[node]])))
    main = np.flatnonzero(found.valid_BWC[0, 0] & (found.code_BWC[0, 0] == code))
    more = (
      np.flatnonzero((found.beam_BP[0] == 0) & (found.code_P == code))
      if found.code_P is not None
      else []
    )
    if len(main):
      node = int(found.node_BWC[0, 0, main[0]])
    elif len(more):
      node = int(trie.overlay_node(level, int(more[0])))
    else:
      return False
  return True


def measure(
  repetitions: int, sizes: tuple[int, ...] = SIZES, batches: tuple[int, ...] = (1, 8)
) -> dict:
  """All of the suite: each size alone, then the searches of all sizes, interleaved.

  Returns:
    A dict for JSON: "index", a dict for each size; "decode_batch_N" for each batch.
  """
  made = []
  for ads in sizes:
    one = _Changing(ads)
    one.change()
    made.append(one)
    _log.info("%d ads: built in %.1f s", ads, one.figures["build_seconds"])
  found = {"machine": timing.machine(), "codebooks": CODEBOOKS, "repetitions": repetitions}
  for batch in batches:
    setting = Setting(batch, ecpm=True)
    timers = {str(one.ads): Decode(setting, one.sample_NT, one.feed.trie()) for one in made}
    if batch == batches[0]:
      for one in made:
        one.add_to_generable(timers[str(one.ads)].over)
    timers["unconstrained"] = Decode(setting, made[0].sample_NT, AllCodes.make())
    timing.interleaved(timers, 1)  # warms up
    seconds = timing.interleaved(timers, repetitions)
    _log.info("searched at batch %d", batch)
    smallest = seconds[str(made[0].ads)]
    free = seconds["unconstrained"]
    found[f"decode_batch_{batch}"] = {
      "seconds": {name: timing.spread(values) for name, values in seconds.items()},
      "over_smallest": {
        str(one.ads): timing.ratio(seconds[str(one.ads)], smallest) for one in made
      },
      "over_unconstrained": {
        str(one.ads): timing.ratio(seconds[str(one.ads)], free) for one in made
      },
    }
  # Last: searches are to be measured with changes in the overlay.
  for one in made:
    one.merge()
  found["index"] = [one.figures for one in made]
  return found


def summary(figures: dict) -> str:
  """The figures of `measure` in words."""
  lines = [f"machine  {figures['machine']}"]
  for one in figures["index"]:
    ms = {name: 1e3 * one[f"{name}_seconds"]["median"] for name in ("add", "remove", "upload")}
    lines.append(
      f"{one['ads']:>11,} ads  {one['bytes_per_ad']:.1f} bytes an ad, built in "
      f"{one['build_seconds']:.1f} s, merged in {one['merge_seconds']:.1f} s; add "
      f"{ms['add']:.2f} ms, remove {ms['remove']:.2f} ms, to the device {ms['upload']:.2f} ms; add "
      f"to generable {1e3 * one['add_to_generable_seconds']:.0f} ms"
    )
  for batch in (1, 8):
    part = figures.get(f"decode_batch_{batch}")
    if part is None:
      continue
    lines.append(
      f"search, batch {batch}: unconstrained "
      f"{1e3 * part['seconds']['unconstrained']['median']:.1f} ms"
    )
    for ads, ratio in part["over_unconstrained"].items():
      lines.append(
        f"{int(ads):>11,} ads  {1e3 * part['seconds'][ads]['median']:.1f} ms, "
        f"{ratio['median']:.3f} of the unconstrained, {part['over_smallest'][ads]['median']:.3f} "
        "of the smallest index"
      )
  return "\n".join(lines)
