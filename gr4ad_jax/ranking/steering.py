"""Lists steered where they are made: apart by content, and with places kept for a group of ads.

One greedy pass, place by place. *Apart* is maximal marginal relevance (MMR; Carbonell and
Goldstein, SIGIR 1998): an ad loses as much of its score as it is like an ad that stands above it.
A *quota* holds at every depth, as in FA*IR (Zehlike et al., CIKM 2017): of the first m places the
group has the quota's share, rounded down, as long as candidates of it are left. The group has a
search of its own, since its best ads may stand far down among all ads.
"""

import dataclasses
import os
from collections.abc import Callable

import numpy as np

from gr4ad_jax.config import Config
from gr4ad_jax.data.schema import AdTable
from gr4ad_jax.decoding.ranker import Ranking, distinct
from gr4ad_jax.evaluation import exposure, protocols
from gr4ad_jax.features.trends import Trends
from gr4ad_jax.index.left_out import LeftOut
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.sid.tokenizer import Tokenizer

_TINY = 1e-9  # keeps rounding from asking for one place too few
_ROWS = 256  # lists whose candidates' vectors are held at a time


@dataclasses.dataclass(frozen=True)
class Steering:
  """How lists are steered.

  Attributes:
    diversity: what an ad's score loses (in its own unit; by likelihood nats) by an ad above it that
      is the same by content, and by others in proportion to their cosine. 0: nothing.
    vector_ND: vectors of the ads, of length 1; None where `diversity` is 0.
    share: share of the places that the group has at least. 0: no quota.
    group_N: which ads are of the group; None where `share` is 0.
  """

  diversity: float = 0.0
  vector_ND: np.ndarray | None = None
  share: float = 0.0
  group_N: np.ndarray | None = None

  def __bool__(self):
    """Whether anything is steered at all."""
    return self.diversity > 0 or self.share > 0


def steering_of(config: Config, inputs: Inputs, split: str) -> Steering:
  """What --diversity, --quota_share and --quota_group ask for, by the data known before a split."""
  search = config.search
  vector_ND = unit(inputs.tokenizer.embed(inputs.dataset.ads)) if search.diversity else None
  group_N = None
  if search.quota_share:
    lines_N = protocols.line_counts(inputs.dataset, split)
    group_N = group(search.quota_group, inputs.dataset.ads.account_N, lines_N)
  return Steering(search.diversity, vector_ND, search.quota_share, group_N)


def of_run(config: Config, ads: AdTable, trends: Trends) -> Steering:
  """How a run's lists are steered by its knobs, of all its ads; what is off is not computed."""
  search = config.search
  vector_ND = None
  if search.diversity:
    tokenizer = Tokenizer.load(os.path.join(config.workdir, "tokenizer"))
    vector_ND = unit(tokenizer.embed(ads))
  group_N = None
  if search.quota_share:
    lines_N = trends.seen_before(trends.bucket_of(np.array(trends.end)))
    group_N = group(search.quota_group, ads.account_N, lines_N)
  return Steering(search.diversity, vector_ND, search.quota_share, group_N)


def group(name: str, account_N: np.ndarray, lines_N: np.ndarray) -> np.ndarray:
  """Which ads are of a group of --quota_group, [N] bool."""
  if name == "small_accounts":
    return exposure.small_accounts(account_N, lines_N)
  if name == "tail_ads":
    return exposure.tail_ads(lines_N)
  return lines_N == 0  # new_ads


def unit(vector_ND: np.ndarray) -> np.ndarray:
  """Vectors at length 1; one of zeros stays as it is."""
  return vector_ND / np.maximum(np.linalg.norm(vector_ND, axis=1, keepdims=True), 1e-12)


def search(
  rank: Callable[[int, LeftOut | None], Ranking], steering: Steering, config: Config, k: int,
  requests: int, left_out: LeftOut | None = None,
) -> Ranking:  # fmt: skip
  """The k ads of each list, found and steered.

  Args:
    rank: (candidates, what the requests do without) -> the best candidates, [R, C].
    steering: how lists are steered.
    config: of the run.
    k: ads a request.
    requests: R.
    left_out: what they do without; None: nothing.
  """
  # Whoever steers needs some to choose from.
  candidates = max(k, config.search.rerank_candidates) if steering else k
  found = rank(candidates, left_out)
  if steering.share:
    places = int(np.floor(steering.share * k + _TINY))
    # Ads that are to differ are chosen from more than there are places.
    places = candidates if steering.diversity else max(places, 1)
    inside = (left_out or LeftOut.lists([()] * requests)).inside(steering.group_N)
    found = together(found, rank(places, inside))
  return steer(found, steering, k)


def together(found: Ranking, more: Ranking) -> Ranking:
  """The candidates of two searches, each ad once, best first; [R, C + M]."""
  columns = zip(vars(found).values(), vars(more).values(), strict=True)
  both = Ranking(*(np.concatenate(pair, axis=1) for pair in columns))
  once_RC = distinct(both.ad_RK) >= 0
  # Stable: of equal scores the first search's ad stands first, and what is not kept goes last.
  order_RC = np.argsort(-np.where(once_RC, both.score_RK, -np.inf), axis=1, kind="stable")
  return both.at(np.where(np.take_along_axis(once_RC, order_RC, axis=1), order_RC, -1))


def steer(found: Ranking, steering: Steering, k: int) -> Ranking:
  """The k ads of each list that a greedy pass chooses.

  Args:
    found: candidates, [R, C], best first.
    steering: how.
    k: ads a request.

  Returns:
    [R, k]. Scores, log p and values are those that the candidates came with, so scores need not
    descend. -1 where the candidates ran out.
  """
  if not steering:
    return Ranking(*(x[:, :k] for x in vars(found).values()))
  places = [
    _places(found.ad_RK[begin : begin + _ROWS], found.score_RK[begin : begin + _ROWS], steering, k)
    for begin in range(0, len(found.ad_RK), _ROWS)
  ]
  place_RK = np.concatenate(places) if places else np.zeros((0, k), np.int64)
  # Whoever has fewer candidates than places: the last column is padding then.
  return found.at(place_RK)


def _places(ad_RC: np.ndarray, score_RC: np.ndarray, steering: Steering, k: int) -> np.ndarray:
  """Which candidate takes each place, [R, k]; -1 where there is none left."""
  rows = np.arange(len(ad_RC))
  left_RC = ad_RC >= 0
  member_RC = np.zeros(ad_RC.shape, bool)
  if steering.share > 0:
    # Padding is of no group, whatever ad 0 is.
    member_RC = left_RC & steering.group_N[np.maximum(ad_RC, 0)]
  vector_RCD = None
  if steering.diversity > 0:
    # Gathered to the candidates, (N, D) -> (R, C, D). Padding takes ad 0, and is never chosen.
    vector_RCD = steering.vector_ND[np.maximum(ad_RC, 0)]
  # An ad that is unlike all above it loses nothing, and one of a negative cosine gains nothing.
  like_RC = np.zeros(ad_RC.shape, np.float32)
  placed_R = np.zeros(len(ad_RC), np.int64)
  chosen = []
  for place in range(1, k + 1):
    worth_RC = np.where(left_RC, score_RC - steering.diversity * like_RC, -np.inf)
    due_R = placed_R < np.floor(steering.share * place + _TINY)
    # Where the group is due and has a candidate left, only its candidates stand for the place.
    held_R = due_R & (left_RC & member_RC).any(axis=1)
    worth_RC = np.where(held_R[:, None] & ~member_RC, -np.inf, worth_RC)
    # Of equal ones the first, as the candidates stand.
    best_R = worth_RC.argmax(axis=1)
    some_R = left_RC[rows, best_R]
    chosen.append(np.where(some_R, best_R, -1))
    # A place that a member takes counts, whether it was due or not.
    placed_R += some_R & member_RC[rows, best_R]
    # A candidate stands once in a list.
    left_RC[rows, best_R] = False
    if vector_RCD is not None:
      # (R, C, D) · (R, D) -> (R, C): how like the ad that has just been placed is each candidate.
      cosine_RC = np.einsum("rcd,rd->rc", vector_RCD, vector_RCD[rows, best_R])
      # The greatest similarity to any ad above counts, as in MMR.
      like_RC = np.where(some_R[:, None], np.maximum(like_RC, cosine_RC), like_RC)
  return np.stack(chosen, axis=1)
