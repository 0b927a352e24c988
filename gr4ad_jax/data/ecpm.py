"""The money scale of a data set: equal-probability eCPM bins and the clip of a heavy tail."""

import dataclasses
import os

import numpy as np

from gr4ad_jax import files

# Money. The log of an expected value is that of what is at least as much: all of it is far below
# the smallest coin, so no order of ads that cost anything depends on it, and one that is worth
# nothing has a finite log.
LEAST_VALUE = 1e-6


@dataclasses.dataclass(frozen=True)
class EcpmBins:
  """Bins of the eCPM token (docs/design/method.md §3.1); bin b holds edges[b-1] < value <=
  edges[b].

  Attributes:
    edges: ascending inner edges, money; ties leave fewer than were asked for.
    means: mean clipped value of each bin, money; as many as were asked for, the last ones 0 where
      ties left no bin.
    clip: 99th percentile of the values, money.
  """

  edges: np.ndarray
  means: np.ndarray
  clip: float

  @classmethod
  def fit(cls, values: np.ndarray, bins: int) -> "EcpmBins":
    """Cuts the training values [L] so that every bin is as likely as the next."""
    # The inner edges alone, as the outer bins are open. Many equal values have several quantiles in
    # common, of which one edge stays.
    edges = np.unique(np.quantile(values, np.arange(1, bins) / bins)).astype(np.float32)
    clip = float(np.quantile(values, 0.99))
    # "left": a value that equals an edge is of the bin below it.
    which = np.searchsorted(edges, values.astype(np.float32), side="left")
    # Clipped, so that one huge sale does not make the mean of the last bin.
    total = np.bincount(which, np.minimum(values, clip), bins)
    # A bin that ties left empty has a sum of 0, and divides it by 1.
    means = total / np.maximum(np.bincount(which, minlength=bins), 1)
    return cls(edges, means.astype(np.float32), clip)

  def save(self, directory: str) -> None:
    """Writes `ecpm.json`."""
    content = {"edges": self.edges.tolist(), "means": self.means.tolist(), "clip": self.clip}
    files.write_json(os.path.join(directory, "ecpm.json"), content)

  @classmethod
  def load(cls, directory: str) -> "EcpmBins":
    """Reads what `save` wrote. Raises as `files.load_json` does."""
    edges, means, clip = files.load_fields(
      os.path.join(directory, "ecpm.json"), "edges", "means", "clip"
    )
    return cls(np.asarray(edges, np.float32), np.asarray(means, np.float32), clip)
