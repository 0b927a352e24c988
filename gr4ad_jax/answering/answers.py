"""From the search's beams to what is answered: ads in words, and the tree of prefixes that led
to them.
"""

from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from gr4ad_jax.answering import explore
from gr4ad_jax.decoding.beam import Beams


class NotFinite(ArithmeticError):
  """The model gave a probability or a value that is no number."""


def check_finite(beams: Beams) -> None:
  """Raises NotFinite where a beam that was found has no finite log p, score or value."""
  # An empty beam has -inf, which is no mistake.
  found_BW = beams.leaf_BW >= 0
  numbers = (beams.logp_BW, beams.score_BW, beams.value_BW)
  if not all(np.isfinite(x_BW[found_BW]).all() for x_BW in numbers):
    raise NotFinite("the model's scores are not finite")


def ad_entry(
  catalog: Any, seen: Container[int], row: int, log_p: float, score: float, ecpm: float
) -> dict[str, Any]:
  """One ad of an answer: `log_p` is that of its UA-SID, `score` what the list is ordered by.

  `seen` has the rows of the user's history.
  """
  ad = catalog.ad(row)
  return {
    "ad_id": ad.ad_id,
    "text": ad.text,
    "account_id": ad.account_id,
    "log_p": round(log_p, 6),
    "score": round(score, 6),
    "ecpm": round(ecpm, 6),
    "codes": catalog.codes_NT[row].tolist(),
    "seen": row in seen,
  }


def ranked_rows(
  beams: Beams, at: int, row_K: np.ndarray, beam_K: np.ndarray
) -> list[tuple[int, float, float, float]]:
  """(row of the ad, log p of its UA-SID, score, value) of one request's ads, best first.

  Args:
    beams: of the batch, on the host.
    at: the request's place in the batch.
    row_K: rows of its ads, -1 where they ran out.
    beam_K: the beam of each.
  """
  kept = row_K >= 0
  # `at` is the request's row; (k,) beams of it are gathered.
  numbers = (x_BW[at, beam_K[kept]] for x_BW in (beams.logp_BW, beams.score_BW, beams.value_BW))
  return list(zip(row_K[kept].tolist(), *(x.astype(float).tolist() for x in numbers), strict=True))


def optimism(
  beams: Beams, at: int, row_K: np.ndarray, beam_K: np.ndarray, weight: float
) -> dict[int, float]:
  """By the rows of a request's ads what `explore.optimism` gives them; {} without a weight.

  Arguments as of `ranked_rows`.
  """
  if not weight:
    return {}
  kept = row_K >= 0
  value_K, spread_K = (
    x_BW[at, beam_K[kept]].astype(float) for x_BW in (beams.value_BW, beams.spread_BW)
  )
  bonus_K = explore.optimism(value_K, spread_K, weight)
  return dict(zip(row_K[kept].tolist(), bonus_K.tolist(), strict=True))


def beam_tree(beams: Beams, at: int) -> tuple[tuple[Mapping[str, Any], ...], ...]:
  """Every level's distinct prefixes among the final beams of one request, likeliest first.

  Each tells its codes, its log p, how many final beams lie below it and, at the last level, score
  and value. A prefix has the probability of all UA-SIDs below it, so never less than its leaves
  have together.
  """
  found = np.flatnonzero(beams.leaf_BW[at] >= 0)
  codes_WT = beams.codes_BWT[at, found]
  levels = []
  for depth in range(1, codes_WT.shape[1] + 1):
    # Equal prefixes of several beams are one node; `first` is any beam below it.
    prefixes, first, count = np.unique(
      codes_WT[:, :depth], axis=0, return_index=True, return_counts=True
    )
    is_leaf = depth == codes_WT.shape[1]
    # All beams below a prefix agree on its log p.
    logp = beams.prefix_logp_BWT[at, found, depth - 1][first]
    nodes = []
    # A stable sort, so that equal prefixes keep the order of their codes.
    for node in np.argsort(-logp, kind="stable"):
      entry = {
        "codes": prefixes[node].tolist(),
        "log_p": round(float(logp[node]), 6),
        "beams": int(count[node]),
      }
      if is_leaf:
        entry["score"] = round(float(beams.score_BW[at, found[first[node]]]), 6)
        entry["ecpm"] = round(float(beams.value_BW[at, found[first[node]]]), 6)
      nodes.append(entry)
    levels.append(tuple(nodes))
  return tuple(levels)
