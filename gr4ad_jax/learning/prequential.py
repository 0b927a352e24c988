"""How well visits were predicted before any of them was learned from."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from gr4ad_jax.evaluation import metrics
from gr4ad_jax.evaluation.protocols import EvalRequests
from gr4ad_jax.learning.visits import Visit

AT = 10


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Lists of a group's visits, made before any of them was learned from.

  Attributes:
    visits: B visits.
    places: [R] those of them that have a target.
    requests: the R requests.
    ad_RK: lists by the name of the parameters.
    logp_RK: their log p, likewise.
  """

  visits: Sequence[Visit]
  places: np.ndarray
  requests: EvalRequests
  ad_RK: Mapping[str, np.ndarray]
  logp_RK: Mapping[str, np.ndarray]


def scalars(
  ad_RK: Mapping[str, np.ndarray], requests: EvalRequests, begin: int
) -> dict[str, float]:
  """Metrics of a round, for the writer.

  Args:
    ad_RK: lists of the same requests, by the name of the parameters.
    requests: with their targets.
    begin: unix seconds of the round's first visit.

  Returns:
    prequential/time, /requests, and of each name recall@10 and, where targets carry a value,
    revenue@10.
  """
  found = {"prequential/time": float(begin), "prequential/requests": float(len(requests))}
  for name, lists in ad_RK.items():
    ratios = metrics.per_request(lists, requests, (AT,))
    for metric in (f"recall@{AT}", f"revenue@{AT}"):
      # A metric of money is missing where no target has a value.
      if metric in ratios:
        found[f"prequential/{name}_{metric}"] = float(ratios[metric].value)
  return found


def joined(parts: Sequence[EvalRequests]) -> EvalRequests:
  """Requests of several groups as those of one, numbered from 0 on."""
  first = parts[0]
  starts = [part.target_start for part in parts]
  # Starts count from 0 in each part; as one list they go on.
  offsets = np.cumsum([0, *(start[-1] for start in starts[:-1])])
  start = [at[:-1] + offset for at, offset in zip(starts, offsets, strict=True)]
  total = sum(int(at[-1]) for at in starts)
  rows = [len(part) for part in parts]
  return EvalRequests(
    first.split,
    np.arange(sum(rows), dtype=np.int32),
    np.concatenate([part.user for part in parts]),
    np.append(np.concatenate(start), total),
    np.concatenate([part.target_ad for part in parts]),
    np.concatenate([part.target_value for part in parts]),
  )
