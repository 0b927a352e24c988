"""What is predicted from what: the requests of a split, their targets, and the history.

A *target* is an ad that was taken in the request. docs/design/evaluation.md has the protocols.
"""

import dataclasses

import numpy as np

from gr4ad_jax.data import schema, visits

# A line's value counts up to this percentile of its split: one great order shall not decide.
VALUE_PERCENTILE = 99.0
METRICS_TEXT = (
  "recall@K = hits / min(K, basket) and binary ndcg@K, averaged over requests; revenue@K = value "
  "of the hit lines / value of all lines, a line clipped at the 99th percentile of its split; 95 % "
  "intervals by a paired bootstrap over users, 1,000 resamples"
)


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How a data set is scored.

  Attributes:
    dataset: name of the data set.
    ks: cuts of the ranking, ascending.
    split_rule: which requests are valid and test, in words.
    seen: what happens to ads of the user's history: 'left', 'masked' or 'biased'.
  """

  dataset: str
  ks: tuple[int, ...]
  split_rule: str
  seen: str = "left"

  @property
  def text(self) -> str:
    """The sentence that goes with every number."""
    return (
      f"{self.split_rule}; full ranking of all ads; ads seen before are {self.seen} "
      f"unless a system says otherwise; {METRICS_TEXT}"
    )


PROTOCOLS = {
  "online_retail": Protocol(
    "online_retail",
    (10, 50),
    (
      "of customers with 3 or more invoices the last is test, the one before valid; history is "
      "every earlier invoice"
    ),
  ),
  "complete_journey": Protocol(
    "complete_journey",
    (10, 50),
    (
      "of households with 3 or more baskets the last is test, the one before valid; history is "
      "every earlier basket"
    ),
  ),
  "amazon_reviews": Protocol(
    "amazon_reviews",
    (5, 10),
    "a user's last item is test, the one before valid; history is every earlier item",
  ),
  "ad_log": Protocol(
    "ad_log",
    (10, 50),
    (
      "valid and test visits as the log was split; history is the user's visits of the earlier "
      "splits"
    ),
  ),
}


def protocol_of(name: str) -> Protocol:
  """The protocol of a data set. Raises ValueError for a name that has none."""
  if name not in PROTOCOLS:
    raise ValueError(f"dataset {name!r} has no protocol; allowed: {', '.join(PROTOCOLS)}")
  return PROTOCOLS[name]


@dataclasses.dataclass(frozen=True)
class EvalRequests:
  """R requests to predict, each with at least one target.

  Attributes:
    split: 'valid' or 'test' ('train' too, for a look at the fit).
    request: [R] int32, visit numbers of the event log, ascending.
    user: [R] int32.
    target_start: [R+1] int64. Targets of row r are target_ad[target_start[r]:target_start[r+1]].
    target_ad: [P] int32, the distinct ads of each request, ascending within a request.
    target_value: [P] float32, money of the ad in that request, clipped at the split's 99th
      percentile.
  """

  split: str
  request: np.ndarray
  user: np.ndarray
  target_start: np.ndarray
  target_ad: np.ndarray
  target_value: np.ndarray

  def __len__(self):
    return len(self.request)

  @property
  def target_row(self) -> np.ndarray:
    """[P] row of the request that each target belongs to."""
    return np.repeat(np.arange(len(self)), np.diff(self.target_start))

  def take(self, rows: np.ndarray) -> "EvalRequests":
    """The requests at `rows` (integers), in that order. Values keep the clip of the whole split."""
    rows = np.asarray(rows)
    size = np.diff(self.target_start)[rows]
    # Where the targets of each chosen request will begin.
    start = np.append(0, np.cumsum(size))
    # The runs of targets as one gather: a running number, moved to where each run lies.
    picked = np.repeat(self.target_start[rows] - start[:-1], size) + np.arange(start[-1])
    return EvalRequests(
      self.split,
      self.request[rows],
      self.user[rows],
      start,
      self.target_ad[picked],
      self.target_value[picked],
    )

  def of_users(self, count: int) -> "EvalRequests":
    """The requests of so many users, evenly spread over those that there are; of all users where
    they are no more.
    """
    user_U = np.unique(self.user)
    spread = np.linspace(0, len(user_U) - 1, min(count, len(user_U))).round().astype(int)
    return self.take(np.isin(self.user, user_U[spread]).nonzero()[0])


def eval_requests(dataset: schema.Dataset, split: str, target_behavior: str = "") -> EvalRequests:
  """Collects the requests of a split and their targets.

  Args:
    dataset: a prepared data set.
    split: one of schema.SPLITS.
    target_behavior: shallowest behaviour that counts as a hit. Empty: any.

  Returns:
    Requests with one target or more. An ad's events in a request are one line, with their values
    added.
    Events count within the data set's attribution window. What was only given back does not.

  Raises:
    ValueError: an unknown split or behaviour.
    schema.DataError: a split in which nothing counts as a target.
  """
  events = dataset.events
  depth = target_depth(dataset.behaviors, target_behavior)
  # Events of a visit of the split, whatever split they themselves carry.
  chosen = visits.split_of_requests(events) == _split_index(split, schema.SPLITS)
  chosen &= visits.attributed(events, dataset.attribution_days) & (events.behavior >= depth)
  if not chosen.any():
    behavior = target_behavior or "any"
    raise schema.DataError(
      f"split {split!r} of {dataset.name} is empty: it has no event of behaviour {behavior!r}"
    )
  # Lines come by request, then by ad: the order that `EvalRequests` promises.
  line, value = lines(
    events.request[chosen], events.ad[chosen], events.value[chosen], len(dataset.ads)
  )
  # What was given back for more than it brought is no target.
  line = line[value >= 0]
  value = value[value >= 0]
  request, start = np.unique(line[:, 0], return_index=True)
  # `request` ascends over the log, and a visit is of one user: its first event tells whose it is.
  first = np.searchsorted(events.request, request)
  return EvalRequests(
    split=split,
    request=request.astype(np.int32),
    user=events.user[first].astype(np.int32),
    target_start=np.append(start, len(line)).astype(np.int64),
    target_ad=line[:, 1].astype(np.int32),
    # Clipped after events are joined to lines: the percentile is of lines.
    target_value=np.minimum(value, np.percentile(value, VALUE_PERCENTILE)).astype(np.float32),
  )


def history_events(dataset: schema.Dataset, split: str) -> np.ndarray:
  """Mask [E] of the events that are known when `split` is predicted.

  They are train for valid, and train and valid for test.

  Raises:
    ValueError: a split other than 'valid' and 'test'. A train request is predicted from its own
      past, which `features/history.py` tells.
  """
  return dataset.events.split < _split_index(split, schema.SPLITS[1:])


def lines(
  request_E: np.ndarray, ad_E: np.ndarray, value_E: np.ndarray, num_ads: int
) -> tuple[np.ndarray, np.ndarray]:
  """Joins events to lines, one for each (request, ad).

  Returns:
    [P, 2] int64 (request, ad) in ascending order, and the lines' values [P] float64, added up.
  """
  # int64 first: a product of int32 would wrap round.
  key, line_E = np.unique(request_E.astype(np.int64) * num_ads + ad_E, return_inverse=True)
  value = np.bincount(line_E, weights=value_E, minlength=len(key))
  return np.stack([key // num_ads, key % num_ads], axis=1), value


def line_counts(dataset: schema.Dataset, split: str) -> np.ndarray:
  """Lines of each ad, [N] int64, in the history that is known when `split` is predicted.

  Several events of an ad in one request are one line: a click and the purchase after it count once.

  Raises:
    ValueError: a split other than 'valid' and 'test'.
  """
  events = dataset.events
  num_ads = len(dataset.ads)
  seen_E = history_events(dataset, split)
  line, _ = lines(events.request[seen_E], events.ad[seen_E], events.value[seen_E], num_ads)
  return np.bincount(line[:, 1], minlength=num_ads)


def _split_index(split: str, allowed: tuple[str, ...]) -> int:
  """The number that events carry for a split. Raises ValueError for one that is not allowed."""
  if split not in allowed:
    raise ValueError(f"split {split!r} is unknown here; allowed: {', '.join(allowed)}")
  return schema.SPLITS.index(split)


def target_depth(behaviors: tuple[str, ...], target_behavior: str) -> int:
  """Depth of the shallowest behaviour that counts as a hit.

  Args:
    behaviors: names, the shallowest first, as a click before a purchase.
    target_behavior: one of them. Empty: any, which is depth 0.

  Raises:
    ValueError: a name that is not among them.
  """
  if not target_behavior:
    return 0
  if target_behavior not in behaviors:
    raise ValueError(
      f"target_behavior {target_behavior!r} is unknown; allowed: {', '.join(behaviors)}; empty: any"
    )
  return behaviors.index(target_behavior)
