"""Lists by parameters that change, over ads that come and go."""

from typing import Any

import jax
import numpy as np

from gr4ad_jax.config import SearchConfig
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.decoding.searcher import Searcher, TrieFeed
from gr4ad_jax.features.batches import RequestBatch
from gr4ad_jax.index.live_index import LiveIndex
from gr4ad_jax.models.gr4ad import GR4AD


class Lists:
  """Searches as a server does, one shape of batch at a time.

  Args:
    model: the module.
    ecpm: bins of the eCPM.
    search: beams and order.
    index: of the ads that may be recommended.
  """

  def __init__(self, model: GR4AD, ecpm: EcpmBins, search: SearchConfig, index: LiveIndex):
    self._searcher = Searcher(model, ecpm, search)
    self._beams = search.beams
    self._index = index
    self._feed = TrieFeed(index)

  def rank(self, params: Any, batch: RequestBatch, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best k ads of each request of a batch.

    Returns:
      [B, k] rows, -1 where they run out, and [B, k] log p, -inf there.
    """
    variables = self._searcher.variables(params)
    trie = self._feed.trie()
    beams = jax.device_get(self._searcher.compiled_on_demand(variables, batch, trie, self._beams))
    # Ads of a UA-SID may have changed since the trie was made. The index decides, as in a server.
    row_BK, beam_BK = self._index.expand(beams.codes_BWT, beams.leaf_BW >= 0, k)
    # Padding has beam -1; the maximum keeps the gather in range, and the next line masks it.
    logp_BK = np.take_along_axis(beams.logp_BW, np.maximum(beam_BK, 0), axis=1)
    return row_BK, np.where(row_BK >= 0, logp_BK, -np.inf)
