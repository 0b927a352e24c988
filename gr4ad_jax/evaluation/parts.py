"""The targets of a table in parts: what a user takes again, and what is new to them.

A *target* is an ad that was taken in the request. A shop's customers take much of what they took
before, and a list of that earns little that would not have come anyway. So each table is told three
times: of all targets, of those that the user had taken before, and of those that are new. In the
last, no system's list holds ads seen before.

Beside them stand the targets that a *memory* would find, and those that it would not. The memory
only knows what followed what (arXiv 2603.19809).
"""

from collections.abc import Mapping

import numpy as np

from gr4ad_jax.data import schema
from gr4ad_jax.data.schema import DAY
from gr4ad_jax.evaluation.metrics import Ratio
from gr4ad_jax.evaluation.protocols import EvalRequests
from gr4ad_jax.index.left_out import LeftOut

ALL = "all"
AGAIN = "again"
NEW = "new"
MEMORY = "memory"
BEYOND = "beyond"
SAYS = {
  ALL: "All targets.",
  AGAIN: "Targets that the user had taken before.",
  NEW: "Targets that are new to the user; the ads seen before are left out of every list.",
  MEMORY: "Targets that stand in the list of a memory of what followed what.",
  BEYOND: "Targets that do not.",
}
MEMORY_OF = "directed_neighbors"  # the simple method that is the memory


def seen_before(dataset: schema.Dataset, requests: EvalRequests, days: float = 0.0) -> LeftOut:
  """The ads that each request's user has in any event before it.

  Args:
    dataset: whose events.
    requests: R of its requests.
    days: how far back an ad counts as seen. 0: however long ago.
  """
  events = dataset.events
  # The log is by user, then by visit, so what a user did before a visit is a run of events.
  first = np.searchsorted(events.user, requests.user)
  now = np.searchsorted(events.request, requests.request)
  size = now - first
  # All events from `first` to before `now` of each request, as one gather.
  row_E = np.repeat(np.arange(len(requests)), size)
  at_E = np.arange(len(row_E)) - np.repeat(np.cumsum(size) - size, size) + first[row_E]
  moment_E = events.time[now][row_E]
  # An event of an earlier visit may come later than this one began.
  seen_E = events.time[at_E] <= moment_E
  if days:
    # Counted back from the request, whose first event is at `now`.
    seen_E &= events.time[at_E] >= moment_E - days * DAY
  row_E = row_E[seen_E]
  at_E = at_E[seen_E]
  return LeftOut.of(len(requests), row_E, events.ad[at_E])


def split(
  dataset: schema.Dataset, requests: EvalRequests, memory_RK: np.ndarray | None = None
) -> dict[str, np.ndarray]:
  """Which of the P targets are in each part.

  Args:
    dataset: whose log says what was taken before.
    requests: R requests.
    memory_RK: lists of the memory, -1 padding. None: its two parts are left out.

  Returns:
    [P] bool by the part's name. Parts without a target are left out.
  """
  # What a request would have to do without is what its user has seen.
  again_P = ~seen_before(dataset, requests).keeps(requests.target_row, requests.target_ad)
  found = {ALL: np.ones(len(again_P), bool), AGAIN: again_P, NEW: ~again_P}
  if memory_RK is not None:
    # (P, K) == (P, 1): each target beside the list of its request. Padding is no target.
    same_PK = memory_RK[requests.target_row] == requests.target_ad[:, None]
    found |= {MEMORY: same_PK.any(axis=1), BEYOND: ~same_PK.any(axis=1)}
  return {name: part_P for name, part_P in found.items() if part_P.any()}


def left_of(ranking_RK: np.ndarray, before: LeftOut) -> np.ndarray:
  """Lists without the ads seen before, -1 behind what is left."""
  kept_RK = before.kept(ranking_RK)
  # False sorts before True. Stable, so what is kept moves to the front in its order.
  order_RK = np.argsort(~kept_RK, axis=1, kind="stable")
  return np.take_along_axis(np.where(kept_RK, ranking_RK, -1), order_RK, axis=1)


def of_part(requests: EvalRequests, part_P: np.ndarray) -> tuple[np.ndarray, EvalRequests]:
  """The requests with a target in a part, and no other targets.

  Args:
    requests: R requests.
    part_P: which of their targets.

  Returns:
    Their rows among the R, ascending, and the requests.
  """
  # How many of its targets each request has in the part, (P,) -> (R,).
  size_R = np.bincount(requests.target_row, weights=part_P, minlength=len(requests)).astype(int)
  rows = np.flatnonzero(size_R)
  start = np.append(0, np.cumsum(size_R[rows]))
  return rows, EvalRequests(
    requests.split,
    requests.request[rows],
    requests.user[rows],
    start,
    requests.target_ad[part_P],
    requests.target_value[part_P],
  )


def spread(ratios: Mapping[str, Ratio], rows: np.ndarray, requests: int) -> dict[str, Ratio]:
  """Metrics of the requests `rows` as those of all, where the others count for nothing.

  So all parts have arrays of one length, and one draw of users serves them all.
  """

  def filled(part: np.ndarray) -> np.ndarray:
    # 0 over 0: neither sum changes, so the request counts for nothing.
    whole = np.zeros(requests)
    whole[rows] = part
    return whole

  return {
    name: Ratio(filled(ratio.numerator_R), filled(ratio.denominator_R))
    for name, ratio in ratios.items()
  }
