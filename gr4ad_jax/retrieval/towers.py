"""The unseen ads that two towers put first for a request, for the neighbours' slots of its context.

A *tower* turns a user, or an ad, into a vector of length 1; the larger the inner product of two
vectors, the likelier the user takes the ad (Yi et al., "Sampling-Bias-Corrected Neural Modeling for
Large Corpus Item Recommendations", RecSys 2019). Here is the forward of `zoo/two_tower.py` in
NumPy: contexts are made on the host, in threads and in processes that hold no device.
"""

import dataclasses
import os

import numpy as np

from gr4ad_jax import files
from gr4ad_jax.retrieval.best import top_k

FILE = "retriever.npz"
_CHUNK = 256  # requests whose scores [B, N] are held at once
_WEIGHTS = (
  "user_in", "user_in_bias", "slot_in", "slot_in_bias", "slot_kv", "query", "user_hidden",
  "user_hidden_bias", "user_out",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Retriever:
  """Two trained towers.

  Attributes:
    ads_ND: vectors of ads as the ads' tower gives them, float32: length 1 over the temperature.
    read_ND: vectors of ads as the users' tower reads those of a history, float32.
    weights: kernels and biases of the users' tower by name, float32.
    heads: of its attention over the history.
  """

  ads_ND: np.ndarray
  read_ND: np.ndarray
  weights: dict[str, np.ndarray]
  heads: int

  def unseen(
    self, ads_BH: np.ndarray, features_BHF: np.ndarray, users_BF: np.ndarray, slots: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """The ads of the largest inner products that are not in the histories.

    Args:
      ads_BH: distinct ads of each history, -1 in padding. Ads that came after the towers were
        trained are read as padding, and are never found.
      features_BHF: their features, as a batch's history slots have them.
      users_BF: features of the users.
      slots: ads wanted a request.

    Returns:
      Ad rows [B, slots] int32 (-1 where the table has fewer) and inner products [B, slots] float32,
      the largest first, and of equal ones the lower row.
    """
    wanted = min(slots, len(self.ads_ND))
    ids = np.full((len(ads_BH), slots), -1, np.int32)
    scores = np.zeros((len(ads_BH), slots), np.float32)
    known_BH = np.where(ads_BH < len(self.ads_ND), ads_BH, -1)
    for begin in range(0, len(ads_BH), _CHUNK):
      some = slice(begin, begin + _CHUNK)
      known = known_BH[some]
      score_BN = self.states(known, features_BHF[some], users_BF[some]) @ self.ads_ND.T
      b, h = (known >= 0).nonzero()
      score_BN[b, known[b, h]] = -np.inf
      best = top_k(score_BN, wanted)
      found = np.take_along_axis(score_BN, best, axis=1)
      # Where nearly all ads are in the history, some of it are among the best.
      there = found > -np.inf
      ids[some, :wanted] = np.where(there, best, -1)
      scores[some, :wanted] = np.where(there, found, 0)
    return ids, scores

  def states(
    self, ads_BH: np.ndarray, features_BHF: np.ndarray, users_BF: np.ndarray
  ) -> np.ndarray:
    """Vectors of users, [B, D] float32 of length 1. Arguments as of `unseen`."""
    w = self.weights
    user_BE = np.maximum(users_BF @ w["user_in"] + w["user_in_bias"], 0)
    batch = len(ads_BH)
    heads = self.heads
    width = w["query"].shape[1]
    head = width // heads
    # Work is done for the ads that are there alone: most histories are short.
    b, h = (ads_BH >= 0).nonzero()
    about = np.concatenate([self.read_ND[ads_BH[b, h]], features_BHF[b, h]], axis=1)
    slots = np.maximum(about @ w["slot_in"] + w["slot_in_bias"], 0)
    key, value = (x.reshape(len(b), heads, head) for x in np.split(slots @ w["slot_kv"], 2, axis=1))
    query = (user_BE @ w["query"]).reshape(batch, heads, head)
    logit = (query[b] * key).sum(axis=2) / np.sqrt(head)
    # Ads of one request stand together, so that sums run over runs of rows. `filled` are the
    # requests that have some, `first` is where their runs begin, and `own` the run of each ad.
    filled, first, own = np.unique(b, return_index=True, return_inverse=True)

    def by_request(operation, x):
      return operation.reduceat(x, first) if len(b) else x

    # A softmax over the ads of each request; the largest logit is taken off, so exp is at most 1.
    weight = np.exp(logit - by_request(np.maximum, logit)[own])
    # (n, heads, 1) * (n, heads, d): each head weighs its own part of the value.
    share = (weight / by_request(np.add, weight)[own])[:, :, None] * value
    read_BD = np.zeros((batch, width), np.float32)
    mean_BD = np.zeros((batch, width), np.float32)
    read_BD[filled] = by_request(np.add, share.reshape(len(b), width))
    sums = by_request(np.add, value.reshape(len(b), width))
    mean_BD[filled] = sums / np.bincount(own)[:, None]
    both = np.concatenate([user_BE, read_BD, mean_BD], axis=1)
    hidden = np.maximum(both @ w["user_hidden"] + w["user_hidden_bias"], 0)
    out_BD = hidden @ w["user_out"]
    # The constant is for vectors of zeros, which stay zeros.
    return out_BD / np.sqrt((out_BD**2).sum(axis=1, keepdims=True) + 1e-12)

  def save(self, directory: str) -> None:
    """Writes `retriever.npz`."""
    files.save_arrays(
      os.path.join(directory, FILE), ads=self.ads_ND, read=self.read_ND, heads=self.heads,
      **self.weights,
    )  # fmt: skip

  @classmethod
  def load(cls, directory: str) -> "Retriever | None":
    """Reads what `save` wrote; None where a run has none. Raises as `files.load_arrays` does."""
    path = os.path.join(directory, FILE)
    if not os.path.exists(path):
      return None
    ads, read, heads, *weights = files.load_arrays(path, "ads", "read", "heads", *_WEIGHTS)
    return cls(ads, read, dict(zip(_WEIGHTS, weights, strict=True)), int(heads))
