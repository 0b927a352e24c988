"""From the search's beams to what is answered: ads in words, and the tree of prefixes that led to them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gr4ad_jax.decoding.beam import Beams


class NotFinite(ArithmeticError):
  """The model gave a probability or a value that is no number."""


def check_finite(beams: Beams) -> None:
  """Raises NotFinite where a beam that was found has no finite score."""
  found_BW = beams.leaf_BW >= 0
  if not np.isfinite(beams.logp_BW[found_BW]).all() or not np.isfinite(beams.value_BW[found_BW]).all():
    raise NotFinite("the model's scores are not finite")


def ad_entry(catalog: Any, row: int, score: float, ecpm: float) -> dict[str, Any]:
  """One ad of an answer."""
  ad = catalog.ad(row)
  return {
    "ad_id": ad.ad_id,
    "text": ad.text,
    "account_id": ad.account_id,
    "score": round(score, 6),
    "ecpm": round(ecpm, 6),
    "codes": catalog.codes_NT[row].tolist(),
  }


def ranked_rows(beams: Beams, at: int, row_K: np.ndarray, beam_K: np.ndarray) -> list[tuple[int, float, float]]:
  """(row of the ad, log-probability, value) of one request's ads, best first.

  Args:
    beams: of the batch, on the host.
    at: the request's place in the batch.
    row_K: rows of its ads, -1 where they ran out.
    beam_K: the beam of each.
  """
  kept = row_K >= 0
  scores = (beams.logp_BW[at, beam_K[kept]], beams.value_BW[at, beam_K[kept]])
  return list(zip(row_K[kept].tolist(), *(x.astype(float).tolist() for x in scores), strict=True))


def beam_tree(beams: Beams, at: int) -> tuple[tuple[Mapping[str, Any], ...], ...]:
  """Every level's distinct prefixes among the final beams of one request, likeliest first.

  Each tells its codes, its log-probability, how many final beams lie below it and, at the last level, the value.
  """
  found = np.flatnonzero(beams.leaf_BW[at] >= 0)
  codes_WT, levels = beams.codes_BWT[at, found], []
  for depth in range(1, codes_WT.shape[1] + 1):
    prefixes, first, count = np.unique(codes_WT[:, :depth], axis=0, return_index=True, return_counts=True)
    is_leaf = depth == codes_WT.shape[1]
    logp = (beams.logp_BW[at, found] if is_leaf else beams.prefix_logp_BWT[at, found, depth - 1])[first]
    nodes = []
    for node in np.argsort(-logp, kind="stable"):
      entry = {"codes": prefixes[node].tolist(), "logp": round(float(logp[node]), 6), "beams": int(count[node])}
      if is_leaf:
        entry["ecpm"] = round(float(beams.value_BW[at, found[first[node]]]), 6)
      nodes.append(entry)
    levels.append(tuple(nodes))
  return tuple(levels)
