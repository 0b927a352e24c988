"""One ad of a list, as Python users get it."""

import dataclasses
from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from gr4ad_jax.data.schema import AdTable


@dataclasses.dataclass(frozen=True)
class Recommendation:
  """One ad of a ranked list.

  Attributes:
    ad_id: as in the ad table.
    text: its text.
    account_id: the advertiser.
    log_p: natural log of the probability of its UA-SID, history bias included; of the ad, by a
      model of single ads.
    score: what the list is ordered by; by likelihood, `log_p` up to a constant of the request.
    ecpm: predicted value, money.
    codes: its UA-SID.
    seen: whether the user's history has it.
    reasons: why it is in the list, as `Reasoner.reasons` tells it; None where nobody asked.
  """

  ad_id: str
  text: str
  account_id: str
  log_p: float
  score: float
  ecpm: float
  codes: tuple[int, ...]
  seen: bool = False
  reasons: Mapping[str, Any] | None = None


def named(
  ads: AdTable,
  codes_NT: np.ndarray,
  seen: Container[int],
  ad_K: np.ndarray,
  logp_K: np.ndarray,
  score_K: np.ndarray,
  value_K: np.ndarray,
) -> list[Recommendation]:
  """A list of rows with words: at most K, as rows of -1 are places that no ad took.

  Args:
    ads: the ad table.
    codes_NT: UA-SIDs of its rows.
    seen: rows of the user's history.
    ad_K: rows of the list, best first.
    logp_K, score_K, value_K: as of `Recommendation`.
  """
  found = []
  for ad, *numbers in zip(ad_K, logp_K, score_K, value_K, strict=True):
    if ad >= 0:
      about = (str(column[ad]) for column in (ads.ad_id, ads.text, ads.account_id))
      codes = tuple(codes_NT[ad].tolist())
      found.append(Recommendation(*about, *map(float, numbers), codes, int(ad) in seen))
  return found
