"""Answers requests by the exported search in this folder: pip install jax numpy flatbuffers.

python load.py answers example.npz, and compares with the list that was exported.
README.md says what lies here, spec.json what the arrays of a request are.
"""

import json
import pathlib
import sys

import jax
import numpy as np
from jax import export


class Model:
  """The search of a folder."""

  def __init__(self, folder):
    folder = pathlib.Path(folder)
    self.spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    search = export.deserialize(bytearray((folder / "search.stablehlo").read_bytes()))
    self._search = jax.jit(search.call)  # compiled once a number of requests
    self._weights = jax.device_put(dict(np.load(folder / "weights.npz")))
    index = dict(np.load(folder / "index.npz"))
    self._first = index.pop("leaf_start")
    self._ads = index.pop("leaf_ads")
    self._codes = index.pop("codes")
    self._trie = jax.device_put(index)

  def recommend(self, requests, k=10):
    """The best k ads of each request: (ad_id, log_p, score, ecpm), fewer where beams run out."""
    batch = {n: np.asarray(requests[n], about["dtype"]) for n, about in self.spec["inputs"].items()}
    # UA-SIDs of slots follow from their ads; padding takes ad 0, and its slot kind masks it.
    batch["slot_codes"] = self._codes[np.maximum(batch["slot_ad"], 0)]
    beams = jax.device_get(self._search(self._weights, batch, self._trie))
    columns = (beams[n] for n in ("leaf", "log_p", "score", "ecpm"))
    return [self._list(zip(*row, strict=True), k) for row in zip(*columns, strict=True)]

  def _list(self, beams, k):
    found = []
    # Ads of one UA-SID share its numbers. Beams come best first, and so do the ads.
    for leaf, *numbers in beams:
      ads = self._ads[self._first[leaf] : self._first[leaf + 1]] if leaf >= 0 else ()
      found += [(self.spec["ads"][ad], *map(float, numbers)) for ad in ads]
    return found[:k]


if __name__ == "__main__":
  here = pathlib.Path(__file__).parent
  example = dict(np.load(here / "example.npz"))
  try:
    model = Model(here)
  except ImportError as error:
    # jax.export reads by flatbuffers, which jax does not bring along.
    sys.exit(f"error: {error}")
  lists = model.recommend(example, k=example["score"].shape[1])
  if [[ad[0] for ad in one] for one in lists] != example["ad_id"].tolist():
    raise SystemExit("other ads than were exported")
  np.testing.assert_allclose([[ad[2] for ad in one] for one in lists], example["score"], 1e-5, 1e-5)
  sys.stdout.write("".join(f"{ad}  {log_p:.4f}\n" for ad, log_p, *_ in lists[0]))
