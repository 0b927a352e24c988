"""A memory of what was taken after what: the share of each ad among all that followed the ads of a
history.

Directed co-occurrence of nearby lines is a strong recommender where histories are short
(docs/design/evaluation.md, Amazon Beauty), and it knows pairs that a model of 64 dimensions has
smoothed away.
"""

import itertools

import numpy as np
import scipy.sparse

from gr4ad_jax.swing.cooccurrence import directed_counts

WINDOW = 10  # lines after an ad that count
DECAY = 0.8  # weight of a distance against the one before it
RECENCY = 0.7  # weight of an ad of the history against the one after it
DAMPING = 0.5  # exponent of an ad's own count: what often stands in histories says less


class Followers:
  """What followed each ad.

  Args:
    user_L: user of each line; a user's lines stand together, in order of time.
    ad_L: ad row of each line.
    num_ads: N.
  """

  def __init__(self, user_L: np.ndarray, ad_L: np.ndarray, num_ads: int):
    counts_NN = directed_counts(user_L, ad_L, num_ads, WINDOW, DECAY)
    # Rows are damped by how much followed an ad at all. The floor keeps 0 from a negative power.
    total_N = np.asarray(counts_NN.sum(axis=1)).ravel()
    self._after_NN = (scipy.sparse.diags(np.maximum(total_N, 1e-9) ** -DAMPING) @ counts_NN).tocsr()

  def share(self, history_BS: np.ndarray, ads_BK: np.ndarray, repeats: bool = True) -> np.ndarray:
    """Of all that followed the ads of a history, near ones counting more: how much each ad is.

    Args:
      history_BS: distinct ad rows, oldest first; -1 in padding, which stands at the end.
      ads_BK: ad rows, -1 is padding.
      repeats: whether ads of the history are counted; without, they have a share of 0.

    Returns:
      [B, K] float32, 0 for padding, and in rows where nothing followed.
    """
    mass_BN = self._mass(history_BS, repeats)
    # (B, K) ads as B·K places of a sparse matrix: it is read there, and never made dense.
    row = np.repeat(np.arange(len(ads_BK)), ads_BK.shape[1])
    found_BK = np.asarray(mass_BN[row, np.maximum(ads_BK, 0).ravel()]).reshape(ads_BK.shape)
    share_BK = found_BK / np.maximum(np.asarray(mass_BN.sum(axis=1)).reshape(-1, 1), 1e-9)
    return np.where(ads_BK >= 0, share_BK, 0).astype(np.float32)

  def best(self, history_BS: np.ndarray, k: int, repeats: bool = True) -> np.ndarray:
    """The ads of the largest `share`, [B, k] int32, best first; -1 where fewer have followed."""
    mass_BN = self._mass(history_BS, repeats)
    found_BK = np.full((len(history_BS), k), -1, np.int32)
    for row, (begin, end) in enumerate(itertools.pairwise(mass_BN.indptr)):
      mass = mass_BN.data[begin:end]
      ads = mass_BN.indices[begin:end]
      # Equal masses go by the lower ad, so that the order does not depend on the sparse layout.
      order = np.lexsort((ads, -mass))[:k]
      found_BK[row, : len(order)] = ads[order]
    return found_BK

  def _mass(self, history_BS: np.ndarray, repeats: bool) -> scipy.sparse.csr_matrix:
    """What followed the ads of each history, by weight: [B, N], entries above 0."""
    real_BS = history_BS >= 0
    # The last real slot has age 0: slots are oldest first, and padding stands behind them.
    age_BS = real_BS.sum(axis=1, keepdims=True) - 1 - np.arange(history_BS.shape[1])
    row = np.nonzero(real_BS)[0]
    column = history_BS[real_BS]
    shape = len(history_BS), self._after_NN.shape[0]
    late_BN = scipy.sparse.csr_matrix(
      (RECENCY ** age_BS[real_BS].astype(np.float32), (row, column)), shape
    )
    mass_BN = (late_BN @ self._after_NN).tocsr()
    if not repeats:
      # `multiply` leaves the mass of the history's own ads, which is then taken away.
      mass_BN = mass_BN - mass_BN.multiply(late_BN > 0)
      # The difference stores zeros, which `best` would list as ads that followed.
      mass_BN.eliminate_zeros()
    return mass_BN
