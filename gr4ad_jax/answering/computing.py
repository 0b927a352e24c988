"""Computes a batch of queries: histories, contexts, search, ads. Used by one thread at a time."""

import bisect
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gr4ad_jax.answering import answers, explore, histories
from gr4ad_jax.answering.contexts import padded
from gr4ad_jax.answering.messages import Answer, Query, UnknownUser
from gr4ad_jax.answering.terms import Entry, Ledger, Receipt
from gr4ad_jax.catalogue import choice
from gr4ad_jax.catalogue.catalog import AdCatalog
from gr4ad_jax.config import Config
from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import DataError, EventLog
from gr4ad_jax.decoding import exclusion
from gr4ad_jax.decoding.searcher import Searcher, TrieFeed
from gr4ad_jax.decoding.trie import Trie
from gr4ad_jax.features.batches import RequestBatch
from gr4ad_jax.features.contexts import joined
from gr4ad_jax.features.state import State
from gr4ad_jax.index.holdings import Holdings
from gr4ad_jax.index.left_out import LeftOut
from gr4ad_jax.people import follower
from gr4ad_jax.reasons.reasoner import Reasoner

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Loaded:
  """Parameters in use: the step of their checkpoint, and what the searcher takes."""

  step: int
  variables: Any


@dataclasses.dataclass(frozen=True)
class Searches:
  """Searches that are compiled, and may be used.

  Attributes:
    schedules: beam widths a level, narrowest first.
    buckets: batch sizes, ascending.
  """

  schedules: tuple[tuple[int, ...], ...]
  buckets: tuple[int, ...]

  def up_to(self, base: Sequence[int]) -> int:
    """Number of the widest schedule up to the beam widths `base`; the narrowest where all are
    wider.
    """
    return max(bisect.bisect_right(self.schedules, tuple(base)) - 1, 0)

  def pairs(self) -> list[tuple[int, tuple[int, ...]]]:
    """(batch size, schedule) of every search."""
    return [(bucket, schedule) for bucket in self.buckets for schedule in self.schedules]

  def first(self, base: Sequence[int]) -> "Searches":
    """The one search that can answer anything: the widest schedule up to `base`, for batches of
    any size.
    """
    return Searches((self.schedules[self.up_to(base)],), (self.buckets[-1],))


@dataclasses.dataclass(frozen=True)
class Computed:
  """An answer, the rows of the ads that it names, and what it was counted for."""

  answer: Answer
  rows: tuple[int, ...]


class Computer:
  """All that a batch needs but the parameters.

  Args:
    config: of the run and the server.
    catalog: the ads.
    state: what is known of users and ads.
    searcher: compiled searches.
    searches: all that will be used; `prepare` compiles them.
    behaviors: of the log, shallowest first.
    ledger: who has had enough.
    reasoner: tells why ads are in an answer; None: the model gives no reasons.
  """

  def __init__(
    self, config: Config, catalog: AdCatalog, state: State, searcher: Searcher, searches: Searches,
    behaviors: Sequence[str], ledger: Ledger, reasoner: Reasoner | None = None,
  ):  # fmt: skip
    self.ledger = ledger
    self._rng = np.random.default_rng()  # of --explore's draws
    self.reasoner = reasoner
    self.searches = searches
    self._config = config
    self._catalog = catalog
    self._state = state
    self.behaviors = tuple(behaviors)
    self._searcher = searcher
    self._feed = TrieFeed(catalog.index)
    # The last view that was searched, and the last for which all searches are compiled: a trie, and
    # what hangs where in it. They differ where the index outgrew its arrays before all searches
    # were there.
    self._view: tuple[Trie, Holdings] | None = None
    self._whole: tuple[Trie, Holdings] | None = None
    self._excluder = exclusion.Excluder(exclusion.ROOM)
    self._compiling: threading.Thread | None = None

  def prepare(
    self, variables: Any, searches: Searches | None = None,
    told: Callable[[int, int, float], None] = lambda *_: None,
  ) -> None:  # fmt: skip
    """Compiles searches, for the present shape of the trie: again where it outgrew its arrays
    meanwhile.

    Args:
      variables: of the model.
      searches: those to compile; None: all.
      told: as in `Searcher.prepare`.
    """
    searches = searches or self.searches
    if self._view is None:
      self._view = self._feed.latest()
    while not self._is_prepared(searches, self._view):
      self._compile(variables, self._view[0], told, searches)
    if searches == self.searches:
      self._whole = self._view
    overlay = self._view[0].overlay_TQP
    # A merged index that has outgrown its arrays is compiled for before it is used; changes go on
    # meanwhile.
    self._catalog.before_merge = lambda main: self._compile(
      variables, Trie.of(main).replace(overlay_TQP=overlay)
    )

  def moment(self) -> int:
    """The moment of a request that names none, unix seconds; see `follower.moment`."""
    return follower.moment(self._state, time.time())

  def log_of(self, query: Query) -> tuple[EventLog, int]:
    """A query's history as a log of one user, and the moment of the request.

    Of a user by name the history is what had happened by that moment.

    Raises:
      UnknownUser: there is no such user.
      DataError: an event that is not allowed; the message names it.
    """
    if query.user is not None:
      log = self._state.find(query.user)
      if log is None:
        raise UnknownUser(query.user)
      latest = int(log.time.max(initial=0))
      now = histories.default_now([latest], self.moment()) if query.now is None else query.now
      # A moment before a user's events would be a question about the past of another.
      histories.check_now(now)
      return visits.until(log, np.array([now])), now  # what came later was not known
    events = query.history or ()
    now = query.now
    if now is None:
      times = (event.get("time") for event in events if isinstance(event, Mapping))
      now = histories.default_now(times, self.moment())
    gap = 60 * self._config.data.session_gap_minutes
    return histories.events_of(events, self._catalog.row, self.behaviors, now, gap), now

  def reasons(self, query: Query, answer: Answer, most: int, variables: Any) -> list[dict]:
    """Why the first `most` ads are in an answer, see `Reasoner.reasons`; from any thread. Raises as
    `log_of`: the user may be gone since.
    """
    # Of the answer's moment, also where it was kept: what came later did not bring these ads.
    log, now = self.log_of(dataclasses.replace(query, now=answer.now))
    batch = self._state.contexts(log, np.array([now]))
    ads = answer.ads[:most]
    rows = [self._catalog.row(ad["ad_id"]) for ad in ads]
    codes_MT = np.array([ad["codes"] for ad in ads], np.int32)
    return self.reasoner.reasons(variables, batch, log, now, rows, codes_MT)

  def left_out(self, query: Query, log: EventLog, now: int) -> LeftOut:
    """What a query does without, as that of one request.

    Args:
      query: what is asked.
      log: the user's history.
      now: unix seconds of the request.

    Raises:
      DataError: an ad, account or category that there is none of.
    """
    rows = choice.rows_left_out(query, log, now, self._config.search, self._catalog.row)
    # Only where something is limited does an answer have to be counted.
    blocked = frozenset()
    if self.ledger.counts:
      rows = np.append(rows, self.ledger.capped(query.user))
      blocked = self.ledger.blocked()
    return LeftOut.lists([rows], [self._catalog.sets.allowed(query, blocked)])

  def compute(
    self, queries: Sequence[Query], loaded: Loaded, searches: Searches, schedule: int,
    shown: bool = True,
  ) -> list[Computed | Exception]:  # fmt: skip
    """The answer of each query, or what is wrong with it.

    Args:
      queries: at most as many as the largest bucket.
      loaded: the parameters.
      searches: those that are compiled.
      schedule: number of the beam schedule among theirs.
      shown: whether somebody will see the answers: only then they count in the ledger.
    """
    results: list[Any] = [self._checked(query) for query in queries]
    good = [number for number, result in enumerate(results) if not isinstance(result, Exception)]
    if good:
      # Queries that are wrong are out of the batch, and their errors stay in their places.
      logs, now_B, parts = zip(*(results[number] for number in good), strict=True)
      now_B = np.array(now_B, np.int64)
      left_out = LeftOut.joined(parts)
      beams = self._search(list(logs), now_B, left_out, loaded.variables, searches, schedule)
      asked = [queries[number] for number in good]
      widths = searches.schedules[schedule]
      found = self._answers(asked, logs, now_B, left_out, beams, loaded.step, widths, shown)
      for number, answer in zip(good, found, strict=True):
        results[number] = answer
    return results

  def _checked(self, query: Query) -> tuple[EventLog, int, LeftOut] | Exception:
    try:
      log, now = self.log_of(query)
      return log, now, self.left_out(query, log, now)
    except (DataError, UnknownUser) as error:
      return error

  def _search(
    self, logs: list[EventLog], now_B: np.ndarray, left_out: LeftOut, variables: Any,
    searches: Searches, schedule: int,
  ):  # fmt: skip
    batch = padded(self._state.contexts(joined(logs), now_B), searches.buckets)
    # Both of one view: what hangs where must fit the trie that is searched.
    trie, holdings = self._usable_view(variables, searches)
    # Filled-up rows do without what the last request does without.
    rows = np.minimum(np.arange(len(batch.slot_kind_BS)), len(logs) - 1)  # filled up as the batch
    excluded = self._excluder.of(holdings, left_out.take(rows))
    widths = searches.schedules[schedule]
    beams = jax.device_get(self._searcher.search(variables, batch, trie, widths, excluded))
    beams = jax.tree.map(lambda x: x[: len(logs)], beams)
    answers.check_finite(beams)
    return beams

  def _answers(
    self, queries: Sequence[Query], logs: Sequence[EventLog], now_B: np.ndarray,
    left_out: LeftOut, beams: Any, step: int, widths: tuple[int, ...], shown: bool,
  ) -> list[Computed]:  # fmt: skip
    serving = self._config.serving
    most = max(query.k for query in queries)
    # More ads than asked for, since some of them may not be shown any more.
    if self.ledger.counts or serving.explore:
      # Of one batch the earlier answers may use up what the later ones would begin with.
      most = max(most + explore.NEXT, widths[-1])
    found_BW = beams.leaf_BW >= 0
    index = self._catalog.index
    # From beams to ads on the host: a UA-SID may have several ads, and the newest index decides.
    row_BK, beam_BK = index.expand(beams.codes_BWT, found_BW, most, left_out)
    found = []
    # One answer after the other: each is counted before the next is chosen.
    for at, (query, log) in enumerate(zip(queries, logs, strict=True)):
      ranked = answers.ranked_rows(beams, at, row_BK[at], beam_BK[at])
      bonus = answers.optimism(beams, at, row_BK[at], beam_BK[at], serving.explore_spread)
      ranked, chances, receipt, trial = self._chosen(query, ranked, bonus, shown)
      seen = set(log.ad.tolist())
      ads = [answers.ad_entry(self._catalog, seen, *entry) for entry in ranked]
      for ad, chance in zip(ads, chances, strict=False):
        ad["propensity"] = chance
      tree = answers.beam_tree(beams, at) if query.explain else None
      answer = Answer("model", step, widths, tuple(ads), tree, receipt, int(now_B[at]), trial=trial)
      found.append(Computed(answer, tuple(entry[0] for entry in ranked)))
    return found

  def _chosen(
    self, query: Query, ranked: list[Entry], bonus: Mapping[int, float], shown: bool
  ) -> tuple[list[Entry], list[float], Receipt | None, Mapping[str, Any] | None]:
    """The k ads of an answer; with --explore their propensities, and what is noted of the draw; and
    what was counted.
    """
    chances: list[float] = []
    trial: Mapping[str, Any] | None = None

    name = lambda row: self._catalog.ad(row).ad_id  # noqa: E731

    def choose(entries: list[Entry]) -> list[Entry]:
      nonlocal trial
      if not self._config.serving.explore:
        return entries[: query.k]
      # Into the same list: `choose` is called inside the ledger, which returns the ads alone.
      chosen, chances[:] = explore.drawn(entries, query.k, self._rng, bonus)
      trial = explore.trial(entries, query.k, chosen, name, bonus)
      return chosen

    if not (shown and self.ledger.counts):
      return choose(ranked), chances, None, trial
    chosen, receipt = self.ledger.take(query.user, ranked, choose)
    return chosen, chances, receipt, trial

  def _usable_view(self, variables: Any, searches: Searches) -> tuple[Trie, Holdings]:
    """The newest trie and what hangs where in it, or, while searches for a new shape of it are
    compiled, the last one that has them.

    Ads that came in the meantime wait; those that went are left out all the same, as beams become
    ads by the index.
    """
    newest = self._feed.latest()
    # The best case, and the usual one: the newest view is searched.
    if self._is_prepared(self.searches, newest):
      self._view = self._whole = newest
    elif self._is_prepared(searches, newest):
      self._view = newest  # while the other searches are compiled behind the first one
    elif self._compiling is None or not self._compiling.is_alive():
      _log.warning("the index has outgrown its arrays: compiling in the background")
      self._compiling = threading.Thread(
        target=self._compile, args=(variables, newest[0]), name="compiler", daemon=True
      )
      self._compiling.start()
    return self._view if self._is_prepared(searches, self._view) else self._whole

  def _is_prepared(self, searches: Searches, view: tuple[Trie, Holdings]) -> bool:
    return all(self._searcher.is_prepared(*pair, view[0]) for pair in searches.pairs())

  def _compile(
    self,
    variables: Any,
    trie: Trie,
    told: Callable = lambda *_: None,
    searches: Searches | None = None,
  ) -> None:
    searches = searches or self.searches
    row = self.nobody()
    self._searcher.prepare(variables, row, searches.buckets, searches.schedules, trie, told)

  def nobody(self) -> RequestBatch:
    """A context without events: of the shapes that all have, and quickly made."""
    return self._state.contexts(visits.no_events(), np.array([self._state.end]))
