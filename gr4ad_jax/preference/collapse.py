"""The collapse guard: a policy that learns from its own lists must stay diverse.

Source: docs/design/method.md §3.2.
"""

import logging
import os

import numpy as np

from gr4ad_jax import files
from gr4ad_jax.config import PreferenceConfig
from gr4ad_jax.evaluation import metrics

# As many ads as a list shows; deeper ones would count ads that nobody sees.
COVERAGE_AT = 10
_log = logging.getLogger(__name__)


def diversity(ad_RK: np.ndarray, logp_RK: np.ndarray, num_ads: int) -> dict[str, float]:
  """How widely a policy spreads over a sample of requests.

  Args:
    ad_RK: its ranked ads, -1 in padding.
    logp_RK: their log-probabilities, -inf in padding.
    num_ads: rows of the ad table.

  Returns:
    `entropy`: of a list, nats (`metrics.list_entropy`); `coverage@10`: share of the ads that stand
      in a list of 10.
  """
  shown = ad_RK[:, :COVERAGE_AT]
  coverage = len(np.unique(shown[shown >= 0])) / num_ads
  return {"entropy": metrics.list_entropy(logp_RK), f"coverage@{COVERAGE_AT}": coverage}


class CollapseGuard:
  """Compares a policy's diversity with that of the start, on samples of one kind.

  Args:
    config: the shares of the start's entropy and coverage below which there is an alarm.
    path: .json file that keeps the start, so that a resumed run knows it.
  """

  def __init__(self, config: PreferenceConfig, path: str):
    self._floor = {
      "entropy": config.collapse_entropy,
      f"coverage@{COVERAGE_AT}": config.collapse_coverage,
    }
    self._path = path
    # A run that goes on compares with its own first round, not with the one in which it was
    # stopped.
    self.start: dict[str, float] | None = None
    if os.path.exists(path):
      self.start = files.load_json(path)

  def check(self, step: int, found: dict[str, float], requests: int) -> list[str]:
    """Measures that fell too far, each told in the log; the first call sets the start.

    Args:
      step: of the policy.
      found: of `diversity`.
      requests: in the sample. One that is smaller than the start's covers less by itself, so its
        coverage is let pass.
    """
    if self.start is None:
      self.start = {name: found[name] for name in self._floor} | {"requests": requests}
      files.write_json(self._path, self.start)
    # Coverage grows with the number of requests, so a smaller sample would look like a collapse.
    # The entropy is a mean, and compares at any size.
    compared = [
      name for name in self._floor if name == "entropy" or requests >= self.start.get("requests", 0)
    ]
    fallen = [name for name in compared if found[name] < self._floor[name] * self.start[name]]
    for name in fallen:
      _log.warning(
        "collapse: at step %d the policy's %s is %.4f, below %g of the start's %.4f; lower "
        "--preference_weight or --learning_rate, or refresh the reference less often "
        "(--refresh_steps)",
        step,
        name,
        found[name],
        self._floor[name],
        self.start[name],
      )
    return fallen
