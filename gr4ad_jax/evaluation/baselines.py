"""Seven rankers without gradient training: what any model has to beat.

All are fitted on the same history: the lines (user, visit, ad) of all users in the splits before
the one that is predicted. That is train for valid, and train and valid for test. An ad bought
before may be recommended again, unless the requests do without it. Wherever scores tie, and for
users without a history, popularity decides, then the ad's row.
"""

import functools
from collections.abc import Sequence

import numpy as np
import scipy.linalg
import scipy.sparse

from gr4ad_jax.data import schema
from gr4ad_jax.evaluation import protocols
from gr4ad_jax.index.left_out import LeftOut
from gr4ad_jax.retrieval.best import top_k
from gr4ad_jax.swing import cooccurrence

NAMES = (
  "popularity",
  "personal_frequency",
  "personal_recency",
  "personal_revenue_recency",
  "ease",
  "ease_plus_recency",
  "directed_neighbors",
)
# How many lines are looked back and ahead; the weight of a distance over the one before it; the
# weight of a line over the line after it.
NEIGHBOR_WINDOW = 50
NEIGHBOR_DECAY = 0.9
NEIGHBOR_RECENCY = 0.8
DECAY = 0.9  # weight of a visit over the visit after it
EASE_PENALTY = 200.0
EASE_RECENCY = 0.2  # weight of personal recency beside EASE's score
EASE_MAX_ADS = 20_000  # N^2 floats twice, N^3 multiplications
CHUNK_CELLS = 8_000_000  # scores held in memory at a time


class TooManyAdsError(ValueError):
  """The catalogue is too large for a method whose time grows with its cube."""


class Baselines:
  """The seven baselines, fitted on what is known before `requests`.

  Inside, an ad is known by its popularity rank (0: most lines), so that column order breaks ties.

  Attributes:
    popularity_N: lines of each ad in the history.
  """

  def __init__(self, dataset: schema.Dataset, requests: protocols.EvalRequests):
    """Reads the history's lines. Raises ValueError where requests are of the train split."""
    events = dataset.events
    num_ads = len(dataset.ads)
    seen_E = protocols.history_events(dataset, requests.split)
    line, self._value = protocols.lines(
      events.request[seen_E], events.ad[seen_E], events.value[seen_E], num_ads
    )
    visit, first, visit_of_line = np.unique(line[:, 0], return_index=True, return_inverse=True)
    # A visit is of one user, so its first event tells whose it is.
    user_of_visit = events.user[np.searchsorted(events.request, visit)]
    last_visit = np.zeros(len(events.user_id), np.int64)
    # A user's visits are numbered without a gap, so a difference of numbers is "visits ago".
    np.maximum.at(last_visit, user_of_visit, np.arange(len(visit)))
    self._user = user_of_visit[visit_of_line]
    self._decay = DECAY ** (last_visit[self._user] - visit_of_line)
    self.popularity_N = np.bincount(line[:, 1], minlength=num_ads)
    # Stable: ads of one popularity stay in the order of their rows.
    self._ad_of_column = np.argsort(-self.popularity_N, kind="stable").astype(np.int32)
    # The inverse of the permutation: the column of each ad's row.
    self._column_of_ad = np.empty(num_ads, np.int64)
    self._column_of_ad[self._ad_of_column] = np.arange(num_ads)
    self._column = self._column_of_ad[line[:, 1]]
    self._shape = (len(events.user_id), num_ads)
    self._requests = requests

  def rank(self, name: str, k: int, left_out: LeftOut | None = None) -> np.ndarray:
    """Top k ads of each request by one of NAMES.

    Args:
      name: of the method.
      k: ads a request.
      left_out: named ads that the R requests do without.

    Returns:
      [R, k] int32 ad rows, -1 where no ad is left.

    Raises:
      ValueError: an unknown name.
      TooManyAdsError: EASE on a catalogue above EASE_MAX_ADS.
    """
    if name not in NAMES:
      raise ValueError(f"baseline {name!r} is unknown; allowed: {', '.join(NAMES)}")
    scores_of = getattr(self, name)
    user_R = self._requests.user
    num_ads = self._shape[1]
    rankings_RK = np.full((len(user_R), k), -1, np.int32)
    step = max(1, CHUNK_CELLS // num_ads)  # requests whose [C, N] scores are held at once
    for begin in range(0, len(user_R), step):
      scores_CN = scores_of(user_R[begin : begin + step])
      if left_out:
        rows = np.arange(begin, min(begin + step, len(user_R)))
        scores_CN = self._without(scores_CN, left_out.take(rows))
      column_CK = top_k(scores_CN, min(k, num_ads))
      # What is left out fills the list's end where nothing else is there: it becomes -1.
      there_CK = np.take_along_axis(scores_CN, column_CK, axis=1) > -np.inf
      found_CK = np.where(there_CK, self._ad_of_column[column_CK], -1)
      rankings_RK[begin : begin + step, : min(k, num_ads)] = found_CK
    return rankings_RK

  def _without(self, scores_CN: np.ndarray, left_out: LeftOut) -> np.ndarray:
    """The scores, -inf of ads that a request does without."""
    scores_CN = scores_CN.astype(np.float64)  # a copy, which has -inf
    # Columns are in order of popularity, so rows of ads are looked up first.
    scores_CN[left_out.request_E, self._column_of_ad[left_out.row_E]] = -np.inf
    return scores_CN

  def popularity(self, user_C: np.ndarray) -> np.ndarray:
    """Lines of the ad in everyone's history.

    It is [C, N] for C users, like every score below, with columns by popularity rank.
    """
    # A view: every user has the same row, and no memory is taken for the others.
    return np.broadcast_to(self.popularity_N[self._ad_of_column], (len(user_C), self._shape[1]))

  def personal_frequency(self, user_C: np.ndarray) -> np.ndarray:
    """Visits in which the user bought the ad."""
    return self._count_UN[user_C].toarray()

  def personal_recency(self, user_C: np.ndarray) -> np.ndarray:
    """Sum of 0.9^(visits ago) over the user's lines of the ad. The last known visit is 0 ago."""
    return self._recency_UN[user_C].toarray()

  def personal_revenue_recency(self, user_C: np.ndarray) -> np.ndarray:
    """Sum of value * 0.9^(visits ago). Values count up to the 99th percentile of the history's."""
    return self._revenue_UN[user_C].toarray()

  def ease(self, user_C: np.ndarray) -> np.ndarray:
    """EASE (`ease_weights`) on binary rows of users, fitted on the whole history and applied to it.

    The penalty is `EASE_PENALTY`.
    """
    return self._binary_UN[user_C] @ self._ease_weights_NN

  def ease_plus_recency(self, user_C: np.ndarray) -> np.ndarray:
    """EASE's raw score + 0.2 * personal recency, neither normalised."""
    return self.ease(user_C) + EASE_RECENCY * self.personal_recency(user_C)

  def directed_neighbors(self, user_C: np.ndarray) -> np.ndarray:
    """What followed the user's last 50 lines within 50 lines, in anyone's history.

    What followed sooner counts more, and so do the user's later lines.
    """
    # (C, N) of the user's lines times (N, N) of what follows each: a sum over the user's lines.
    return (self._late_UN[user_C] @ self._following_NN).toarray()

  # What several methods share is made when it is first asked for, once.

  @functools.cached_property
  def _following_NN(self):
    return cooccurrence.directed_counts(
      self._user, self._column, self._shape[1], NEIGHBOR_WINDOW, NEIGHBOR_DECAY
    )

  @functools.cached_property
  def _late_UN(self):
    """The user's last lines, weighted by how many lines of the user came after."""
    end = np.searchsorted(self._user, self._user, side="right")  # a user's lines stand together
    age = end - 1 - np.arange(len(end))
    # `where` computes both sides: the minimum keeps powers of long histories from underflow.
    return self._matrix(
      np.where(age < NEIGHBOR_WINDOW, NEIGHBOR_RECENCY ** np.minimum(age, NEIGHBOR_WINDOW), 0)
    )

  @functools.cached_property
  def _count_UN(self):
    return self._matrix(np.ones(len(self._user)))

  @functools.cached_property
  def _binary_UN(self):
    return (self._count_UN > 0).astype(np.float32)

  @functools.cached_property
  def _recency_UN(self):
    return self._matrix(self._decay)

  @functools.cached_property
  def _revenue_UN(self):
    return self._matrix(
      self._decay * np.minimum(self._value, np.percentile(self._value, protocols.VALUE_PERCENTILE))
    )

  @functools.cached_property
  def _ease_weights_NN(self):
    return ease_weights(self._binary_UN, EASE_PENALTY)

  def _matrix(self, weight: np.ndarray) -> scipy.sparse.csr_matrix:
    """[U, N] of a weight a line. Those of one user and ad are added up."""
    # Cells that come several times are added up by SciPy.
    return scipy.sparse.csr_matrix((weight, (self._user, self._column)), self._shape)


def rank_all(
  fitted: Baselines, k: int, names: Sequence[str] = NAMES, left_out: LeftOut | None = None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Ranks with each of `names`.

  Args:
    fitted: the methods.
    k: ads a request.
    names: of the methods that are wanted.
    left_out: ads that the requests do without.

  Returns:
    Two dicts: name -> [R, k] int32 ad rows, -1 padding; and name -> reason, for those that the
    catalogue's size rules out.

  Raises:
    ValueError: an unknown name.
  """
  rankings = {}
  skipped = {}
  for name in names:
    try:
      rankings[name] = fitted.rank(name, k, left_out)
    except TooManyAdsError as reason:
      skipped[name] = str(reason)
  return rankings, skipped


def ease_weights(binary_UN: scipy.sparse.csr_matrix, penalty: float) -> np.ndarray:
  """EASE's weights of ads by ads, in closed form.

  They are those of Steck, "Embarrassingly Shallow Autoencoders", 2019, equation 8: with
  P = (XᵀX + λ)⁻¹, B_ij = -P_ij / P_jj, and 0 on the diagonal.

  Args:
    binary_UN: which user has which ad.
    penalty: L2 penalty, above 0.

  Returns:
    [N, N] float32 with a zero diagonal. Scores are binary_UN @ weights.

  Raises:
    TooManyAdsError: N above EASE_MAX_ADS.
    ValueError: a penalty that leaves the matrix singular.
  """
  num_ads = binary_UN.shape[1]
  if num_ads > EASE_MAX_ADS:
    raise TooManyAdsError(
      f"EASE inverts a matrix of ads by ads: {num_ads:,} ads are above its limit, {EASE_MAX_ADS:,}"
    )
  # LAPACK by hand, in place: N² floats are much here, and `np.linalg.inv` would hold several. It
  # takes columns first, hence order F. The matrix is positive definite, so Cholesky does.
  gram_NN = (binary_UN.T @ binary_UN).toarray(order="F").astype(np.float32, copy=False)
  # The penalty on the diagonal makes the matrix positive definite, whatever the log is.
  gram_NN[np.diag_indices(num_ads)] += penalty
  factor_NN, failed = scipy.linalg.lapack.spotrf(gram_NN, lower=0, overwrite_a=True)
  if failed:
    raise ValueError(
      f"EASE's matrix is not positive definite at penalty {penalty}; it must be above 0"
    )
  inverse_NN, _ = scipy.linalg.lapack.spotri(factor_NN, lower=0, overwrite_c=True)
  # Only the upper triangle was written: it is mirrored.
  inverse_NN = np.triu(inverse_NN)
  inverse_NN += np.triu(inverse_NN, 1).T
  # (N, N) / (N,): column j by -P_jj. A copy, as the diagonal changes while it is divided by.
  inverse_NN /= -np.diag(inverse_NN).copy()
  inverse_NN[np.diag_indices(num_ads)] = 0.0
  return inverse_NN
