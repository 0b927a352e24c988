"""The best of each row of scores, in NumPy."""

import numpy as np


def top_k(scores_CN: np.ndarray, k: int) -> np.ndarray:
  """Columns of the k largest scores of each row, largest first.

  Of equal scores the lower column stands first.

  Args:
    scores_CN: scores. None is NaN.
    k: 1 to N.

  Returns:
    [C, k] int64.
  """
  num_ads = scores_CN.shape[1]
  # By the k-th largest score, in time of N. A sort of all would take N log N.
  threshold_C1 = np.partition(scores_CN, num_ads - k, axis=1)[:, num_ads - k, None]
  above_CN = scores_CN > threshold_C1
  tied_CN = scores_CN == threshold_C1
  room_C1 = k - above_CN.sum(axis=1, keepdims=True)
  # Of the tied columns the first `room` ones: so each row chooses k, and the flat list of columns
  # is a rectangle. It ascends, so the stable sort keeps ties by column.
  chosen_CN = above_CN | (tied_CN & (np.cumsum(tied_CN, axis=1) <= room_C1))
  column_CK = np.nonzero(chosen_CN)[1].reshape(-1, k)
  order_CK = np.argsort(-np.take_along_axis(scores_CN, column_CK, axis=1), axis=1, kind="stable")
  return np.take_along_axis(column_CK, order_CK, axis=1)
