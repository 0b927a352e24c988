"""Candidates of requests: by the reference policy's own wider beams, and by other pipelines.

Source: docs/design/method.md §3.2.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import scipy.sparse

from gr4ad_jax import files
from gr4ad_jax.config import PreferenceConfig
from gr4ad_jax.decoding.ranker import Ranker, logp_of
from gr4ad_jax.evaluation import baselines
from gr4ad_jax.features import history
from gr4ad_jax.features.batches import HISTORY, NEIGHBOR, RequestContexts
from gr4ad_jax.retrieval.best import top_k

NO_REFERENCE = np.float32(-1e9)  # stands for log p_ref where no policy proposed the candidate

RewardOf = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Candidates:
  """C candidates of each of R requests: first the request's own ads, then the policy's, then other
  pipelines'.

  Attributes:
    request_R: request numbers.
    ad_RC: int32 rows of the ad table, no ad twice in a request, -1 in padding.
    reference_logp_RC: float32 log p_ref of the ads that the reference policy proposed, NO_REFERENCE
      of all others.
    reward_RC: float32 rewards, 0 in padding.
    policy_RK: int32 the policy's own ads, best first, -1 where its beams ran out: what it would
      have recommended.
    policy_logp_RK: float32 their log-probabilities.
  """

  request_R: np.ndarray
  ad_RC: np.ndarray
  reference_logp_RC: np.ndarray
  reward_RC: np.ndarray
  policy_RK: np.ndarray
  policy_logp_RK: np.ndarray

  def rows_of(self, requests: np.ndarray) -> np.ndarray:
    """Row of each request. Raises KeyError for one without candidates."""
    # Requests need not ascend, as those in order of time do not.
    order = np.argsort(self.request_R, kind="stable")
    at = np.minimum(np.searchsorted(self.request_R[order], requests), len(order) - 1)
    if (self.request_R[order][at] != requests).any():
      raise KeyError("a request has no candidates")
    return order[at]

  def map(self, change: Callable[[np.ndarray], np.ndarray]) -> "Candidates":
    """The same with each column changed."""
    return Candidates(*(change(getattr(self, field.name)) for field in dataclasses.fields(self)))

  def save(self, path: str) -> None:
    """Writes an .npz file, whole or not at all."""
    files.save_arrays(
      path, **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    )

  @classmethod
  def load(cls, path: str) -> "Candidates":
    """Reads what `save` wrote. Raises as `files.load_arrays` does."""
    return cls(*files.load_arrays(path, *(field.name for field in dataclasses.fields(cls))))


class CandidateMaker:
  """Proposes and rewards candidates.

  Args:
    config: how many, and by whom.
    contexts: of the requests.
    ranker: the policy's search, with `preference.candidate_beams`.
    reward: requests [B], ads [B, C] and the policy's log p of them [B, C] -> rewards [B, C]. An ad
      that the beams did not reach has the log p of the last one that they did.
    num_ads: rows of the ad table, N.
    learned_L: lines that EASE is fitted on. A request's own are among them: as a proposal that does
      no harm, since the reward does not come from it.
  """

  def __init__(
    self,
    config: PreferenceConfig,
    contexts: RequestContexts,
    ranker: Ranker,
    reward: RewardOf,
    num_ads: int,
    learned_L: np.ndarray,
  ):
    self._config = config
    self._contexts = contexts
    self._ranker = ranker
    self._reward = reward
    self._num_ads = num_ads
    self._learned_L = learned_L

  def make(
    self,
    params: Any,
    requests: np.ndarray,
    told: Callable[[int], None] = lambda done: None,
    batch: int = 64,
  ):
    """Candidates of `requests`, the policy being `params`.

    Args:
      params: the reference policy.
      requests: [R] request numbers.
      told: hears of progress, requests done.
      batch: requests searched at once.
    """
    parts = []
    told(0)
    for begin in range(0, len(requests), batch):
      some = requests[begin : begin + batch]
      parts.append(self._some(params, some, batch))
      told(begin + len(some))
    return Candidates(*(np.concatenate(column) for column in zip(*parts, strict=True)))

  def _some(self, params: Any, requests: np.ndarray, batch: int) -> tuple[np.ndarray, ...]:
    c = self._config
    # Ten at least, since the collapse guard looks at the first ten.
    shown = max(c.policy_candidates, 10)
    # More than are kept as candidates: the reward reads log p of the others, too.
    found = self._ranker.rank(
      params, self._contexts, requests, max(shown, c.candidate_beams), batch
    )
    policy_RK = found.ad_RK[:, : c.policy_candidates]
    others = [self._pipeline(name, requests) for name in c.pipelines] if c.other_candidates else []
    target_RM = self._targets(requests)
    ad_RX = np.concatenate([target_RM, policy_RK, *others], axis=1)
    logp_RX = np.full(ad_RX.shape, NO_REFERENCE)
    # Behind the request's own ads come the policy's, and only those have a log p_ref.
    proposed = slice(target_RM.shape[1], target_RM.shape[1] + policy_RK.shape[1])
    logp_RX[:, proposed] = np.where(
      policy_RK >= 0, found.logp_RK[:, : c.policy_candidates], NO_REFERENCE
    )
    # An own ad that the policy proposed too keeps the first place, and gets its log p_ref.
    ad_RC, logp_RC = _distinct(ad_RX, logp_RX)
    reward_RC = self._reward(requests, ad_RC, logp_of(ad_RC, found.ad_RK, found.logp_RK))
    return requests, ad_RC, logp_RC, reward_RC, found.ad_RK[:, :shown], found.logp_RK[:, :shown]

  def _targets(self, requests: np.ndarray) -> np.ndarray:
    """The requests' own ads, as VSL draws them: [B, M]."""
    own_BM = self._contexts.targets(requests)
    ad_BM = self._contexts.lines.outcomes.ad[np.maximum(own_BM, 0)]
    return np.where(own_BM >= 0, ad_BM, -1).astype(np.int32)

  def _pipeline(self, name: str, requests: np.ndarray) -> np.ndarray:
    """Best ads by one pipeline: [B, other_candidates] int32, -1 where there are fewer."""
    count = self._config.other_candidates
    contexts = self._contexts
    if name == "popularity":
      seen_BN = contexts.popularity.lately(contexts.lines.request_time[requests])
      return _top(seen_BN.astype(np.float32), count)
    ads_BS, kind_BS, rows_BH = contexts.slots(requests)
    if name == "neighbors":
      # Neighbours stand together in the slots: the first of them, and so many more.
      first = np.argmax(kind_BS == NEIGHBOR, axis=1)[:, None] + np.arange(count)
      # A count past the slots reads the last one again, whose kind is asked for next.
      first = np.minimum(first, ads_BS.shape[1] - 1)
      near = np.take_along_axis(kind_BS, first, axis=1) == NEIGHBOR
      return np.where(near, np.take_along_axis(ads_BS, first, axis=1), -1)
    past_BH = np.where(kind_BS[:, : rows_BH.shape[1]] == HISTORY, ads_BS[:, : rows_BH.shape[1]], -1)
    if name == "recency":
      decayed_BH = history.decayed_counts(contexts.lines, requests, rows_BH)
      # Padding goes last, and was -1 before.
      weight_BH = np.where(past_BH >= 0, decayed_BH, -np.inf)
      order = np.argsort(-weight_BH, axis=1, kind="stable")[:, :count]
      found = np.take_along_axis(past_BH, order, axis=1)
      return np.pad(found, ((0, 0), (0, count - found.shape[1])), constant_values=-1)
    return _top(self._taken(past_BH) @ self._ease_weights, count)

  def _taken(self, ad_BH: np.ndarray) -> scipy.sparse.csr_matrix:
    row, column = np.nonzero(ad_BH >= 0)
    ones = np.ones(len(row), np.float32)
    return scipy.sparse.csr_matrix((ones, (row, ad_BH[row, column])), (len(ad_BH), self._num_ads))

  @functools.cached_property
  def _ease_weights(self) -> np.ndarray:
    """EASE on the lines that are learned from, [N, N]. Raises TooManyAdsError."""
    lines = self._contexts.lines
    learned_L = self._learned_L
    user = lines.request_user[lines.request[learned_L]]
    shape = (int(lines.request_user.max()) + 1, self._num_ads)
    taken = scipy.sparse.csr_matrix(
      (np.ones(len(user), np.float32), (user, lines.ad[learned_L])), shape
    )
    # 1 for an ad that a user took ever, however often.
    return baselines.ease_weights((taken > 0).astype(np.float32), baselines.EASE_PENALTY)


def _top(score_BN: np.ndarray, count: int) -> np.ndarray:
  kept = min(count, score_BN.shape[1])
  top = top_k(score_BN, kept).astype(np.int32)
  return np.pad(top, ((0, 0), (0, count - kept)), constant_values=-1)


def _distinct(ad_RX: np.ndarray, logp_RX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Each ad once, where it stands first, with the log p_ref that any of its places has; padding
  goes last.
  """
  # A stable sort groups the places of an ad, and keeps them in their order inside the group.
  place = np.arange(ad_RX.shape[1])
  order = np.argsort(ad_RX, axis=1, kind="stable")
  ad, logp = (np.take_along_axis(x, order, axis=1) for x in (ad_RX, logp_RX))
  first = np.ones(ad.shape, bool)
  first[:, 1:] = ad[:, 1:] != ad[:, :-1]
  # From the end on, a run's largest log p_ref moves to its first place.
  for x in range(ad.shape[1] - 2, -1, -1):
    logp[:, x] = np.where(first[:, x + 1], logp[:, x], np.maximum(logp[:, x], logp[:, x + 1]))
  # Ads that stay sort by their first place; all others get a place behind the last.
  key = np.where(first & (ad >= 0), order, len(place))
  back = np.argsort(key, axis=1, kind="stable")
  kept = np.take_along_axis(key, back, axis=1) < len(place)
  ad = np.take_along_axis(ad, back, axis=1)
  logp = np.take_along_axis(logp, back, axis=1)
  return np.where(kept, ad, -1), np.where(kept, logp, NO_REFERENCE)


def digest(params: Any, *about: Any) -> str:
  """SHA-256 of parameters and settings: candidates of an equal one are equal."""
  made = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    made.update(jax.tree_util.keystr(path).encode())
    made.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
  for item in about:
    # `repr` of plain settings is the same in every process; arrays are taken as bytes.
    made.update(item.tobytes() if isinstance(item, np.ndarray) else repr(item).encode())
  return made.hexdigest()
