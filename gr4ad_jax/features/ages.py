"""How old ads are at a moment, by when they were created (--ad_age).

`trends` knows an ad from its first sale on. This is known before, from the ad table or from the
request that brought the ad.
"""

import numpy as np

from gr4ad_jax.data.schema import DAY

FEATURES = ("ad_age",)
UNKNOWN = -1.0  # below every age, and so apart from an ad that is new


def log_ages(created_N: np.ndarray, time_B: np.ndarray, ad_BC: np.ndarray) -> np.ndarray:
  """log(1 + days) since ads were created, at request time.

  Args:
    created_N: unix seconds of each ad, -1 where unknown.
    time_B: unix seconds of the requests.
    ad_BC: rows of the ad table. Those from N on are not known.

  Returns:
    [B, C] float32. `UNKNOWN` where the date is not known; 0 for an ad that came after the
    moment, as for one of the moment.
  """
  known_BC = ad_BC < len(created_N)
  # Row 0 stands in for what is past the end, so that the gather is in range; the mask drops it.
  created_BC = np.where(known_BC, created_N[np.where(known_BC, ad_BC, 0)], -1)
  # (B, 1) - (B, C) -> (B, C), in whole seconds: float32 could not tell moments of one hour apart.
  age_BC = np.maximum(time_B[:, None] - created_BC, 0) / DAY
  return np.where(created_BC >= 0, np.log1p(age_BC), UNKNOWN).astype(np.float32)
