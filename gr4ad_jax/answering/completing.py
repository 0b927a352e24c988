"""A visit that has begun, completed from Python: see `ranking/completion` for how."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gr4ad_jax.answering.histories import default_now
from gr4ad_jax.answering.recommendation import Recommendation
from gr4ad_jax.catalogue.choice import Choice
from gr4ad_jax.data.schema import DataError, EventLog

if TYPE_CHECKING:
  from gr4ad_jax.answering.recommender import Recommender


def complete(
  recommender: "Recommender",
  events: EventLog,
  basket: Sequence[str],
  k: int,
  now: int | None,
  choice: Choice,
  one_by_one: bool,
) -> list[Recommendation]:
  """See `Recommender.complete`, whose work this is."""
  unknown = [ad for ad in basket if not recommender.has(ad)]
  if unknown:
    raise DataError(f"basket: ad_id {unknown[0]!r} is not in the ad table")
  if now is None:
    now = default_now([int(events.time.max(initial=0))], recommender.end)
  if not one_by_one:
    return recommender.completed(events, basket, k, now, choice)
  found: list[Recommendation] = []
  while len(found) < k:
    # What was found counts as taken: the next ad goes with all of them.
    taken = [*basket, *(ad.ad_id for ad in found)]
    more = recommender.completed(events, taken, 1, now, choice)
    # No ad is left that was asked for.
    if not more:
      break
    found += more
  return found
