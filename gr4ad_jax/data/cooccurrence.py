"""Vectors of ads from what stands near what in the users' histories."""

import numpy as np
import scipy.sparse
import scipy.sparse.linalg


def directed_counts(user_L: np.ndarray, ad_L: np.ndarray, num_ads: int, window: int, decay: float = 1.0):
  """How often an ad follows another one within `window` lines of a user, a distance d weighing decay^(d - 1).

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
    same = user_L[distance:] == user_L[:-distance]
    if not same.any():
      break
    first, second = ad_L[:-distance][same], ad_L[distance:][same]
    weight = np.full(len(first), decay ** (distance - 1), np.float32)
    total = total + scipy.sparse.csr_matrix((weight, (first, second)), total.shape)
  total.setdiag(0)
  total.eliminate_zeros()
  return total.tocsr()


def ppmi_vectors(
  user_L: np.ndarray, ad_L: np.ndarray, num_ads: int, width: int, window: int = 50, decay: float = 0.9
) -> np.ndarray:
  """Singular vectors of positive pointwise mutual information; Levy and Goldberg, NeurIPS 2014, with √ of the values.

  Args:
    user_L: as `directed_counts` takes it.
    ad_L: likewise.
    num_ads: N.
    width: of the vectors, below N.
    window: largest distance of a pair, in lines.
    decay: weight of a distance against the one before it.

  Returns:
    [N, width] float32, of root mean square 1 / √width over the ads that have a neighbour; 0 for the others.
  """
  counts = directed_counts(user_L, ad_L, num_ads, window, decay)
  counts = (counts + counts.T).tocoo()
  mass_N = np.asarray(counts.sum(axis=1)).ravel()
  share = np.maximum(mass_N**0.75, 1e-9)  # of a context: smoothed, so that rare ones do not rule
  share /= share.sum()
  information = np.log(counts.data / (mass_N[counts.row] * share[counts.col]))
  positive = scipy.sparse.csr_matrix(
    (np.maximum(information, 0), (counts.row, counts.col)), counts.shape, dtype=np.float64
  )
  width_found = min(width, num_ads - 1)
  start = np.random.default_rng(0).normal(size=num_ads)  # fixed: the same vectors every time
  left, values, _ = scipy.sparse.linalg.svds(positive, width_found, v0=start)
  order = np.argsort(-values)
  vectors = left[:, order] * np.sqrt(values[order])
  scale = np.sqrt(np.square(vectors[mass_N > 0]).mean()) if (mass_N > 0).any() else 1.0
  out = np.zeros((num_ads, width), np.float32)
  out[:, :width_found] = vectors / max(scale, 1e-9) / np.sqrt(width)
  return out
