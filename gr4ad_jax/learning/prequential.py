"""How well visits were predicted before any of them was learned from."""

from collections.abc import Mapping

import numpy as np

from gr4ad_jax.evaluation import metrics
from gr4ad_jax.evaluation.protocols import EvalRequests

AT = 10


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
