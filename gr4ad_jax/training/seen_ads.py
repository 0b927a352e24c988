"""What becomes of ads that the user took before: left in the lists, masked, or under a learned
bias.
"""

import numpy as np

from gr4ad_jax.config import Config
from gr4ad_jax.data.history import Lines
from gr4ad_jax.decoding.ranker import Ranking
from gr4ad_jax.models.zoo import registry


def treatment(config: Config) -> str:
  """'masked', 'biased' or 'left', as a table of results says it."""
  biased = config.model.history_bias and "history_bias" not in registry.unread(config)
  return "biased" if config.search.seen_ads == "left" and biased else config.search.seen_ads


def most(lines: Lines, requests: np.ndarray) -> int:
  """The most lines that a user of `requests` has before it: no list can lose more ads."""
  return int(_known(lines, requests).max(initial=0))


def mask(lines: Lines, requests: np.ndarray, found: Ranking, k: int) -> Ranking:
  """The best k ads that the user has not taken before, in any line of the log before the request.

  Args:
    lines: of the log.
    requests: [R] request numbers.
    found: their lists, [R, K].
    k: ads a request, at most K.

  Returns:
    [R, k]; where a list has run out -1, and -inf of log p and score, 0 of value.
  """
  known_R = _known(lines, requests)
  row_L = np.repeat(np.arange(len(requests)), known_R)
  line_L = np.arange(len(row_L)) + np.repeat(
    lines.user_first[requests] - np.cumsum(known_R) + known_R, known_R
  )
  return without(found, row_L, lines.ad[line_L], k)


def without(found: Ranking, row_L: np.ndarray, ad_L: np.ndarray, k: int) -> Ranking:
  """The best k ads of each list but some.

  Args:
    found: lists, [R, K].
    row_L: list of each ad that is to go.
    ad_L: row of the ad table of each.
    k: ads a list, at most K.

  Returns:
    [R, k]; where a list has run out -1, and -inf of log p and score, 0 of value.
  """
  # A pair of row and ad as one number.
  ads = 1 + max(int(found.ad_RK.max(initial=0)), int(ad_L.max(initial=0)))
  taken_RK = np.isin(
    np.arange(len(found.ad_RK))[:, None] * ads + found.ad_RK, row_L.astype(np.int64) * ads + ad_L
  )
  gone_RK = taken_RK | (found.ad_RK < 0)
  first_RK = np.argsort(gone_RK, axis=1, kind="stable")[:, :k]
  nothing = Ranking(-1, -np.inf, 0, -np.inf)
  kept = {
    name: np.take_along_axis(np.where(gone_RK, empty, getattr(found, name)), first_RK, axis=1)
    for name, empty in vars(nothing).items()
  }
  return Ranking(**kept | {"ad_RK": kept["ad_RK"].astype(np.int32)})


def _known(lines: Lines, requests: np.ndarray) -> np.ndarray:
  """Lines before each request, of its user: [R]."""
  return lines.request_first[requests] - lines.user_first[requests]
