"""Requests in, ranked ads out: batches, compiled beam search, expansion of UA-SIDs to ads."""

import dataclasses
from typing import Any, Protocol

import jax
import numpy as np

from gr4ad_jax.config import SearchConfig
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.decoding.beam import Beams, order_scores
from gr4ad_jax.decoding.exclusion import Excluded, Excluder
from gr4ad_jax.decoding.guide import Guide, Guides, Thinned
from gr4ad_jax.decoding.searcher import Searcher
from gr4ad_jax.decoding.trie import Trie
from gr4ad_jax.features.batches import RequestBatch
from gr4ad_jax.index.holdings import Holdings
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.index.left_out import LeftOut
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.parallel import row_tables
from gr4ad_jax.zoo.gr4ad_items import GR4ADItems


@dataclasses.dataclass(frozen=True)
class Ranking:
  """Ranked ads of R requests, best first.

  Attributes:
    ad_RK: int32 rows of the ad table, -1 where the beams ran out.
    logp_RK: float32 log-probability of the ad's UA-SID, normalised; -inf where there is no ad.
    value_RK: float32 predicted eCPM given the UA-SID, money, 0 where there is no ad.
    score_RK: float32 what the list is ordered by: that of `Beams`, or, with an item-level head, the
      same of log p + --item_weight times the head's score; -inf where there is no ad.
  """

  ad_RK: np.ndarray
  logp_RK: np.ndarray
  value_RK: np.ndarray
  score_RK: np.ndarray

  def __post_init__(self):
    """Raises DataError for an answer that is not finite: it is none, whoever asked for it."""
    for name in ("logp_RK", "value_RK", "score_RK"):
      column = np.asarray(getattr(self, name))
      # Padding may hold -inf; of ads it is damage.
      bad = np.argwhere((np.asarray(self.ad_RK) >= 0) & ~np.isfinite(column))
      if len(bad):
        what = name.removesuffix("_RK")
        number = column[tuple(bad[0])]
        raise DataError(
          f"the model's {what} of an ad is {number}: its parameters are damaged or beyond its "
          "precision"
        )

  def without(self, left_out: LeftOut, k: int) -> "Ranking":
    """The best k ads of each list, without those that the R requests do without.

    Returns:
      [R, k]; where a list has run out -1, and -inf of log p and score, 0 of value.
    """
    kept_RK = left_out.kept(self.ad_RK)
    # A stable sort on "left out" moves what is kept to the front, and keeps its order.
    first_RK = np.argsort(~kept_RK, axis=1, kind="stable")[:, :k]
    return self.at(np.where(np.take_along_axis(kept_RK, first_RK, axis=1), first_RK, -1))

  def at(self, place_RK: np.ndarray) -> "Ranking":
    """The ads at some places of each list, in this order.

    Args:
      place_RK: [R, k] places; -1: none.

    Returns:
      [R, k]; at a place -1 the ad is -1, log p and score are -inf, and the value is 0.
    """
    nothing = {"ad_RK": np.int32(-1), "value_RK": np.float32(0)}
    return Ranking(
      **{
        name: np.where(
          place_RK < 0,
          nothing.get(name, np.float32(-np.inf)),
          # -1 is no place to take from: place 0 is read instead, and `where` passes it over.
          np.take_along_axis(column, np.maximum(place_RK, 0), axis=1),
        )
        for name, column in vars(self).items()
      }
    )


def logp_of(ad_RC: np.ndarray, found_RK: np.ndarray, logp_RK: np.ndarray) -> np.ndarray:
  """log p of ads [R, C] by a search that found ads [R, K]; of an ad that it did not find, the
  lowest that it has.
  """
  # (R, C, 1) == (R, 1, K) -> (R, C, K): where each asked ad stands in the list that was found.
  same_RCK = ad_RC[:, :, None] == found_RK[:, None]
  lowest_R1 = np.where(found_RK >= 0, logp_RK, 0).min(axis=1, keepdims=True)
  # `argmax` of a row without a True is 0: `any` below tells that apart.
  logp_RC = np.take_along_axis(logp_RK, same_RCK.argmax(axis=2), axis=1)
  return np.where(same_RCK.any(axis=2) & (ad_RC >= 0), logp_RC, lowest_R1)


def distinct(ad_RC: np.ndarray) -> np.ndarray:
  """Each row's ads with -1 in place of those that stand further left already."""
  # Stable: of equal ads the one furthest left comes first, and is the one that stays.
  order = np.argsort(ad_RC, axis=1, kind="stable")
  ordered = np.take_along_axis(ad_RC, order, axis=1)
  again = np.zeros(ad_RC.shape, bool)
  np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
  return np.where(again, -1, ad_RC)


def beams_of(index: SidIndex, leaf_BW: np.ndarray, ad_BK: np.ndarray) -> np.ndarray:
  """The beam that each ad [B, K] hangs below, by the beams' leaves; any one for padding, -1."""
  leaf_BK = np.where(ad_BK >= 0, index.ad_leaf[ad_BK], -1)
  # From leaves back to beams: the beams' leaves are sorted, and the ads' are looked up in them.
  order = np.argsort(leaf_BW, axis=1, kind="stable")
  ranked = np.take_along_axis(leaf_BW, order, axis=1)
  at = np.stack([np.searchsorted(row, leaves) for row, leaves in zip(ranked, leaf_BK, strict=True)])
  # Padding ads have leaf -1: the cut keeps the gather in range.
  return np.take_along_axis(order, np.minimum(at, order.shape[1] - 1), axis=1)


def _joined(
  ad_RK: np.ndarray,
  logp_RK: np.ndarray,
  value_RK: np.ndarray,
  score_RK: np.ndarray,
  also_RC: np.ndarray,
) -> list[np.ndarray]:
  """Found ads with their numbers, [R, K], and behind them others, [R, C], each ad once, padding
  last: [R, K + C].
  """
  ad = distinct(np.concatenate([ad_RK, also_RC], axis=1))
  value = np.concatenate([value_RK, np.zeros(also_RC.shape, value_RK.dtype)], axis=1)
  last = np.argsort(ad < 0, axis=1, kind="stable")
  # One that was not found has the lowest log p, and the lowest score, of those that were.
  logp, score = (
    np.concatenate([x, logp_of(also_RC, ad_RK, x)], axis=1) for x in (logp_RK, score_RK)
  )
  logp, score = (np.where(ad >= 0, x, -np.inf) for x in (logp, score))
  columns = ad, logp, np.where(ad >= 0, value, 0.0), score
  return [np.take_along_axis(column, last, axis=1) for column in columns]


def _one_set(left_out: LeftOut | None) -> np.ndarray | None:
  """The set that all requests share; None where they have none."""
  # By identity: sets are masks of all ads, and requests that share one share the object.
  sets = {id(allowed_N): allowed_N for allowed_N in (left_out.only if left_out else ())}
  if len(sets) > 1:
    raise ValueError("a guided search has one set of allowed ads for all its requests")
  return next(iter(sets.values()), None)


class Contexts(Protocol):
  """What turns request numbers into batches, as `RequestContexts` does."""

  def batch(self, requests: np.ndarray) -> RequestBatch:
    """The batch of `requests` [B]."""


class Ranker:
  """A compiled search over one index. One shape of batch is compiled once.

  Args:
    model: the module.
    index: the ads that exist.
    ecpm: money of the eCPM bins.
    config: beam widths and final order.
  """

  def __init__(self, model: GR4AD, index: SidIndex, ecpm: EcpmBins, config: SearchConfig):
    self.index = index
    self._trie = Trie.of(index)
    self._beams = config.beams
    self._searcher = Searcher(model, ecpm, config)
    self._config = config
    self._item_weight = weight = config.item_weight if isinstance(model, GR4ADItems) else 0.0
    self._num_ads = getattr(model, "num_ads", 0)
    self._guided = bool(weight) and config.guided
    self._guides: Guides | None = None
    self._guided_set: np.ndarray | None = None  # the only ads that `_guides` counts
    self._holdings: Holdings | None = None  # made where a search first leaves something out
    self._excluder = Excluder()
    self._item_scores = jax.jit(
      lambda variables, *inputs: model.apply(variables, *inputs, method="item_scores")
    )

  def search(self, params: Any, batch: RequestBatch, k: int) -> Beams:
    """Ranked UA-SIDs of a batch, on the device; their number is that of the beams, whatever k."""
    del k
    return self._search(*self._weights(params, None), batch)

  def _weights(self, params: Any, left_out: LeftOut | None) -> tuple[dict, Guide | None]:
    """What a search takes of the parameters."""
    variables = self._searcher.variables(params)
    if not self._guided:
      return variables, None
    allowed_N = _one_set(left_out)
    # The means of a guide depend on which ads are allowed, so another set needs another guide.
    if self._guides is None or allowed_N is not self._guided_set:
      self._guides = Guides(self.index, self._num_ads, self._item_weight, allowed_N)
      self._guided_set = allowed_N
    # The table as it came, not `variables`' copy: while it is the same array, its guide is too.
    table_ND = params[row_tables.NAME]
    guide = self._guides.of(table_ND)
    return variables, guide.replace(table_ND=table_ND) if left_out else guide

  def _search(
    self, variables: dict, guide: Guide | None, batch: RequestBatch, left_out: LeftOut | None = None
  ) -> Beams:
    excluded, thin = self._without(left_out) if left_out else (None, None)
    return self._searcher.compiled_on_demand(
      variables, batch, self._trie, self._beams, guide, excluded, thin
    )

  def _without(self, left_out: LeftOut) -> tuple[Excluded, Thinned | None]:
    """What the search of a batch must not enter, and what that makes of the guide."""
    if self._holdings is None:
      self._holdings = Holdings.of(self.index)
    excluded = self._excluder.of(self._holdings, left_out)
    if not self._guided:
      return excluded, None
    allowed_N = _one_set(left_out)
    among = self._holdings if allowed_N is None else self._holdings.only(allowed_N)
    return excluded, Thinned.of(among, left_out, self._num_ads)

  def rank(
    self,
    params: Any,
    contexts: Contexts,
    requests: np.ndarray,
    k: int,
    batch_size: int = 64,
    also_RC: np.ndarray | None = None,
    left_out: LeftOut | None = None,
  ) -> Ranking:
    """The best k ads of each request.

    Args:
      params: the model's parameters.
      contexts: turns request numbers into batches.
      requests: [R] request numbers; the last batch is filled up with copies, so that one shape is
        compiled.
      k: ads a request.
      batch_size: requests a batch.
      also_RC: ads of each request that are ranked beside those that the beams find, -1 is padding;
        the lists have k + C places then. An ad that was not found has the lowest log p of those
        that were, and a value of 0.
      left_out: ads that the R requests do without. The search is that of an index without them.

    Raises:
      ValueError: requests of a guided search with more than one set of allowed ads.
    """
    # An empty `LeftOut` is falsy, and takes the same program as none.
    left_out = left_out or None
    found = []
    (variables, guide) = self._weights(params, left_out)
    places = k if also_RC is None else k + also_RC.shape[1]
    for begin in range(0, max(len(requests), 1), batch_size):
      some = requests[begin : begin + batch_size]
      # The last batch repeats its requests: one shape, one program. What they find is cut off
      # below.
      full = np.resize(some if len(some) else [0], batch_size)
      batch = contexts.batch(full)
      # Rows of the R requests; a batch without any, or its filling, takes the first ones.
      row_B = np.resize(np.arange(begin, begin + max(len(some), 1)), batch_size)
      without = left_out.take(row_B) if left_out and len(some) else None
      beams = jax.device_get(self._search(variables, guide, batch, without))
      # The item-level head reorders ads, so more of them must come out of the search than are asked
      # for.
      deep = max(k, self._beams[-1]) if self._item_weight else k
      columns = self._expand(beams, deep, without)
      if also_RC is not None and len(some):
        also = also_RC[row_B]
        if without:
          also = np.where(without.kept(also), also, -1)
        columns = _joined(*columns, also)
      columns = self._reordered(variables, batch, *columns[:3]) if self._item_weight else columns
      found.append([column[: len(some), :places] for column in columns])
    return Ranking(*(np.concatenate(column) for column in zip(*found, strict=True)))

  def _reordered(
    self, variables: dict, batch: RequestBatch, ad_RK, logp_RK, value_RK
  ) -> list[np.ndarray]:
    """Ads, log p, values and scores in the order of the scores, padding last.

    What is likely is log p + item_weight * that of the item-level head; it takes the place of log p
    in what --order sorts by. Ads that are worth the same are in the order of it.
    """
    item_RK = jax.device_get(self._item_scores(variables, batch, ad_RK))
    likely_RK = np.where(ad_RK >= 0, logp_RK + self._item_weight * item_RK, -np.inf)
    # Ads behind the same UA-SID differ in their item-level part, so they are sorted again.
    by_likely_RK = np.argsort(-likely_RK, axis=1, kind="stable")
    columns = (ad_RK, logp_RK, value_RK, likely_RK)
    *columns, likely_RK = (np.take_along_axis(column, by_likely_RK, axis=1) for column in columns)
    score_RK = np.asarray(order_scores(likely_RK, columns[2], self._config))
    order_RK = np.argsort(-score_RK, axis=1, kind="stable")
    return [np.take_along_axis(column, order_RK, axis=1) for column in (*columns, score_RK)]

  def _expand(
    self, beams: Beams, k: int, without: LeftOut | None
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ads, log p, values and scores of the beams' ads."""
    ad_RK = self.index.expand(beams.leaf_BW, k, without)
    # Padding has any beam, and its numbers are masked below.
    beam_RK = beams_of(self.index, beams.leaf_BW, ad_RK)
    found = (beams.logp_BW, beams.value_BW, beams.score_BW)
    logp_RK, value_RK, score_RK = (np.take_along_axis(x, beam_RK, axis=1) for x in found)
    logp_RK, score_RK = (np.where(ad_RK >= 0, x, -np.inf) for x in (logp_RK, score_RK))
    return ad_RK, logp_RK, np.where(ad_RK >= 0, value_RK, 0.0), score_RK
