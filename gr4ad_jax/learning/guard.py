"""Whether a checkpoint may go to the servers: judged by requests that it has not learned from."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from gr4ad_jax.evaluation import metrics
from gr4ad_jax.evaluation.protocols import EvalRequests

AT = 10
CANDIDATE = "candidate"
IN_USE = "in_use"
START = "start"


class Verdict(NamedTuple):
  """What a guard found.

  Attributes:
    promote: whether the candidate may be used.
    recall: recall@10 of each set of parameters, by its name.
    worst: the candidate's recall less that of the best of the others.
    requests: how many were looked at.
  """

  promote: bool
  recall: dict[str, float]
  worst: float
  requests: int


def judge(
  ad_RK: Mapping[str, np.ndarray], requests: EvalRequests, num_ads: int, bound: float
) -> Verdict:
  """Compares the lists of a candidate with those of the parameters in use and of the start.

  With the start among them, many small steps down cannot add up: what is in use is never below the
  start by more than the bound, on the requests that it was judged by.

  Args:
    ad_RK: lists of the same requests, by `CANDIDATE` and the names of the others. None of the
      parameters has learned from the requests.
    requests: R >= 0 with their targets.
    num_ads: N.
    bound: how much lower recall@10 may be.

  Returns:
    The verdict. Nothing is promoted by no requests.
  """
  # Nothing to judge by is no reason to promote.
  if not len(requests):
    return Verdict(False, {}, 0.0, 0)
  recall = {}
  for name, lists in ad_RK.items():
    metrics.check_rankings(lists, requests, AT, num_ads)
    recall[name] = metrics.per_request(lists, requests, (AT,))[f"recall@{AT}"].value
  others = [value for name, value in recall.items() if name != CANDIDATE]
  # Against the better one of the others. Without any, the candidate is compared with itself.
  worst = recall[CANDIDATE] - max(others, default=recall[CANDIDATE])
  return Verdict(worst >= -bound, recall, worst, len(requests))
