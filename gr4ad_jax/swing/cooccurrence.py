"""Vectors of ads from what stands near what in the users' histories."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse
import scipy.sparse.linalg


def directed_counts(
  user_L: np.ndarray, ad_L: np.ndarray, num_ads: int, window: int, decay: float = 1.0
):
  """How often an ad follows another one within `window` lines of a user, a distance d weighing
  decay^(d - 1).

  Args:
    user_L: user of each line; a user's lines stand together, in order of time.
    ad_L: ad row of each line.
    num_ads: N.
    window: largest distance in lines.
    decay: weight of a distance against the one before it.

  Returns:
    [N, N] CSR matrix, row: the ad that came first. The diagonal is 0.
  """
  total = scipy.sparse.csr_matrix((num_ads, num_ads), dtype=np.float32)
  for distance in range(1, window + 1):
    # Lines of one user stand together, so `distance` lines further on may be another user's.
    same = user_L[distance:] == user_L[:-distance]
    if not same.any():
      break
    first = ad_L[:-distance][same]
    second = ad_L[distance:][same]
    weight = np.full(len(first), decay ** (distance - 1), np.float32)
    total = total + scipy.sparse.csr_matrix((weight, (first, second)), total.shape)
  # An ad that follows itself says nothing of others.
  total.setdiag(0)
  total.eliminate_zeros()
  return total.tocsr()


def ppmi_vectors(
  user_L: np.ndarray,
  ad_L: np.ndarray,
  num_ads: int,
  width: int,
  window: int = 50,
  decay: float = 0.9,
) -> np.ndarray:
  """Singular vectors of positive pointwise mutual information; Levy and Goldberg, NeurIPS 2014,
  with √ of the values.

  Args:
    user_L: as `directed_counts` takes it.
    ad_L: likewise.
    num_ads: N.
    width: of the vectors, below N.
    window: largest distance of a pair, in lines.
    decay: weight of a distance against the one before it.

  Returns:
    [N, width] float32, of root mean square 1 / √width over the ads that have a neighbour; 0 for the
    others.
  """
  counts = directed_counts(user_L, ad_L, num_ads, window, decay)
  # Both directions count: nearness has none.
  counts = (counts + counts.T).tocoo()
  mass_N = np.asarray(counts.sum(axis=1)).ravel()
  # Shares of the contexts, smoothed so that rare ones do not rule.
  share = np.maximum(mass_N**0.75, 1e-9)
  share /= share.sum()
  information = np.log(counts.data / (mass_N[counts.row] * share[counts.col]))
  positive = scipy.sparse.csr_matrix(
    (np.maximum(information, 0), (counts.row, counts.col)), counts.shape, dtype=np.float64
  )
  out = np.zeros((num_ads, width), np.float32)
  # No ad says anything of another, and the solver takes no matrix of zeros.
  if not positive.data.any():
    return out
  width_found = min(width, num_ads - 1)
  # A fixed start, for the same vectors every time.
  start = np.random.default_rng(0).normal(size=num_ads)
  left, values, _ = scipy.sparse.linalg.svds(positive, width_found, v0=start)
  # Strongest first; the solver gives them in ascending order.
  order = np.argsort(-values)
  vectors = left[:, order] * np.sqrt(values[order])
  # Ads that were never taken are zeros, and must not shrink the scale.
  scale = np.sqrt(np.square(vectors[mass_N > 0]).mean())
  out[:, :width_found] = vectors / scale / np.sqrt(width)
  return out


def joined(taken_NE: np.ndarray, content_ND: np.ndarray, width: int) -> np.ndarray:
  """Vectors that keep what two kinds of vectors say, both of length 1 in the root mean square:
  principal components.

  Args:
    taken_NE: of co-occurrence.
    content_ND: of content; their mean is taken off.
    width: of the result.

  Returns:
    [N, width] float32, of length 1 in the root mean square; columns beyond those of the two kinds
    are 0.
  """
  kinds = taken_NE, content_ND - content_ND.mean(axis=0)
  # Each kind gets the same weight, however many numbers it has.
  both = [x / np.sqrt(np.square(x).sum(axis=1).mean() + 1e-12) for x in kinds]
  left, values, _ = np.linalg.svd(np.concatenate(both, axis=1), full_matrices=False)
  found = left[:, :width] * values[:width]
  out = np.zeros((len(found), width), np.float32)
  out[:, : found.shape[1]] = found / np.sqrt(np.square(found).sum(axis=1).mean())
  return out


def ridge(x_ND: np.ndarray, y_NE: np.ndarray, penalty: float = 1.0) -> np.ndarray:
  """The linear map of least squared error from x to y, with a penalty on its squared entries:
  [D, E] float32.
  """
  square = x_ND.T.astype(np.float64) @ x_ND + penalty * np.eye(x_ND.shape[1])
  return np.linalg.solve(square, x_ND.T.astype(np.float64) @ y_NE).astype(np.float32)


def code_means(
  vectors_ND: np.ndarray, codes_NT: np.ndarray, codebooks: Sequence[int]
) -> list[np.ndarray]:
  """What each code of a level stands for: the mean vector of its ads, less those of the levels
  before.

  Args:
    vectors_ND: of the ads.
    codes_NT: their UA-SIDs.
    codebooks: codes a level, V.

  Returns:
    An array [V, D] float32 a level; 0 for a code that no ad has.
  """
  means = []
  rest_ND = vectors_ND
  for level, size in enumerate(codebooks):
    code_N = codes_NT[:, level]
    # A matrix that sums ads by code: (V, N) @ (N, D) -> (V, D).
    ads_of_VN = scipy.sparse.csr_matrix(
      (np.ones(len(code_N), np.float32), (code_N, np.arange(len(code_N)))), (size, len(code_N))
    )
    mean_VD = (ads_of_VN @ rest_ND) / np.maximum(np.bincount(code_N, minlength=size), 1)[
      :, None
    ].astype(np.float32)
    means.append(mean_VD)
    # What the level did not explain is left for the next one.
    rest_ND = rest_ND - mean_VD[code_N]
  return means
