"""The report of a data set of which a part is left."""

import dataclasses

import numpy as np

from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import SPLITS, Dataset, EventLog, Report


def of_rest(dataset: Dataset, log: EventLog, ads: int, why: str) -> Report | None:
  """The report of what is left of a data set; None where it has none.

  Args:
    dataset: as it was.
    log: the events that are left.
    ads: how many ads are left.
    why: what the other events are, in words.
  """
  if dataset.report is None:
    return None
  of_request = visits.split_of_requests(log)
  # The first event of each request.
  opening = np.append(True, np.diff(log.request) > 0)
  return dataclasses.replace(
    dataset.report,
    ads=ads,
    users=len(log.user_id),
    events={name: int((of_request == number).sum()) for number, name in enumerate(SPLITS)},
    requests={
      name: int((of_request[opening] == number).sum()) for number, name in enumerate(SPLITS)
    },
    dropped=dataset.report.dropped | {why: len(dataset.events) - len(log)},
  )
