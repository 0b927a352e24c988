"""What is asked of the engine, and what it answers: plain data, free of HTTP."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from gr4ad_jax.answering.terms import Receipt
from gr4ad_jax.catalogue.choice import Choice


class UnknownUser(LookupError):
  """A user id of whom nothing is known."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Query(Choice):
  """A request for ads, for a user of the log or for a history; exactly one of the two is given.

  Attributes:
    user: user id of the event log.
    history: ad ids, or mappings with `ad_id` and, as known, `time` (unix seconds), `behavior`,
      `value` (money), `quantity`, `request_id`.
    k: ads wanted.
    now: unix seconds of the request; None: the moment that the server's events have come to, or
      the end of this history.
    deadline_ms: when the answer is of no use any more; None: as configured.
    cache: whether an answer of the last minute will do.
    fallback: when a list of popular ads will do. None: where the deadline passes; True: in overload
      too; False: never.
    explain: whether to tell the prefixes that led to the answer, and why its first ads are there.

  Those of `Choice` say which ads it wants.
  """

  user: str | None = None
  history: tuple[str | Mapping[str, Any], ...] | None = None
  k: int = 10
  now: int | None = None
  deadline_ms: float | None = None
  cache: bool = True
  fallback: bool | None = None
  explain: bool = False


@dataclasses.dataclass(frozen=True)
class Answer:
  """Ranked ads.

  Attributes:
    source: 'model', 'cache' (the model's answer to the same request, a short while ago) or
      'fallback'.
    checkpoint: step of the parameters.
    beams: widths of the search; empty for a fallback.
    ads: best first: ad_id, text, account_id, log_p (natural log of the probability of the ad's
      UA-SID), score (what the list is ordered by), ecpm (money), codes, seen (whether the user's
      history has it); with --explore propensity, the chance of the ad to stand in its place; with
      `explain` the first ones have reasons (`Reasoner.reasons`).
    tree: with `explain`: for each level, its prefixes among the final beams: codes, log_p, beams
      (final beams below it) and, at the last level, score and ecpm. Else None.
    receipt: what the ledger counted for it; None: nothing.
    now: the moment of the request, unix seconds.
    request: an id of its own, under which the stream has it as an impression; "": it has none.
    trial: with --explore, what is noted of the draw (`explore.trial`). Else None.
  """

  source: str
  checkpoint: int
  beams: tuple[int, ...]
  ads: tuple[Mapping[str, Any], ...]
  tree: tuple[tuple[Mapping[str, Any], ...], ...] | None = None
  receipt: Receipt | None = None
  now: int = 0
  request: str = ""
  trial: Mapping[str, Any] | None = None
