"""GR4AD in NumPy, one request and one sequence at a time, from the formulas of
docs/design/method.md §2.

`Request` is what a request computes. Its decoder is LazyAR's; the zoo's others are subclasses.
"""

import collections

import numpy as np

from gr4ad_jax.features.batches import HISTORY, PADDING
from tests.models.numbers import attend, keep_all, linear, relu, rms_norm, sigmoid, softmax

KINDS = 4
BIAS_RATE = 10  # the history's bias is ten times its parameter


class Request:
  """Request `b` of a batch.

  Args:
    model: the module, of which the settings alone are read.
    params: its parameters.
    batch: requests.
    b: which of them.
    drop: dropout; see `numbers.drop_known`.
    extra_SD: what the slots carry beside the embeddings of their codes.
    skip_D: what is added to the decoder's states before the heads.
  """

  def __init__(self, model, params, batch, b, drop=keep_all, extra_SD=None, skip_D=0):
    self.config = model.config
    self.levels = len(model.codebooks)
    self.params = params
    self.b = b
    self.drop = drop
    self.kinds = batch.slot_kind_BS[b]
    self.codes_ST = batch.slot_codes_BST[b]
    self.features_SF = batch.slot_features_BSF[b]
    self.user_F = batch.user_features_BF[b]
    self.extra_SD = np.zeros((len(self.kinds), self.config.width)) if extra_SD is None else extra_SD
    self.skip_D = skip_D
    self.slots = []
    self.keys = []
    self.values = []
    self._context()
    self.m = self.lazy()
    self.first = self.states([0] * self.levels)[0]  # it reads no code, so any will do
    self.gate = 0.0
    self.attention = np.zeros(len(self.kinds))
    if self.config.copy != "off":
      self._copy()

  # The context: §2.1.

  def _numbers(self, name, x_F):
    """Features, then, of each, how far it passes each of its pieces."""
    bins = self.config.feature_bins
    pieces = []
    for number, x in enumerate(x_F):
      for piece in range(bins):
        low, high = self.params["processor"][name][number * (bins + 1) + piece :][:2]
        pieces.append(min(max((x - low) / (high - low), 0), 1))
    return np.concatenate([x_F, pieces])

  def _context(self):
    p, c = self.params["processor"], self.config
    user = linear(p["user_in"], self._numbers("user_edges", self.user_F))
    rows = [linear(p["user_out"], relu(user))]
    for s, kind in enumerate(self.kinds):
      code_D = sum(self.embed(t, self.codes_ST[s, t]) for t in range(self.levels))
      one_hot = [float(kind == number) for number in range(KINDS)]
      numbers = self._numbers("slot_edges", self.features_SF[s])
      about = np.concatenate([code_D + self.extra_SD[s], numbers, one_hot])
      slot = linear(p["slots_out"], relu(linear(p["slots_in"], about) + user))
      self.slots.append(slot)  # as the copy path and the eCPM read it: without dropout
      rows.append(self.drop(slot, self.b, 0))
    width = c.kv_groups * (c.width // c.heads)
    self.visible = [0] + [s + 1 for s, kind in enumerate(self.kinds) if kind != PADDING]
    for layer in range(c.kv_layers):
      sets = []
      for split in range(c.kv_split):
        begin = (layer * c.kv_split + split) * width
        norm = p[f"norm_{layer}_{split}"]
        blocks = [rms_norm(norm, linear(p["blocks"], row)[begin : begin + width]) for row in rows]
        sets.append([block.reshape(c.kv_groups, -1) for block in blocks])
      self.keys.append(sets[0])
      self.values.append(sets[1] if c.kv_split == 2 else sets[0])

  def embed(self, level, code):
    return np.asarray(self.params[f"codes_{level}"][code], np.float64)

  # The decoder: §2.2 and §2.3.

  def block(self, layer, h_TD):
    """Decoder layer `layer` on the states of one sequence."""
    c, p = self.config, self.params["decoder"][f"block_{layer}"]
    head = c.width // c.heads
    kv = int(np.floor(layer * c.kv_layers / c.layers))
    keys, values = ([x[kv][s] for s in self.visible] for x in (self.keys, self.values))
    h_TD = [np.asarray(h, np.float64) for h in h_TD]
    for t, h in enumerate(h_TD):
      query = linear(p["cross_q"], rms_norm(p["cross_norm"], h)).reshape(c.heads, head)
      h_TD[t] = h + self.drop(linear(p["cross_out"], attend(query, keys, values)), self.b, 0, 0)
    qkv = [
      linear(p["self_qkv"], rms_norm(p["self_norm"], h)).reshape(3, c.heads, head) for h in h_TD
    ]
    for t, h in enumerate(h_TD):
      read = attend(qkv[t][0], [qkv[u][1] for u in range(t + 1)], [qkv[u][2] for u in range(t + 1)])
      h_TD[t] = h + self.drop(linear(p["self_out"], read), self.b, 0, 0)
    for t, h in enumerate(h_TD):
      both = linear(p["ffn"]["in_proj"], rms_norm(p["ffn_norm"], h))
      gate, up = both[: len(both) // 2], both[len(both) // 2 :]
      h_TD[t] = h + self.drop(linear(p["ffn"]["out_proj"], gate * sigmoid(gate) * up), self.b, 0, 0)
    return h_TD

  def lazy(self):
    """m^(K) of all levels."""
    m = list(self.params["decoder"]["level"])
    for layer in range(self.config.lazy_layers):
      m = self.block(layer, m)
    return m

  def late(self, h_TD):
    for layer in range(self.config.lazy_layers, self.config.layers):
      h_TD = self.block(layer, h_TD)
    return [rms_norm(self.params["decoder"]["out_norm"], h) for h in h_TD]

  def fuse(self, m, s):
    """W_f [ m * (W_g s) ; s ]."""
    p = self.params["decoder"]["fuse"]
    return linear(p["out"], np.concatenate([m * linear(p["gate"], s), s]))

  def tokens(self, codes):
    """BOS, then the codes: what each of the T + 1 levels is given."""
    return [np.asarray(self.params["bos"], np.float64)] + [
      self.embed(t, code) for t, code in enumerate(codes)
    ]

  def states(self, codes):
    """States of the T levels and of the eCPM token."""
    return self.late([self.fuse(m, s) for m, s in zip(self.m, self.tokens(codes), strict=True)])

  def free_states(self):
    """Of the MTP branch: the later layers, without injection."""
    return self.late(self.m)

  # Heads, copy path, bias and eCPM: §2.4 and §3.1.

  def logits(self, level, h):
    return linear(self.params[f"head_{level}"], h + self.skip_D)

  def level_logp(self, states, codes):
    """log p of each code under its level's softmax."""
    return [np.log(softmax(self.logits(t, states[t]))[code]) for t, code in enumerate(codes)]

  def copyable(self, s):
    return self.kinds[s] == HISTORY or (self.config.copy == "context" and self.kinds[s] != PADDING)

  def _copy(self):
    """Gate and attention; slots are read without dropout."""
    p = self.params["copier"]
    scores, named = [], [s for s in range(len(self.kinds)) if self.copyable(s)]
    if not named:
      return
    for s in named:
      hidden = relu(linear(p["slot"], self.slots[s]) + linear(p["query"], self.first))
      crossed = linear(p["dot"], self.first) @ self.slots[s] / np.sqrt(self.config.width)
      scores.append(linear(p["score"], hidden)[0] + crossed)
    self.attention[named] = softmax(np.array(scores))
    self.gate = sigmoid(linear(p["gate"], self.first)[0])

  def unbiased_logp(self, codes):
    """log[(1 - g) prod_t p(s_t | s_<t) + g sum_j a_j 1[slot j carries y]]."""
    generated = np.exp(sum(self.level_logp(self.states(codes), codes)))
    copied = sum(
      a
      for a, slot in zip(self.attention, self.codes_ST, strict=True)
      if tuple(slot) == tuple(codes)
    )
    return np.log((1 - self.gate) * generated + self.gate * copied)

  def past(self):
    """Distinct UA-SIDs of the history, the latest first."""
    found = []
    for s in reversed(range(len(self.kinds))):
      if self.kinds[s] == HISTORY and tuple(self.codes_ST[s]) not in found:
        found.append(tuple(self.codes_ST[s]))
    return found

  def seen(self, codes):
    return tuple(codes) in self.past()

  @property
  def bias(self):
    return BIAS_RATE * float(self.params["history_bias"]) if self.config.history_bias else 0.0

  def final_logp(self, logp, codes):
    return logp + self.bias * self.seen(codes)

  def logp(self, codes):
    """log p with the bias, normalised: the mass of the history's latest ads stands for all."""
    past = self.past()
    scored = past[: self.config.history_bias_ads]
    mass = sum(np.exp(self.unbiased_logp(y)) for y in scored) * len(past) / max(len(scored), 1)
    mass = min(mass, 1 - 1e-4)
    return self.final_logp(self.unbiased_logp(codes), codes) - np.log(
      1 - mass + np.exp(self.bias) * mass
    )

  def ecpm_logits(self, h, codes):
    """Scores of the eCPM's bins, of a state and the mean of the copyable slots of that very ad."""
    h = h + self.skip_D
    if self.config.copy != "off":
      p = self.params["value_reader"]
      carriers = [
        s
        for s, slot in enumerate(self.codes_ST)
        if self.copyable(s) and tuple(slot) == tuple(codes)
      ]
      read = sum((self.slots[s] for s in carriers), np.zeros(self.config.width))
      read = read / max(len(carriers), 1)
      h = h + linear(p["out"], relu(linear(p["state"], h) + linear(p["slot"], read)))
    return linear(self.params["ecpm_head"], h)


def outputs(requests, codes_BMT, valued):
  """What `__call__` gives for M sequences a request, as a dict by the names of `Outputs`."""
  out = collections.defaultdict(list)
  for request, codes_MT in zip(requests, codes_BMT, strict=True):
    states = [request.states(codes) for codes in codes_MT]
    bins = [request.ecpm_logits(h[-1], codes) for h, codes in zip(states, codes_MT, strict=True)]
    free = request.free_states()
    out["logp_BM"].append([request.logp(codes) for codes in codes_MT])
    out["generated_logp_BMT"].append(
      [request.level_logp(h, y) for h, y in zip(states, codes_MT, strict=True)]
    )
    out["ecpm_logits_BMV"].append([x if m < valued else 0 * x for m, x in enumerate(bins)])
    out["mtp_logp_BMT"].append([request.level_logp(free, codes) for codes in codes_MT])
    out["gate_B"].append(request.gate)
  return {name: np.array(x) for name, x in out.items()}
