"""A model that is a table of scores, and a search of it in plain loops over what exists.

Every probability of a prefix is written out from docs/design/method.md §2.4 in float64, (1 - g) Π
softmax + g Σ_j a_j over the slots that agree with it, and a level keeps the best prefixes of those
that it kept before.
"""

import itertools
import math
import types
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from gr4ad_jax.models.history_copy import Copy

CODEBOOKS = (5, 4, 3)
CODES = np.array(
  list(itertools.product(*map(range, CODEBOOKS))), np.int32
)  # [60, 3], lexicographic
SLOTS, BINS, WIDTH = 4, 3, 2
MONEY = np.array([0.0, 1.0, 9.0], np.float32)  # of a bin
NEG = -1e9
TOTAL = 0.5  # log of what the biased probabilities are divided by


class Batch(NamedTuple):
  """B requests, the tables of each: a level's logits [B, prefixes, V], and numbers of each of
  the 60 UA-SIDs.
  """

  slot_kind_BS: np.ndarray
  slot_codes_BST: np.ndarray
  first_BPV: np.ndarray
  second_BPV: np.ndarray
  third_BPV: np.ndarray
  by_state_BNV: np.ndarray
  by_codes_BNV: np.ndarray
  bias_BN: np.ndarray
  gate_B: np.ndarray
  attention_BS: np.ndarray
  state_BD: np.ndarray
  item_BN: np.ndarray


def make_batch(B=5, seed=0):
  rng = np.random.default_rng(seed)
  slots = CODES[rng.integers(0, 60, (B, SLOTS))]
  slots[:, 1] = slots[:, 0]  # a UA-SID twice
  slots[:, 2, :2] = slots[:, 0, :2]  # one that agrees with it in two codes
  attention = rng.random((B, SLOTS))
  attention[1, 3] = 0  # a slot that can't be copied
  gate = rng.uniform(0.2, 0.8, B)
  gate[2] = 0  # no copying at all
  scores = [
    rng.normal(0, 1.5, (B, *shape))
    for shape in ((1, 5), (5, 4), (20, 3), (60, BINS), (60, BINS), (60,))
  ]
  scores[3][:, ::7] -= [0, 40, 40]  # UA-SIDs that are worth less than the floor of the logarithm
  made = Batch(
    np.ones((B, SLOTS), np.int32), slots, *scores, gate,
    attention / attention.sum(1, keepdims=True), rng.normal(size=(B, WIDTH)),
    rng.normal(0, 3, (B, 60)),
  )  # fmt: skip
  return Batch(*(x.astype(np.float32) if x.dtype == np.float64 else x for x in made))


class Start(NamedTuple):
  batch: Batch
  slot_codes_BST: np.ndarray
  skip_BD: np.ndarray


class TableModel:
  """What `beam_search`, `Searcher` and `Ranker` call of a model; `num_ads` and `item_scores` are
  an item head's.
  """

  def __init__(self, copy="history", num_ads=60):
    self.config, self.num_ads = types.SimpleNamespace(copy=copy), num_ads

  def apply(self, variables, *inputs, method):
    assert "params" in variables
    return getattr(self, f"_{method}")(*inputs)

  def _start(self, batch):
    return Start(batch, batch.slot_codes_BST, batch.state_BD)

  def _step(self, start, last_BW, level, caches):
    """A beam's cache is the number of the prefix that stands before its last code."""
    number_BW = last_BW * 0 if level == 0 else caches * CODEBOOKS[level - 1] + last_BW
    tables = (start.batch.first_BPV, start.batch.second_BPV, start.batch.third_BPV)
    logits_BWV = (
      jnp.take_along_axis(tables[level], number_BW[..., None], axis=1) if level < 3 else None
    )
    return number_BW[..., None], logits_BWV, number_BW

  def _copy_path(self, start, first_BD):
    assert first_BD.shape == (len(start.batch.gate_B), 1)
    gate_B, attention_BS = start.batch.gate_B, start.batch.attention_BS
    log_gate, log_attention = (
      jnp.where(x > 0, jnp.log(jnp.maximum(x, 1e-9)), NEG) for x in (gate_B, attention_BS)
    )
    return Copy(log_gate, jnp.log(1 - gate_B), log_attention)

  def _final_logp(self, start, logp_BW, codes_BWT):
    return logp_BW + jnp.take_along_axis(start.batch.bias_BN, code_id(codes_BWT), axis=1)

  def _prefix_logp(self, start, logp_BWT, codes_BWT):
    whole_BW = self._final_logp(start, logp_BWT[..., -1], codes_BWT) - TOTAL
    return jnp.concatenate([logp_BWT[..., :-1], whole_BW[..., None]], axis=-1)

  def _value_logits(self, start, h_BWD, codes_BWT):
    by_state = jnp.take_along_axis(start.batch.by_state_BNV, h_BWD, axis=1)
    return by_state + jnp.take_along_axis(
      start.batch.by_codes_BNV, code_id(codes_BWT)[..., None], axis=1
    )

  def _item_scores(self, batch, ads_BK):
    return jnp.where(
      ads_BK >= 0, jnp.take_along_axis(batch.item_BN, jnp.maximum(ads_BK, 0), axis=1), 1e6
    )


def code_id(codes):
  """Row of CODES of UA-SIDs [..., 3]."""
  return (codes[..., 0] * 4 + codes[..., 1]) * 3 + codes[..., 2]


def log_p(batch, b, prefix, copy=True):
  """log p of a prefix (a tuple of codes) for request b, in float64."""
  tables = (batch.first_BPV, batch.second_BPV, batch.third_BPV)
  generated, row = 1.0, 0
  for level, code in enumerate(prefix):
    score = [math.exp(float(x)) for x in tables[level][b, row]]
    generated *= score[code] / sum(score)
    row = row * CODEBOOKS[level] + code
  if not copy:
    return math.log(generated)
  copied = 0.0
  for slot in range(SLOTS):
    if tuple(batch.slot_codes_BST[b, slot, : len(prefix)].tolist()) == prefix:
      copied += float(batch.attention_BS[b, slot])
  gate = float(batch.gate_B[b])
  return math.log((1 - gate) * generated + gate * copied)


def value(batch, b, codes):
  """Expected money of a whole UA-SID."""
  row = code_id(np.array(codes))
  score = [
    math.exp(float(x + y))
    for x, y in zip(batch.by_state_BNV[b, row], batch.by_codes_BNV[b, row], strict=True)
  ]
  return sum(s * float(m) for s, m in zip(score, MONEY, strict=True)) / sum(score)


class Found(NamedTuple):
  codes: tuple
  logp: float
  value: float
  prefixes: list
  score: float


def loop_search(batch, b, active, widths, search, copy=True, valued=True, added=None):
  """Beams of request b, best first.

  Args:
    active: UA-SIDs that exist, tuples.
    widths: prefixes kept after each level.
    search: `order`, `value_power` and `ecpm_beams`.
    valued: whether values are predicted; else they are 0.
    added: prefix -> what its choice adds to log p; None: nothing.
  """
  kept = [()]
  for level, width in enumerate(widths):
    grown = []
    for prefix in kept:
      grown += sorted({codes[: level + 1] for codes in active if codes[:level] == prefix})
    score = [log_p(batch, b, prefix, copy) + (added(prefix) if added else 0) for prefix in grown]
    kept = [grown[i] for i in sorted(range(len(grown)), key=lambda i: -score[i])[:width]]
  found = []
  for codes in kept:
    prefixes = [log_p(batch, b, codes[: n + 1], copy) for n in range(3)]
    likely = prefixes[-1] + float(batch.bias_BN[b, code_id(np.array(codes))])
    prefixes[-1] = likely - TOTAL
    worth = value(batch, b, codes) if valued else 0.0
    log_worth = math.log(max(worth, 1e-6))
    score = {
      "likelihood": likely,
      "ecpm": log_worth,
      "blend": likely + search.value_power * log_worth,
    }[search.order]
    found.append(Found(codes, prefixes[-1], worth, prefixes, score))
  if search.ecpm_beams:
    found = sorted(found, key=lambda one: -one.logp)[: search.ecpm_beams]
  return sorted(found, key=lambda one: -one.score)
