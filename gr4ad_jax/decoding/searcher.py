"""Compiled searches: one program for each batch size, beam schedule and shape of the trie.

Parameters and trie are arguments of the programs: a new checkpoint or a changed index needs no
compilation. With the persistent compilation cache a second start only reads them.
"""

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from gr4ad_jax.config import SearchConfig
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.decoding.beam import Beams, beam_search
from gr4ad_jax.decoding.exclusion import Excluded
from gr4ad_jax.decoding.guide import Guide, Thinned
from gr4ad_jax.decoding.trie import Trie
from gr4ad_jax.features.batches import RequestBatch
from gr4ad_jax.index.holdings import Holdings
from gr4ad_jax.index.live_index import LiveIndex
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.models.quantized import quantize

Schedule = tuple[int, ...]


def scaled(beams: Schedule, factors: Iterable[float]) -> tuple[Schedule, ...]:
  """Beam schedules at factors of a base one, narrowest first, without repeats; no width falls
  below 1.
  """
  # A set: factors that round to the same widths are compiled once.
  return tuple(
    sorted({tuple(max(1, round(width * factor)) for width in beams) for factor in factors})
  )


def _shapes(tree: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), tree)


@functools.lru_cache(maxsize=32)
def _search_of(model: GR4AD, search: SearchConfig) -> Callable[..., Beams]:
  """The search of a model as one compiled function: equal models with equal settings share it.

  So the arms of a server that differ by their parameters, and a second recommender in a process,
  trace and compile nothing. Those asked for last are kept.
  """

  def run(variables, batch, trie, means, excluded, widths, guide=None, thin=None):
    return beam_search(
      model, variables, batch, trie, means,
      widths=widths, search=search, guide=guide, excluded=excluded, thin=thin,
    )  # fmt: skip

  # Widths shape the program, so another schedule is another program.
  return jax.jit(run, static_argnames="widths")


class TrieFeed:
  """The newest trie of a live index on the device; the main part goes there once a merge."""

  def __init__(self, index: LiveIndex):
    self._index = index
    self._main = None
    self._versions = (-1, -1)
    self._latest: tuple[Trie, Holdings] | None = None

  def latest(self) -> tuple[Trie, Holdings]:
    """What exists now, and which rows hang where in it.

    Cheap where nothing has changed; not to be called from two threads at once.
    """
    # Versions are cheap to read, so most calls end at this comparison.
    main, overlay = self._index.view()
    if (main.version, overlay.version) != self._versions:
      # Taken in one piece: main part, overlay and holdings must be of the same moment.
      main, overlay, holdings = self._index.snapshot()
      # The main part is large and changes only when the overlay has been merged into it.
      if main.version != self._versions[0]:
        self._main = Trie.of(main)
      self._latest = self._main.with_overlay(overlay), holdings
      self._versions = (main.version, overlay.version)
    return self._latest

  def trie(self) -> Trie:
    """What exists now; see `latest`."""
    return self.latest()[0]


class Searcher:
  """Beam searches of one model, compiled ahead of time.

  Args:
    model: the module.
    ecpm: money of the eCPM bins.
    search: order, eCPM, pre-cut and precision; its `beams` are not read, each search names its
      schedule.
    room: entries of the lists of nodes that `search` must not enter (`Excluder`); 0: it leaves
      nothing out.
  """

  def __init__(self, model: GR4AD, ecpm: EcpmBins, search: SearchConfig, room: int = 0):
    self._room = room
    self._means = np.asarray(ecpm.means, np.float32)
    self._quantize = search.quantize
    self._programs: dict[tuple, Any] = {}
    self._run = _search_of(model, search)

  def variables(self, params: Any) -> dict:
    """What `search` takes: the parameters on the device, in the precision of `--quantize`."""
    return jax.device_put(quantize(params, self._quantize))

  def prepare(
    self,
    variables: dict,
    row: RequestBatch,
    buckets: Sequence[int],
    schedules: Sequence[Schedule],
    trie: Trie,
    told: Callable[[int, int, float], None] = lambda *_: None,
  ) -> None:
    """Compiles what is missing for every pair of bucket and schedule, and this shape of the trie.

    Args:
      variables: of `self.variables`.
      row: a batch of one request, which gives the shapes.
      buckets: batch sizes.
      schedules: beam widths a level.
      trie: gives the shapes.
      told: hears of progress: programs ready, programs in all, seconds so far.
    """
    wanted = [(rows, schedule) for rows in buckets for schedule in schedules]
    begin = time.monotonic()
    for done, (rows, schedule) in enumerate(wanted, 1):
      key = self._key(rows, schedule, trie)
      if key not in self._programs:
        # The bound default takes `rows` now; a closure would read it after the loop.
        shape = jax.tree.map(
          lambda x, rows=rows: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), row
        )
        lowered = self._run.lower(
          _shapes(variables), shape, _shapes(trie), _shapes(self._means),
          Excluded.shapes(trie, rows, self._room) if self._room else None, widths=schedule,
        )  # fmt: skip
        # Lowered and compiled from shapes: no batch has to exist yet.
        self._programs[key] = lowered.compile()
      told(done, len(wanted), time.monotonic() - begin)

  def is_prepared(self, rows: int, schedule: Schedule, trie: Trie) -> bool:
    """Whether `search` has a program for this batch size, schedule and shape of the trie."""
    return self._key(rows, schedule, trie) in self._programs

  def search(
    self, variables: dict, batch: RequestBatch, trie: Trie, schedule: Schedule,
    excluded: Excluded | None = None,
  ) -> Beams:  # fmt: skip
    """Ranked UA-SIDs of a batch, on the device. Raises KeyError for a shape that `prepare` has
    not seen.

    `excluded`, by an `Excluder` of the same room, is what requests do without; needed where there
    is room, and nowhere else.
    """
    key = self._key(len(batch.slot_kind_BS), schedule, trie)
    return self._programs[key](variables, batch, trie, self._means, excluded)

  def compiled_on_demand(
    self,
    variables: dict,
    batch: RequestBatch,
    trie: Trie,
    schedule: Schedule,
    guide: Guide | None = None,
    excluded: Excluded | None = None,
    thin: Thinned | None = None,
  ) -> Beams:
    """As `search`, but guided, and a new shape is compiled when it first comes: for evaluation,
    not for a server.
    """
    return self._run(
      variables, batch, trie, self._means, excluded, widths=schedule, guide=guide, thin=thin
    )

  def _key(self, rows: int, schedule: Schedule, trie: Trie) -> tuple:
    # All that shapes the arrays is in the key, and nothing else: their values may change freely.
    overlay = 0 if trie.overlay_TQP is None else trie.overlay_TQP.shape[-1]
    return (
      rows,
      tuple(schedule),
      trie.fanout,
      tuple(len(x) for x in (*trie.child_start, *trie.node_code)),
      overlay,
    )
