"""Reasons for the ads of a list, as plain data: what each slot carried, and a sentence."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.data.schema import AdTable, EventLog
from gr4ad_jax.features.batches import HISTORY, NEIGHBOR, RISING, RequestBatch
from gr4ad_jax.features.neighbors import CoVisitNeighbors
from gr4ad_jax.knobs import ConfigError
from gr4ad_jax.reasons.carried import Carried, Scorer
from gr4ad_jax.reasons.words import Known, sentence

KINDS = {HISTORY: "history", NEIGHBOR: "neighbor", RISING: "rising"}
AT_ONCE = 3  # ads of one forward: what an answer explains by default, in one compiled shape
_SLOTS = 5  # slots that are told of an ad, those that carry most
_NEAR = 2  # ads of the history that a sentence names as taken together with the ad


def told_slots(slot_S: np.ndarray) -> list[int]:
  """The slots that are told of an ad, by what each carries, those that carry most first."""
  # Slots that speak against the ad are no reason for it.
  return [int(s) for s in np.argsort(-slot_S, kind="stable")[:_SLOTS] if slot_S[s] > 0]


class Reasoner:
  """Explains the ads of one request.

  Args:
    model: the module.
    ecpm: money of the eCPM bins.
    neighbors: co-visit neighbours; ads that they lack have none.
    behaviors: of the log, shallowest first.
    about: row of an ad -> its id and text.

  Raises:
    TypeError: a model that gives no reasons, see `Scorer`.
  """

  def __init__(
    self,
    model: Any,
    ecpm: EcpmBins,
    neighbors: CoVisitNeighbors,
    behaviors: Sequence[str],
    about: Callable[[int], tuple[str, str]],
  ):
    self._scorer = Scorer(model, ecpm)
    self._ecpm = ecpm
    self._neighbors = neighbors
    self._behaviors = tuple(behaviors)
    self._about = about

  @classmethod
  def of_ads(
    cls,
    name: str,
    model: Any,
    ecpm: EcpmBins,
    neighbors: CoVisitNeighbors,
    behaviors: Sequence[str],
    ads: AdTable,
  ) -> "Reasoner":
    """As the constructor, of a table of ads. Raises ConfigError for a model without reasons, by
    its name of --model.
    """
    try:
      return cls(
        model, ecpm, neighbors, behaviors, lambda row: (str(ads.ad_id[row]), str(ads.text[row]))
      )
    except TypeError as error:
      raise ConfigError(f"--model={name} is not allowed here: {error}") from error

  def use_neighbors(self, neighbors: CoVisitNeighbors) -> None:
    """Takes other neighbours, from the next request on."""
    self._neighbors = neighbors

  def prepare(self, variables: Any, batch: RequestBatch) -> None:
    """Compiles the program that `reasons` runs, for contexts of the shapes of `batch`, one row."""
    levels = batch.slot_codes_BST.shape[2]
    self._scorer.carried(variables, batch, np.zeros((AT_ONCE, levels), np.int32))

  def reasons(
    self,
    variables: Any,
    batch: RequestBatch,
    log: EventLog,
    now: int,
    row_M: Sequence[int],
    codes_MT: np.ndarray,
  ) -> list[dict[str, Any]]:
    """Reasons for M ads of one request, in their order.

    Args:
      variables: of the model, as `Searcher.variables` gives them.
      batch: the request's context, a batch of one.
      log: the user's history.
      now: unix seconds of the request.
      row_M: rows of the ads.
      codes_MT: their UA-SIDs.

    Returns:
      For each ad `sentence`; `slots`, those that carry most: ad_id, text, kind, log_p (what log p
      loses without it) and ecpm (what the value loses, money); `copied`, 0 to 1; `codes`: code,
      log_p (given those before it) and lift (what the slots together carry of it);
      `log_p_without_context`; and `value`: chance, expected (money), and low and high, between
      which eight of ten values lie.
    """
    found = []
    for begin in range(0, len(row_M), AT_ONCE):
      some = codes_MT[begin : begin + AT_ONCE]
      # Filled up with the last one, so that one shape is compiled.
      full = some[np.minimum(np.arange(AT_ONCE), len(some) - 1)]
      carried = self._scorer.carried(variables, batch, full)
      for m in range(len(some)):
        found.append(self._reason(carried, m, batch, log, now, int(row_M[begin + m]), some[m]))
    return found

  def _reason(
    self,
    carried: Carried,
    m: int,
    batch: RequestBatch,
    log: EventLog,
    now: int,
    row: int,
    codes_T: np.ndarray,
  ) -> dict[str, Any]:
    # An estimate chose the slots that the model was asked about, and is no figure to be told.
    slot_S = np.where(carried.asked_S, carried.slot_logp_MS[m], -np.inf)
    best = told_slots(slot_S)
    return {
      "sentence": sentence(self._known(carried, m, best, batch, log, now, row)),
      "slots": [self._slot(carried, m, s, batch) for s in best],
      "copied": round(float(carried.copied_M[m]), 6),
      "codes": [
        {"code": int(code), "log_p": round(float(logp), 6), "lift": round(float(lift), 6)}
        for code, logp, lift in zip(
          codes_T, carried.level_logp_MT[m], carried.level_lift_MT[m], strict=True
        )
      ],
      "log_p_without_context": round(float(carried.bare_logp_M[m]), 6),
      "value": self._value(carried, m),
    }

  def _slot(self, carried: Carried, m: int, s: int, batch: RequestBatch) -> dict[str, Any]:
    ad_id, text = self._about(int(batch.slot_ad_BS[0, s]))
    return {
      "ad_id": ad_id,
      "text": text,
      "kind": KINDS[int(batch.slot_kind_BS[0, s])],
      "log_p": round(float(carried.slot_logp_MS[m, s]), 6),
      "ecpm": round(float(carried.slot_value_MS[m, s]), 6),
    }

  def _value(self, carried: Carried, m: int) -> dict[str, float]:
    """The parts of the eCPM: how likely the ad is, and what it brings if it is taken."""
    bins_V = carried.bins_MV[m]
    # Shares of the value's distribution at 10 and 90 percent.
    below_V = np.cumsum(bins_V)
    # The means ascend with the bins. The last ones are 0 where ties left no bin, and have learned
    # a probability of about 0.
    last = len(bins_V) - 1
    low, high = (
      float(self._ecpm.means[min(int(np.searchsorted(below_V, share)), last)])
      for share in (0.1, 0.9)
    )
    return {
      "chance": round(float(np.exp(carried.logp_M[m])), 9),
      "expected": round(float(carried.value_M[m]), 6),
      "low": round(low, 6),
      "high": round(high, 6),
    }

  def _known(
    self,
    carried: Carried,
    m: int,
    best: Sequence[int],
    batch: RequestBatch,
    log: EventLog,
    now: int,
    row: int,
  ) -> Known:
    own = np.flatnonzero(log.ad == row)
    depth = int(log.behavior[own].max()) if len(own) else 0
    # What was done with the ad at its deepest, such as bought rather than seen.
    deepest = own[log.behavior[own] == depth]
    slot_ad_S = batch.slot_ad_BS[0]
    strongest = best[0] if best else None
    return Known(
      times=len(np.unique(log.request[deepest])),
      behavior=self._behaviors[depth] if len(own) else "",
      ago=float(now - log.time[deepest].max()) if len(own) else None,
      near=tuple(self._name(ad) for ad in self._taken_with(row, log)),
      rises=bool(((slot_ad_S == row) & (batch.slot_kind_BS[0] == RISING)).any()),
      copied=float(carried.copied_M[m]),
      strongest="" if strongest is None else self._name(int(slot_ad_S[strongest])),
      is_itself=strongest is not None and int(slot_ad_S[strongest]) == row,
      carried=0.0 if strongest is None else float(carried.slot_logp_MS[m, strongest]),
    )

  def _taken_with(self, row: int, log: EventLog) -> list[int]:
    """Ads of the history that are near the ad, nearest first. Either may name the other."""
    neighbors = self._neighbors  # read once: others may come
    ids_NK = neighbors.ids
    past = np.unique(log.ad)
    # Ads that came after the fit have no row there.
    past = past[(past != row) & (past < len(ids_NK))]
    cosine = {}
    if row < len(ids_NK):
      its = dict(zip(ids_NK[row].tolist(), neighbors.cosine[row].tolist(), strict=True))
      cosine |= {ad: its[ad] for ad in past.tolist() if ad in its}
    # The ad among the neighbours of a past one.
    past_at, place = np.nonzero(ids_NK[past] == row)
    cosine |= {
      int(past[at]): float(neighbors.cosine[past[at], k])
      for at, k in zip(past_at, place, strict=True)
    }
    return sorted((ad for ad in cosine if cosine[ad] > 0), key=lambda ad: (-cosine[ad], ad))[:_NEAR]

  def _name(self, row: int) -> str:
    ad_id, text = self._about(row)
    return f"“{text or ad_id}”"
